//! The proxy's own identity and its trust: keys, certificates and the TLS configurations made of
//! them.
//!
//! ```text
//! control::renew ── certificate ─▶ ┐
//! control::sync ─── anchors ─────▶ ┴─▶ generation: server config, a client config for each peer
//! ```
//!
//! A generation is immutable and replaced as a whole. Anchors come with the name of the authority
//! that issues certificates now: where the proxy's own certificate is from another,
//! `control::renew` requests a new one soon. TLS 1.3 only; X25519MLKEM768 is preferred, so traffic
//! recorded today stays confidential against future quantum computers.
//!
//! # Session resumption
//!
//! A full handshake costs both ends together about three times as much as a resumed one, and opaque
//! TCP opens one connection for each of the app's. So sessions are resumed, within these bounds:
//! * A client keeps tickets by expected identity, certificate and anchors: a ticket issued by `a`
//!   is never presented where another identity is expected, and no ticket outlives the certificate
//!   or the anchors under which it was obtained. To resume, the server must hold the ticket's key,
//!   which never leaves the process that proved its identity in the full handshake.
//! * A server is stateless: the ticket contains the sealed session. The keys live for at most 12
//!   hours and are replaced with the anchors. [`Identity::peer_identity`] checks the validity of
//!   the client's certificate on resumed connections too.
//! * Each connection has a fresh key exchange (forward secrecy), and there is no early data
//!   (nothing can be replayed).
//!
//! # Floors
//!
//! ```text
//! trust
//! verify
//! spiffe
//! ```

mod spiffe;
mod trust;
mod verify;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::sync::{Notify, watch};

pub use spiffe::{ClaimsError, SpiffeId, SpiffeIdError};
use trust::Trust;
pub use trust::{TrustError, read_anchors};
pub use verify::IdentityError;
use verify::PinnedServer;

/// Peer identities whose client configurations are cached. Beyond the bound, the cache is cleared
/// and filled again on demand.
const MAX_PEERS: usize = 4_096;
/// Session tickets kept for one peer identity: eight for each of up to 64 addresses, about 2 KiB
/// each.
const MAX_TICKETS: usize = 512;
/// Tickets issued in a handshake. Each resumed connection uses one ticket and receives one, so the
/// number stays level.
const TICKETS_PER_HANDSHAKE: usize = 1;
/// Longest name of an authority, in bytes.
const MAX_AUTHORITY: usize = 64;
/// Interned identities of peers. Beyond the bound, those without other references are removed.
const MAX_NAMES: usize = 16_384;

/// The protocol inside a TLS connection between two proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    Http1,
    Http2,
    Tcp,
}

impl Alpn {
    pub const ALL: [Self; 3] = [Self::Http2, Self::Http1, Self::Tcp];

    pub const fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"naru-http/1.1-streams",
            Self::Http2 => b"naru-h2",
            Self::Tcp => b"naru-tcp-frames",
        }
    }

    pub fn from_bytes(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|alpn| alpn.as_bytes() == name)
    }
}

/// The proxy's certificate and trust anchors in force. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Identity {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    trust_domain: Arc<str>,
    provider: Arc<CryptoProvider>,
    trust: ArcSwap<Trust>,
    /// Absent until there is a certificate.
    current: ArcSwapOption<Generation>,
    /// Held while a generation is made, so that concurrent changes do not lose one.
    changing: Mutex<()>,
    changed: watch::Sender<u64>,
    issuing: watch::Sender<Issuing>,
    refused: Notify,
    names: Mutex<HashSet<SpiffeId>>,
}

/// One certificate with one set of anchors.
#[derive(Debug)]
struct Generation {
    certificate: Arc<Certificate>,
    trust: Arc<Trust>,
    server: Arc<ServerConfig>,
    peers: Mutex<HashMap<SpiffeId, PeerConfigs>>,
}

/// In the order of [`Alpn::ALL`].
type PeerConfigs = [Arc<ClientConfig>; Alpn::ALL.len()];

#[derive(Debug)]
struct Certificate {
    id: SpiffeId,
    validity: Validity,
    resolver: Arc<SingleCertAndKey>,
}

/// The name of an authority, as sent by the controller. It becomes a label. `None`: not a valid
/// name.
pub fn authority_name(name: &str) -> Option<Arc<str>> {
    let right = (1..=MAX_AUTHORITY).contains(&name.len());
    (right && name.bytes().all(|b| b.is_ascii_alphanumeric())).then(|| name.into())
}

/// The authority that issues certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Issuing {
    /// Its name, if it is announced.
    pub issuer: Option<Arc<str>>,
    /// Time within which holders of a certificate from another authority renew theirs.
    pub renew_within: Duration,
}

/// The validity period of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// In Unix seconds.
    pub not_before: i64,
    /// In Unix seconds.
    pub not_after: i64,
}

impl Validity {
    pub fn holds_at(&self, unix_seconds: i64) -> bool {
        (self.not_before..=self.not_after).contains(&unix_seconds)
    }

    pub fn length(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.not_after - self.not_before).unwrap_or(0))
    }
}

/// Why a certificate is rejected.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("there is no certificate")]
    Empty,
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    #[error("{0} is not in the trust domain {1}")]
    ForeignTrustDomain(SpiffeId, String),
    #[error(
        "it holds from {not_before} to {not_after} (Unix seconds), and the clock of this machine \
         shows {now}: if that is wrong, set the clock",
        not_before = .0.not_before,
        not_after = .0.not_after,
        now = .1,
    )]
    NotValidNow(Validity, i64),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Trust(#[from] TrustError),
}

impl Identity {
    /// An identity that trusts `anchors` and has no certificate yet.
    pub fn new(
        trust_domain: &str,
        anchors: Vec<CertificateDer<'static>>,
    ) -> Result<Self, TrustError> {
        let provider = Arc::new(provider());
        let trust_domain: Arc<str> = trust_domain.into();
        let trust = Trust::new(&trust_domain, anchors, &provider)?;
        Ok(Self {
            inner: Arc::new(Inner {
                trust_domain,
                provider,
                trust: ArcSwap::from_pointee(trust),
                current: ArcSwapOption::empty(),
                changing: Mutex::new(()),
                changed: watch::Sender::new(0),
                issuing: watch::Sender::new(Issuing::default()),
                refused: Notify::new(),
                names: Mutex::default(),
            }),
        })
    }

    /// An identity with a certificate, ready for use.
    pub fn from_parts(
        trust_domain: &str,
        anchors: Vec<CertificateDer<'static>>,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, CertificateError> {
        let identity = Self::new(trust_domain, anchors)?;
        identity.set_certificate(chain, key)?;
        Ok(identity)
    }

    /// For a connection to a peer that must prove to be `expected`. Cached by identity and
    /// protocol, and rebuilt when the certificate or the anchors change. `None`: there is no valid
    /// certificate.
    pub fn client_config(&self, expected: &SpiffeId, alpn: Alpn) -> Option<Arc<ClientConfig>> {
        let generation = self.valid_generation()?;
        let index = Alpn::ALL.iter().position(|other| *other == alpn)?;
        let mut peers = lock(&generation.peers);
        if let Some(configs) = peers.get(expected) {
            return Some(configs[index].clone());
        }
        let configs = self.peer_configs(&generation, expected.clone())?;
        if peers.len() >= MAX_PEERS {
            peers.clear();
        }
        let config = configs[index].clone();
        peers.insert(expected.clone(), configs);
        Some(config)
    }

    /// For connections from peers, whose certificate is required and verified. `None`: there is no
    /// valid certificate.
    pub fn server_config(&self) -> Option<Arc<ServerConfig>> {
        Some(self.valid_generation()?.server.clone())
    }

    /// The SPIFFE ID in a peer's verified certificate. Interned: the same identity shares one text.
    /// `None`: no certificate, or it has expired since (a resumed session may be older than that).
    pub fn peer_identity(&self, certificates: &[CertificateDer<'_>]) -> Option<SpiffeId> {
        let claims = spiffe::claims(certificates.first()?).ok()?;
        if unix_now() > claims.not_after {
            return None;
        }
        let mut names = lock(&self.inner.names);
        if let Some(name) = names.get(&claims.id) {
            return Some(name.clone());
        }
        if names.len() >= MAX_NAMES {
            names.retain(|name| !name.is_last());
        }
        if names.len() < MAX_NAMES {
            names.insert(claims.id.clone());
        }
        Some(claims.id)
    }

    /// The remaining validity of the first of a peer's verified certificates.
    pub fn peer_validity(&self, certificates: &[CertificateDer<'_>]) -> Option<Duration> {
        let claims = spiffe::claims(certificates.first()?).ok()?;
        let left = claims.not_after.saturating_sub(unix_now());
        u64::try_from(left).ok().map(Duration::from_secs)
    }

    /// Puts a certificate in force.
    pub fn set_certificate(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Validity, CertificateError> {
        let _changing = lock(&self.inner.changing);
        let leaf = chain.first().ok_or(CertificateError::Empty)?;
        let claims = spiffe::claims(leaf)?;
        if claims.id.trust_domain() != &*self.inner.trust_domain {
            return Err(CertificateError::ForeignTrustDomain(
                claims.id,
                self.inner.trust_domain.to_string(),
            ));
        }
        let validity = Validity {
            not_before: claims.not_before,
            not_after: claims.not_after,
        };
        let now = unix_now();
        if !validity.holds_at(now) {
            return Err(CertificateError::NotValidNow(validity, now));
        }
        let key = CertifiedKey::from_der(chain, key, &self.inner.provider)?;
        let certificate = Arc::new(Certificate {
            id: claims.id,
            validity,
            resolver: Arc::new(key.into()),
        });
        self.swap(certificate, self.inner.trust.load_full())?;
        Ok(validity)
    }

    /// Puts a set of anchors in force. Open connections stay; new ones are verified against it.
    /// False: these anchors were in force already.
    pub fn set_trust_anchors(
        &self,
        anchors: Vec<CertificateDer<'static>>,
    ) -> Result<bool, TrustError> {
        let _changing = lock(&self.inner.changing);
        if self.inner.trust.load().is(&anchors) {
            return Ok(false);
        }
        let trust = Arc::new(Trust::new(
            &self.inner.trust_domain,
            anchors,
            &self.inner.provider,
        )?);
        if let Some(generation) = self.inner.current.load_full() {
            self.swap(generation.certificate.clone(), trust.clone())?;
        }
        self.inner.trust.store(trust);
        Ok(true)
    }

    /// Adds anchors to those in force. A set from the controller's stream replaces all of them.
    pub fn add_trust_anchors(
        &self,
        anchors: Vec<CertificateDer<'static>>,
    ) -> Result<bool, TrustError> {
        let mut all = self.inner.trust.load().anchors().to_vec();
        all.extend(anchors.iter().cloned());
        match self.set_trust_anchors(all) {
            // The sets do not fit together: the controller's takes precedence.
            Err(TrustError::TooMany(_)) => self.set_trust_anchors(anchors),
            result => result,
        }
    }

    /// Whether exactly these anchors are in force.
    pub fn trusts(&self, anchors: &[CertificateDer<'_>]) -> bool {
        self.inner.trust.load().is(anchors)
    }

    /// Sets the authority that is to issue certificates.
    pub fn set_issuing(&self, issuing: Issuing) {
        self.inner.issuing.send_if_modified(|current| {
            let differs = *current != issuing;
            *current = issuing;
            differs
        });
    }

    /// Watches the authority that is to issue certificates.
    pub fn issuing(&self) -> watch::Receiver<Issuing> {
        self.inner.issuing.subscribe()
    }

    /// Records that the controller refuses the certificate in force.
    pub fn certificate_refused(&self) {
        self.inner.refused.notify_one();
    }

    /// Waits until the certificate in force is reported as refused.
    pub(crate) async fn refused(&self) {
        self.inner.refused.notified().await;
    }

    /// Whether [`Self::set_trust_anchors`] would accept `anchors`.
    pub fn check_trust_anchors(
        &self,
        anchors: Vec<CertificateDer<'static>>,
    ) -> Result<(), TrustError> {
        Trust::new(&self.inner.trust_domain, anchors, &self.inner.provider).map(|_| ())
    }

    /// The proxy's own SPIFFE ID, once there is a certificate.
    pub fn id(&self) -> Option<SpiffeId> {
        let generation = self.inner.current.load();
        generation.as_ref().map(|g| g.certificate.id.clone())
    }

    /// The validity of the certificate in force, which may have expired or not begun.
    pub fn validity(&self) -> Option<Validity> {
        let generation = self.inner.current.load();
        generation.as_ref().map(|g| g.certificate.validity)
    }

    /// Whether there is a certificate that is valid now.
    pub fn is_valid(&self) -> bool {
        self.valid_generation().is_some()
    }

    /// The trust domain whose members are peers.
    pub fn trust_domain(&self) -> &str {
        &self.inner.trust_domain
    }

    /// Changes with each new certificate or set of anchors.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    /// For a connection to the controller, which must prove `expected`. `bootstrap`: anchors to
    /// trust in addition to those in force, so that the file readmits a proxy that missed a
    /// rotation. `with_certificate`: present the proxy's own certificate.
    pub fn controller_config(
        &self,
        expected: &SpiffeId,
        bootstrap: &[CertificateDer<'static>],
        with_certificate: bool,
    ) -> Result<ClientConfig, TrustError> {
        let roots = Arc::new(self.inner.trust.load().with(bootstrap)?);
        let certificate = match with_certificate {
            true => self.valid_generation().map(|g| g.certificate.clone()),
            false => None,
        };
        let mut config = self.client_base(expected.clone(), roots, certificate.as_deref())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // One connection at a time, which lasts for hours: resumption would gain nothing.
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    fn valid_generation(&self) -> Option<Arc<Generation>> {
        let generation = self.inner.current.load_full()?;
        let now = unix_now();
        generation
            .certificate
            .validity
            .holds_at(now)
            .then_some(generation)
    }

    /// Makes a generation and puts it in force.
    fn swap(&self, certificate: Arc<Certificate>, trust: Arc<Trust>) -> Result<(), rustls::Error> {
        let mut server = ServerConfig::builder_with_provider(self.inner.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(trust.client_verifier.clone())
            .with_cert_resolver(certificate.resolver.clone());
        server.alpn_protocols = Alpn::ALL.map(|alpn| alpn.as_bytes().to_vec()).into();
        server.ticketer = trust.ticketer.clone();
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = TICKETS_PER_HANDSHAKE;
        server.max_early_data_size = 0;
        // `tls` treats the first moment at which data may be sent as the end of the handshake.
        server.send_half_rtt_data = false;
        // Records are sealed and opened by `tls`.
        server.enable_secret_extraction = true;
        self.inner.current.store(Some(Arc::new(Generation {
            certificate,
            trust,
            server: Arc::new(server),
            peers: Mutex::default(),
        })));
        self.inner
            .changed
            .send_modify(|generation| *generation += 1);
        Ok(())
    }

    fn peer_configs(&self, generation: &Generation, expected: SpiffeId) -> Option<PeerConfigs> {
        let roots = generation.trust.roots.clone();
        let mut base = self
            .client_base(expected, roots, Some(&generation.certificate))
            .ok()?;
        base.resumption = Resumption::in_memory_sessions(MAX_TICKETS);
        // Records are sealed and opened by `tls`.
        base.enable_secret_extraction = true;
        Some(Alpn::ALL.map(|alpn| {
            let mut config = base.clone();
            config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
            Arc::new(config)
        }))
    }

    fn client_base(
        &self,
        expected: SpiffeId,
        roots: Arc<RootCertStore>,
        certificate: Option<&Certificate>,
    ) -> Result<ClientConfig, rustls::Error> {
        let builder = ClientConfig::builder_with_provider(self.inner.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PinnedServer::new(
                expected,
                roots,
                &self.inner.provider,
            )));
        let mut config = match certificate {
            Some(certificate) => builder.with_client_cert_resolver(certificate.resolver.clone()),
            None => builder.with_no_client_auth(),
        };
        config.enable_sni = false;
        Ok(config)
    }
}

/// Whether a handshake failed because the peer proved another identity than expected.
pub fn is_identity_mismatch(error: &std::io::Error) -> bool {
    error
        .get_ref()
        .and_then(|source| source.downcast_ref::<rustls::Error>())
        .is_some_and(|error| IdentityError::find(error).is_some())
}

/// The mesh's TLS parameters. AES-128 comes first: with a key exchange by ML-KEM-768 it is not the
/// weakest part, and it is the cheapest on every processor with AES instructions.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
        ],
        ..aws_lc_rs::default_provider()
    }
}

pub(crate) fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // No code panics while it holds one of these locks in the middle of a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
