//! Whether the agent ends for good: whether its DaemonSet is gone. The request to the API server
//! uses the pod's own service account, which may read this one object and nothing else.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Timeout of the API server. The kubelet grants the agent thirty seconds to end.
const TIMEOUT: Duration = Duration::from_secs(8);
/// Bytes of an answer.
const MAX_ANSWER: usize = 1 << 20;
/// Directory in which the kubelet puts the files that a pod needs to call the API server.
pub const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// How to reach the API server.
#[derive(Clone, Debug)]
pub struct ApiServer {
    pub host: String,
    pub port: u16,
}

impl ApiServer {
    /// From the variables that the kubelet sets in every container.
    pub fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        Some(Self {
            host: variable("KUBERNETES_SERVICE_HOST")?,
            port: variable("KUBERNETES_SERVICE_PORT")?.parse().ok()?,
        })
    }

    /// Whether `namespace`'s DaemonSet `name` is gone or being deleted. An error: unknown.
    pub async fn is_gone(
        &self,
        account: &Path,
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<bool> {
        let path = format!("/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}");
        let (status, body) = tokio::time::timeout(TIMEOUT, self.get(account, &path))
            .await
            .with_context(|| format!("the API server did not answer within {TIMEOUT:?}"))??;
        means_gone(status, &body)
    }

    async fn get(&self, account: &Path, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
        let file = |name: &str| account.join(name);
        let token = tokio::fs::read_to_string(file("token"))
            .await
            .context("the service account's token")?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(file("ca.crt"))
            .context("the API server's certificate authority")?
        {
            roots.add(certificate?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(self.host.clone())?;
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::get(path)
            .header(HOST, self.host.as_str())
            .header(AUTHORIZATION, format!("Bearer {}", token.trim()))
            .body(Empty::<Bytes>::new())?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await;
        connection.abort();
        let body = body.map_err(|error| anyhow::anyhow!(error))?;
        Ok((status, body.to_bytes()))
    }
}

/// An uninstall also removes the account and its permissions, perhaps before this request.
fn means_gone(status: StatusCode, body: &[u8]) -> anyhow::Result<bool> {
    match status {
        StatusCode::OK => {
            let object: serde_json::Value = serde_json::from_slice(body)?;
            Ok(!object["metadata"]["deletionTimestamp"].is_null())
        }
        StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(true),
        other => bail!("the API server answered {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_existing_daemonset_means_a_restart() {
        let gone = |status, body: &str| means_gone(status, body.as_bytes()).ok();
        assert_eq!(
            gone(StatusCode::OK, r#"{"metadata": {"name": "naru-cni"}}"#),
            Some(false)
        );
        let going = r#"{"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}"#;
        assert_eq!(gone(StatusCode::OK, going), Some(true));
        for status in [404, 401, 403] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(gone(status, ""), Some(true));
        }
        // Unknown: the plugin stays.
        assert_eq!(gone(StatusCode::INTERNAL_SERVER_ERROR, ""), None);
        assert_eq!(gone(StatusCode::OK, "no JSON"), None);
    }
}
