//! The `status.parents` of a route. In: the route in the cluster, and our verdict on it. Out: the
//! complete list, if it has to change. Entries of other controllers stay unchanged, because the
//! list is written as a whole.

use serde_json::{Map, Value, json};

use crate::compile::{ParentStatus, RouteStatus, Verdict};
use crate::source::ParentRef;

/// The controller name that marks our entries in a route's status.
pub const CONTROLLER_NAME: &str = "naru.dev/controller";
/// The field manager of writes.
pub const FIELD_MANAGER: &str = "naru-controller";

/// `None`: they are up to date. `now` in RFC 3339.
pub fn parents(route: &Value, status: &RouteStatus, now: &str) -> Option<Vec<Value>> {
    let before = route.pointer("/status/parents").and_then(Value::as_array);
    let before = before.map_or(&[][..], Vec::as_slice);
    let is_ours = |entry: &&Value| entry["controllerName"] == CONTROLLER_NAME;
    let ours: Vec<&Value> = before.iter().filter(is_ours).collect();
    let wanted: Vec<Value> = (status.parents.iter())
        .map(|parent| entry(parent, status.generation, &ours, now))
        .collect();
    if ours.iter().copied().eq(&wanted) {
        return None;
    }
    let others = before.iter().filter(|entry| !is_ours(entry)).cloned();
    Some(others.chain(wanted).collect())
}

fn entry(status: &ParentStatus, generation: i64, ours: &[&Value], now: &str) -> Value {
    let parent = parent_ref(&status.parent);
    let before = ours.iter().find(|entry| entry["parentRef"] == parent);
    let conditions = before.and_then(|entry| entry["conditions"].as_array());
    let condition =
        |kind: &str, verdict: &Verdict| condition(kind, verdict, generation, conditions, now);
    json!({
        "parentRef": parent,
        "controllerName": CONTROLLER_NAME,
        "conditions": [
            condition("Accepted", &status.accepted),
            condition("ResolvedRefs", &status.resolved_refs),
        ],
    })
}

/// One condition. `before` determines its lastTransitionTime.
pub fn condition(
    kind: &str,
    verdict: &Verdict,
    generation: i64,
    before: Option<&Vec<Value>>,
    now: &str,
) -> Value {
    let holds = if verdict.holds { "True" } else { "False" };
    let since = before.into_iter().flatten().find_map(|condition| {
        (condition["type"] == kind && condition["status"] == holds)
            .then(|| condition["lastTransitionTime"].as_str())?
    });
    json!({
        "type": kind,
        "status": holds,
        "reason": verdict.reason,
        "message": verdict.message,
        "observedGeneration": generation,
        "lastTransitionTime": since.unwrap_or(now),
    })
}

/// With exactly the fields of the route's own parentRef: programs look for it in the status
/// (Flagger).
fn parent_ref(parent: &ParentRef) -> Value {
    let mut fields = Map::new();
    fields.insert("group".to_owned(), json!(parent.group));
    fields.insert("kind".to_owned(), json!("Service"));
    fields.insert("name".to_owned(), json!(parent.service.name));
    if parent.names_namespace {
        fields.insert("namespace".to_owned(), json!(parent.service.namespace));
    }
    if let Some(section) = &parent.port_name {
        fields.insert("sectionName".to_owned(), json!(section));
    }
    if let Some(port) = parent.port {
        fields.insert("port".to_owned(), json!(port));
    }
    Value::Object(fields)
}
