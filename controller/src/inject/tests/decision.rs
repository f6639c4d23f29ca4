//! The decision which pods get a sidecar.

use super::*;

#[test]
fn the_pod_decides_before_its_namespace() {
    let cases = [
        (None, true, true),
        (None, false, false),
        (Some("enabled"), false, true),
        (Some("disabled"), true, false),
    ];
    for (annotation, by_namespace, expected) in cases {
        let pod = match annotation {
            Some(value) => annotated(&simple(), json!({ "naru.dev/inject": value })),
            None => simple(),
        };
        let decision = decided(&pod, by_namespace, &options()).expect("a decision");
        let is_injected = matches!(decision, Decision::Inject(_));
        assert_eq!(is_injected, expected, "{annotation:?} {by_namespace}");
    }
    let pod = annotated(&simple(), json!({ "naru.dev/inject": "true" }));
    let refusal = decided(&pod, true, &options())
        .expect_err("a refusal")
        .to_string();
    assert!(
        refusal.contains("naru.dev/inject") && refusal.contains("enabled or disabled"),
        "{refusal}"
    );
}

#[test]
fn a_sidecar_comes_first_and_the_apps_containers_keep_their_order() {
    let spec = json!({
        "serviceAccountName": "web",
        "initContainers": [{ "name": "migrate" }, { "name": "warm" }],
        "containers": [{ "name": "web" }, { "name": "log" }],
        "volumes": [{ "name": "data", "emptyDir": {} }],
    });
    let pod = pod(spec.clone());
    let native = injected(&pod);
    assert_eq!(
        names(&native["spec"]["initContainers"]),
        ["naru-init", "naru-proxy", "migrate", "warm"]
    );
    assert_eq!(names(&native["spec"]["containers"]), ["web", "log"]);
    assert_eq!(names(&native["spec"]["volumes"]), ["data", "naru-identity"]);
    assert_eq!(
        native["spec"]["initContainers"][1]["restartPolicy"],
        "Always"
    );
    assert_eq!(native["spec"]["containers"], spec["containers"]);
    assert_eq!(native["spec"]["serviceAccountName"], "web");
    assert_eq!(native["metadata"]["labels"]["naru.dev/injected"], "true");
    let annotations = &native["metadata"]["annotations"];
    assert_eq!(
        annotations["kubectl.kubernetes.io/default-container"],
        "web"
    );
    assert_eq!(annotations["prometheus.io/port"], "15020");

    let plain = injected_with(
        &pod,
        &Options {
            native_sidecars: false,
            ..options()
        },
    );
    assert_eq!(
        names(&plain["spec"]["initContainers"]),
        ["migrate", "warm", "naru-init"]
    );
    assert_eq!(
        names(&plain["spec"]["containers"]),
        ["naru-proxy", "web", "log"]
    );
    let sidecar = &plain["spec"]["containers"][0];
    assert_eq!(sidecar["restartPolicy"], Value::Null);
    assert_eq!(
        sidecar["lifecycle"]["postStart"]["exec"]["command"][1],
        "wait"
    );
}

#[test]
fn an_injected_pod_stays_unchanged() {
    for native_sidecars in [true, false] {
        let options = Options {
            native_sidecars,
            ..options()
        };
        let once = injected_with(&simple(), &options);
        assert_eq!(
            decided(&once, true, &options),
            Ok(Decision::Leave(Vec::new()))
        );
    }
}

#[test]
fn a_label_without_a_sidecar_does_not_count_as_one() {
    let mut pod = simple();
    pod["metadata"]["labels"] = json!({ "app": "web", "naru.dev/injected": "true" });
    assert_eq!(
        names(&injected(&pod)["spec"]["initContainers"]),
        ["naru-init", "naru-proxy"]
    );
    let pod = annotated(&pod, json!({ "naru.dev/inject": "disabled" }));
    match decided(&pod, true, &options()) {
        Ok(Decision::Leave(operations)) => {
            assert_eq!(
                applied(&pod, &operations)["metadata"]["labels"],
                json!({ "app": "web" })
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pod_that_cannot_have_a_sidecar_is_skipped_with_the_reason() {
    let mut host_network = simple();
    host_network["spec"]["hostNetwork"] = json!(true);
    let mut outside_dns = simple();
    outside_dns["spec"]["dnsPolicy"] = json!("Default");
    let mut windows = simple();
    windows["spec"]["os"] = json!({ "name": "windows" });
    let mirror = annotated(&simple(), json!({ "kubernetes.io/config.mirror": "x" }));
    for pod in [host_network, outside_dns, windows, mirror] {
        match decided(&pod, true, &options()) {
            Ok(Decision::Skip { reason, operations }) => {
                let after = applied(&pod, &operations);
                assert_eq!(after["metadata"]["annotations"]["naru.dev/skipped"], reason);
                assert_eq!(after["spec"], pod["spec"]);
            }
            other => panic!("{other:?}"),
        }
    }
    let mut job = simple();
    job["metadata"]["ownerReferences"] =
        json!([{ "apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "1" }]);
    let plain = Options {
        native_sidecars: false,
        ..options()
    };
    assert!(matches!(
        decided(&job, true, &plain),
        Ok(Decision::Skip { .. })
    ));
    assert!(matches!(
        decided(&job, true, &options()),
        Ok(Decision::Inject(_))
    ));
}

#[test]
fn a_pod_that_conflicts_with_a_sidecar_is_refused() {
    let with = |key: &str, value: Value| {
        let mut pod = simple();
        pod["spec"]["containers"][0][key] = value;
        decided(&pod, true, &options()).expect_err("a refusal")
    };
    let port = |port: i32| json!([{ "containerPort": port }]);
    assert!(matches!(
        with("ports", port(15001)),
        Refusal::Port { port: 15001, .. }
    ));
    assert!(matches!(
        with("ports", port(15020)),
        Refusal::Port { port: 15020, .. }
    ));
    let user = json!({ "runAsUser": 1337 });
    assert_eq!(
        with("securityContext", user.clone()),
        Refusal::User("web".to_owned())
    );
    assert_eq!(
        with("name", json!("naru-proxy")),
        Refusal::ContainerName("naru-proxy")
    );
    assert_eq!(
        with("name", json!("naru-init")),
        Refusal::ContainerName("naru-init")
    );
    // Without injection, containers may have any name.
    let mut named = annotated(&simple(), json!({ "naru.dev/inject": "disabled" }));
    named["spec"]["containers"][0]["name"] = json!("naru-proxy");
    let left = decided(&named, true, &options());
    assert_eq!(left, Ok(Decision::Leave(Vec::new())));
    let mut pod = simple();
    pod["spec"]["securityContext"] = user;
    let refusal = decided(&pod, true, &options());
    assert_eq!(refusal, Err(Refusal::User("web".to_owned())));
    let mut pod = simple();
    pod["spec"]["volumes"] = json!([{ "name": "naru-identity", "emptyDir": {} }]);
    let refusal = decided(&pod, true, &options());
    assert_eq!(refusal, Err(Refusal::VolumeName("naru-identity")));
}
