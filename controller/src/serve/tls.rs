//! TLS towards proxies: the controller's own certificate, renewed while it serves, and whom a client's certificate proves
//! it to be.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rand::RngExt;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tracing::{error, info};

use super::stream::Peer;
use crate::issuer::{Issuer, LEAF_LIFETIME, Refusal, SpiffeId};

/// How long to wait after a renewal that failed.
const RENEW_RETRY: Duration = Duration::from_secs(60);

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the controller's own certificate: {0}")]
    Own(#[from] Refusal),
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
    #[error(transparent)]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// The certificate that the controller shows.
#[derive(Debug)]
pub struct OwnCertificate(ArcSwap<CertifiedKey>);

impl OwnCertificate {
    fn new(issuer: &Issuer, provider: &CryptoProvider) -> Result<Self, TlsError> {
        let key = certified(issuer, provider)?;
        Ok(Self(ArcSwap::from_pointee(key)))
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn certified(issuer: &Issuer, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let (issued, key) = issuer.own(SystemTime::now())?;
    Ok(CertifiedKey::from_der(issued.chain, key, provider)?)
}

/// How connections are taken, and the certificate in it that has to be kept fresh.
pub fn config(issuer: &Issuer) -> Result<(Arc<ServerConfig>, Arc<OwnCertificate>), TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let own = Arc::new(OwnCertificate::new(issuer, &provider)?);
    let mut roots = RootCertStore::empty();
    roots.add(issuer.anchor().clone())?;
    // A proxy has no certificate before its first one.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(own.clone());
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would skip the look at the client's certificate, which may have expired since.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok((Arc::new(config), own))
}

/// Renews the controller's own certificate for ever, at a random point after half of its life.
pub async fn renew(issuer: Arc<Issuer>, own: Arc<OwnCertificate>) {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let mut wait = LEAF_LIFETIME.mul_f64(rand::rng().random_range(0.5..0.7));
    loop {
        tokio::time::sleep(wait).await;
        wait = match certified(&issuer, &provider) {
            Ok(key) => {
                own.0.store(Arc::new(key));
                info!("the controller's own certificate is renewed");
                LEAF_LIFETIME.mul_f64(rand::rng().random_range(0.5..0.7))
            }
            Err(error) => {
                error!(%error, "the controller's own certificate cannot be renewed");
                RENEW_RETRY
            }
        };
    }
}

/// Whom a verified chain proves a client to be. `None`: nobody in this trust domain.
pub fn peer(chain: Option<&[CertificateDer<'_>]>, trust_domain: &str) -> Option<Peer> {
    let (id, expires) = SpiffeId::of(chain?.first()?)?;
    (id.trust_domain == trust_domain).then_some(Peer { id, expires })
}
