//! A sidecar's privileges and settings.

use super::*;

#[test]
fn with_the_cni_plugin_no_container_has_a_privilege() {
    let pod = injected_with(&simple(), &by_cni());
    for container in pod["spec"]["initContainers"].as_array().expect("ours") {
        // The requirements of Pod Security level `restricted`.
        let context = &container["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }));
        assert_eq!(context["runAsNonRoot"], true);
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
    }
    let init = &pod["spec"]["initContainers"][0];
    assert_eq!(init["command"], json!([PROGRAM, "init", "--verify"]));
    assert_eq!(init["securityContext"]["runAsUser"], VERIFY_UID);
    // No outbound connections are redirected, so only the sidecar's own user can verify inbound
    // ones.
    let all = annotated(
        &simple(),
        json!({ "naru.dev/skip-outbound-cidrs": "0.0.0.0/0" }),
    );
    let init = &injected_with(&all, &by_cni())["spec"]["initContainers"][0];
    assert_eq!(init["securityContext"]["runAsUser"], PROXY_UID);
}

#[test]
fn the_cni_plugin_finds_the_pods_that_it_redirects() {
    let told = |pod: &Value, options: &Options| {
        let pod = injected_with(pod, options);
        pod["metadata"]["annotations"]["naru.dev/redirection"].clone()
    };
    assert_eq!(told(&simple(), &by_cni()), "cni");
    assert_eq!(told(&simple(), &options()), Value::Null);
    // A pod cannot be redirected both ways, or neither way.
    let own = annotated(&simple(), json!({ "naru.dev/redirection": "cni" }));
    assert_eq!(told(&own, &options()), "init");
    let own = annotated(&simple(), json!({ "naru.dev/redirection": "none" }));
    assert_eq!(told(&own, &by_cni()), "cni");
}

#[test]
fn pods_get_the_class_e_setting_unless_they_override_it() {
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
fn only_the_init_container_has_privileges() {
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
    // Our volume is mounted over the path of the API server's own token.
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
fn annotations_override_the_sidecars_settings() {
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
        json!({
            "requests": { "cpu": "1", "memory": "32Mi" },
            "limits": { "cpu": "2", "memory": "1Gi" },
        })
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
fn an_invalid_annotation_is_reported_with_its_name() {
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
fn a_sidecar_fits_into_its_pods_resources() {
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
