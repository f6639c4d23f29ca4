//! A certificate authority in memory, for tests.

use std::ops::{Add, Sub};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};

use super::{Identity, SpiffeId, unix_now};

pub const TRUST_DOMAIN: &str = "cluster.local";
const DAY: Duration = Duration::from_secs(86_400);

/// The identity `id`.
pub fn spiffe_id(id: &str) -> SpiffeId {
    id.parse().unwrap()
}

/// Signs every request.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// The claims of a leaf certificate.
#[derive(Clone)]
pub struct Leaf {
    pub uris: Vec<String>,
    /// In seconds from now.
    pub not_before: i64,
    /// In seconds from now.
    pub not_after: i64,
}

impl Leaf {
    /// A valid leaf for `id`.
    pub fn new(id: &str) -> Self {
        Self {
            uris: vec![id.to_owned()],
            not_before: -60,
            not_after: DAY.as_secs() as i64,
        }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        for uri in &self.uris {
            let uri = uri.as_str().try_into().unwrap();
            params.subject_alt_names.push(SanType::URI(uri));
        }
        params.not_before = date(self.not_before);
        params.not_after = date(self.not_after);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params
    }
}

/// `seconds` from now, in rcgen's type.
fn date<T>(seconds: i64) -> T
where
    T: From<SystemTime> + Add<Duration, Output = T> + Sub<Duration, Output = T>,
{
    let now = T::from(SystemTime::now());
    let offset = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 {
        now - offset
    } else {
        now + offset
    }
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = date(-3_600);
        params.not_after = date(10 * DAY.as_secs() as i64);
        let key = KeyPair::generate().unwrap();
        Self {
            issuer: CertifiedIssuer::self_signed(params, key).unwrap(),
        }
    }

    pub fn anchor(&self) -> CertificateDer<'static> {
        self.issuer.der().clone()
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn issue(&self, leaf: &Leaf) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let certificate = leaf.params().signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        (vec![certificate.der().clone()], key)
    }

    /// Signs a request as a controller does: only its key counts.
    pub fn certify(&self, csr: &[u8], leaf: &Leaf) -> CertificateDer<'static> {
        let csr = CertificateSigningRequestDer::from(csr);
        let mut request = CertificateSigningRequestParams::from_der(&csr).unwrap();
        request.params = leaf.params();
        request.signed_by(&self.issuer).unwrap().der().clone()
    }

    /// An identity whose certificate is valid for a day.
    pub fn identity(&self, id: &str) -> Identity {
        let (chain, key) = self.issue(&Leaf::new(id));
        Identity::from_parts(TRUST_DOMAIN, vec![self.anchor()], chain, key).unwrap()
    }
}

pub fn in_seconds(seconds: i64) -> i64 {
    unix_now() + seconds
}
