//! Queries to the API server that several checks share.

use std::collections::HashMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::{Api, Client, Error};

use super::names::{CONTROLLER, INJECT};
pub use crate::kubernetes::{all, label};

/// Namespaces whose pods are injected, except those that are being deleted.
pub async fn labelled(client: &Client) -> Result<Vec<Namespace>, Error> {
    let params = ListParams::default().labels(&format!("{INJECT}=enabled"));
    let mut namespaces = all(&Api::<Namespace>::all(client.clone()), params).await?;
    namespaces.retain(|namespace| {
        label(namespace.metadata.labels.as_ref(), INJECT) == Some("enabled")
            && namespace.metadata.deletion_timestamp.is_none()
    });
    Ok(namespaces)
}

/// An installed controller and its flags.
pub struct Installation {
    pub namespace: String,
    pub deployment: Deployment,
    flags: HashMap<String, String>,
}

impl Installation {
    /// `None`: no controller is installed.
    pub async fn find(client: &Client, namespace: &str) -> Result<Option<Self>, Error> {
        let api = Api::<Deployment>::namespaced(client.clone(), namespace);
        Ok(api
            .get_opt(CONTROLLER)
            .await?
            .map(|deployment| Self::new(namespace, deployment)))
    }

    fn new(namespace: &str, deployment: Deployment) -> Self {
        let spec = deployment.spec.template.spec.as_ref();
        let containers = spec.into_iter().flat_map(|spec| &spec.containers);
        let mut controller = containers.filter(|container| container.name == CONTROLLER);
        let arguments = controller
            .next()
            .into_iter()
            .flat_map(|container| container.args.iter().flatten());
        let flags = arguments
            .filter_map(|argument| argument.strip_prefix("--"))
            .map(|flag| flag.split_once('=').unwrap_or((flag, "true")))
            .map(|(flag, value)| (flag.to_owned(), value.to_owned()))
            .collect();
        Self {
            namespace: namespace.to_owned(),
            deployment,
            flags,
        }
    }

    /// The value of a flag, without its dashes.
    pub fn flag(&self, name: &str) -> Option<&str> {
        self.flags.get(name).map(String::as_str)
    }

    /// Whether the mesh's own authority issues the webhook's certificate, so that the controller
    /// maintains the caBundle.
    pub fn keeps_ca_bundle(&self) -> bool {
        self.flag("webhook-certificate").is_none() && self.flag("webhook-configuration").is_some()
    }
}
