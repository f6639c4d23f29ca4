//! The cluster's pods with a sidecar, from the API server.

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};

use crate::inject::{INJECTED_LABEL, is_sidecar};

/// Pods in one page of a list.
const PAGE: u32 = 500;
/// Names in one message.
const MAX_NAMED: usize = 5;

/// Namespace and name of a pod.
pub type PodName = (String, String);

/// Pods that have a sidecar and are not terminating. The label alone is not proof, because anyone
/// may set it.
pub async fn pods(client: &Client) -> Result<Vec<PodName>, kube::Error> {
    let api = Api::<Pod>::all(client.clone());
    let mut params = ListParams::default()
        .labels(&format!("{INJECTED_LABEL}=true"))
        .limit(PAGE);
    let mut found = Vec::new();
    loop {
        let page = api.list(&params).await?;
        let pods = page.items.into_iter().filter(lives_with_sidecar);
        found.extend(pods.map(|pod| {
            let metadata = pod.metadata;
            (
                metadata.namespace.unwrap_or_default(),
                metadata.name.unwrap_or_default(),
            )
        }));
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params = params.continue_token(&token),
            _ => return Ok(found),
        }
    }
}

/// The first few names, for a message.
pub fn some(pods: &[PodName]) -> String {
    let names: Vec<String> = (pods.iter().take(MAX_NAMED))
        .map(|(namespace, name)| format!("{namespace}/{name}"))
        .collect();
    let more = match pods.len() > MAX_NAMED {
        true => ", …",
        false => "",
    };
    format!("{}{more}", names.join(", "))
}

fn lives_with_sidecar(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let is_over =
        pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed"));
    let labels = pod.metadata.labels.as_ref();
    let labelled = labels.is_some_and(|labels| labels.contains_key(INJECTED_LABEL));
    labelled && !is_over && pod.spec.as_ref().is_some_and(is_sidecar)
}
