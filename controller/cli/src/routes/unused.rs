//! Routes to a Service that a client's sidecar does not have in force, and the reason: from the
//! status that the controller has written, and from the scope of consumer and producer routes
//! (GEP-1294).

use kube::api::DynamicObject;
use kube::{Client, Error};
use serde::Serialize;
use serde_json::Value;

use crate::check::names::CONTROLLER_NAME;
use crate::check::routes::{Parent, parents, routes};
use crate::destination::ServiceName;
use crate::kubernetes::problem;
use crate::sidecar::Answer;

/// A route that is not in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unused {
    pub kind: String,
    /// `namespace/name`
    pub name: String,
    pub why: String,
}

/// Routes that have the Service as a parent but are in none of the answers, and further remarks.
pub async fn find(
    client: &Client,
    service: &ServiceName,
    clients: &str,
    answers: &[&Answer],
) -> (Vec<Unused>, Vec<String>) {
    let (mut unused, mut notes) = (Vec::new(), Vec::new());
    let found = match routes(client, None).await {
        // Without the right to list all namespaces, list those that matter.
        Err(Error::Api(status)) if status.code == 403 => {
            notes.push(format!(
                "routes in other namespaces than {} and {clients} are not known: {}",
                service.namespace, status.message
            ));
            let mut found = routes(client, Some(&service.namespace)).await;
            if clients != service.namespace
                && let Ok(found) = &mut found
                && let Ok(more) = routes(client, Some(clients)).await
            {
                found.extend(more);
            }
            found
        }
        found => found,
    };
    match found {
        Err(error) => notes.push(format!(
            "routes that are not in force are not known: {}",
            problem(&error)
        )),
        Ok(found) => {
            let of_service = found
                .iter()
                .filter(|(_, route)| is_parent(route, service))
                .filter_map(|(kind, route)| judge(kind, route, service, clients, answers));
            unused.extend(of_service);
        }
    }
    unused.sort_by(|a: &Unused, b| (&a.kind, &a.name).cmp(&(&b.kind, &b.name)));
    (unused, notes)
}

/// Whether the route has the Service as a parent.
fn is_parent(route: &DynamicObject, service: &ServiceName) -> bool {
    let refs = route.data["spec"]["parentRefs"].as_array();
    refs.into_iter()
        .flatten()
        .any(|parent| names(parent, route, service))
}

fn names(parent: &Value, route: &DynamicObject, service: &ServiceName) -> bool {
    let own = route.metadata.namespace.as_deref().unwrap_or_default();
    parent["kind"] == "Service"
        && parent["name"] == *service.name
        && parent["namespace"].as_str().unwrap_or(own) == service.namespace
}

/// `None`: it is in force.
fn judge(
    kind: &str,
    route: &DynamicObject,
    service: &ServiceName,
    clients: &str,
    answers: &[&Answer],
) -> Option<Unused> {
    let own = route.metadata.namespace.as_deref().unwrap_or_default();
    let name = format!(
        "{own}/{}",
        route.metadata.name.as_deref().unwrap_or_default()
    );
    let in_force = |answer: &&Answer| {
        let mut routes = answer.routes.iter();
        routes.any(|other| other.kind == kind && other.name == name)
    };
    if answers.iter().any(in_force) {
        return None;
    }
    let ours: Vec<Parent> = (parents(route).into_iter())
        .filter(|parent| names(&parent.parent_ref, route, service))
        .collect();
    let accepted = || {
        let conditions = ours.iter().flat_map(|parent| &parent.conditions);
        conditions.filter(|condition| condition.kind == "Accepted")
    };
    let refusal = accepted().find(|condition| condition.status != "True");
    // The consumer routes of the clients' own namespace, if it has any.
    let of_clients = || {
        let routes = answers.iter().flat_map(|answer| &answer.routes);
        routes.map(|route| &route.name).find(|route| {
            let namespace = route.split('/').next().unwrap_or_default();
            namespace == clients && namespace != service.namespace
        })
    };
    let why = if let Some(refusal) = refusal {
        format!("not Accepted ({}): {}", refusal.reason, refusal.message)
    } else if own != service.namespace && own != clients {
        format!("it is in {own}, and so for clients in {own} alone")
    } else if ours.is_empty() {
        format!("{CONTROLLER_NAME} has written no status for it")
    } else if own == service.namespace
        && let Some(route) = of_clients()
    {
        format!(
            "for clients in {clients}, routes of their own namespace take its place, as {route}"
        )
    } else if is_http(kind) && answers.iter().all(|answer| is_bytes(answer)) {
        "the port is declared as bytes".to_owned()
    } else {
        let said = accepted().next().map_or("", |condition| &condition.message);
        format!("it is Accepted ({said}), and not in force on these ports, or not yet")
    };
    Some(Unused {
        kind: kind.to_owned(),
        name,
        why,
    })
}

fn is_http(kind: &str) -> bool {
    ["HTTPRoute", "GRPCRoute"].contains(&kind)
}

fn is_bytes(answer: &Answer) -> bool {
    let service = answer.service.as_ref();
    service.is_some_and(|service| service.protocol == "tcp")
}
