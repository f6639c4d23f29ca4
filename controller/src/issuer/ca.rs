//! A certificate authority: its key, its certificate, and the intermediates up to the root.
//!
//! In: PEM, or a public key and its owner's identity. Out: an authority that peers accept, or a
//! certificate. Authorization to get an identity, and the authority's store, are elsewhere.

use std::time::{Duration, SystemTime};

use ::aws_lc_rs::digest;
use pem::{EncodeConfig, LineEnding};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::identity::SpiffeId;

const DAY: Duration = Duration::from_secs(86_400);
/// Lifetime of a root of our own.
const ROOT_LIFETIME: Duration = DAY.saturating_mul(3_652);
/// Lifetime of a leaf, which bounds the use of a stolen key.
pub const LEAF_LIFETIME: Duration = DAY;
/// Leaves are valid from slightly before they are issued, for peers whose clocks are behind.
const BACKDATING: Duration = Duration::from_secs(60);
/// Bytes of a serial number (RFC 5280 allows 20).
const SERIAL_BYTES: usize = 16;
/// Bound on certificates in one PEM: proxies accept 64 anchors, including those of a rotation.
const MAX_CERTIFICATES: usize = 32;
/// Bytes of a digest that identifies an authority: enough to be unique.
const ID_BYTES: usize = 8;

/// Why an authority cannot issue.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("there is no private key of an authority (ECDSA P-256 in PEM, PKCS #8 or SEC 1)")]
    Key,
    #[error("there is no certificate in PEM where one is expected")]
    Certificate,
    #[error("there are more than {MAX_CERTIFICATES} certificates in one place")]
    TooMany,
    #[error("the authority's certificate and private key do not match")]
    Mismatch,
    #[error(
        "the authority's certificate is for {found}, and the trust domain is {expected}: it needs \
         the name URI:spiffe://{expected}"
    )]
    TrustDomain { expected: String, found: String },
    #[error("the authority's certificate may not issue certificates (basicConstraints CA:TRUE)")]
    NotAnIssuer,
    #[error("the authority's certificate has expired (or the clock is off)")]
    Expired,
    #[error("a proxy would reject certificates of this authority: {0}")]
    NotTaken(rustls::Error),
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// Issues certificates.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    /// The chain from the issuing certificate up to the one below the root. Empty: the root issues
    /// itself.
    below_root: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
    begins: SystemTime,
    expires: SystemTime,
    pems: Pair,
    id: String,
}

/// An authority's certificates, the issuing one first and the root last, and its key, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    pub certificates: String,
    pub key: String,
}

impl Ca {
    /// Parses a given authority: its certificate first, then those above it. A missing root is
    /// looked up in `further`; without one, the topmost certificate is trusted like a root.
    pub fn from_pem(
        certificates: &[u8],
        further: &[CertificateDer<'static>],
        key: &[u8],
        trust_domain: &str,
        now: SystemTime,
    ) -> Result<Self, CaError> {
        let mut chain = read_certificates(certificates)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .ok()
            .and_then(|der| KeyPair::try_from(&der).ok())
            .filter(|key| key.algorithm() == &rcgen::PKCS_ECDSA_P256_SHA256)
            .ok_or(CaError::Key)?;
        let issuing = chain.first().ok_or(CaError::Certificate)?;
        check(issuing, &key, trust_domain)?;
        if let Some(root) = missing_root(&chain, further)? {
            chain.push(root);
        }
        let (mut begins, mut expires) = validity(&chain[0])?;
        for above in &chain[1..] {
            let (from, to) = validity(above)?;
            (begins, expires) = (begins.max(from), expires.min(to));
        }
        if now >= expires {
            return Err(CaError::Expired);
        }
        let pems = Pair {
            certificates: to_pem(&chain),
            key: key.serialize_pem(),
        };
        let issuer = Issuer::from_ca_cert_der(&chain[0], key)?;
        let id = id(&chain);
        let root = chain.pop().ok_or(CaError::Certificate)?;
        let ca = Self {
            issuer,
            below_root: chain,
            root,
            begins,
            expires,
            pems,
            id,
        };
        ca.prove(now)?;
        Ok(ca)
    }

    /// A new self-signed authority.
    pub fn make(trust_domain: &str, now: SystemTime) -> Result<Pair, CaError> {
        let key = KeyPair::generate()?;
        let certificate = root(trust_domain, now)?.self_signed(&key)?;
        Ok(Pair {
            certificates: certificate.pem(),
            key: key.serialize_pem(),
        })
    }

    /// The trust anchor of this authority.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The start of its validity.
    pub fn begins(&self) -> SystemTime {
        self.begins
    }

    /// The end of its validity: that of the first certificate to expire.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    pub fn pems(&self) -> &Pair {
        &self.pems
    }

    /// An identifier from its certificates: different authorities have different ones.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A certificate for `id` with its chain to the root, and when it expires. `None`: the
    /// authority itself has expired.
    pub fn issue(
        &self,
        id: &SpiffeId,
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<Option<(Vec<CertificateDer<'static>>, SystemTime)>, rcgen::Error> {
        let both = [
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.leaf(SanType::URI(id.to_string().try_into()?), &both, key, now)
    }

    /// A server certificate for a DNS name. It is not an identity of the mesh.
    pub fn issue_server(
        &self,
        name: &str,
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<Option<(Vec<CertificateDer<'static>>, SystemTime)>, rcgen::Error> {
        let name = SanType::DnsName(name.try_into()?);
        self.leaf(name, &[ExtendedKeyUsagePurpose::ServerAuth], key, now)
    }

    fn leaf(
        &self,
        name: SanType,
        usages: &[ExtendedKeyUsagePurpose],
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<Option<(Vec<CertificateDer<'static>>, SystemTime)>, rcgen::Error> {
        if now >= self.expires {
            return Ok(None);
        }
        let expires = (now + LEAF_LIFETIME).min(self.expires);
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names.push(name);
        params.not_before = (now - BACKDATING).into();
        params.not_after = expires.into();
        params.serial_number = Some(serial());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(key, &self.issuer)?;
        let mut chain = vec![certificate.der().clone()];
        chain.extend_from_slice(&self.below_root);
        Ok(Some((chain, expires)))
    }

    /// Issues a certificate and verifies it as a proxy would: a chain with a gap, or one longer
    /// than allowed, is found before it is used.
    fn prove(&self, now: SystemTime) -> Result<(), CaError> {
        let key = KeyPair::generate()?;
        let chain = self.issue_server("proof.naru.dev", &key, now)?;
        let (chain, _) = chain.ok_or(CaError::Expired)?;
        let mut roots = RootCertStore::empty();
        roots
            .add(self.root.clone())
            .and_then(|()| {
                let since = now.duration_since(SystemTime::UNIX_EPOCH);
                verify_server_cert_signed_by_trust_anchor(
                    &ParsedCertificate::try_from(&chain[0])?,
                    &roots,
                    &chain[1..],
                    UnixTime::since_unix_epoch(since.unwrap_or_default()),
                    aws_lc_rs::default_provider()
                        .signature_verification_algorithms
                        .all,
                )
            })
            .map_err(CaError::NotTaken)
    }
}

/// The certificates in a PEM.
pub fn read_certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .take(MAX_CERTIFICATES + 1)
        .collect::<Result<_, _>>()
        .map_err(|_| CaError::Certificate)?;
    match certificates.len() {
        0 => Err(CaError::Certificate),
        1..=MAX_CERTIFICATES => Ok(certificates),
        _ => Err(CaError::TooMany),
    }
}

/// Certificates as concatenated PEM.
pub fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    let form = EncodeConfig::new().set_line_ending(LineEnding::LF);
    let pem = |der: &CertificateDer<'_>| {
        pem::encode_config(&pem::Pem::new("CERTIFICATE", der.as_ref()), form)
    };
    certificates.iter().map(pem).collect()
}

/// The validity period of a certificate.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), CaError> {
    let parsed = parse(certificate)?;
    let time = |seconds: i64| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    };
    let validity = parsed.validity();
    let (from, to) = (validity.not_before, validity.not_after);
    Ok((time(from.timestamp()), time(to.timestamp())))
}

/// The root above a chain that ends below it. `None`: the chain includes it, or no root was given.
fn missing_root(
    chain: &[CertificateDer<'static>],
    further: &[CertificateDer<'static>],
) -> Result<Option<CertificateDer<'static>>, CaError> {
    let Some(last) = chain.last() else {
        return Ok(None);
    };
    let last = parse(last)?;
    let issuer = last.issuer().as_raw();
    if issuer == last.subject().as_raw() {
        return Ok(None);
    }
    let is_above = |certificate: &&CertificateDer<'static>| {
        parse(certificate).is_ok_and(|above| above.subject().as_raw() == issuer)
    };
    Ok(further.iter().find(is_above).cloned())
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CaError> {
    X509Certificate::from_der(certificate)
        .map(|(_, parsed)| parsed)
        .map_err(|_| CaError::Certificate)
}

/// Checks that an authority's own certificate can issue others.
fn check(
    certificate: &CertificateDer<'_>,
    key: &KeyPair,
    trust_domain: &str,
) -> Result<(), CaError> {
    let parsed = parse(certificate)?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(CaError::Mismatch);
    }
    if !parsed.is_ca() {
        return Err(CaError::NotAnIssuer);
    }
    let names = parsed.subject_alternative_name().ok().flatten();
    let found = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .find_map(|name| match name {
            GeneralName::URI(uri) => uri.strip_prefix("spiffe://"),
            _ => None,
        })
        .unwrap_or("no trust domain");
    if found != trust_domain {
        return Err(CaError::TrustDomain {
            expected: trust_domain.to_owned(),
            found: found.to_owned(),
        });
    }
    Ok(())
}

/// The parameters of a new root.
fn root(trust_domain: &str, now: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Naru root of {trust_domain}"));
    params
        .subject_alt_names
        .push(SanType::URI(format!("spiffe://{trust_domain}").try_into()?));
    params.not_before = (now - BACKDATING).into();
    params.not_after = (now + ROOT_LIFETIME).into();
    params.serial_number = Some(serial());
    // It signs leaves but no intermediate authorities.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn id(chain: &[CertificateDer<'_>]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for certificate in chain {
        context.update(certificate);
    }
    let digest = context.finish();
    let bytes = digest.as_ref().iter().take(ID_BYTES);
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

fn serial() -> SerialNumber {
    let mut bytes: [u8; SERIAL_BYTES] = rand::random();
    // Positive, and without leading zeros.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}
