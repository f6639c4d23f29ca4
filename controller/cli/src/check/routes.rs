//! Routes to Services, by the status that the controller has written.

use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, Client, Error};
use serde::Deserialize;
use serde_json::Value;

use super::api::all;
use super::finding::{Found, Group, ok, warning};
use super::names::CONTROLLER_NAME;

const KINDS: [(&str, &str); 4] = [
    ("HTTPRoute", "httproutes"),
    ("GRPCRoute", "grpcroutes"),
    ("TLSRoute", "tlsroutes"),
    ("TCPRoute", "tcproutes"),
];

/// The controller's entry in a route's status for one parent.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Parent {
    controller_name: String,
    pub parent_ref: Value,
    #[serde(default)]
    pub conditions: Vec<Condition>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub message: String,
    #[serde(default)]
    observed_generation: i64,
}

/// All routes, or those of one namespace, with their kind.
pub async fn routes(
    client: &Client,
    namespace: Option<&str>,
) -> Result<Vec<(&'static str, DynamicObject)>, Error> {
    let mut found = Vec::new();
    for (kind, plural) in KINDS {
        let gvk = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
        let api = match namespace {
            Some(namespace) => {
                Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &resource)
            }
            None => Api::<DynamicObject>::all_with(client.clone(), &resource),
        };
        match all(&api, ListParams::default()).await {
            Ok(routes) => found.extend(routes.into_iter().map(|route| (kind, route))),
            // The kind is not installed.
            Err(Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The status entries of our controller.
pub fn parents(route: &DynamicObject) -> Vec<Parent> {
    let parents = serde_json::from_value::<Vec<Parent>>(route.data["status"]["parents"].clone());
    let mut ours = parents.unwrap_or_default();
    ours.retain(|parent| parent.controller_name == CONTROLLER_NAME);
    ours
}

pub async fn check(client: &Client) -> Group {
    let mut group = Group::new("routes");
    group.check("accepted", accepted(client)).await;
    group
}

async fn accepted(client: &Client) -> Result<Vec<Found>, Error> {
    let (mut found, mut count) = (Vec::new(), 0);
    for (kind, route) in routes(client, None).await? {
        if is_of_mesh(&route) {
            count += 1;
            found.extend(thought_of(kind, &route));
        }
    }
    if found.is_empty() {
        found.push(ok(match count {
            0 => "there are no routes to Services".to_owned(),
            _ => format!("all {count} routes to Services are in force"),
        }));
    }
    Ok(found)
}

/// Whether the route has a Service as a parent.
fn is_of_mesh(route: &DynamicObject) -> bool {
    let parents = route.data["spec"]["parentRefs"].as_array();
    parents
        .into_iter()
        .flatten()
        .any(|parent| parent["kind"] == "Service")
}

fn thought_of(kind: &str, route: &DynamicObject) -> Vec<Found> {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    let name = format!(
        "{kind} {}/{}",
        text(&route.metadata.namespace),
        text(&route.metadata.name)
    );
    let ours = parents(route);
    let generation = route.metadata.generation.unwrap_or_default();
    let conditions = ours.iter().flat_map(|parent| &parent.conditions);
    let seen = conditions
        .map(|condition| condition.observed_generation)
        .min();
    if seen.is_none_or(|seen| seen < generation) {
        return vec![warning(
            format!("{name} has no status of Naru's for what it says now"),
            "it is written within a second: see naru_controller_status_writes_total, and the \
             controller's log",
        )];
    }
    let mut found = Vec::new();
    for parent in &ours {
        for condition in &parent.conditions {
            let Condition {
                kind,
                status,
                reason,
                message,
                ..
            } = condition;
            if status != "True" && ["Accepted", "ResolvedRefs"].contains(&&**kind) {
                let service = parent.parent_ref["name"].as_str().unwrap_or_default();
                found.push(warning(
                    format!("{name} for the Service {service} is not {kind} ({reason}): {message}"),
                    match &**kind {
                        "Accepted" => "it does nothing: change it as the message says",
                        _ => {
                            "requests to that backend are answered with 500, and connections \
                            reset: make it, or change the route"
                        }
                    },
                ));
            }
        }
    }
    found
}
