//! The client of the API server, configured as kubectl is.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Error};
use serde::de::DeserializeOwned;

/// Connect timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Objects in one page of a list.
const PAGE: u32 = 500;

/// A client, and the URL that it connects to.
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
    // The callers have time limits of their own, and report when these expire.
    config.default_retry = false;
    let address = config.cluster_url.to_string();
    let client = Client::try_from(config).context("setting up the connection")?;
    Ok((client, address.trim_end_matches('/').to_owned()))
}

/// All objects of a kind, listed page by page.
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

pub fn label<'a>(labels: Option<&'a BTreeMap<String, String>>, name: &str) -> Option<&'a str> {
    labels?.get(name).map(String::as_str)
}

/// An error in one line: its root cause.
pub fn problem(error: &Error) -> String {
    if let Error::Api(status) = error {
        return match status.message.is_empty() {
            true => format!("{} {}", status.code, status.reason),
            false => status.message.clone(),
        };
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
