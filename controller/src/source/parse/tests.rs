//! Manifests that are valid, and messages for invalid ones.

use naru_contract::{MtlsMode, Protocol};

use super::*;
use crate::source::objects::*;

const SERVICE: &str = r#"
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
  annotations: { naru.dev/opaque-ports: "81, 82" }
spec:
  clusterIP: 10.0.0.1
  clusterIPs: [10.0.0.1, "fd00::1"]
  ports:
    - { name: http, port: 80, targetPort: web, appProtocol: http }
    - { name: dns, port: 53, protocol: UDP }
"#;

fn one_problem(text: &str) -> Problem {
    let mut problems = objects(text, false).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.remove(0)
}

fn route(rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\n\
         kind: HTTPRoute\n\
         metadata: {{ name: r, namespace: shop }}\n\
         spec:\n  parentRefs:\n    - {{ group: \"\", kind: Service, name: web }}\n  rules:\n\
         {rules}"
    )
}

#[test]
fn a_service_is_reduced_to_its_tcp_ports() {
    let objects = objects(SERVICE, false).unwrap();
    let [Object::Service(service)] = &objects[..] else {
        panic!("{objects:?}");
    };
    assert_eq!(service.name, Name::new("shop", "web"));
    assert_eq!(service.cluster_ips.len(), 2);
    assert_eq!(
        service.ports,
        [ServicePort {
            name: "http".into(),
            port: 80,
            target_port: TargetPort::Name("web".into()),
            node_port: None,
            declared: Some(Protocol::Http1),
        }]
    );
    assert_eq!(service.annotations.opaque_ports, Some(vec![81, 82]));
}

#[test]
fn documents_lists_comments_and_unknown_kinds_are_parsed() {
    let text = format!(
        "# a comment\n\
         ---\n\
         {SERVICE}\n\
         ---\n\
         # nothing here\n\
         ---\n\
         apiVersion: apps/v1\n\
         kind: Deployment\n\
         metadata: {{ name: d }}\n\
         --- \n\
         apiVersion: v1\n\
         kind: List\n\
         items:\n  - apiVersion: v1\n    kind: Namespace\n    metadata: {{ name: shop, \
         annotations: {{ naru.dev/mtls: strict }} }}\n"
    );
    let objects = objects(&text, false).unwrap();
    assert_eq!(objects.len(), 2);
    let Object::Namespace(namespace) = &objects[1] else {
        panic!("{objects:?}");
    };
    assert_eq!(namespace.annotations.mtls, Some(MtlsMode::Strict));
}

#[test]
fn json_is_parsed() {
    let text = r#"{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}"#;
    assert_eq!(objects(text, true).unwrap().len(), 1);
    let problems = objects("{\n\"apiVersion\": }", true).unwrap_err();
    assert_eq!(problems[0].line, Some(2));
}

#[test]
fn a_syntax_error_is_reported_with_its_line_in_the_file() {
    let problem = one_problem(&format!("{SERVICE}---\na: 1\nb: [1,\nc: }}\n"));
    assert!(matches!(problem.line, Some(16..=17)), "{problem}");
    assert!(!problem.message.is_empty() && !problem.message.contains("line"));
}

#[test]
fn a_wrong_type_is_reported_with_line_and_field() {
    let problem = one_problem(&SERVICE.replace("port: 80", "port: eighty"));
    assert_eq!(problem.line, Some(12));
    assert_eq!(problem.field.as_deref(), Some("spec.ports[0].port"));
    assert_eq!(problem.object.as_deref(), Some("Service shop/web"));
    assert!(
        problem
            .to_string()
            .starts_with("line 12: Service shop/web: spec.ports[0].port: "),
        "{problem}"
    );
}

#[test]
fn a_wrong_value_is_reported_with_line_field_and_fix() {
    for (from, to, line, field) in [
        (
            "clusterIP: 10.0.0.1",
            "clusterIP: 10.0.0",
            9,
            "spec.clusterIP",
        ),
        ("port: 80", "port: 80000", 12, "spec.ports[0].port"),
        ("  name: web\n", "", 5, "metadata.name"),
    ] {
        let problem = one_problem(&SERVICE.replacen(from, to, 1));
        assert_eq!(
            (problem.line, problem.field.as_deref()),
            (Some(line), Some(field)),
            "{problem}"
        );
    }
}

#[test]
fn an_invalid_annotation_is_reported_and_the_object_is_used_without_it() {
    let found = read(&SERVICE.replace("81, 82", "81-82"), false);
    assert_eq!(found.problems, []);
    let [Object::Service(service)] = &found.objects[..] else {
        panic!("{:?}", found.objects);
    };
    assert_eq!(service.annotations.opaque_ports, None);
    assert_eq!(service.ports.len(), 1);
    let [ignored] = &found.ignored[..] else {
        panic!("{:?}", found.ignored);
    };
    assert_eq!(
        (ignored.line, ignored.field.as_deref()),
        (
            Some(7),
            Some("metadata.annotations[\"naru.dev/opaque-ports\"]")
        )
    );
    assert!(ignored.message.contains("81-82"), "{ignored}");
}

fn mtls(value: &str) -> (Option<MtlsMode>, usize) {
    let text = format!(
        "apiVersion: v1\n\
         kind: Namespace\n\
         metadata: {{ name: shop, annotations: {{ naru.dev/mtls: {value} }} }}\n"
    );
    let mut found = read(&text, false);
    assert_eq!(found.problems, []);
    match found.objects.pop() {
        Some(Object::Namespace(namespace)) => (namespace.annotations.mtls, found.ignored.len()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn mtls_is_case_insensitive_and_an_invalid_value_counts_as_strict() {
    for (value, mode) in [
        ("strict", MtlsMode::Strict),
        ("STRICT", MtlsMode::Strict),
        ("Permissive", MtlsMode::Permissive),
        ("'permissive '", MtlsMode::Permissive),
    ] {
        assert_eq!(mtls(value), (Some(mode), 0), "{value}");
    }
    for value in ["enforce", "'on'", "''", "permisive", "'strict,permissive'"] {
        assert_eq!(mtls(value), (Some(MtlsMode::Strict), 1), "{value}");
    }
}

#[test]
fn a_pod_with_invalid_annotations_stays_in_the_mesh() {
    let text = r#"
apiVersion: v1
kind: Pod
metadata:
  name: web
  namespace: shop
  labels: { naru.dev/injected: "true" }
  annotations:
    { naru.dev/mtls: all, naru.dev/opaque-ports: x, naru.dev/skip-inbound-ports: "80;81" }
spec: { containers: [] }
"#;
    let found = read(text, false);
    let [Object::Pod(pod)] = &found.objects[..] else {
        panic!("{:?}", found.problems);
    };
    assert!(pod.meshed);
    assert_eq!(pod.annotations.mtls, Some(MtlsMode::Strict));
    assert_eq!(
        (&pod.annotations.opaque_ports, &*pod.bare_ports),
        (&None, &[][..])
    );
    assert_eq!(found.ignored.len(), 3);
}

#[test]
fn every_problem_of_a_file_is_reported() {
    let bad = SERVICE.replace("port: 80", "port: 0");
    assert_eq!(
        objects(&format!("{bad}---{bad}"), false).unwrap_err().len(),
        2
    );
}

#[test]
fn a_route_is_validated_like_its_definition() {
    for (rule, line, field) in [
        (
            "    - retry: { codes: [500, 200] }\n",
            8,
            "spec.rules[0].retry.codes[1]",
        ),
        (
            "    - timeouts: { request: 10 }\n",
            8,
            "spec.rules[0].timeouts.request",
        ),
        (
            "    - timeouts: { request: 1d }\n",
            8,
            "spec.rules[0].timeouts.request",
        ),
        (
            "    - timeouts: { request: 1s, backendRequest: 2s }\n",
            8,
            "spec.rules[0].timeouts.backendRequest",
        ),
        (
            "    - backendRefs:\n        - { name: a }\n",
            9,
            "spec.rules[0].backendRefs[0].port",
        ),
        (
            "    - backendRefs:\n        - { name: a, port: 80, weight: -1 }\n",
            9,
            "spec.rules[0].backendRefs[0].weight",
        ),
        (
            "    - matches:\n        - path: { value: a }\n",
            9,
            "spec.rules[0].matches[0].path.value",
        ),
        (
            "    - matches:\n        - path: { value: /a//b }\n",
            9,
            "spec.rules[0].matches[0].path.value",
        ),
        (
            "    - matches:\n        - method: FETCH\n",
            9,
            "spec.rules[0].matches[0].method",
        ),
        (
            "    - filters:\n        - type: URLRewrite\n",
            9,
            "spec.rules[0].filters[0].urlRewrite",
        ),
        (
            "    - filters:\n        - type: RequestHeaderModifier\n          \
             requestHeaderModifier: { set: [{ name: 'a b', value: c }] }\n",
            10,
            "spec.rules[0].filters[0].requestHeaderModifier.set[0].name",
        ),
        (
            "    - filters:\n        - type: CORS\n          cors: { allowOrigins: [https://a.b/c] \
             }\n",
            10,
            "spec.rules[0].filters[0].cors.allowOrigins[0]",
        ),
        (
            "    - filters:\n        - { type: CORS, cors: {} }\n        - { type: CORS, \
             cors: {} }\n",
            10,
            "spec.rules[0].filters[1].type",
        ),
        (
            "    - filters:\n        - type: RequestMirror\n          requestMirror: { backendRef: \
             { name: a, port: 80 }, percent: 101 }\n",
            10,
            "spec.rules[0].filters[0].requestMirror.percent",
        ),
        (
            "    - filters:\n        - type: RequestMirror\n          requestMirror: { backendRef: \
             { name: a } }\n",
            10,
            "spec.rules[0].filters[0].requestMirror.backendRef.port",
        ),
    ] {
        let problem = one_problem(&route(rule));
        assert_eq!(
            (problem.line, problem.field.as_deref()),
            (Some(line), Some(field)),
            "{problem}"
        );
    }
}

#[test]
fn an_unsupported_feature_makes_the_whole_route_invalid() {
    for rule in [
        "    - filters: [{ type: ExtensionRef }]\n",
        "    - filters: [{ type: FromTheFuture }]\n",
        "    - matches: [{ path: { type: Glob, value: /a } }]\n",
        "    - matches: [{ path: { type: RegularExpression, value: '(' } }]\n",
        "    - matches: [{ headers: [{ type: Glob, name: a, value: b }] }]\n",
    ] {
        let objects = objects(&route(&format!("    - name: fine\n{rule}")), false).unwrap();
        let [Object::Route(route)] = &objects[..] else {
            panic!("{objects:?}");
        };
        let reason = route.refused.as_deref().unwrap();
        assert!(reason.contains("spec.rules[1]"), "{reason}");
        assert!(route.rules.is_empty());
    }
}

#[test]
fn a_route_without_rules_or_numbers_has_the_defaults_of_the_specification() {
    let text = route("    - backendRefs: [{ name: a, port: 80 }]\n      retry: { codes: [503] }\n");
    let parsed = objects(&text, false).unwrap();
    let [Object::Route(route)] = &parsed[..] else {
        panic!("{parsed:?}");
    };
    assert_eq!(route.rules[0].backends[0].weight, 1);
    assert_eq!(route.rules[0].backends[0].to.name, Name::new("shop", "a"));
    assert_eq!(route.rules[0].retry.as_ref().unwrap().attempts, 1);
    assert_eq!(route.parents[0].service, Name::new("shop", "web"));
}

#[test]
fn a_pod_s_workload_is_its_owner() {
    let pod = |owner: &str| {
        let text = format!(
            "apiVersion: v1\n\
             kind: Pod\n\
             metadata:\n  name: p\n  labels: {{ naru.dev/injected: \"true\", \
             pod-template-hash: abc }}\n\
             {owner}status: {{ podIP: 10.1.0.1, phase: Running }}\n"
        );
        match objects(&text, false).unwrap().remove(0) {
            Object::Pod(pod) => pod,
            other => panic!("{other:?}"),
        }
    };
    let owner = |kind: &str, name: &str| {
        format!(
            "  ownerReferences: [{{ apiVersion: apps/v1, kind: {kind}, name: {name}, uid: u, \
             controller: true }}]\n"
        )
    };
    assert_eq!(
        pod(&owner("ReplicaSet", "my-web-abc")).workload,
        "deployment/my-web"
    );
    assert_eq!(pod(&owner("StatefulSet", "db")).workload, "statefulset/db");
    let alone = pod("");
    assert_eq!(alone.workload, "pod/p");
    assert!(alone.meshed);
    assert_eq!(alone.service_account, "default");
    assert_eq!(alone.name.namespace, "default");
}

#[test]
fn a_retry_budget_has_the_defaults_of_the_specification() {
    let text = "apiVersion: gateway.networking.x-k8s.io/v1alpha1\n\
        kind: XBackendTrafficPolicy\n\
        metadata: { name: b, namespace: shop }\n\
        spec:\n  targetRefs: [{ group: \"\", kind: Service, \
        name: web }]\n  retryConstraint: { minRetryRate: { count: 3, interval: 2s } }\n";
    let parsed = objects(text, false).unwrap();
    let [Object::BackendTrafficPolicy(policy)] = &parsed[..] else {
        panic!("{parsed:?}");
    };
    let budget = policy.retry_budget.as_ref().unwrap();
    assert_eq!(
        (
            budget.percent,
            budget.interval_ms,
            budget.min_retries_per_1000_s
        ),
        (20, 10_000, 1_500)
    );
}

#[test]
fn the_group_core_is_the_core_group() {
    let text = route(
        "    - { filters: [{ type: RequestMirror, requestMirror: { backendRef: { group: core, \
         name: web, port: 80 } } }], backendRefs: [{ group: core, kind: Service, name: web, \
         port: 80 }] }\n",
    )
    .replace("group: \"\"", "group: core");
    let parsed = objects(&text, false).unwrap();
    let [Object::Route(route)] = &parsed[..] else {
        panic!("{parsed:?}");
    };
    assert_eq!(route.parents[0].service, Name::new("shop", "web"));
    assert_eq!(route.parents[0].group, "core");
    assert_eq!(route.referents().count(), 2);
    assert!(route.referents().all(Referent::is_service));
    // A Service without a port is invalid, as with an empty group.
    assert!(objects(&text.replace(", port: 80 }]", " }]"), false).is_err());

    let grant = "apiVersion: gateway.networking.k8s.io/v1\n\
        kind: ReferenceGrant\n\
        metadata: { name: g, namespace: shop }\n\
        spec: { from: [{ group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: other }], \
        to: [{ group: core, kind: Service }] }\n";
    let parsed = objects(grant, false).unwrap();
    assert!(matches!(&parsed[..], [Object::ReferenceGrant(grant)] if grant.to == [None]));
    let policy = "apiVersion: gateway.networking.x-k8s.io/v1alpha1\n\
        kind: XBackendTrafficPolicy\n\
        metadata: { name: b, namespace: shop }\n\
        spec: { targetRefs: [{ group: core, kind: Service, name: web }] }\n";
    let parsed = objects(policy, false).unwrap();
    assert!(
        matches!(&parsed[..], [Object::BackendTrafficPolicy(policy)] if policy.targets == ["web"])
    );
}
