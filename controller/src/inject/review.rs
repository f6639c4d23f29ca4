//! AdmissionReview, version 1. In: the review's JSON. Out: the response's JSON, and its outcome.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Decision, Operation, Options, Refusal, decide};
use crate::issuer::is_label;
use crate::metrics::InjectionOutcome;

const API_VERSION: &str = "admission.k8s.io/v1";
/// HTTP status of a refusal: the pod's spec is invalid.
const UNPROCESSABLE: u16 = 422;
/// Bytes in the name of a pod.
const MAX_NAME: usize = 253;

/// An answer to a review.
#[derive(Debug)]
pub struct Answer {
    pub outcome: InjectionOutcome,
    /// The pod's name for the log. Without a name it is anonymous.
    pub pod: String,
    /// Why the pod was refused or skipped.
    pub reason: Option<String>,
    /// A namespace that has an injected pod from now on.
    pub namespace: Option<String>,
    pub body: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review {
    api_version: String,
    kind: String,
    request: Option<Request>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    uid: String,
    kind: Kind,
    operation: String,
    namespace: Option<String>,
    #[serde(default)]
    dry_run: bool,
    object: Option<Value>,
}

#[derive(Deserialize)]
struct Kind {
    group: String,
    kind: String,
}

/// Answers a review. `by_namespace`: the API server has matched the namespace's label. The error is
/// the reason why `review` is not a valid AdmissionReview.
pub fn answer(review: &[u8], by_namespace: bool, options: &Options) -> Result<Answer, String> {
    let review: Review = serde_json::from_slice(review).map_err(|error| error.to_string())?;
    if (&*review.api_version, &*review.kind) != (API_VERSION, "AdmissionReview") {
        return Err(format!(
            "expected an AdmissionReview of {API_VERSION}, found {} of {}",
            review.kind, review.api_version
        ));
    }
    let request = review.request.ok_or("the review has no request")?;
    let is_new_pod =
        request.operation == "CREATE" && (&*request.kind.group, &*request.kind.kind) == ("", "Pod");
    if !is_new_pod {
        return Err(format!(
            "expected the creation of a Pod, found {} of {}: the webhook's rules are wrong",
            request.operation, request.kind.kind
        ));
    }
    // Untrusted input from any client of the webhook, which is used in requests to the API server.
    let namespace = request.namespace.unwrap_or_default();
    if !is_label(&namespace) {
        return Err("request.namespace: not a valid namespace name".to_owned());
    }
    let pod = serde_json::from_value::<Pod>(request.object.unwrap_or_default())
        .map_err(|error| Refusal::NoPod(error.to_string()));
    let name = pod.as_ref().map_or(String::new(), |pod| {
        let metadata = &pod.metadata;
        let name = metadata.name.as_ref().or(metadata.generate_name.as_ref());
        let name = name.filter(|name| name.len() <= MAX_NAME);
        name.cloned().unwrap_or_default()
    });
    let decision = pod.and_then(|pod| decide(&pod, by_namespace, options));
    let mut response = json!({ "uid": request.uid, "allowed": decision.is_ok() });
    let (outcome, operations, reason) = match decision {
        Ok(Decision::Inject(operations)) => (InjectionOutcome::Injected, operations, None),
        Ok(Decision::Complete(operations)) => (InjectionOutcome::Completed, operations, None),
        Ok(Decision::Leave(operations)) => (InjectionOutcome::Unchanged, operations, None),
        Ok(Decision::Skip { reason, operations }) => {
            response["warnings"] = json!([format!("naru: this pod gets no sidecar: {reason}")]);
            (
                InjectionOutcome::Skipped,
                operations,
                Some(reason.to_owned()),
            )
        }
        Err(refusal) => {
            let message = refusal.to_string();
            response["status"] =
                json!({ "code": UNPROCESSABLE, "reason": "Invalid", "message": message });
            (InjectionOutcome::Refused, Vec::new(), Some(message))
        }
    };
    if !operations.is_empty() {
        response["patchType"] = "JSONPatch".into();
        response["patch"] = patch(&operations)?;
    }
    let has_sidecar = [InjectionOutcome::Injected, InjectionOutcome::Completed].contains(&outcome);
    let body =
        json!({ "apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response });
    Ok(Answer {
        outcome,
        pod: format!("{namespace}/{name}"),
        reason,
        namespace: (has_sidecar && !request.dry_run).then_some(namespace),
        body: body.to_string().into_bytes(),
    })
}

fn patch(operations: &[Operation]) -> Result<Value, String> {
    let patch = serde_json::to_vec(operations).map_err(|error| error.to_string())?;
    serde_json::to_value(ByteString(patch)).map_err(|error| error.to_string())
}
