//! The hooks of `helm uninstall`, before and after it deletes the release.
//!
//! ```text
//! before  --check  pods with sidecars? ─▶ refuse, and say how to take them out of the mesh
//! after            controllers, or pods with sidecars? ─▶ delete nothing
//!                  else ─▶ delete the ConfigMaps and the Secret that the controllers have made
//! ```
//!
//! Tools other than Helm may run the second hook without the first, or at any time, so it checks
//! itself whether the mesh is still in use.
//!
//! The certificate authority and the trust anchors have no owner, so only this command removes
//! them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};
use tokio::time::{Instant, sleep};
use tracing::info;

use crate::authority::{SecretStore, remove};
use crate::inject::ANCHORS_CONFIG_MAP;
use crate::kubernetes::sidecars;

/// The controllers' pods.
const CONTROLLERS: &str = "app.kubernetes.io/name=naru,app.kubernetes.io/component=controller";
/// How long controllers may take to end: a running one restores deleted objects while it has its
/// permissions.
const CONTROLLERS_END: Duration = Duration::from_secs(120);
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Namespaces that a message lists.
const MAX_NAMED: usize = 10;

/// Flags of `naru-controller uninstall`.
#[derive(Args, Clone, Debug)]
pub struct UninstallArgs {
    /// Change nothing: succeed if no pod has a sidecar.
    #[arg(long)]
    pub check: bool,
    /// Namespace of the controllers.
    #[arg(
        long,
        env = "NARU_NAMESPACE",
        value_name = "NAME",
        default_value = "naru-system"
    )]
    pub namespace: String,
    /// Name of the Secret with the certificate authority, which is deleted if a controller has made
    /// it. Without: none is.
    #[arg(long, env = "NARU_CA_SECRET", value_name = "NAME")]
    pub ca_secret: Option<String>,
    /// Trust domain of the mesh.
    #[arg(
        long,
        env = "NARU_TRUST_DOMAIN",
        value_name = "NAME",
        default_value = "cluster.local"
    )]
    pub trust_domain: String,
}

pub async fn run(client: Client, args: &UninstallArgs) -> anyhow::Result<()> {
    match args.check {
        true => check(&client).await,
        false => clean_up(client, args).await,
    }
}

/// Refuses while pods have sidecars.
async fn check(client: &Client) -> anyhow::Result<()> {
    let pods = sidecars::pods(client)
        .await
        .context("looking for pods with sidecars")?;
    if pods.is_empty() {
        info!("no pod has a sidecar");
        return Ok(());
    }
    let namespaces: BTreeSet<&str> = pods.iter().map(|(namespace, _)| &**namespace).collect();
    let mut steps: Vec<String> = namespaces
        .iter()
        .take(MAX_NAMED)
        .map(|namespace| {
            format!(
                "  kubectl label namespace {namespace} naru.dev/inject-\n  kubectl -n {namespace} \
                 rollout restart deployment,statefulset,daemonset\n"
            )
        })
        .collect();
    if namespaces.len() > MAX_NAMED {
        steps.push(format!(
            "  … and in {} more\n",
            namespaces.len() - MAX_NAMED
        ));
    }
    bail!(
        "Naru is not uninstalled: {} pods have sidecars ({}). Without a controller these get no \
         certificates and no endpoints any more, \
         and calls between them fail within a day. Take them out of the mesh first:\n\
         {}then uninstall again; to keep Naru, helm rollback to the revision that was deployed, \
         for Helm takes it for half uninstalled. (helm uninstall --no-hooks goes on regardless, \
         and leaves the certificate authority and the trust anchors.)",
        pods.len(),
        sidecars::some(&pods),
        steps.concat()
    )
}

/// Removes the objects that the controllers have created.
async fn clean_up(client: Client, args: &UninstallArgs) -> anyhow::Result<()> {
    controllers_end(&client, &args.namespace).await?;
    let pods = sidecars::pods(&client)
        .await
        .context("looking for pods with sidecars")?;
    if !pods.is_empty() {
        bail!(
            "{} pods have sidecars ({}): the certificate authority and the trust anchors that they \
             need are kept. An installation of Naru finds and uses them; once no pod has a \
             sidecar, they can be deleted",
            pods.len(),
            sidecars::some(&pods)
        );
    }
    anchors(&client)
        .await
        .context("deleting the trust anchors")?;
    if let Some(name) = &args.ca_secret {
        let store = SecretStore {
            client,
            namespace: args.namespace.clone(),
            name: name.clone(),
        };
        remove(&store, &args.trust_domain)
            .await
            .with_context(|| format!("deleting the Secret {name}"))?;
    }
    Ok(())
}

async fn controllers_end(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let api = Api::<Pod>::namespaced(client.clone(), namespace);
    let params = ListParams::default().labels(CONTROLLERS);
    let begun = Instant::now();
    loop {
        let left = api.list(&params).await.context("listing controllers")?;
        if left.items.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > CONTROLLERS_END {
            bail!(
                "{} controllers still run in {namespace} after {} s: nothing is deleted, as they \
                 may be in use and would put it back. End them, then delete the Secret and the \
                 ConfigMaps {ANCHORS_CONFIG_MAP}, or uninstall again",
                left.items.len(),
                CONTROLLERS_END.as_secs()
            );
        }
        sleep(LOOK_INTERVAL).await;
    }
}

async fn anchors(client: &Client) -> Result<(), kube::Error> {
    let named = ListParams::default().fields(&format!("metadata.name={ANCHORS_CONFIG_MAP}"));
    let found = Api::<ConfigMap>::all(client.clone()).list(&named).await?;
    let count = found.items.len();
    for map in found {
        let namespace = map.metadata.namespace.unwrap_or_default();
        let api = Api::<ConfigMap>::namespaced(client.clone(), &namespace);
        match api
            .delete(ANCHORS_CONFIG_MAP, &DeleteParams::default())
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error),
        }
    }
    info!(count, "the trust anchors are deleted");
    Ok(())
}

#[cfg(test)]
mod tests;
