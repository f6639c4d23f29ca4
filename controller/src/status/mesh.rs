//! The mesh's supported features, written into the status of every XMesh that names this controller
//! (GEP-3949). The conformance suite of the Gateway API reads them there.
//!
//! Routing tables do not depend on it, so it is not part of the source: it is polled.

use std::time::Duration;

use k8s_openapi::jiff::{Timestamp, Unit};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::conditions::{self, CONTROLLER_NAME, FIELD_MANAGER};
use crate::compile::Verdict;

/// The polling interval. An XMesh is created once, with an installation.
pub const EVERY: Duration = Duration::from_secs(5);
/// Timeout for reading and writing.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bound on the number of objects. There is one.
const MAX_MESHES: u32 = 16;

/// The Gateway API's names of the features that this mesh supports (pkg/features of v1.7), in
/// alphabetical order. Features of gateways' routes are covered by our own tests with the suite's
/// apps (tests/tests/cluster/gateway).
pub const SUPPORTED_FEATURES: [&str; 40] = [
    "GRPCRoute",
    "GRPCRouteNamedRouteRule",
    "GRPCRouteRequestHeaderModifier",
    "HTTPRoute",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteCORS",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteRetryCodes",
    "HTTPRouteRetryConnectionError",
    "HTTPRouteSchemeRedirect",
    "Mesh",
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteNamedRouteRule",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "TCPRoute",
    "TLSRoute",
];

/// Polls and writes while the lease is held, with a pause of `every`.
pub async fn run(client: Client, mut held: watch::Receiver<bool>, every: Duration) {
    let kind = GroupVersionKind::gvk("gateway.networking.x-k8s.io", "v1alpha1", "XMesh");
    let resource = ApiResource::from_gvk_with_plural(&kind, "xmeshes");
    let meshes: Api<DynamicObject> = Api::all_with(client, &resource);
    while held.wait_for(|held| *held).await.is_ok() {
        match timeout(PATIENCE, write(&meshes, &resource)).await {
            Ok(Ok(())) => {}
            // The optional CRD is not installed.
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot write the status of an XMesh"),
            Err(_) => tracing::warn!("timeout while writing the status of an XMesh"),
        }
        sleep(every).await;
    }
}

async fn write(meshes: &Api<DynamicObject>, resource: &ApiResource) -> kube::Result<()> {
    let list = meshes
        .list(&ListParams::default().limit(MAX_MESHES))
        .await?;
    let ours = |mesh: &&DynamicObject| mesh.data["spec"]["controllerName"] == CONTROLLER_NAME;
    for mesh in list.items.iter().filter(ours) {
        let Some(status) = status(mesh) else {
            continue;
        };
        let patch = json!({
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": { "name": mesh.name_any(),
                "resourceVersion": mesh.metadata.resource_version },
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        meshes
            .patch_status(&mesh.name_any(), &params, &Patch::Apply(&patch))
            .await?;
    }
    Ok(())
}

/// `None`: it is up to date.
fn status(mesh: &DynamicObject) -> Option<Value> {
    let before = &mesh.data["status"];
    let now = Timestamp::now().round(Unit::Second).unwrap_or_default();
    let accepted = Verdict::yes("Accepted", "this is the mesh of Naru".to_owned());
    let generation = mesh.metadata.generation.unwrap_or_default();
    let condition = conditions::condition(
        "Accepted",
        &accepted,
        generation,
        before["conditions"].as_array(),
        &now.to_string(),
    );
    let features = SUPPORTED_FEATURES
        .iter()
        .map(|name| json!({ "name": name }));
    let features: Vec<Value> = features.collect();
    // Others may add entries to both lists: these stay, and do not trigger a write.
    let has = |list: &str, entry: &Value| {
        let entries = before[list].as_array();
        entries.is_some_and(|entries| entries.contains(entry))
    };
    let said = has("conditions", &condition)
        && (features.iter()).all(|feature| has("supportedFeatures", feature))
        && !has_former_features(mesh);
    (!said).then(|| json!({ "conditions": [condition], "supportedFeatures": features }))
}

/// Whether another version of this controller has listed features that this one does not support:
/// the next write removes them.
fn has_former_features(mesh: &DynamicObject) -> bool {
    let entries = mesh.metadata.managed_fields.iter().flatten();
    let ours = entries.filter(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER));
    ours.filter_map(|entry| entry.fields_v1.as_ref())
        .filter_map(|fields| fields.0["f:status"]["f:supportedFeatures"].as_object())
        .flat_map(|features| features.keys())
        // As `k:{"name":"Mesh"}`; a `.` is the list itself.
        .filter_map(|key| serde_json::from_str::<Value>(key.strip_prefix("k:")?).ok())
        .any(|key| {
            let name = key["name"].as_str();
            name.is_some_and(|name| !SUPPORTED_FEATURES.contains(&name))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mesh(status: &Value, owned: &Value) -> DynamicObject {
        let fields = json!({ "f:status": { "f:supportedFeatures": owned } });
        let managed =
            json!([{ "manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": fields }]);
        let metadata = json!({ "name": "naru", "generation": 1, "managedFields": managed });
        let spec = json!({ "controllerName": CONTROLLER_NAME });
        serde_json::from_value(json!({ "metadata": metadata, "spec": spec, "status": status }))
            .expect("an XMesh")
    }

    #[test]
    fn entries_of_others_in_a_status_do_not_trigger_a_write() {
        let none = json!({});
        let written = status(&mesh(&Value::Null, &none)).expect("nothing is said yet");
        assert_eq!(status(&mesh(&written, &none)), None);
        // The CRD has a default condition, which this controller does not write.
        let mut shared = written;
        let list = |status: &mut Value, name: &str, entry| {
            let list = status[name].as_array_mut().expect("a list");
            list.insert(0, entry);
        };
        let programmed = json!({ "type": "Programmed", "status": "Unknown", "reason": "Pending" });
        list(&mut shared, "conditions", programmed);
        list(&mut shared, "supportedFeatures", json!({ "name": "AAA" }));
        assert_eq!(status(&mesh(&shared, &none)), None);
    }

    #[test]
    fn missing_or_former_features_trigger_a_write() {
        let none = json!({});
        let written = status(&mesh(&Value::Null, &none)).expect("nothing is said yet");
        let mut fewer = written.clone();
        fewer["supportedFeatures"]
            .as_array_mut()
            .expect("a list")
            .pop();
        assert!(status(&mesh(&fewer, &none)).is_some());
        let current = json!({ ".": {}, "k:{\"name\":\"Mesh\"}": { ".": {}, "f:name": {} } });
        assert_eq!(status(&mesh(&written, &current)), None);
        let former = json!({ "k:{\"name\":\"Former\"}": { ".": {}, "f:name": {} } });
        assert!(status(&mesh(&written, &former)).is_some());
        let mut denied = written;
        denied["conditions"][0]["status"] = json!("False");
        assert!(status(&mesh(&denied, &none)).is_some());
    }
}
