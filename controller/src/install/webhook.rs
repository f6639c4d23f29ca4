//! The webhook's configuration, whose caBundle the API server verifies the controller with.

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tracing::info;

use super::anchors::MANAGER;

/// Updates the caBundle of the configuration `name`, if the controller sets it.
pub async fn look(
    client: &Client,
    name: &str,
    ca_bundle: bool,
    anchors_pem: &str,
) -> Result<(), kube::Error> {
    let api = Api::<MutatingWebhookConfiguration>::all(client.clone());
    let found = api.get(name).await?;
    let bundle = ByteString(anchors_pem.as_bytes().to_vec());
    let webhooks = found.webhooks.iter().flatten();
    let outdated: Vec<_> = webhooks
        .filter(|webhook| ca_bundle && webhook.client_config.ca_bundle.as_ref() != Some(&bundle))
        .map(|webhook| json!({ "name": webhook.name, "clientConfig": { "caBundle": bundle } }))
        .collect();
    if !outdated.is_empty() {
        // Strategic merge by the webhooks' names; all other fields stay.
        let patch = Patch::Strategic(json!({ "webhooks": outdated }));
        let params = PatchParams {
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        api.patch(name, &params, &patch).await?;
        info!(name, "the webhook's caBundle is up to date");
    }
    Ok(())
}
