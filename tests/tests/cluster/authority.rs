//! The certificate authority outlives deletions around it, is restored from a backup, and is never
//! replaced while sidecars trust another one, unless by force.

use std::time::Duration;

use serde_json::{Value, json};

use crate::check::check;
use crate::controllers::{self, SYSTEM};
use crate::kubernetes::{
    Namespace, READY, apply, eventually, get, install_naru, kubectl, run, script, sum, try_kubectl,
};
use crate::load::Load;
use crate::turns;

const SECRET: [&str; 4] = ["-n", SYSTEM, "secret", "naru-ca"];
/// How long the kubelet may take to update a ConfigMap in a pod, and the sidecar to apply it.
const TAKEN_UP: Duration = Duration::from_secs(240);

/// The authority's certificate, in base64.
fn authority() -> Option<String> {
    let get = ["get", "-o=jsonpath={.data.tls\\.crt}"];
    let certificate = try_kubectl(&[&get[..], &SECRET].concat()).ok()?;
    Some(certificate.trim().to_owned()).filter(|certificate| !certificate.is_empty())
}

/// As documented in charts/naru/README.md.
fn backup(mut object: Value) -> Value {
    let metadata = object["metadata"].as_object_mut().expect("metadata");
    for field in ["uid", "resourceVersion", "creationTimestamp"] {
        metadata.remove(field);
    }
    object
}

fn scale(replicas: u32) {
    let replicas = format!("--replicas={replicas}");
    kubectl(&[
        "-n",
        SYSTEM,
        "scale",
        "deployment/naru-controller",
        &replicas,
    ]);
}

fn rolled_out() {
    let status = ["rollout", "status", "--timeout=150s"];
    kubectl(&[&status[..], &["-n", SYSTEM, "deployment/naru-controller"]].concat());
}

/// Scales to zero, and waits until no controller is left.
fn without_controllers() {
    scale(0);
    eventually("no controller runs", READY, || match controllers::names() {
        names if names.is_empty() => Ok(()),
        names => Err(format!("{names:?}")),
    });
}

/// Restores the release in any case.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        let restored = std::thread::spawn(|| {
            install_naru(&[]);
            scale(2);
            rolled_out();
        });
        if restored.join().is_err() && !std::thread::panicking() {
            panic!("Naru could not be put back");
        }
    }
}

/// Kind, namespace and name of every object of the release.
fn chart() -> Vec<(String, Option<String>, String)> {
    let manifest = run(script("helm").args(["get", "manifest", "naru", "-n", SYSTEM]));
    let manifest = manifest.expect("the release's manifest");
    let mut objects = Vec::new();
    for document in manifest.split("\n---") {
        // The fields of the object and of its metadata have the least indentation.
        let field = |name: &str| {
            let line = document.lines().find_map(|line| line.strip_prefix(name));
            line.map(|value| value.trim().to_owned())
        };
        let Some(kind) = field("kind: ") else {
            continue;
        };
        let name = field("  name: ").expect("a name");
        objects.push((kind, field("  namespace: "), name));
    }
    objects
}

#[test]
fn deleting_an_object_of_the_chart_does_not_delete_the_authority() {
    let _turn = turns::alone();
    let _restored = Restored;
    let namespace = Namespace::meshed("parts");
    namespace.serve_web(2);
    let load = Load::start(&namespace, "load", "http://web", 50);
    let before = load.totals();
    let anchors = || {
        let found = namespace.get(&["configmap", "naru-trust-anchors"]);
        found["data"]["trust-anchors.pem"].clone()
    };
    let (authority_before, anchors_before) = (authority().expect("an authority"), anchors());
    let objects = chart();
    assert!(objects.len() > 10, "{objects:?}");
    for (kind, of, name) in &objects {
        let of = of.as_ref().map_or(vec![], |of| vec!["-n", of.as_str()]);
        kubectl(&[&["delete", kind, name][..], &of].concat());
        // Garbage collection of dependents is done by then, and controllers have had time to react.
        std::thread::sleep(Duration::from_secs(2));
        install_naru(&[]);
        if kind == "ServiceAccount" {
            // Tokens of the deleted service account are invalid.
            controllers::restart();
        }
        assert_eq!(
            authority().as_ref(),
            Some(&authority_before),
            "{kind} {name}"
        );
        assert_eq!(anchors(), anchors_before, "{kind} {name}");
    }
    load.assert_none_failed(&before);
    namespace.kubectl(&["rollout", "restart", "deployment/web"]);
    namespace.rolled_out("deployment/web");
    eventually("all is well", READY, || match check(&[]) {
        (true, _) => Ok(()),
        (false, report) => Err(format!("{report:#}")),
    });
}

#[test]
fn a_lost_authority_is_restored_from_a_backup_and_not_replaced() {
    let _turn = turns::alone();
    let _restored = Restored;
    let namespace = Namespace::meshed("lost");
    namespace.serve_web(2);
    let load = Load::start(&namespace, "load", "http://web", 50);
    let before = load.totals();
    let secret = backup(get(&SECRET));
    let authority_before = authority();
    without_controllers();
    kubectl(&[&["delete"][..], &SECRET].concat());
    scale(1);
    eventually("the controller says why it does not start", READY, || {
        let pods = get(&[
            "-n",
            SYSTEM,
            "pods",
            "-l",
            "app.kubernetes.io/component=controller",
        ]);
        let text = pods.to_string();
        match text.contains("another one is not made") && text.contains("lost/web") {
            true => Ok(()),
            false => Err(text),
        }
    });
    let (ok, report) = check(&[]);
    assert!(!ok);
    let report = report.to_string();
    assert!(report.contains("another one is not made"), "{report}");
    assert!(
        report.contains("the Secret naru-ca in naru-system is not there"),
        "{report}"
    );
    assert_eq!(authority(), None);

    apply(&[secret]);
    kubectl(&[
        "-n",
        SYSTEM,
        "rollout",
        "restart",
        "deployment/naru-controller",
    ]);
    rolled_out();
    assert_eq!(authority(), authority_before);
    namespace.kubectl(&["rollout", "restart", "deployment/web"]);
    namespace.rolled_out("deployment/web");
    load.assert_none_failed(&before);
}

#[test]
fn sidecars_accept_an_authority_that_was_made_by_force_through_their_tokens() {
    let _turn = turns::alone();
    let _restored = Restored;
    let namespace = Namespace::meshed("forced");
    namespace.serve_web(1);
    namespace.apply(&[crate::objects::deployment(
        "client",
        1,
        crate::objects::pod_spec(crate::objects::server()),
    )]);
    namespace.rolled_out("deployment/client");
    let pods = namespace.pod_names("naru.dev/injected=true");
    assert_eq!(pods.len(), 2);
    let authority_before = authority();
    without_controllers();
    kubectl(&[&["delete"][..], &SECRET].concat());
    install_naru(&["--set=identity.replaceLost=true"]);
    assert_ne!(authority(), authority_before);
    eventually("every sidecar has its stream again", TAKEN_UP, || {
        let connected = pods.iter().map(|pod| namespace.metrics(pod, 15020));
        let connected: Vec<f64> = connected
            .map(|metrics| sum(&metrics, "naru_controller_connected", &[]))
            .collect();
        match connected.iter().all(|connected| *connected == 1.0) {
            true => Ok(()),
            false => Err(format!("{connected:?}")),
        }
    });
    eventually(
        "naru check has no more to say",
        READY,
        || match check(&[]) {
            (true, _) => Ok(()),
            (false, report) => Err(format!("{report:#}")),
        },
    );
    assert_eq!(namespace.pod_names("naru.dev/injected=true"), pods);
}

#[test]
fn invalid_values_are_rejected_when_they_are_written() {
    let _turn = turns::alone();
    let namespace = Namespace::with_labels("values", json!({}));
    let name = &*namespace.0;
    let refused = |arguments: &[&str]| match try_kubectl(arguments) {
        Err(error) if error.contains("is not understood") => {}
        other => panic!("{arguments:?}: {other:?}"),
    };
    // A policy takes effect within seconds of its creation.
    eventually("the policy is in force", READY, || {
        match try_kubectl(&[
            "annotate",
            "--dry-run=server",
            "namespace",
            name,
            "naru.dev/mtls=on",
        ]) {
            Err(error) if error.contains("expected permissive or strict") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    kubectl(&["annotate", "namespace", name, "naru.dev/mtls=STRICT"]);
    refused(&["label", "namespace", name, "naru.dev/inject=true"]);
    namespace.apply(&[crate::objects::service("web")]);
    let annotate = ["-n", name, "annotate", "service/web"];
    refused(&[&annotate[..], &["naru.dev/opaque-ports=80-90"]].concat());
    kubectl(&[&annotate[..], &["naru.dev/opaque-ports=80, 81"]].concat());
    let template = |annotation: &str, value: &str| {
        let spec = crate::objects::pod_spec(crate::objects::server());
        let mut object = crate::objects::deployment("web", 0, spec);
        object["metadata"]["namespace"] = name.into();
        object["spec"]["template"]["metadata"]["annotations"] = json!({ annotation: value });
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": [object] });
        crate::kubernetes::try_apply(&list.to_string())
    };
    for (annotation, value) in [
        ("naru.dev/mtls", "all"),
        ("naru.dev/inject", "true"),
        ("naru.dev/skip-outbound-ports", "http"),
        ("naru.dev/proxy-memory-limit", "lots"),
    ] {
        let error = template(annotation, value).expect_err(value);
        assert!(error.contains("is not understood"), "{error}");
    }
    template("naru.dev/mtls", "Permissive").expect("it is understood");

    // Existing objects can still be changed otherwise, and are reported.
    let bindings = without_policy(|| {
        kubectl(&[
            "annotate",
            "--overwrite",
            "namespace",
            name,
            "naru.dev/mtls=on",
        ]);
    });
    eventually(
        "the policy is in force again",
        READY,
        || match try_kubectl(&[
            "annotate",
            "--dry-run=server",
            "service/web",
            "-n",
            name,
            "naru.dev/opaque-ports=x",
            "--overwrite",
        ]) {
            Err(error) if error.contains("is not understood") => Ok(()),
            other => Err(format!("{other:?}")),
        },
    );
    assert_eq!(bindings["kind"], "ValidatingAdmissionPolicyBinding");
    kubectl(&["label", "namespace", name, "team=shop"]);
    let (ok, report) = check(&[]);
    assert!(ok, "{report:#}");
    let report = report.to_string();
    assert!(
        report.contains("Namespace values: the annotation naru.dev/mtls"),
        "{report}"
    );
}

/// Runs a function while Namespaces are not validated.
pub fn without_policy(act: impl FnMut()) -> Value {
    let mut act = act;
    let name = ["validatingadmissionpolicybinding", "naru-annotations"];
    let binding = backup(get(&name));
    kubectl(&[&["delete"][..], &name].concat());
    // It takes a moment until the policy is no longer enforced.
    eventually("the policy is not in force", READY, || {
        let dry_run = ["annotate", "--dry-run=server", "namespace", "default"];
        try_kubectl(&[&dry_run[..], &["naru.dev/mtls=on"]].concat())
    });
    act();
    apply(std::slice::from_ref(&binding));
    binding
}
