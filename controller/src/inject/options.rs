//! Flags for injection, and the settings derived from them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};

use super::address::qualified;
use super::certificate::Certificate;
use crate::annotations::quantity;
use crate::issuer::Issuer;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Settings for all pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub image: String,
    pub pull_policy: PullPolicy,
    /// The controller's gRPC address, as HOST:PORT.
    pub controller: String,
    pub controller_identity: String,
    /// Native sidecars: init containers that keep running. Otherwise the sidecar is the first
    /// container.
    pub native_sidecars: bool,
    pub redirection: Redirection,
    /// Pods, nodes or other hosts have addresses in 240.0.0.0/4.
    pub class_e_in_use: bool,
    pub log: String,
    pub resources: Resources,
}

/// Flags of `naru-controller run` for injection.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Injection")]
pub struct InjectArgs {
    /// HTTPS address of the admission webhook that injects sidecars. Without: no webhook.
    #[arg(
        long,
        env = "NARU_WEBHOOK",
        value_name = "ADDRESS",
        requires = "proxy_image"
    )]
    pub webhook: Option<SocketAddr>,
    /// DNS name by which the API server calls the webhook.
    #[arg(
        long,
        env = "NARU_WEBHOOK_NAME",
        value_name = "NAME",
        default_value = "naru-controller.naru-system.svc"
    )]
    pub webhook_name: String,
    /// PEM file with the webhook's certificate chain, reloaded when it changes. Without: the mesh's
    /// authority issues one.
    #[arg(
        long,
        env = "NARU_WEBHOOK_CERTIFICATE",
        value_name = "FILE",
        requires = "webhook_key"
    )]
    pub webhook_certificate: Option<PathBuf>,
    /// PEM file with the private key of --webhook-certificate.
    #[arg(
        long,
        env = "NARU_WEBHOOK_KEY",
        value_name = "FILE",
        requires = "webhook_certificate"
    )]
    pub webhook_key: Option<PathBuf>,
    /// Name of the MutatingWebhookConfiguration whose caBundle the controller maintains; it then
    /// also maintains the trust anchors in namespaces with sidecars. Needs --kubernetes.
    #[arg(
        long,
        env = "NARU_WEBHOOK_CONFIGURATION",
        value_name = "NAME",
        requires = "kubernetes"
    )]
    pub webhook_configuration: Option<String>,
    /// Image of the sidecar, with the program /usr/local/bin/naru-proxy. Required with --webhook.
    #[arg(long, env = "NARU_PROXY_IMAGE", value_name = "IMAGE")]
    pub proxy_image: Option<String>,
    /// The pull policy of that image.
    #[arg(
        long,
        env = "NARU_PROXY_PULL_POLICY",
        value_name = "POLICY", value_enum,
        default_value_t = PullPolicy::IfNotPresent
    )]
    pub proxy_pull_policy: PullPolicy,
    /// The controller's gRPC address for sidecars. A name that ends in .svc is completed with the
    /// cluster's domain from this pod's resolv.conf.
    #[arg(
        long,
        env = "NARU_PROXY_CONTROLLER",
        value_name = "HOST:PORT",
        default_value = "naru-controller.naru-system.svc:15010"
    )]
    pub proxy_controller: String,
    /// Log filter of sidecars, unless the pod sets its own.
    #[arg(
        long,
        env = "NARU_PROXY_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub proxy_log: String,
    /// CPU request of a sidecar; empty: no request.
    #[arg(
        long,
        env = "NARU_PROXY_CPU_REQUEST",
        value_name = "QUANTITY",
        default_value = "20m",
        value_parser = quantity
    )]
    pub proxy_cpu_request: String,
    /// CPU limit of a sidecar; empty: no limit.
    #[arg(
        long,
        env = "NARU_PROXY_CPU_LIMIT",
        value_name = "QUANTITY",
        default_value = "",
        value_parser = quantity
    )]
    pub proxy_cpu_limit: String,
    /// Memory request of a sidecar; empty: no request.
    #[arg(
        long,
        env = "NARU_PROXY_MEMORY_REQUEST",
        value_name = "QUANTITY",
        default_value = "32Mi",
        value_parser = quantity
    )]
    pub proxy_memory_request: String,
    /// Memory limit of a sidecar; empty: no limit.
    #[arg(
        long,
        env = "NARU_PROXY_MEMORY_LIMIT",
        value_name = "QUANTITY",
        default_value = "256Mi",
        value_parser = quantity
    )]
    pub proxy_memory_limit: String,
    /// Run sidecars as init containers that keep running (Kubernetes 1.29 or later); `false`: as
    /// plain containers.
    #[arg(
        long,
        env = "NARU_NATIVE_SIDECARS",
        value_name = "BOOL",
        default_value = "true",
        action = clap::ArgAction::Set
    )]
    pub native_sidecars: bool,
    /// What installs a pod's redirect rules: its init container, which needs NET_ADMIN, or the CNI
    /// plugin on its node, which needs native sidecars.
    #[arg(
        long,
        env = "NARU_REDIRECTION",
        value_name = "BY", value_enum,
        default_value_t = Redirection::Init
    )]
    pub redirection: Redirection,
    /// Addresses in 240.0.0.0/4 are in use by pods, nodes or other hosts: pods do not use them for
    /// their clients' addresses.
    #[arg(
        long,
        env = "NARU_CLASS_E_IN_USE",
        value_name = "BOOL",
        default_value = "false",
        action = clap::ArgAction::Set
    )]
    pub class_e_in_use: bool,
}

/// By what the connections of a pod are redirected to its sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Redirection {
    Init,
    Cni,
}

impl Redirection {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Cni => "cni",
        }
    }
}

/// `imagePullPolicy` of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

impl PullPolicy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// Kubernetes quantities; empty: not set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resources {
    pub cpu_request: String,
    pub cpu_limit: String,
    pub memory_request: String,
    pub memory_limit: String,
}

impl InjectArgs {
    /// The listen address and the injection settings. `None`: the webhook is disabled.
    pub fn webhook(&self, controller_identity: String) -> Option<(SocketAddr, Options)> {
        // Outside a pod it may have no search list, or not exist.
        let resolv_conf = std::fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        let options = Options {
            image: self.proxy_image.clone()?,
            pull_policy: self.proxy_pull_policy,
            controller: qualified(&self.proxy_controller, &resolv_conf),
            controller_identity,
            native_sidecars: self.native_sidecars,
            redirection: self.redirection,
            class_e_in_use: self.class_e_in_use,
            log: self.proxy_log.clone(),
            resources: Resources {
                cpu_request: self.proxy_cpu_request.clone(),
                cpu_limit: self.proxy_cpu_limit.clone(),
                memory_request: self.proxy_memory_request.clone(),
                memory_limit: self.proxy_memory_limit.clone(),
            },
        };
        Some((self.webhook?, options))
    }

    /// The source of the webhook's certificate.
    pub fn certificate(&self, issuer: &Arc<Issuer>) -> Certificate {
        match (&self.webhook_certificate, &self.webhook_key) {
            (Some(chain), Some(key)) => Certificate::Files {
                chain: chain.clone(),
                key: key.clone(),
            },
            _ => Certificate::Issued {
                issuer: issuer.clone(),
                name: self.webhook_name.clone(),
            },
        }
    }
}
