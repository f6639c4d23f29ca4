use super::*;

use json_patch::Patch;
use serde_json::{Value, from_value};

pub(super) fn options() -> Options {
    Options {
        image: "naru-proxy:1".to_owned(),
        pull_policy: PullPolicy::IfNotPresent,
        controller: "naru-controller.naru-system.svc:15010".to_owned(),
        controller_identity: "spiffe://cluster.local/ns/naru-system/sa/naru-controller".to_owned(),
        native_sidecars: true,
        redirection: Redirection::Init,
        class_e_in_use: false,
        log: "info".to_owned(),
        resources: Resources {
            cpu_request: "20m".to_owned(),
            cpu_limit: String::new(),
            memory_request: "32Mi".to_owned(),
            memory_limit: "256Mi".to_owned(),
        },
    }
}

fn pod(spec: Value) -> Value {
    json!({ "metadata": { "generateName": "web-" }, "spec": spec })
}

fn simple() -> Value {
    pod(json!({ "containers": [{ "name": "web", "image": "web:1" }] }))
}

fn annotated(pod: &Value, annotations: Value) -> Value {
    let mut pod = pod.clone();
    pod["metadata"]["annotations"] = annotations;
    pod
}

fn decided(pod: &Value, by_namespace: bool, options: &Options) -> Result<Decision, Refusal> {
    decide(
        &from_value(pod.clone()).expect("a pod"),
        by_namespace,
        options,
    )
}

fn applied(pod: &Value, operations: &[Operation]) -> Value {
    let patch: Patch =
        from_value(serde_json::to_value(operations).expect("JSON")).expect("a patch");
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).expect("a patch that fits");
    // What came out is a pod, with nothing misspelled in what was put in.
    let typed: Pod = from_value(pod.clone()).expect("a pod");
    let again = serde_json::to_value(typed).expect("JSON");
    assert_eq!(again["spec"], pod["spec"]);
    pod
}

fn injected_with(pod: &Value, options: &Options) -> Value {
    match decided(pod, true, options) {
        Ok(Decision::Inject(operations)) => applied(pod, &operations),
        other => panic!("{other:?}"),
    }
}

fn injected(pod: &Value) -> Value {
    injected_with(pod, &options())
}

fn names(containers: &Value) -> Vec<&str> {
    let containers = containers.as_array().expect("containers");
    containers
        .iter()
        .filter_map(|c| c["name"].as_str())
        .collect()
}

fn variable(container: &Value, name: &str) -> Option<String> {
    let env = container["env"].as_array().expect("variables");
    let found = env.iter().find(|variable| variable["name"] == name)?;
    Some(found["value"].as_str().expect("a value").to_owned())
}

#[test]
fn the_pod_decides_and_then_its_namespace() {
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
fn a_pod_that_has_its_sidecar_is_left_as_it_is() {
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
fn a_label_without_a_sidecar_is_no_sidecar() {
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

fn by_cni() -> Options {
    Options {
        redirection: Redirection::Cni,
        ..options()
    }
}

#[test]
fn with_the_cni_plugin_no_container_may_do_anything() {
    let pod = injected_with(&simple(), &by_cni());
    for container in pod["spec"]["initContainers"].as_array().expect("ours") {
        // What PodSecurity `restricted` asks of a container.
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }));
        assert_eq!(context["runAsNonRoot"], true);
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
    }
    let init = &pod["spec"]["initContainers"][0];
    assert_eq!(init["command"], json!([PROGRAM, "init", "--verify"]));
    assert_eq!(init["securityContext"]["runAsUser"], VERIFY_UID);
    // Nothing that goes out is redirected: only the sidecar's own user sees what comes in.
    let all = annotated(
        &simple(),
        json!({ "naru.dev/skip-outbound-cidrs": "0.0.0.0/0" }),
    );
    let init = &injected_with(&all, &by_cni())["spec"]["initContainers"][0];
    assert_eq!(init["securityContext"]["runAsUser"], PROXY_UID);
}

#[test]
fn the_cni_plugin_is_told_of_the_pods_that_it_redirects() {
    let told = |pod: &Value, options: &Options| {
        let pod = injected_with(pod, options);
        pod["metadata"]["annotations"]["naru.dev/redirection"].clone()
    };
    assert_eq!(told(&simple(), &by_cni()), "cni");
    assert_eq!(told(&simple(), &options()), Value::Null);
    // A pod cannot have both ways, or neither.
    let own = annotated(&simple(), json!({ "naru.dev/redirection": "cni" }));
    assert_eq!(told(&own, &options()), "init");
    let own = annotated(&simple(), json!({ "naru.dev/redirection": "none" }));
    assert_eq!(told(&own, &by_cni()), "cni");
}

#[test]
fn pods_are_told_that_class_e_is_in_use_unless_they_know_better() {
    let in_use = Options {
        class_e_in_use: true,
        ..options()
    };
    let told = |pod: &Value, options: &Options| {
        let pod = injected_with(pod, options);
        let init = &pod["spec"]["initContainers"][0];
        (
            pod["metadata"]["annotations"]["naru.dev/class-e-in-use"].clone(),
            variable(init, "NARU_CLASS_E_IN_USE"),
        )
    };
    let yes = Some("true".to_owned());
    assert_eq!(told(&simple(), &options()), (Value::Null, None));
    assert_eq!(told(&simple(), &in_use), (json!("true"), yes.clone()));
    let own = |value: &str| annotated(&simple(), json!({ "naru.dev/class-e-in-use": value }));
    assert_eq!(told(&own("true"), &options()), (json!("true"), yes));
    assert_eq!(told(&own("false"), &in_use), (json!("false"), None));
}

#[test]
fn only_the_init_container_may_do_anything() {
    let pod = injected(&simple());
    let init = &pod["spec"]["initContainers"][0]["securityContext"];
    assert_eq!(
        init["capabilities"],
        json!({ "drop": ["ALL"], "add": ["NET_ADMIN"] })
    );
    let sidecar = &pod["spec"]["initContainers"][1]["securityContext"];
    assert_eq!(sidecar["capabilities"], json!({ "drop": ["ALL"] }));
    assert_eq!(sidecar["runAsUser"], 1337);
    assert_eq!(sidecar["runAsNonRoot"], true);
    for context in [init, sidecar] {
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
    }
}

#[test]
fn a_sidecar_has_a_token_of_its_own_and_the_anchors() {
    let pod = injected(&simple());
    let sources = &pod["spec"]["volumes"][0]["projected"]["sources"];
    assert_eq!(sources[0]["serviceAccountToken"]["audience"], "naru.dev");
    assert_eq!(sources[1]["configMap"]["name"], "naru-trust-anchors");
    let sidecar = &pod["spec"]["initContainers"][1];
    assert_eq!(sidecar["volumeMounts"][0]["readOnly"], true);
    // Something is where the API server would put a token for itself.
    for container in &pod["spec"]["initContainers"].as_array().expect("a list")[..2] {
        let mounts = container["volumeMounts"].as_array().expect("mounts");
        let at = "/var/run/secrets/kubernetes.io/serviceaccount";
        assert!(mounts.iter().any(|mount| mount["mountPath"] == at));
    }
    assert_eq!(
        variable(sidecar, "NARU_TOKEN").as_deref(),
        Some("/var/run/naru/token")
    );
    assert_eq!(
        variable(sidecar, "NARU_DRAIN_TIMEOUT").as_deref(),
        Some("30s")
    );
    let mut patient = simple();
    patient["spec"]["terminationGracePeriodSeconds"] = json!(300);
    let sidecar = &injected(&patient)["spec"]["initContainers"][1];
    assert_eq!(
        variable(sidecar, "NARU_DRAIN_TIMEOUT").as_deref(),
        Some("300s")
    );
}

#[test]
fn annotations_change_the_sidecar() {
    let pod = annotated(
        &simple(),
        json!({
            "naru.dev/log-level": "debug",
            "naru.dev/access-log": "true",
            "naru.dev/client-address": "hide",
            "naru.dev/forwarded-headers": "x-forwarded-for, forwarded",
            "naru.dev/proxy-protocol": "25, 143",
            "naru.dev/proxy-cpu-request": "1",
            "naru.dev/proxy-cpu-limit": "2",
            "naru.dev/proxy-memory-limit": "1Gi",
            "naru.dev/skip-inbound-ports": "9100, 9101",
            "naru.dev/skip-outbound-ports": "25",
            "naru.dev/skip-outbound-cidrs": "169.254.169.254/32,fd00:ec2::/32",
            "prometheus.io/scrape": "false",
        }),
    );
    let pod = injected(&pod);
    let containers = &pod["spec"]["initContainers"];
    let (init, sidecar) = (&containers[0], &containers[1]);
    assert_eq!(variable(sidecar, "NARU_LOG").as_deref(), Some("debug"));
    assert_eq!(
        variable(sidecar, "NARU_ACCESS_LOG").as_deref(),
        Some("true")
    );
    assert_eq!(
        variable(sidecar, "NARU_CLIENT_ADDRESS").as_deref(),
        Some("hide")
    );
    assert_eq!(
        variable(sidecar, "NARU_FORWARDED_HEADERS").as_deref(),
        Some("x-forwarded-for,forwarded")
    );
    assert_eq!(
        variable(sidecar, "NARU_PROXY_PROTOCOL").as_deref(),
        Some("25,143")
    );
    assert_eq!(
        sidecar["resources"],
        json!({ "requests": { "cpu": "1", "memory": "32Mi" }, "limits": { "cpu": "2", "memory": "1Gi" } })
    );
    assert_eq!(
        variable(init, "NARU_SKIP_INBOUND_PORTS").as_deref(),
        Some("9100,9101")
    );
    assert_eq!(
        variable(init, "NARU_SKIP_OUTBOUND_PORTS").as_deref(),
        Some("25")
    );
    let networks = variable(init, "NARU_SKIP_OUTBOUND_CIDRS");
    assert_eq!(
        networks.as_deref(),
        Some("169.254.169.254/32,fd00:ec2::/32")
    );
    assert_eq!(
        pod["metadata"]["annotations"]["prometheus.io/port"],
        Value::Null
    );
}

#[test]
fn an_annotation_that_is_wrong_is_told_with_its_name() {
    let wrong = [
        ("naru.dev/log-level", "naru=loud"),
        ("naru.dev/access-log", "yes"),
        ("naru.dev/mtls", "enforced"),
        ("naru.dev/opaque-ports", "80-90"),
        ("naru.dev/client-address", "none"),
        ("naru.dev/forwarded-headers", "via"),
        ("naru.dev/proxy-protocol", "smtp"),
        ("naru.dev/proxy-cpu-request", "lots"),
        ("naru.dev/proxy-memory-limit", "1GB"),
        ("naru.dev/skip-inbound-ports", "http"),
        ("naru.dev/skip-inbound-ports", "0"),
        ("naru.dev/skip-outbound-ports", "65536"),
        ("naru.dev/skip-outbound-cidrs", "10.0.0.0/33"),
        ("naru.dev/skip-outbound-cidrs", "example.org"),
    ];
    for (name, value) in wrong {
        let refusal = decided(
            &annotated(&simple(), json!({ name: value })),
            true,
            &options(),
        );
        let refusal = refusal.expect_err("a refusal").to_string();
        assert!(
            refusal.contains(name) && refusal.contains(value),
            "{refusal}"
        );
    }
}

#[test]
fn what_cannot_have_a_sidecar_is_left_alone_with_the_reason() {
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
fn what_is_in_a_sidecars_way_is_refused() {
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
    // A pod that is to have no sidecar may have a container of any name.
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

#[test]
fn probes_go_to_the_sidecar_and_keep_everything_else() {
    let spec = json!({
        "initContainers": [{ "name": "own", "restartPolicy": "Always", "startupProbe": { "tcpSocket": { "port": 7000 } } }],
        "containers": [{
            "name": "web",
            "ports": [{ "name": "http", "containerPort": 8080 }],
            "livenessProbe": { "httpGet": { "path": "/live?x=$(HOME)", "port": "http", "scheme": "HTTPS",
                "httpHeaders": [{ "name": "x-a", "value": "1" }] }, "periodSeconds": 3, "timeoutSeconds": 4 },
            "readinessProbe": { "grpc": { "port": 9000, "service": "shop", "mode": "TLS" }, "failureThreshold": 7 },
            "startupProbe": { "exec": { "command": ["true"] } },
            "lifecycle": { "preStop": { "httpGet": { "path": "/bye", "port": 8080, "protocol": "HTTP2" } }, "postStart": { "sleep": { "seconds": 1 } } },
        }, {
            "name": "other",
            "livenessProbe": { "httpGet": { "host": "192.0.2.1", "port": 80 } },
            "readinessProbe": { "httpGet": { "port": "no-such-port" } },
        }],
    });
    let before = pod(spec);
    let after = injected(&before);
    let web = &after["spec"]["containers"][0];
    let to = |path: &str| json!({ "path": path, "port": 15020, "scheme": "HTTP" });
    assert_eq!(
        web["livenessProbe"],
        json!({ "httpGet": to("/probe/web/liveness"), "periodSeconds": 3, "timeoutSeconds": 4 })
    );
    assert_eq!(
        web["readinessProbe"],
        json!({ "httpGet": to("/probe/web/readiness"), "failureThreshold": 7 })
    );
    assert_eq!(
        web["startupProbe"],
        before["spec"]["containers"][0]["startupProbe"]
    );
    // Nobody can guess it.
    let hook = &web["lifecycle"]["preStop"]["httpGet"];
    let hook_path = hook["path"].as_str().expect("a path");
    let secret = hook_path.strip_prefix("/probe/web/pre-stop/");
    assert_eq!(secret.map(str::len), Some(32), "{hook_path}");
    assert_eq!(*hook, to(hook_path));
    let again = injected(&before);
    let again = &again["spec"]["containers"][0]["lifecycle"]["preStop"]["httpGet"]["path"];
    assert_ne!(again, hook_path);
    assert_eq!(
        web["lifecycle"]["postStart"],
        json!({ "sleep": { "seconds": 1 } })
    );
    assert_eq!(
        after["spec"]["containers"][1],
        before["spec"]["containers"][1]
    );
    let own = &after["spec"]["initContainers"][2];
    assert_eq!(
        own["startupProbe"],
        json!({ "httpGet": to("/probe/own/startup") })
    );

    let sidecar = &after["spec"]["initContainers"][1];
    let probes = variable(sidecar, "NARU_PROBES").expect("probes");
    // As Kubernetes reads a variable's value.
    let probes = probes.replace("$$", "$");
    let probes = probes.replace(&hook_path["/probe/".len()..], "web/pre-stop");
    let probes: Value = serde_json::from_str(&probes).expect("JSON");
    assert_eq!(
        probes,
        json!({
            "own/startup": { "seconds": 1, "tcp": { "port": 7000 } },
            "web/liveness": { "seconds": 4, "http":
                { "port": 8080, "path": "/live?x=$(HOME)", "tls": true, "http2": false, "headers": [["x-a", "1"]] } },
            "web/pre-stop": { "seconds": 30, "http": { "port": 8080, "path": "/bye", "tls": false, "http2": true, "headers": [] } },
            "web/readiness": { "seconds": 1, "grpc": { "port": 9000, "service": "shop", "tls": true } },
        })
    );
}

fn completed(pod: &Value, options: &Options) -> Value {
    match decided(pod, true, options) {
        Ok(Decision::Complete(operations)) => applied(pod, &operations),
        other => panic!("{other:?}"),
    }
}

/// What the sidecar asks the app, by name.
fn probes_of(sidecar: &Value) -> Value {
    let probes = variable(sidecar, "NARU_PROBES").expect("probes");
    serde_json::from_str(&probes.replace("$$", "$")).expect("JSON")
}

#[test]
fn containers_that_a_later_webhook_adds_have_their_probes_moved_as_well() {
    let later = json!({
        "name": "later",
        "livenessProbe": { "httpGet": { "path": "/a$b", "port": 9000 } },
        "readinessProbe": { "tcpSocket": { "port": 9001 }, "periodSeconds": 3 },
        "lifecycle": { "preStop": { "httpGet": { "path": "/bye", "port": 9000 } } },
    });
    let with_probe = pod(json!({ "containers": [{
        "name": "web", "readinessProbe": { "httpGet": { "path": "/$", "port": 8080 } },
        "lifecycle": { "preStop": { "httpGet": { "path": "/bye", "port": 8080 } } },
    }] }));
    for native_sidecars in [true, false] {
        let options = Options {
            native_sidecars,
            ..options()
        };
        for before in [&with_probe, &simple()] {
            let mut changed = injected_with(before, &options);
            let containers = changed["spec"]["containers"]
                .as_array_mut()
                .expect("a list");
            containers.insert(0, later.clone());
            let after = completed(&changed, &options);
            let list = if native_sidecars {
                "initContainers"
            } else {
                "containers"
            };
            let ours = after["spec"][list].as_array().expect("a list").iter();
            let ours: Vec<_> = ours.filter(|c| c["name"] == "naru-proxy").collect();
            let probes = probes_of(ours[0]);
            assert_eq!(probes["later/liveness"]["http"]["path"], "/a$b");
            assert_eq!(probes["later/readiness"]["tcp"]["port"], 9001);
            let own = if before == &simple() {
                Value::Null
            } else {
                json!("/$")
            };
            assert_eq!(probes["web/readiness"]["http"]["path"], own);
            let added = &after["spec"]["containers"][0];
            assert_eq!(
                added["readinessProbe"]["httpGet"]["path"],
                "/probe/later/readiness"
            );
            assert_eq!(added["readinessProbe"]["periodSeconds"], 3);
            assert_eq!(added["readinessProbe"]["tcpSocket"], Value::Null);
            let hook = added["lifecycle"]["preStop"]["httpGet"]["path"].as_str();
            assert!(hook.is_some_and(|path| path.starts_with("/probe/later/pre-stop/")));
            // Everything else is as it was, and a third time there is nothing to do.
            let web = |pod: &Value| {
                let containers = pod["spec"]["containers"].as_array().expect("a list");
                containers.iter().find(|c| c["name"] == "web").cloned()
            };
            assert_eq!(web(&after), web(&changed));
            let again = decided(&after, true, &options);
            assert_eq!(again, Ok(Decision::Leave(Vec::new())));
        }
    }
}

#[test]
fn what_must_succeed_before_the_sidecar_starts_is_not_asked_of_the_sidecar() {
    let first = json!({
        "name": "first",
        "restartPolicy": "Always",
        "startupProbe": { "httpGet": { "path": "/up", "port": 9000 } },
        "livenessProbe": { "httpGet": { "path": "/live", "port": 9000 } },
        "lifecycle": {
            "postStart": { "httpGet": { "path": "/begin", "port": 9000 } },
            "preStop": { "httpGet": { "path": "/end", "port": 9000 } },
        },
    });
    let mut changed = injected(&simple());
    let list = changed["spec"]["initContainers"].as_array_mut();
    list.expect("a list").insert(0, first.clone());
    let after = completed(&changed, &options());
    let container = &after["spec"]["initContainers"][0];
    assert_eq!(container["startupProbe"], first["startupProbe"]);
    assert_eq!(
        container["lifecycle"]["postStart"],
        first["lifecycle"]["postStart"]
    );
    assert_eq!(
        container["livenessProbe"]["httpGet"]["path"],
        "/probe/first/liveness"
    );
    let again = decided(&after, true, &options());
    assert_eq!(again, Ok(Decision::Leave(Vec::new())));
}

#[test]
fn what_a_later_webhook_puts_in_a_sidecars_way_is_refused_as_at_first() {
    let with = |container: Value| {
        let mut pod = injected(&simple());
        let containers = pod["spec"]["containers"].as_array_mut().expect("a list");
        containers.push(container);
        decided(&pod, true, &options()).expect_err("a refusal")
    };
    let port = with(json!({ "name": "b", "ports": [{ "containerPort": 15006 }] }));
    assert!(matches!(port, Refusal::Port { port: 15006, .. }));
    let user = with(json!({ "name": "b", "securityContext": { "runAsUser": 1337 } }));
    assert_eq!(user, Refusal::User("b".to_owned()));
    let mut unreadable = injected(&simple());
    let env = unreadable["spec"]["initContainers"][1]["env"].as_array_mut();
    env.expect("variables")
        .push(json!({ "name": "NARU_PROBES", "value": "[]" }));
    unreadable["spec"]["containers"][0]["livenessProbe"] = json!({ "tcpSocket": { "port": 1 } });
    let refusal = decided(&unreadable, true, &options());
    assert!(matches!(refusal, Err(Refusal::Probes(_))), "{refusal:?}");
}

#[test]
fn a_copy_of_a_pod_gets_back_what_kubectl_leaves_out() {
    for options in [options(), by_cni()] {
        let mut copy = injected_with(&simple(), &options);
        let original = copy["metadata"].clone();
        // As `kubectl debug --copy-to` makes it.
        copy["metadata"] = json!({ "name": "copy" });
        for by_namespace in [true, false] {
            let Ok(Decision::Complete(operations)) = decided(&copy, by_namespace, &options) else {
                panic!("nothing is put back");
            };
            let after = applied(&copy, &operations);
            assert_eq!(after["metadata"]["labels"], original["labels"]);
            assert_eq!(after["metadata"]["annotations"], original["annotations"]);
            assert_eq!(after["spec"], copy["spec"]);
        }
    }
}

#[test]
fn a_sidecar_fits_into_what_its_pod_says_it_needs_as_a_whole() {
    let mut pod = simple();
    pod["spec"]["containers"][0]["resources"] = json!({ "requests": { "memory": "64Mi" } });
    pod["spec"]["resources"] =
        json!({ "requests": { "memory": "80Mi" }, "limits": { "memory": "128Mi" } });
    let after = injected(&pod);
    let memory = 16 << 20;
    for ours in 0..2 {
        let resources = &after["spec"]["initContainers"][ours]["resources"];
        let requests = json!({ "cpu": "20m", "memory": memory.to_string() });
        assert_eq!(resources["requests"], requests);
        assert_eq!(resources["limits"], json!({ "memory": "134217728" }));
    }
    assert_eq!(after["spec"]["resources"], pod["spec"]["resources"]);
}

fn review(pod: &Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "42",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "operation": "CREATE",
            "namespace": "shop",
            "object": pod,
        },
    })
}

fn answered(review: &Value) -> (Outcome, Value) {
    let answer = answer(review.to_string().as_bytes(), true, &options()).expect("an answer");
    let body: Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(body["kind"], "AdmissionReview");
    assert_eq!(body["response"]["uid"], "42");
    (answer.outcome, body["response"].clone())
}

#[test]
fn a_review_is_answered_with_a_patch_a_warning_or_a_refusal() {
    let (outcome, response) = answered(&review(&simple()));
    assert_eq!(
        (outcome, &response["allowed"]),
        (Outcome::Injected, &json!(true))
    );
    assert_eq!(response["patchType"], "JSONPatch");
    let patch: k8s_openapi::ByteString = from_value(response["patch"].clone()).expect("base64");
    let patch: Patch = serde_json::from_slice(&patch.0).expect("a patch");
    let mut pod = simple();
    json_patch::patch(&mut pod, &patch).expect("a patch that fits");
    assert_eq!(pod, injected(&simple()));

    let (outcome, response) = answered(&review(&pod));
    assert_eq!(outcome, Outcome::Unchanged);
    assert_eq!(response, json!({ "uid": "42", "allowed": true }));

    let mut host_network = simple();
    host_network["spec"]["hostNetwork"] = json!(true);
    let (outcome, response) = answered(&review(&host_network));
    assert_eq!(
        (outcome, &response["allowed"]),
        (Outcome::Skipped, &json!(true))
    );
    assert!(
        response["warnings"][0]
            .as_str()
            .is_some_and(|text| text.contains("host's network"))
    );

    let wrong = annotated(&simple(), json!({ "naru.dev/inject": "maybe" }));
    let (outcome, response) = answered(&review(&wrong));
    assert_eq!(
        (outcome, &response["allowed"]),
        (Outcome::Refused, &json!(false))
    );
    assert!(
        response["status"]["message"]
            .as_str()
            .is_some_and(|text| text.starts_with("naru: "))
    );
    assert_eq!(response.get("patch"), None);

    let (outcome, _) = answered(&review(&json!({ "spec": { "containers": "none" } })));
    assert_eq!(outcome, Outcome::Refused);
}

#[test]
fn what_is_no_review_of_a_new_pod_is_an_error() {
    let mut update = review(&simple());
    update["request"]["operation"] = json!("UPDATE");
    let mut service = review(&simple());
    service["request"]["kind"]["kind"] = json!("Service");
    let mut old = review(&simple());
    old["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let mut empty = review(&simple());
    empty["request"] = Value::Null;
    let mut nowhere = review(&simple());
    nowhere["request"]["namespace"] = json!("shop/secrets/naru-ca?");
    for wrong in [update, service, old, empty, nowhere, json!({}), json!([])] {
        assert!(
            answer(wrong.to_string().as_bytes(), true, &options()).is_err(),
            "{wrong}"
        );
    }
}
