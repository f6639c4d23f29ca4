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

/// A permission: group, resource, the object's name (empty: any), verbs.
pub type Right = (
    Where,
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
);

use Where::{Everywhere, OwnNamespace};

const GATEWAY: &str = "gateway.networking.k8s.io";
pub const EXPERIMENTAL: &str = "gateway.networking.x-k8s.io";
const READ: &[&str] = &["list", "watch"];

pub const RIGHTS: [Right; 27] = [
    (Everywhere, "", "namespaces", "", READ),
    (Everywhere, "", "pods", "", READ),
    (Everywhere, "", "services", "", READ),
    (Everywhere, "discovery.k8s.io", "endpointslices", "", READ),
    (Everywhere, GATEWAY, "grpcroutes", "", READ),
    (Everywhere, GATEWAY, "httproutes", "", READ),
    (Everywhere, GATEWAY, "referencegrants", "", READ),
    (Everywhere, GATEWAY, "tcproutes", "", READ),
    (Everywhere, GATEWAY, "tlsroutes", "", READ),
    (Everywhere, GATEWAY, "grpcroutes", "", &["get"]),
    (Everywhere, GATEWAY, "httproutes", "", &["get"]),
    (Everywhere, GATEWAY, "tcproutes", "", &["get"]),
    (Everywhere, GATEWAY, "tlsroutes", "", &["get"]),
    (Everywhere, GATEWAY, "grpcroutes/status", "", &["patch"]),
    (Everywhere, GATEWAY, "httproutes/status", "", &["patch"]),
    (Everywhere, GATEWAY, "tcproutes/status", "", &["patch"]),
    (Everywhere, GATEWAY, "tlsroutes/status", "", &["patch"]),
    (
        Everywhere,
        EXPERIMENTAL,
        "xbackendtrafficpolicies",
        "",
        READ,
    ),
    (Everywhere, EXPERIMENTAL, "xmeshes", "", &["list"]),
    (Everywhere, EXPERIMENTAL, "xmeshes/status", "", &["patch"]),
    (Everywhere, "events.k8s.io", "events", "", &["create"]),
    (
        Everywhere,
        "authentication.k8s.io",
        "tokenreviews",
        "",
        &["create"],
    ),
    (
        Everywhere,
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
        WEBHOOK_CONFIGURATION,
        &["get", "patch"],
    ),
    (Everywhere, "", "configmaps", "", &["create"]),
    (
        Everywhere,
        "",
        "configmaps",
        ANCHORS_CONFIG_MAP,
        &["list", "patch"],
    ),
    (
        OwnNamespace,
        "coordination.k8s.io",
        "leases",
        "naru-controller-status",
        &["get", "update"],
    ),
    (
        OwnNamespace,
        "coordination.k8s.io",
        "leases",
        "",
        &["create"],
    ),
];

/// Checks that the controller has all of its permissions.
pub async fn complete(client: &Client, installed: &Installation) -> Result<Vec<Found>, Error> {
    let mut missing = Vec::new();
    let secret = installed
        .flag("ca-secret")
        .map(|name| (OwnNamespace, "", "secrets", name, &["get"][..]));
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
    name: &str,
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
                name: Some(name.to_owned()),
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
