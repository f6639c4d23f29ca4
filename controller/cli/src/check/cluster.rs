//! The cluster itself: its version, clock, nodes and Gateway API kinds.

use std::time::Duration;

use http::Request;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion,
};
use k8s_openapi::jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use kube::api::ListParams;
use kube::client::Body;
use kube::{Api, Client, Error};

use super::api::{all, label};
use super::finding::{Found, Group, failure, info, ok, warning};

/// Minor versions of Kubernetes 1 that Naru is tested with.
const TESTED: std::ops::RangeInclusive<u32> = 33..=37;
/// Older API servers lack features that the controller's chart uses.
const OLDEST: u32 = 28;
/// The first minor version with native sidecars.
const NATIVE_SIDECARS: u32 = 29;
/// Tolerated clock skew: certificates are valid from 60 s before they are issued.
const SKEW: Duration = Duration::from_secs(30);

/// The route kinds that the controller reads, each with the minor version of Gateway API 1 that
/// made it v1.
const ROUTES: [(&str, u32); 4] = [
    ("httproutes", 0),
    ("grpcroutes", 1),
    ("tlsroutes", 5),
    ("tcproutes", 6),
];
const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
const BUNDLE_VERSION: &str = "gateway.networking.k8s.io/bundle-version";
const CHANNEL: &str = "gateway.networking.k8s.io/channel";
/// Minor versions of Gateway API 1 that Naru supports.
const GATEWAY_API: std::ops::RangeInclusive<u32> = 1..=7;
const INSTALL_GATEWAY_API: &str = "kubectl apply --server-side -f \
    https://github.com/kubernetes-sigs/gateway-api/releases/download/v1.7.0/standard-install.yaml";

pub async fn check(group: &mut Group, client: &Client) {
    group.check("version", version(client)).await;
    group.check("clock", clock(client)).await;
    group.check("webhooks", webhooks(client)).await;
    group.check("nodes", nodes(client)).await;
    group.check("gateway-api", gateway_api(client)).await;
}

async fn version(client: &Client) -> Result<Vec<Found>, Error> {
    let info = client.apiserver_version().await?;
    let name = &info.git_version;
    let tested = format!("1.{} to 1.{}", TESTED.start(), TESTED.end());
    // Some cloud providers report "33+".
    let minor = info.minor.trim_end_matches('+').parse::<u32>();
    Ok(vec![match minor {
        Ok(minor) if info.major == "1" && TESTED.contains(&minor) => {
            ok(format!("Kubernetes {name}"))
        }
        Ok(minor) if info.major == "1" && minor < OLDEST => failure(
            format!("Kubernetes {name} lacks what Naru needs"),
            format!("upgrade the cluster to one of {tested}"),
        ),
        _ => warning(
            format!("Naru has not been tested with Kubernetes {name}"),
            format!("take one of {tested}, or try your routes on a cluster that may fail"),
        ),
    }])
}

/// Compares the API server's clock, from the `Date` header of a response, with this machine's. The
/// pods' clocks may differ from both, but tokens and certificates require all of them to agree.
async fn clock(client: &Client) -> Result<Vec<Found>, Error> {
    let request = Request::get("/version")
        .body(Body::empty())
        .map_err(Error::HttpError)?;
    let sent = Timestamp::now();
    let response = client.send(request).await?;
    let date = response.headers().get(http::header::DATE);
    let date = date.and_then(|date| date.to_str().ok());
    let Some(there) = date.and_then(|date| rfc2822::parse(date).ok()) else {
        return Ok(vec![info("the API server does not say what time it is")]);
    };
    Ok(vec![skew(there.timestamp().duration_since(sent))])
}

fn skew(ahead: SignedDuration) -> Found {
    let seconds = ahead.as_secs();
    if ahead.unsigned_abs() <= SKEW {
        return ok("this machine's clock and the API server's agree");
    }
    let which = if seconds > 0 { "ahead of" } else { "behind" };
    warning(
        format!(
            "the API server's clock is {} s {which} this machine's",
            seconds.abs()
        ),
        "set the clock that is wrong (chrony, ntpd); on nodes, sidecars get no certificate when it \
         is off by a minute",
    )
}

async fn webhooks(client: &Client) -> Result<Vec<Found>, Error> {
    let served = client
        .list_api_group_resources("admissionregistration.k8s.io/v1")
        .await;
    let kind = "mutatingwebhookconfigurations";
    Ok(vec![match served {
        Ok(served) if served.resources.iter().any(|served| served.name == kind) => {
            ok("admission webhooks are served")
        }
        Err(error) if !matches!(&error, Error::Api(status) if status.code == 404) => {
            return Err(error);
        }
        _ => failure(
            "the API server has no admission webhooks: pods can't be given sidecars",
            "start it with the group admissionregistration.k8s.io/v1 and the admission plugin \
             MutatingAdmissionWebhook",
        ),
    }])
}

async fn nodes(client: &Client) -> Result<Vec<Found>, Error> {
    let nodes = all(&Api::<Node>::all(client.clone()), ListParams::default()).await?;
    let mut old = Vec::new();
    let mut foreign = Vec::new();
    for node in &nodes {
        let name = node.metadata.name.clone().unwrap_or_default();
        let status = node
            .status
            .as_ref()
            .and_then(|status| status.node_info.as_ref());
        let Some(about) = status else { continue };
        let windows = label(node.metadata.labels.as_ref(), "kubernetes.io/os") == Some("windows");
        if windows || !["amd64", "arm64"].contains(&&*about.architecture) {
            foreign.push(format!(
                "{name} ({}/{})",
                about.operating_system, about.architecture
            ));
        } else if minor(&about.kubelet_version).is_some_and(|minor| minor < NATIVE_SIDECARS) {
            old.push(format!("{name} ({})", about.kubelet_version));
        }
    }
    let mut found = Vec::new();
    if old.is_empty() {
        found.push(ok(format!("{} nodes have native sidecars", nodes.len())));
    } else {
        found.push(warning(
            format!("these nodes have no native sidecars: {}", some(&old)),
            "upgrade their kubelets to 1.29 or later, or install with proxy.nativeSidecars=false: \
             pods of Jobs get no sidecar then",
        ));
    }
    if !foreign.is_empty() {
        found.push(info(format!(
            "sidecars run on Linux on amd64 and arm64, so not on {}",
            some(&foreign)
        )));
    }
    Ok(found)
}

/// The minor version in `v1.33.2-gke.1`.
fn minor(version: &str) -> Option<u32> {
    let minor = version.trim_start_matches('v').split('.').nth(1)?;
    minor.parse().ok()
}

async fn gateway_api(client: &Client) -> Result<Vec<Found>, Error> {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let mut found = Vec::new();
    for (route, since) in ROUTES {
        let name = format!("{route}.{GATEWAY_GROUP}");
        let Some(definition) = api.get_opt(&name).await? else {
            found.push(warning(
                format!("{name} is not installed: there are no such routes"),
                format!("{INSTALL_GATEWAY_API} (before or after Naru)"),
            ));
            continue;
        };
        let v1 = |version: &&_| {
            let version: &CustomResourceDefinitionVersion = version;
            version.name == "v1" && version.served
        };
        if definition.spec.versions.iter().find(v1).is_none() {
            found.push(warning(
                format!(
                    "{name} has no version v1, which Naru reads: it has it from Gateway API \
                     1.{since} on"
                ),
                INSTALL_GATEWAY_API,
            ));
            continue;
        }
        let annotations = definition.metadata.annotations.as_ref();
        let bundle = label(annotations, BUNDLE_VERSION).unwrap_or_default();
        let channel = label(annotations, CHANNEL).unwrap_or("unknown");
        let known = bundle.starts_with("v1.")
            && minor(bundle).is_some_and(|minor| GATEWAY_API.contains(&minor));
        found.push(match known {
            true => ok(format!("{name}: {bundle}, {channel} channel")),
            false => warning(
                format!("{name} is of a release that Naru does not know: {bundle:?}"),
                format!(
                    "take one of v1.{} to v1.{}: {INSTALL_GATEWAY_API}",
                    GATEWAY_API.start(),
                    GATEWAY_API.end()
                ),
            ),
        });
    }
    Ok(found)
}

/// The first few of many names.
pub fn some(names: &[String]) -> String {
    const FEW: usize = 5;
    match names.len() {
        0..=FEW => names.join(", "),
        many => format!("{} and {} more", names[..FEW].join(", "), many - FEW),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    #[test]
    fn clocks_that_disagree_are_reported_with_the_direction() {
        assert_eq!(skew(SignedDuration::from_secs(-29)).level(), Level::Ok);
        let ahead = skew(SignedDuration::from_secs(90));
        assert_eq!(ahead.level(), Level::Warning);
        assert!(ahead.text().contains("90 s ahead of"), "{}", ahead.text());
        let behind = skew(SignedDuration::from_secs(-90));
        assert!(behind.text().contains("90 s behind"), "{}", behind.text());
    }

    #[test]
    fn minor_versions_are_read_as_distributions_write_them() {
        assert_eq!(minor("v1.33.2-gke.100"), Some(33));
        assert_eq!(minor("1.29.0+k3s1"), Some(29));
        assert_eq!(minor("v1"), None);
    }
}
