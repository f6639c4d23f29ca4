//! The life cycle of a release with a real Helm: install, upgrade and rollback under load, and an
//! uninstall without a trace.

use std::collections::BTreeSet;
use std::process::Command;

use naru_tests::repository;
use serde_json::{Value, json};

use crate::controllers::SYSTEM;
use crate::kubernetes::{
    Namespace, READY, eventually, get, install_naru, kubectl, run, script, try_kubectl,
};
use crate::load::Load;
use crate::turns;

fn helm(arguments: &[&str]) -> String {
    let namespace = ["--namespace", SYSTEM];
    let arguments = [arguments, &namespace].concat();
    run(script("helm").args(&arguments))
        .unwrap_or_else(|error| panic!("helm {arguments:?}: {error}"))
}

/// Restores the release of `up` for the following tests, in any case.
struct Reinstalled;

impl Drop for Reinstalled {
    fn drop(&mut self) {
        // In its own thread: a failure here must not hide the first one.
        let installed = std::thread::spawn(|| install_naru(&[])).join();
        if installed.is_err() && !std::thread::panicking() {
            panic!("Naru could not be installed again");
        }
    }
}

/// Adds a second tag to images on the nodes.
fn tag_images(tag: &str) {
    let text = format!(
        "source {}
         for node in \"${{nodes[@]}}\"; do
           for image in proxy controller; do
             name=docker.io/naru/$image
             in_node \"$node\" ctr -n k8s.io images tag --force $name:dev $name:{tag}
           done
         done",
        repository().join("tests/cluster/common.sh").display()
    );
    run(Command::new("bash").args(["-c", &text])).expect("tagging the images");
}

/// Kind, namespace and name of every object, except those that Kubernetes creates for itself
/// continuously.
fn objects() -> BTreeSet<String> {
    let kinds = kubectl(&["api-resources", "--verbs=list", "-o", "name"]);
    let passing = ["events", "events.events.k8s.io", "pods.metrics.k8s.io"];
    let kinds: Vec<&str> = kinds
        .lines()
        .filter(|kind| !passing.contains(kind))
        .collect();
    assert!(kinds.len() > 40, "{kinds:?}");
    let name =
        "-o=jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{\"\\n\"}{end}";
    let found = kubectl(&["get", &kinds.join(","), "--all-namespaces", name]);
    let mut objects: BTreeSet<String> = found.lines().map(str::to_owned).collect();
    // Objects of a rollout, which are deleted with its history or not.
    let rolling = ["Pod ", "ReplicaSet ", "EndpointSlice ", "PodMetrics "];
    objects.retain(|object| {
        let in_user_namespace = object.contains(" release/");
        !(in_user_namespace && rolling.iter().any(|kind| object.starts_with(kind)))
    });
    objects
}

/// The values of one field of the sidecar in all injected pods.
fn of_sidecars(namespace: &Namespace, read: fn(&Value) -> Option<String>) -> BTreeSet<String> {
    let pods = namespace.pods("app=web");
    let containers = pods.iter().flat_map(|pod| {
        pod["spec"]["initContainers"]
            .as_array()
            .into_iter()
            .flatten()
    });
    let sidecars = containers.filter(|container| container["name"] == "naru-proxy");
    sidecars.filter_map(read).collect()
}

fn image(container: &Value) -> Option<String> {
    container["image"].as_str().map(str::to_owned)
}

fn log(container: &Value) -> Option<String> {
    let environment = container["env"].as_array()?;
    let log = environment
        .iter()
        .find(|variable| variable["name"] == "NARU_LOG")?;
    log["value"].as_str().map(str::to_owned)
}

#[test]
fn an_upgrade_and_a_rollback_fail_no_request_and_restart_no_app() {
    let _turn = turns::alone();
    let _reinstalled = Reinstalled;
    let namespace = Namespace::meshed("upgrade");
    namespace.serve_web(2);
    let load = Load::start(&namespace, "load", "http://web", 200);
    let before = load.totals();
    let pods = namespace.pod_names("app=web");
    tag_images("next");
    install_naru(&[
        "--set=controller.image.tag=next",
        "--set=proxy.image.tag=next",
        "--set=controller.replicas=3",
        "--set=proxy.logLevel=warn",
    ]);
    let controller = get(&["-n", SYSTEM, "deployment/naru-controller"]);
    assert_eq!(controller["status"]["readyReplicas"], 3);
    assert_eq!(namespace.pod_names("app=web"), pods, "a pod was restarted");
    let upgraded = load.assert_none_failed(&before);
    println!("upgrade: {before:?} to {upgraded:?}");

    // Pods that are created from now on have the new values.
    namespace.kubectl(&["rollout", "restart", "deployment/web"]);
    namespace.rolled_out("deployment/web");
    assert!(
        of_sidecars(&namespace, image)
            .iter()
            .all(|image| image.ends_with("proxy:next"))
    );
    assert_eq!(
        of_sidecars(&namespace, log),
        BTreeSet::from(["warn".to_owned()])
    );
    let pods = namespace.pod_names("app=web");
    let upgraded = load.totals();

    helm(&["rollback", "naru", "--wait", "--timeout", "150s"]);
    let controller = get(&["-n", SYSTEM, "deployment/naru-controller"]);
    assert_eq!(controller["spec"]["replicas"], 2);
    assert_eq!(namespace.pod_names("app=web"), pods, "a pod was restarted");
    println!("rollback: to {:?}", load.assert_none_failed(&upgraded));
    let webhook = get(&["mutatingwebhookconfiguration/naru-injector"]);
    let bundles = webhook["webhooks"].as_array().expect("webhooks").iter();
    for webhook in bundles {
        assert!(webhook["clientConfig"]["caBundle"].is_string(), "{webhook}");
    }
    namespace.kubectl(&["rollout", "restart", "deployment/web"]);
    namespace.rolled_out("deployment/web");
    assert!(
        of_sidecars(&namespace, image)
            .iter()
            .all(|image| image.ends_with("proxy:dev"))
    );
    println!("restart: to {:?}", load.assert_none_failed(&upgraded));
}

#[test]
fn uninstalling_leaves_nothing_but_a_given_authority() {
    let _turn = turns::alone();
    let _reinstalled = Reinstalled;
    no_pod_has_a_sidecar();
    helm(&["uninstall", "naru", "--wait", "--timeout", "120s"]);
    let namespace = Namespace::with_labels("release", json!({}));
    namespace.serve_web(2);
    eventually("what belonged to the release goes with it", READY, || {
        let left = objects();
        let ours: Vec<&String> = left.iter().filter(|object| is_of_release(object)).collect();
        match ours.is_empty() {
            true => Ok(()),
            false => Err(format!("{ours:#?}")),
        }
    });
    eventually("namespaces of other tests are gone", READY, || {
        let namespaces = get(&["namespaces"]);
        let going = (namespaces["items"].as_array().into_iter().flatten())
            .filter(|namespace| namespace["metadata"]["deletionTimestamp"].is_string())
            .count();
        match going {
            0 => Ok(()),
            _ => Err(format!("{going} are not")),
        }
    });
    let before = objects();

    install_naru(&[
        "--set=monitoring.scrapeAnnotations=false",
        "--set=controller.podDisruptionBudget.enabled=true",
    ]);
    kubectl(&[
        "label",
        "namespace",
        &namespace.0,
        "naru.dev/inject=enabled",
    ]);
    namespace.kubectl(&["rollout", "restart", "deployment/web"]);
    namespace.rolled_out("deployment/web");
    assert_eq!(
        of_sidecars(&namespace, image).len(),
        1,
        "the pods have sidecars"
    );
    let during = objects();
    for made in [
        format!("Secret {SYSTEM}/naru-ca"),
        "ConfigMap release/naru-trust-anchors".to_owned(),
        format!("Lease {SYSTEM}/naru-controller-status"),
        "MutatingWebhookConfiguration /naru-injector".to_owned(),
    ] {
        assert!(during.contains(&made), "{made}");
    }
    let load = Load::start(&namespace, "load", "http://web", 50);
    let well = load.totals();
    refused_uninstall();
    assert!(objects().contains(&format!("Secret {SYSTEM}/naru-ca")));
    out_of_the_mesh(&namespace);
    load.assert_none_failed(&well);
    namespace.kubectl(&["delete", "pod", "load"]);
    namespace.kubectl(&[
        "wait",
        "--for=delete",
        "pod",
        "-l",
        "naru.dev/injected=true",
        "--timeout=120s",
    ]);
    helm(&["uninstall", "naru", "--wait", "--timeout", "120s"]);
    eventually("all is as it was", READY, || {
        let after = objects();
        let left: Vec<&String> = after.difference(&before).collect();
        let lost: Vec<&String> = before.difference(&after).collect();
        match left.is_empty() && lost.is_empty() {
            true => Ok(()),
            false => Err(format!("left: {left:#?}, lost: {lost:#?}")),
        }
    });

    // New pods are admitted.
    namespace.kubectl(&["rollout", "restart", "deployment/web"]);
    namespace.rolled_out("deployment/web");
    assert!(of_sidecars(&namespace, image).is_empty());

    let secret = own_authority();
    kubectl(&["-n", SYSTEM, "apply", "-f", secret.to_str().expect("text")]);
    install_naru(&["--set=identity.create=false"]);
    let label = ["naru.dev/inject=enabled", "--overwrite"];
    kubectl(&[&["label", "namespace", &namespace.0][..], &label].concat());
    let role = get(&["-n", SYSTEM, "role/naru-controller"]);
    assert!(
        !role["rules"]
            .to_string()
            .contains("\"secrets\"],\"verbs\":[\"create\"]"),
        "{role}"
    );
    namespace.kubectl(&["rollout", "restart", "deployment/web"]);
    namespace.rolled_out("deployment/web");
    let given = kubectl(&[
        "-n",
        SYSTEM,
        "get",
        "secret",
        "naru-ca",
        "-o=jsonpath={.data}",
    ]);
    out_of_the_mesh(&namespace);
    namespace.kubectl(&[
        "wait",
        "--for=delete",
        "pod",
        "-l",
        "naru.dev/injected=true",
        "--timeout=120s",
    ]);
    helm(&["uninstall", "naru", "--wait", "--timeout", "120s"]);
    eventually("the anchors are gone", READY, || {
        match try_kubectl(&["-n", &namespace.0, "get", "configmap", "naru-trust-anchors"]) {
            Err(error) if error.contains("NotFound") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    let kept = kubectl(&[
        "-n",
        SYSTEM,
        "get",
        "secret",
        "naru-ca",
        "-o=jsonpath={.data}",
    ]);
    assert_eq!(kept, given);
    kubectl(&["-n", SYSTEM, "delete", "secret", "naru-ca"]);
    let _of_this_test = std::fs::remove_file(secret);
}

/// Waits until the pods of namespaces that are being deleted are gone: Helm uninstalls only then.
pub fn no_pod_has_a_sidecar() {
    eventually("no pod has a sidecar", READY, || match injected() {
        names if names.is_empty() => Ok(()),
        names => Err(names),
    });
}

fn injected() -> String {
    kubectl(&[
        "get",
        "pods",
        "-A",
        "-l",
        "naru.dev/injected=true",
        "-o",
        "name",
    ])
}

/// Helm refuses to uninstall while pods have sidecars, with instructions.
fn refused_uninstall() {
    let uninstall = [
        "uninstall",
        "naru",
        "--namespace",
        SYSTEM,
        "--timeout",
        "120s",
    ];
    let refused = run(script("helm").args(uninstall)).expect_err("pods have sidecars");
    let logs = kubectl(&["-n", SYSTEM, "logs", "job/naru-uninstall-check"]);
    let remedy = "kubectl label namespace release naru.dev/inject-";
    assert!(logs.contains(remedy), "{logs}");
    // Helm 4 shows the log by itself.
    assert!(refused.contains(remedy), "{refused}");
}

/// As documented in charts/naru/README.md.
fn out_of_the_mesh(namespace: &Namespace) {
    kubectl(&["label", "namespace", &namespace.0, "naru.dev/inject-"]);
    namespace.kubectl(&["rollout", "restart", "deployment/web"]);
    namespace.rolled_out("deployment/web");
}

/// Helm leaves the namespace, and Kubernetes creates two objects in every one.
fn is_of_release(object: &str) -> bool {
    let kubernetes = object.ends_with("/default") || object.ends_with("/kube-root-ca.crt");
    object.contains("naru") && !kubernetes && !object.starts_with("Namespace /")
}

/// A Secret with a user's own authority, as a manifest.
fn own_authority() -> std::path::PathBuf {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};
    let mut params = CertificateParams::default();
    let name = "spiffe://cluster.local".try_into().expect("a URI");
    params.subject_alt_names = vec![SanType::URI(name)];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().expect("a key");
    let certificate = params.self_signed(&key).expect("a certificate").pem();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": { "name": "naru-ca", "namespace": SYSTEM },
        "stringData": { "tls.crt": certificate, "tls.key": key.serialize_pem() },
    });
    let path = std::env::temp_dir().join(format!("naru-own-authority-{}.json", std::process::id()));
    std::fs::write(&path, secret.to_string()).expect("a file");
    path
}
