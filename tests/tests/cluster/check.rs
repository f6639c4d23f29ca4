//! `naru check` on a real cluster: a healthy one, and faulty ones.

use serde_json::{Value, json};

use crate::controllers::Away;
use crate::kubernetes::{Namespace, READY, apply, eventually, kubectl, script};
use crate::turns;

/// Whether there is no failure, and the report.
pub fn check(arguments: &[&str]) -> (bool, Value) {
    let mut command = script("naru");
    command.args(["check", "--output=json"]).args(arguments);
    let output = command.output().expect("tests/cluster/naru");
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|error| {
        panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr))
    });
    assert_eq!(report["ok"], output.status.success(), "{report}");
    (output.status.success(), report)
}

/// The findings at one of the levels, about `about`.
fn found(report: &Value, level: &str, about: &str) -> Vec<String> {
    let groups = report["groups"].as_array().into_iter().flatten();
    let findings = groups.flat_map(|group| group["findings"].as_array().into_iter().flatten());
    let findings = findings.filter(|finding| finding["level"] == level);
    let texts = findings.filter_map(|finding| finding["text"].as_str());
    let texts = texts.filter(|text| text.contains(about));
    texts.map(str::to_owned).collect()
}

#[test]
fn a_healthy_installation_has_no_findings_and_problems_are_named() {
    let _turn = turns::alone();
    // Created before the label: these pods have no sidecar.
    let namespace = Namespace::with_labels("check", json!({}));
    namespace.serve_web(2);
    kubectl(&["label", "namespace", "check", "naru.dev/inject=enabled"]);
    let (ok, report) = check(&[]);
    assert!(ok, "{report:#}");
    assert_eq!(
        found(&report, "warning", "check/deployment/web: no sidecar").len(),
        1,
        "{report:#}"
    );
    assert_eq!(
        found(&report, "ok", "a new pod in check would get a sidecar").len(),
        1,
        "{report:#}"
    );

    namespace.kubectl(&["rollout", "restart", "deployment/web"]);
    namespace.rolled_out("deployment/web");
    eventually("the old pods are gone", READY, || {
        let (ok, report) = check(&[]);
        match ok && found(&report, "warning", "check").is_empty() {
            true => Ok(()),
            false => Err(format!("{report:#}")),
        }
    });
    let (ok, report) = check(&["--pre"]);
    assert!(ok, "{report:#}");
    assert_eq!(report["stage"], "before");

    // A backend that does not exist.
    namespace.apply(&[json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": "web" },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": "web" }],
            "rules": [{ "backendRefs": [{ "name": "nobody", "port": 80 }] }],
        },
    })]);
    eventually("the route's status is told", READY, || {
        let (ok, report) = check(&[]);
        let told = found(&report, "warning", "HTTPRoute check/web");
        match ok && told.iter().any(|text| text.contains("not ResolvedRefs")) {
            true => Ok(()),
            false => Err(format!("{report:#}")),
        }
    });

    // A PodSecurity level that rejects the init container.
    let enforce = "pod-security.kubernetes.io/enforce";
    kubectl(&[
        "label",
        "namespace",
        "check",
        &format!("{enforce}=baseline"),
    ]);
    let (ok, report) = check(&[]);
    assert!(!ok);
    assert_eq!(
        found(&report, "failure", "violates PodSecurity").len(),
        1,
        "{report:#}"
    );
    kubectl(&["label", "namespace", "check", &format!("{enforce}-")]);
}

#[test]
fn a_missing_controller_is_reported_by_every_check_that_needs_it() {
    let _turn = turns::alone();
    let _namespace = Namespace::meshed("away");
    let away = Away::take();
    eventually("nobody answers", READY, || {
        let (ok, report) = check(&[]);
        let told = [
            found(&report, "failure", "0 of 0 controllers are ready"),
            found(&report, "failure", "has no endpoint"),
            found(&report, "failure", "a new pod in away would be refused"),
        ];
        match !ok && told.iter().all(|told| told.len() == 1) {
            true => Ok(()),
            false => Err(format!("{told:?}")),
        }
    });
    drop(away);
    eventually("all is well again", READY, || match check(&[]) {
        (true, _) => Ok(()),
        (false, report) => Err(format!("{report:#}")),
    });
}

#[test]
fn a_user_without_permissions_gets_the_missing_ones() {
    let _turn = turns::beside_others();
    // As a user without permissions: the kubeconfig is the administrator's, with impersonation.
    let kubeconfig =
        std::env::temp_dir().join(format!("naru-check-{}.kubeconfig", std::process::id()));
    let view = kubectl(&["config", "view", "--raw", "--flatten", "-o", "json"]);
    let mut config: Value = serde_json::from_str(&view).expect("JSON");
    config["users"][0]["user"]["as"] = "jane".into();
    std::fs::write(&kubeconfig, config.to_string()).expect("a file");
    let path = format!("--kubeconfig={}", kubeconfig.display());
    let output = script("naru")
        .args(["check", &path])
        .output()
        .expect("tests/cluster/naru");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("jane"), "{text}");
    // Read access is enough for most of it.
    apply(&[json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": { "name": "check-jane" },
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view",
        },
        "subjects": [{ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "jane" }],
    })]);
    let (_, report) = check(&[&path]);
    kubectl(&["delete", "clusterrolebinding", "check-jane"]);
    assert_eq!(report["stage"], "after", "{report:#}");
    assert!(!found(&report, "warning", "jane").is_empty(), "{report:#}");
    assert!(
        !found(&report, "ok", "controllers are ready").is_empty(),
        "{report:#}"
    );
    let (ok, report) = check(&["--pre", &path]);
    assert!(!ok);
    assert_eq!(
        found(&report, "failure", "you may not: ").len(),
        1,
        "{report:#}"
    );
    let _of_this_test = std::fs::remove_file(kubeconfig);
}

#[test]
fn an_unreachable_api_server_is_one_line_within_seconds() {
    let _turn = turns::beside_others();
    let kubeconfig =
        std::env::temp_dir().join(format!("naru-nobody-{}.kubeconfig", std::process::id()));
    let nobody = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
        "clusters": [{
            "name": "c",
            "cluster": { "server": "https://10.200.0.253:6443", "insecure-skip-tls-verify": true },
        }],
        "users": [{ "name": "u", "user": {} }],
    });
    std::fs::write(&kubeconfig, nobody.to_string()).expect("a file");
    let path = format!("--kubeconfig={}", kubeconfig.display());
    let (ok, report) = check(&[&path]);
    assert!(!ok);
    let told = found(&report, "failure", "https://10.200.0.253:6443");
    assert_eq!(told.len(), 1, "{report:#}");
    let _of_this_test = std::fs::remove_file(kubeconfig);
}
