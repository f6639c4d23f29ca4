//! The controller's permissions: those that the chart grants.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client, Error};

use super::api::Installation;
use super::cluster::some;
use super::finding::{Found, failure, ok};
use super::names::{ANCHORS_CONFIG_MAP, CONTROLLER, WEBHOOK_CONFIGURATION};

/// The scope of a permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Where {
    Everywhere,
    OwnNamespace,
}

/// A permission: group, resource, the object's name (`None`: any), verbs.
pub type Right = (
    Where,
    &'static str,
    &'static str,
    Option<&'static str>,
    &'static [&'static str],
);

use Where::{Everywhere, OwnNamespace};

const GATEWAY: &str = "gateway.networking.k8s.io";
pub const EXPERIMENTAL: &str = "gateway.networking.x-k8s.io";
const READ: &[&str] = &["list", "watch"];

pub const RIGHTS: [Right; 27] = [
    (Everywhere, "", "namespaces", None, READ),
    (Everywhere, "", "pods", None, READ),
    (Everywhere, "", "services", None, READ),
    (Everywhere, "discovery.k8s.io", "endpointslices", None, READ),
    (Everywhere, GATEWAY, "grpcroutes", None, READ),
    (Everywhere, GATEWAY, "httproutes", None, READ),
    (Everywhere, GATEWAY, "referencegrants", None, READ),
    (Everywhere, GATEWAY, "tcproutes", None, READ),
    (Everywhere, GATEWAY, "tlsroutes", None, READ),
    (Everywhere, GATEWAY, "grpcroutes", None, &["get"]),
    (Everywhere, GATEWAY, "httproutes", None, &["get"]),
    (Everywhere, GATEWAY, "tcproutes", None, &["get"]),
    (Everywhere, GATEWAY, "tlsroutes", None, &["get"]),
    (Everywhere, GATEWAY, "grpcroutes/status", None, &["patch"]),
    (Everywhere, GATEWAY, "httproutes/status", None, &["patch"]),
    (Everywhere, GATEWAY, "tcproutes/status", None, &["patch"]),
    (Everywhere, GATEWAY, "tlsroutes/status", None, &["patch"]),
    (
        Everywhere,
        EXPERIMENTAL,
        "xbackendtrafficpolicies",
        None,
        READ,
    ),
    (Everywhere, EXPERIMENTAL, "xmeshes", None, &["list"]),
    (Everywhere, EXPERIMENTAL, "xmeshes/status", None, &["patch"]),
    (Everywhere, "events.k8s.io", "events", None, &["create"]),
    (
        Everywhere,
        "authentication.k8s.io",
        "tokenreviews",
        None,
        &["create"],
    ),
    (
        Everywhere,
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
        Some(WEBHOOK_CONFIGURATION),
        &["get", "patch"],
    ),
    (Everywhere, "", "configmaps", None, &["create"]),
    (
        Everywhere,
        "",
        "configmaps",
        Some(ANCHORS_CONFIG_MAP),
        &["list", "patch"],
    ),
    (
        OwnNamespace,
        "coordination.k8s.io",
        "leases",
        Some("naru-controller-status"),
        &["get", "update"],
    ),
    (
        OwnNamespace,
        "coordination.k8s.io",
        "leases",
        None,
        &["create"],
    ),
];

/// Checks that the controller has all of its permissions.
pub async fn complete(client: &Client, installed: &Installation) -> Result<Vec<Found>, Error> {
    let mut missing = Vec::new();
    let secret = installed
        .flag("ca-secret")
        .map(|name| (OwnNamespace, "", "secrets", Some(name), &["get"][..]));
    for (place, group, resource, name, verbs) in RIGHTS.into_iter().chain(secret) {
        for verb in verbs {
            if !may(client, installed, place, group, resource, name, verb).await? {
                missing.push(format!("{verb} {resource}"));
            }
        }
    }
    Ok(vec![match missing.is_empty() {
        true => ok("the controller may do what it has to"),
        false => failure(
            format!("the controller may not: {}", some(&missing)),
            format!(
                "upgrade the release, which puts its roles right: helm upgrade naru charts/naru -n \
                 {}",
                installed.namespace
            ),
        ),
    }])
}

async fn may(
    client: &Client,
    installed: &Installation,
    place: Where,
    group: &str,
    resource: &str,
    name: Option<&str>,
    verb: &str,
) -> Result<bool, Error> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let namespace = (place == OwnNamespace).then(|| installed.namespace.clone());
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(format!(
                "system:serviceaccount:{}:{CONTROLLER}",
                installed.namespace
            )),
            resource_attributes: Some(ResourceAttributes {
                group: Some(group.to_owned()),
                resource: Some(resource.to_owned()),
                subresource: Some(subresource.to_owned()),
                name: name.map(str::to_owned),
                namespace,
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api = Api::<SubjectAccessReview>::all(client.clone());
    let answer = api.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
