//! Responses to the API server.

use super::*;
use crate::metrics::InjectionOutcome;

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

fn answered(review: &Value) -> (InjectionOutcome, Value) {
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
        (InjectionOutcome::Injected, &json!(true))
    );
    assert_eq!(response["patchType"], "JSONPatch");
    let patch: k8s_openapi::ByteString = from_value(response["patch"].clone()).expect("base64");
    let patch: Patch = serde_json::from_slice(&patch.0).expect("a patch");
    let mut pod = simple();
    json_patch::patch(&mut pod, &patch).expect("a patch that fits");
    assert_eq!(pod, injected(&simple()));

    let (outcome, response) = answered(&review(&pod));
    assert_eq!(outcome, InjectionOutcome::Unchanged);
    assert_eq!(response, json!({ "uid": "42", "allowed": true }));

    let mut host_network = simple();
    host_network["spec"]["hostNetwork"] = json!(true);
    let (outcome, response) = answered(&review(&host_network));
    assert_eq!(
        (outcome, &response["allowed"]),
        (InjectionOutcome::Skipped, &json!(true))
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
        (InjectionOutcome::Refused, &json!(false))
    );
    assert!(
        response["status"]["message"]
            .as_str()
            .is_some_and(|text| text.starts_with("naru: "))
    );
    assert_eq!(response.get("patch"), None);

    let (outcome, _) = answered(&review(&json!({ "spec": { "containers": "none" } })));
    assert_eq!(outcome, InjectionOutcome::Refused);
}

#[test]
fn a_malformed_review_is_an_error() {
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
