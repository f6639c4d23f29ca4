//! TLS towards proxies: the controller's own certificate and the trust anchors, renewed while it
//! serves, and the identity in a client's certificate.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rand::RngExt;
use rustls::pki_types::CertificateDer;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use tracing::{error, info};

use super::stream::Peer;
use crate::issuer::{Issuer, LEAF_LIFETIME, Refusal, SpiffeId};

/// Delay after a failed renewal.
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

/// The TLS settings of the listener, which [`renew`] keeps up to date.
pub fn config(issuer: &Issuer) -> Result<Arc<ArcSwap<ServerConfig>>, TlsError> {
    Ok(Arc::new(ArcSwap::from_pointee(fresh(issuer)?)))
}

fn fresh(issuer: &Issuer) -> Result<ServerConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (issued, key) = issuer.own(SystemTime::now())?;
    let mut roots = RootCertStore::empty();
    for anchor in &issued.by.anchors {
        roots.add(anchor.clone())?;
    }
    let own = CertifiedKey::from_der(issued.chain, key, &provider)?;
    // A proxy has no certificate until it has requested its first one.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would skip the verification of the client's certificate, which may have
    // expired since.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Renews the settings for ever: at a random point after half of the own certificate's lifetime,
/// and at once when the authority or the anchors change. Open connections are unaffected.
pub async fn renew(issuer: Arc<Issuer>, config: Arc<ArcSwap<ServerConfig>>) {
    let mut changes = issuer.changes();
    let mut wait = life();
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
        wait = match fresh(&issuer) {
            Ok(fresh) => {
                config.store(Arc::new(fresh));
                info!("the controller's own certificate is renewed");
                life()
            }
            Err(error) => {
                error!(%error, "cannot renew the controller's own certificate");
                RENEW_RETRY
            }
        };
    }
}

fn life() -> Duration {
    LEAF_LIFETIME.mul_f64(rand::rng().random_range(0.5..0.7))
}

/// The identity in a client's verified chain. `None`: not a member of this trust domain.
pub fn peer(chain: Option<&[CertificateDer<'_>]>, trust_domain: &str) -> Option<Peer> {
    let (id, expires) = SpiffeId::of(chain?.first()?)?;
    (id.trust_domain == trust_domain).then_some(Peer { id, expires })
}
