//! Whether the user may install: create, change and delete each kind of object in the chart.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::PostParams;
use kube::{Api, Client, Error};

use super::cluster::some;
use super::finding::{Found, Group, failure, info, ok};
use super::rights::{EXPERIMENTAL, RIGHTS, Where};

const RBAC: &str = "rbac.authorization.k8s.io";

/// Group and plural of the chart's namespaced kinds, including Helm's own Secrets.
const NAMESPACED: [(&str, &str); 9] = [
    ("", "secrets"),
    ("", "serviceaccounts"),
    ("", "services"),
    ("apps", "deployments"),
    ("batch", "jobs"),
    ("networking.k8s.io", "networkpolicies"),
    ("policy", "poddisruptionbudgets"),
    (RBAC, "rolebindings"),
    (RBAC, "roles"),
];
/// Group and plural of the chart's cluster-scoped kinds.
const OF_CLUSTER: [(&str, &str); 5] = [
    (
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
    ),
    (
        "admissionregistration.k8s.io",
        "validatingadmissionpolicies",
    ),
    (
        "admissionregistration.k8s.io",
        "validatingadmissionpolicybindings",
    ),
    (RBAC, "clusterrolebindings"),
    (RBAC, "clusterroles"),
];
/// The verbs that `helm install`, `upgrade` and `uninstall` need for each kind.
const VERBS: [&str; 4] = ["create", "delete", "get", "patch"];

pub async fn check(client: &Client, namespace: &str) -> Group {
    let mut group = Group::new("rights to install");
    group.check("rights", rights(client, namespace)).await;
    group
}

async fn rights(client: &Client, namespace: &str) -> Result<Vec<Found>, Error> {
    let mut missing = Vec::new();
    let namespaces = Api::<Namespace>::all(client.clone());
    let there = matches!(namespaces.get_opt(namespace).await, Ok(Some(_)));
    if !there && !may(client, "", "namespaces", None, "create").await? {
        missing.push("create namespaces".to_owned());
    }
    let in_namespace = NAMESPACED
        .iter()
        .map(|&(group, plural)| (group, plural, Some(namespace)));
    let of_cluster = OF_CLUSTER
        .iter()
        .map(|&(group, plural)| (group, plural, None));
    // The chart includes this object where the cluster serves its kind.
    let version = format!("{EXPERIMENTAL}/v1alpha1");
    let experimental = client.list_api_group_resources(&version).await;
    let resources = experimental.map_or(Vec::new(), |list| list.resources);
    let mesh = (resources.iter().any(|resource| resource.name == "xmeshes")).then_some((
        EXPERIMENTAL,
        "xmeshes",
        None,
    ));
    for (group, plural, namespace) in in_namespace.chain(of_cluster).chain(mesh) {
        for verb in VERBS {
            if !may(client, group, plural, namespace, verb).await? {
                missing.push(format!("{verb} {plural}"));
            }
        }
    }
    // RBAC lets a user grant a permission only if the user has it, or has `escalate`.
    if !may(client, RBAC, "clusterroles", None, "escalate").await? {
        for (place, group, resource, _, verbs) in RIGHTS {
            let namespace = (place == Where::OwnNamespace).then_some(namespace);
            for verb in verbs {
                if !may(client, group, resource, namespace, verb).await? {
                    missing.push(format!(
                        "{verb} {resource}, which the controller is to have"
                    ));
                }
            }
        }
        if !may(client, "", "configmaps", None, "delete").await? {
            missing.push("delete configmaps, which uninstalling is to do".to_owned());
        }
    }
    let mut found = vec![match missing.is_empty() {
        true => ok("you may create, change and remove what the chart has"),
        false => failure(
            format!("you may not: {}", some(&missing)),
            "install as a cluster administrator (cluster-admin), or have one give you these rights",
        ),
    }];
    if there {
        found.push(info(format!("the namespace {namespace} is there")));
    }
    Ok(found)
}

async fn may(
    client: &Client,
    group: &str,
    plural: &str,
    namespace: Option<&str>,
    verb: &str,
) -> Result<bool, Error> {
    let (plural, subresource) = plural.split_once('/').unwrap_or((plural, ""));
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(group.to_owned()),
                resource: Some(plural.to_owned()),
                subresource: Some(subresource.to_owned()),
                namespace: namespace.map(str::to_owned),
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api = Api::<SelfSubjectAccessReview>::all(client.clone());
    let answer = api.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
