//! The way to the API server, as kubectl finds it, and what several checks ask of it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Error};
use serde::de::DeserializeOwned;

use super::names::{CONTROLLER, INJECT};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Objects in one answer.
const PAGE: u32 = 500;

/// A client, and the address that it calls.
pub async fn client(
    kubeconfig: Option<&Path>,
    context: Option<&str>,
) -> anyhow::Result<(Client, String)> {
    let options = KubeConfigOptions {
        context: context.map(str::to_owned),
        ..KubeConfigOptions::default()
    };
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("--kubeconfig {}", path.display()))?;
            Config::from_custom_kubeconfig(file, &options).await?
        }
        None if context.is_some() => Config::from_kubeconfig(&options).await?,
        None => Config::infer()
            .await
            .context("there is neither a kubeconfig nor a pod's service account")?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    // Checks have their time, and say so when it is over.
    config.default_retry = false;
    let address = config.cluster_url.to_string();
    let client = Client::try_from(config).context("setting up the connection")?;
    Ok((client, address.trim_end_matches('/').to_owned()))
}

/// All objects of a kind, page by page.
pub async fn all<K>(api: &Api<K>, params: ListParams) -> Result<Vec<K>, Error>
where
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let mut params = params.limit(PAGE);
    let mut found = Vec::new();
    loop {
        let page = api.list(&params).await?;
        found.extend(page.items);
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params = params.continue_token(&token),
            _ => return Ok(found),
        }
    }
}

/// Namespaces whose pods get sidecars, and that are there to stay.
pub async fn labelled(client: &Client) -> Result<Vec<Namespace>, Error> {
    let params = ListParams::default().labels(&format!("{INJECT}=enabled"));
    let mut namespaces = all(&Api::<Namespace>::all(client.clone()), params).await?;
    namespaces.retain(|namespace| {
        label(namespace.metadata.labels.as_ref(), INJECT) == Some("enabled")
            && namespace.metadata.deletion_timestamp.is_none()
    });
    Ok(namespaces)
}

pub fn label<'a>(labels: Option<&'a BTreeMap<String, String>>, name: &str) -> Option<&'a str> {
    labels?.get(name).map(String::as_str)
}

/// A controller that is installed, and the flags that it was given.
pub struct Installation {
    pub namespace: String,
    pub deployment: Deployment,
    flags: HashMap<String, String>,
}

impl Installation {
    /// `None`: there is no controller.
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

    /// Whether the webhook's certificate is of the mesh's authority, and its caBundle kept by the controller.
    pub fn keeps_ca_bundle(&self) -> bool {
        self.flag("webhook-certificate").is_none() && self.flag("webhook-configuration").is_some()
    }
}
