//! The controller's settings: flags and environment, parsed once into one struct. After that the
//! environment is not read, except for the location of a Kubernetes API server, which is looked up
//! as in every Kubernetes program.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use naru_contract::MtlsMode;

use crate::inject::InjectArgs;
use crate::issuer::is_trust_domain;
use crate::logging::LogFormat;
use crate::source;

/// Flags of `naru-controller run`.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// Read objects from the Kubernetes API server, and check tokens by it. Connects with the pod's
    /// service account or a kubeconfig, like kubectl.
    #[arg(
        long,
        env = "NARU_KUBERNETES",
        conflicts_with_all = ["manifests", "token_public_key", "token_issuer"]
    )]
    pub kubernetes: bool,
    /// Directory of manifests (YAML or JSON), if not --kubernetes. Repeatable; objects of a later
    /// directory replace those of an earlier one. In the environment, separated by colons.
    #[arg(
        long,
        env = "NARU_MANIFESTS",
        value_name = "DIR",
        value_delimiter = ':',
        required_unless_present = "kubernetes"
    )]
    pub manifests: Vec<PathBuf>,
    /// Directory for the mesh's certificate authority, if not --ca-secret. The public
    /// trust-anchors.pem is written there as well.
    #[arg(
        long,
        env = "NARU_STATE_DIR",
        value_name = "DIR",
        required_unless_present = "ca_secret"
    )]
    pub state_dir: Option<PathBuf>,
    /// Name of a Secret (kubernetes.io/tls) with the mesh's certificate authority, created if it is
    /// missing. Needs --kubernetes.
    #[arg(
        long,
        env = "NARU_CA_SECRET",
        value_name = "NAME",
        requires = "kubernetes"
    )]
    pub ca_secret: Option<String>,
    /// Create a new certificate authority if the one that sidecars trust is lost. Without: the
    /// controller does not start while the Secret is missing and there are pods with sidecars.
    #[arg(long, env = "NARU_CA_REPLACE_LOST")]
    pub ca_replace_lost: bool,
    /// How long a new certificate authority is trusted before it issues certificates. Longer than a
    /// minute, and than the kubelet takes to update a ConfigMap in pods.
    #[arg(
        long,
        env = "NARU_CA_TRUST_FOR",
        value_name = "TIME",
        default_value = "10m",
        value_parser = duration
    )]
    pub ca_trust_for: Duration,
    /// Time within which proxies renew their certificates, each at a random point, after the
    /// issuing authority has changed.
    #[arg(
        long,
        env = "NARU_CA_RENEW_WITHIN",
        value_name = "TIME",
        default_value = "5m",
        value_parser = duration
    )]
    pub ca_renew_within: Duration,
    /// How long the root of a replaced authority stays trusted. Certificates live for 24 hours.
    #[arg(
        long,
        env = "NARU_CA_RETIRE_FOR",
        value_name = "TIME",
        default_value = "25h",
        value_parser = duration
    )]
    pub ca_retire_for: Duration,
    /// Namespace of that Secret: the controller's own.
    #[arg(
        long,
        env = "NARU_NAMESPACE",
        value_name = "NAME",
        default_value = "naru-system"
    )]
    pub namespace: String,
    /// Address for proxies: gRPC over TLS.
    #[arg(
        long,
        env = "NARU_LISTEN",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:15010"
    )]
    pub listen: SocketAddr,
    /// Address of the admin port: /metrics /ready /live /log.
    #[arg(
        long,
        env = "NARU_ADMIN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:15014"
    )]
    pub admin: SocketAddr,
    /// Trust domain of the mesh: the host in every SPIFFE ID.
    #[arg(
        long,
        env = "NARU_TRUST_DOMAIN",
        value_name = "NAME",
        default_value = "cluster.local",
        value_parser = trust_domain
    )]
    pub trust_domain: String,
    /// PEM file with the public key (ECDSA P-256) of the signer of service-account tokens, if not
    /// --kubernetes.
    #[arg(
        long,
        env = "NARU_TOKEN_PUBLIC_KEY",
        value_name = "FILE",
        required_unless_present = "kubernetes"
    )]
    pub token_public_key: Option<PathBuf>,
    /// Issuer of service-account tokens (their `iss`), if not --kubernetes.
    #[arg(
        long,
        env = "NARU_TOKEN_ISSUER",
        value_name = "TEXT",
        required_unless_present = "kubernetes"
    )]
    pub token_issuer: Option<String>,
    /// Default for clients without a mesh identity, unless the namespace or workload sets its own:
    /// accept or refuse them.
    #[arg(long, env = "NARU_MTLS", value_enum, default_value_t = Mtls::Permissive)]
    pub mtls: Mtls,
    /// Log filter, such as `info` or `naru_controller::serve=debug,info`.
    #[arg(long, env = "NARU_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
    /// Format of the log on standard error.
    #[arg(long, env = "NARU_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    #[command(flatten)]
    pub inject: InjectArgs,
}

/// The source of objects, and the check of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    Kubernetes,
    Manifests {
        directories: Vec<PathBuf>,
        token_public_key: PathBuf,
        token_issuer: String,
    },
}

impl Config {
    /// `None`: neither source is fully configured, for example if the environment only disables
    /// Kubernetes.
    pub fn origin(&self) -> Option<Origin> {
        if self.kubernetes {
            return Some(Origin::Kubernetes);
        }
        Some(Origin::Manifests {
            directories: Some(self.manifests.clone()).filter(|dirs| !dirs.is_empty())?,
            token_public_key: self.token_public_key.clone()?,
            token_issuer: self.token_issuer.clone()?,
        })
    }
}

/// The mesh's own stance towards clients without an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mtls {
    Permissive,
    Strict,
}

impl From<Mtls> for MtlsMode {
    fn from(mtls: Mtls) -> Self {
        match mtls {
            Mtls::Permissive => Self::Permissive,
            Mtls::Strict => Self::Strict,
        }
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    source::milliseconds(text)
        .map(Duration::from_millis)
        .ok_or_else(|| "expected a duration, as 30s, 10m or 25h".to_owned())
}

fn trust_domain(text: &str) -> Result<String, String> {
    match is_trust_domain(text) {
        true => Ok(text.to_owned()),
        false => {
            Err("expected lower-case letters, digits, dots, dashes and underscores".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        config: Config,
    }

    const LEAST: [&str; 9] = [
        "naru-controller",
        "--manifests",
        "a",
        "--state-dir",
        "s",
        "--token-public-key",
        "k",
        "--token-issuer",
        "naru",
    ];

    #[test]
    fn few_flags_are_required() {
        let config = Program::try_parse_from(LEAST).map(|p| p.config).unwrap();
        assert_eq!(config.listen.port(), 15010);
        assert_eq!(config.mtls, Mtls::Permissive);
        assert_eq!(config.trust_domain, "cluster.local");
    }

    #[test]
    fn objects_are_from_manifests_or_from_kubernetes() {
        let parse = |args: &[&str]| {
            let parsed = Program::try_parse_from(args).map_err(|error| error.to_string());
            parsed.map(|program| program.config.origin())
        };
        let kubernetes = ["naru-controller", "--state-dir", "s", "--kubernetes"];
        assert_eq!(parse(&kubernetes), Ok(Some(Origin::Kubernetes)));
        let manifests = Origin::Manifests {
            directories: vec!["a".into()],
            token_public_key: "k".into(),
            token_issuer: "naru".into(),
        };
        assert_eq!(parse(&LEAST), Ok(Some(manifests)));
        let both = [&LEAST[..], &["--kubernetes"]].concat();
        assert!(parse(&both).unwrap_err().contains("cannot be used with"));
        let neither = parse(&["naru-controller", "--state-dir", "s"]).unwrap_err();
        for flag in ["--manifests", "--token-public-key", "--token-issuer"] {
            assert!(neither.contains(flag), "{flag} in {neither}");
        }
    }

    #[test]
    fn directories_accumulate() {
        let args = LEAST.into_iter().chain(["--manifests", "b"]);
        let config = Program::try_parse_from(args).map(|p| p.config).unwrap();
        assert_eq!(config.manifests, [PathBuf::from("a"), PathBuf::from("b")]);
    }

    #[test]
    fn an_invalid_trust_domain_is_refused() {
        let args = LEAST.into_iter().chain(["--trust-domain", "a/b"]);
        assert!(Program::try_parse_from(args).is_err());
    }
}
