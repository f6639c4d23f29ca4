//! The webhook's certificate, renewed while it serves: issued by the mesh's own authority, or read
//! from files that another program renews.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;
use tracing::{error, info};

use crate::issuer::{InForce, Issuer, LEAF_LIFETIME, Refusal};

/// How often files are checked. They are renewed hours before they expire.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// Age at which an issued certificate is renewed.
const RENEW_AFTER: Duration = LEAF_LIFETIME.checked_div(2).expect("2 is not 0");
/// Size limit of a file, in bytes: a chain of a dozen certificates.
const MAX_FILE: u64 = 256 * 1024;

/// The source of the certificate.
#[derive(Clone)]
pub enum Certificate {
    Issued { issuer: Arc<Issuer>, name: String },
    Files { chain: PathBuf, key: PathBuf },
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path}: {problem}")]
    Content { path: PathBuf, problem: String },
    #[error(transparent)]
    Issue(#[from] Refusal),
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
}

#[derive(Debug)]
struct Shown(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl Certificate {
    /// The TLS acceptor, and the task that renews its certificate.
    pub fn serve(
        self,
    ) -> Result<(Arc<ServerConfig>, impl Future<Output = ()> + Send), CertificateError> {
        self.serve_looking(LOOK_INTERVAL)
    }

    /// With a configurable polling interval.
    pub(super) fn serve_looking(
        self,
        interval: Duration,
    ) -> Result<(Arc<ServerConfig>, impl Future<Output = ()> + Send), CertificateError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut changes = match &self {
            Self::Issued { issuer, .. } => Some(issuer.changes()),
            Self::Files { .. } => None,
        };
        let mut seen = self.version();
        let shown = Arc::new(Shown(ArcSwap::from_pointee(self.get(&provider)?)));
        // Every API server that calls webhooks speaks TLS 1.3.
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(shown.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let refresh = async move {
            loop {
                tokio::select! {
                    () = tokio::time::sleep(interval) => {}
                    () = changed(&mut changes) => {}
                }
                let version = self.version();
                if version == seen {
                    continue;
                }
                match self.get(&provider) {
                    Ok(key) => {
                        shown.0.store(Arc::new(key));
                        info!("the webhook's certificate is renewed");
                        seen = version;
                    }
                    // The old certificate stays in use.
                    Err(error) => error!(%error, "cannot renew the webhook's certificate"),
                }
            }
        };
        Ok((Arc::new(config), refresh))
    }

    /// Changes when a new certificate is available.
    fn version(&self) -> (Vec<u64>, String) {
        let times = match self {
            Self::Issued { issuer, .. } => {
                let age = since_epoch(SystemTime::now()).as_secs() / RENEW_AFTER.as_secs();
                return (vec![age], issuer.in_force().ca.id().to_owned());
            }
            Self::Files { chain, key } => [chain, key]
                .into_iter()
                .map(|path| {
                    let modified = fs::metadata(path).and_then(|file| file.modified());
                    // Nanoseconds distinguish files that are written within one second.
                    modified.map_or(0, |at| since_epoch(at).as_nanos() as u64)
                })
                .collect(),
        };
        (times, String::new())
    }

    fn get(&self, provider: &CryptoProvider) -> Result<CertifiedKey, CertificateError> {
        let (chain, key) = match self {
            Self::Issued { issuer, name } => issuer.server(name, SystemTime::now())?,
            Self::Files { chain, key } => (read_chain(chain)?, read_key(key)?),
        };
        Ok(CertifiedKey::from_der(chain, key, provider)?)
    }
}

/// Returns when another authority issues certificates. Never returns without a channel for that.
async fn changed(changes: &mut Option<watch::Receiver<Arc<InForce>>>) {
    let told = match changes {
        Some(changes) => changes.changed().await.is_ok(),
        None => false,
    };
    if !told {
        std::future::pending().await
    }
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let pem = read(path)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| content(path, error))?;
    match chain.is_empty() {
        true => Err(content(path, "holds no certificate in PEM")),
        false => Ok(chain),
    }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    PrivateKeyDer::from_pem_slice(&read(path)?).map_err(|error| content(path, error))
}

fn content(path: &Path, problem: impl ToString) -> CertificateError {
    CertificateError::Content {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    use std::io::Read;
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes))
        .map(|_| bytes)
        .map_err(|source| CertificateError::File {
            path: path.to_owned(),
            source,
        })
}
