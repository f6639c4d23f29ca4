//! Labels and annotations that the controller does not recognize, and objects that it cannot use.

use std::collections::{BTreeMap, BTreeSet};

use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, Client, Error};

use super::api::{Installation, all};
use super::cluster::some;
use super::finding::{Found, Group, ok, warning};
use super::metrics::{of_controllers, value_of};
use super::pods::owner_of;
use crate::annotations::{Place, problem};

/// A kind of object whose own labels and annotations, or those of its pod template, are checked.
struct Looked {
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    /// The path of its template.
    template: &'static str,
}

const LOOKED: [Looked; 8] = [
    kind("", "Namespace", "namespaces", ""),
    kind("", "Service", "services", ""),
    kind("", "Pod", "pods", ""),
    kind("apps", "Deployment", "deployments", "/spec/template"),
    kind("apps", "StatefulSet", "statefulsets", "/spec/template"),
    kind("apps", "DaemonSet", "daemonsets", "/spec/template"),
    kind("batch", "Job", "jobs", "/spec/template"),
    kind(
        "batch",
        "CronJob",
        "cronjobs",
        "/spec/jobTemplate/spec/template",
    ),
];

const fn kind(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    template: &'static str,
) -> Looked {
    Looked {
        group,
        kind,
        plural,
        template,
    }
}

pub async fn check(client: &Client, installed: &Installation) -> Group {
    let mut group = Group::new("labels and annotations");
    group.check("understood", understood(client)).await;
    group.check("usable", usable(client, installed)).await;
    group
}

async fn understood(client: &Client) -> Result<Vec<Found>, Error> {
    // Objects by problem.
    let mut wrong: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for looked in &LOOKED {
        let gvk = GroupVersionKind::gvk(looked.group, "v1", looked.kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, looked.plural);
        let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
        let objects = match all(&api, ListParams::default()).await {
            Ok(objects) => objects,
            Err(Error::Api(status)) if status.code == 404 => continue,
            Err(error) => return Err(error),
        };
        for object in objects {
            for problem in problems(looked, &object) {
                wrong
                    .entry(problem)
                    .or_default()
                    .insert(name(looked, &object));
            }
        }
    }
    if wrong.is_empty() {
        return Ok(vec![ok(
            "every naru.dev label and annotation is understood",
        )]);
    }
    let told = wrong.into_iter().map(|(problem, objects)| {
        let objects: Vec<String> = objects.into_iter().collect();
        warning(
            format!("{}: {problem}", some(&objects)),
            "put it right, or remove it: until then it does nothing, except that a value of the \
             annotation naru.dev/mtls that is not understood counts as strict",
        )
    });
    Ok(told.collect())
}

/// The unknown labels and annotations of an object.
fn problems(looked: &Looked, object: &DynamicObject) -> Vec<String> {
    let own = [
        (Place::Label, object.metadata.labels.as_ref()),
        (Place::Annotation, object.metadata.annotations.as_ref()),
    ];
    let own = own.into_iter().flat_map(|(place, values)| {
        let values = values.into_iter().flatten();
        values.filter_map(move |(name, value)| problem(place, looked.kind, name, value))
    });
    let mut found: Vec<String> = own.collect();
    if looked.template.is_empty() {
        return found;
    }
    let Some(template) = object.data.pointer(looked.template) else {
        return found;
    };
    for (place, field) in [(Place::Label, "labels"), (Place::Annotation, "annotations")] {
        let values = template["metadata"][field]
            .as_object()
            .into_iter()
            .flatten();
        let values = values.filter_map(|(name, value)| Some((name, value.as_str()?)));
        found.extend(values.filter_map(|(name, value)| problem(place, "Pod", name, value)));
    }
    found
}

/// The name of an object, as `Namespace shop`; for a pod and its workload, `shop/deployment/web`.
fn name(looked: &Looked, object: &DynamicObject) -> String {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    match looked.kind {
        "Namespace" => format!("Namespace {name}"),
        "Service" => format!("Service {namespace}/{name}"),
        "Pod" => match owner_of(&object.metadata) {
            Some(owner) => owner,
            None => format!("{namespace}/pod/{name}"),
        },
        kind => format!("{namespace}/{}/{name}", kind.to_lowercase()),
    }
}

/// Objects that the controllers count as unusable, except those already reported.
async fn usable(client: &Client, installed: &Installation) -> Result<Vec<Found>, Error> {
    let mut counts: BTreeMap<String, f64> = BTreeMap::new();
    for metrics in of_controllers(client, installed).await? {
        for (labels, count) in metrics.series("naru_controller_invalid_objects") {
            let kind = value_of(labels, "kind").unwrap_or_default().to_owned();
            let most = counts.entry(kind).or_default();
            *most = most.max(count);
        }
    }
    counts.retain(|_, count| *count > 0.0);
    if counts.is_empty() {
        return Ok(vec![ok("the controllers can use every object as it is")]);
    }
    let each: Vec<String> = counts
        .iter()
        .map(|(kind, count)| format!("{count} {kind}"))
        .collect();
    Ok(vec![warning(
        format!(
            "the controllers do not understand all of: {}",
            each.join(", ")
        ),
        "Events say what and why: kubectl get events -A --field-selector reason=Invalid; after an \
         hour, the controllers' logs",
    )])
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use super::*;

    fn problems_of(kind: &str, object: Value) -> Vec<(String, String)> {
        let looked = LOOKED
            .iter()
            .find(|looked| looked.kind == kind)
            .expect("a kind");
        let object: DynamicObject = serde_json::from_value(object).expect("an object");
        let problems = problems(looked, &object).into_iter();
        problems
            .map(|problem| (name(looked, &object), problem))
            .collect()
    }

    #[test]
    fn a_problem_of_a_template_is_reported_once_for_its_workload_and_pods() {
        let annotations = json!({ "naru.dev/mtls": "on" });
        let deployment = problems_of(
            "Deployment",
            json!({
                "metadata": { "namespace": "shop", "name": "web" },
                "spec": { "template": { "metadata": { "annotations": annotations } } },
            }),
        );
        let pod = problems_of(
            "Pod",
            json!({
                "metadata": {
                    "namespace": "shop", "name": "web-5d8f-x", "annotations": annotations,
                    "ownerReferences": [
                        { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d8f",
                            "uid": "1", "controller": true },
                    ],
                },
            }),
        );
        assert_eq!(deployment.len(), 1);
        assert_eq!(deployment, pod);
        assert_eq!(deployment[0].0, "shop/deployment/web");
    }

    #[test]
    fn typos_are_reported() {
        let labels = json!({ "naru.dev/inject": "true", "naru.dev/mtls": "strict" });
        let told = problems_of(
            "Namespace",
            json!({ "metadata": { "name": "shop", "labels": labels } }),
        );
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told.iter().all(|(name, _)| name == "Namespace shop"));
    }
}
