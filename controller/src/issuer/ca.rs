//! The mesh's certificate authority: its key and its certificate, made on first start and kept in the state directory.
//!
//! In: a public key and whom it belongs to. Out: a certificate. Who may have which identity is decided elsewhere.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::identity::SpiffeId;

const DAY: Duration = Duration::from_secs(86_400);
/// How long the root holds. Renewing it means that every proxy has to learn another anchor first.
const ROOT_LIFETIME: Duration = DAY.saturating_mul(3_652);
/// How long a leaf holds: a stolen key is of use for no longer.
pub const LEAF_LIFETIME: Duration = DAY;
/// Leaves hold from a little before they are made, for peers whose clocks are behind.
const BACKDATING: Duration = Duration::from_secs(60);
/// Bytes of a serial number (RFC 5280 allows 20).
const SERIAL_BYTES: usize = 16;

const KEY_FILE: &str = "ca.key";
const CERTIFICATE_FILE: &str = "ca.crt";
/// The certificate for others, in PEM.
pub const ANCHORS_FILE: &str = "trust-anchors.pem";

/// Why there is no authority to issue with.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error(
        "{CERTIFICATE_FILE} is there and {KEY_FILE} is not: put the key back, or remove the certificate to begin a new mesh"
    )]
    KeyIsMissing,
    #[error("{0}: holds no private key in PEM (PKCS #8, ECDSA P-256)")]
    Key(PathBuf),
    #[error("{0}: holds no certificate in PEM")]
    Certificate(PathBuf),
    #[error("{CERTIFICATE_FILE} was made for another key than {KEY_FILE}")]
    Mismatch,
    #[error("{CERTIFICATE_FILE} is for {found}, and the trust domain is {expected}")]
    TrustDomain { expected: String, found: String },
    #[error("{CERTIFICATE_FILE} may not issue certificates")]
    NotAnIssuer,
    #[error("{CERTIFICATE_FILE} has expired (or the clock is off)")]
    Expired,
    #[error("making a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

/// Issues certificates.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    expires: SystemTime,
}

impl Ca {
    /// Takes the authority from `directory`, or makes one there. Writes the trust anchors beside it.
    pub fn open(directory: &Path, trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| CaError::File { path, source }
        };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755);
        builder.create(directory).map_err(file(directory))?;
        let key_path = directory.join(KEY_FILE);
        let certificate_path = directory.join(CERTIFICATE_FILE);
        let certificate = read(&certificate_path)?;
        let key = match (read(&key_path)?, &certificate) {
            (Some(pem), _) => {
                let pem = String::from_utf8(pem).map_err(|_| CaError::Key(key_path.clone()))?;
                KeyPair::from_pem(&pem)
                    .ok()
                    .filter(|key| key.algorithm() == &rcgen::PKCS_ECDSA_P256_SHA256)
                    .ok_or_else(|| CaError::Key(key_path.clone()))?
            }
            (None, Some(_)) => return Err(CaError::KeyIsMissing),
            (None, None) => {
                let key = KeyPair::generate()?;
                let pem = key.serialize_pem();
                write(&key_path, pem.as_bytes(), 0o600).map_err(file(&key_path))?;
                key
            }
        };
        // A key without a certificate is a first start that was cut short: nobody trusts it yet.
        let pem = match certificate {
            Some(pem) => pem,
            None => {
                let pem = root(trust_domain, now)?.self_signed(&key)?.pem();
                write(&certificate_path, pem.as_bytes(), 0o644).map_err(file(&certificate_path))?;
                pem.into_bytes()
            }
        };
        let certificate = CertificateDer::from_pem_slice(&pem)
            .map_err(|_| CaError::Certificate(certificate_path.clone()))?;
        let expires = check(&certificate, &certificate_path, &key, trust_domain, now)?;
        let anchors_path = directory.join(ANCHORS_FILE);
        write(&anchors_path, &pem, 0o644).map_err(file(&anchors_path))?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&certificate, key)?,
            certificate,
            expires,
        })
    }

    /// A new authority: its certificate and its key, in PEM.
    pub fn make(trust_domain: &str, now: SystemTime) -> Result<(String, String), CaError> {
        let key = KeyPair::generate()?;
        let certificate = root(trust_domain, now)?.self_signed(&key)?;
        Ok((certificate.pem(), key.serialize_pem()))
    }

    /// Puts an authority that comes from elsewhere in `directory`, in place of the one that is there.
    pub fn write(directory: &Path, certificate: &[u8], key: &[u8]) -> Result<(), CaError> {
        let files = [
            (KEY_FILE, key, 0o600),
            (CERTIFICATE_FILE, certificate, 0o644),
        ];
        for (name, content, mode) in files {
            let path = directory.join(name);
            write(&path, content, mode).map_err(|source| CaError::File { path, source })?;
        }
        Ok(())
    }

    /// The certificate that everybody in the mesh trusts.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// When the authority's own certificate ends.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// A certificate for `id`, and when it ends. `None`: the authority has expired itself.
    pub fn issue(
        &self,
        id: &SpiffeId,
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<Option<(CertificateDer<'static>, SystemTime)>, rcgen::Error> {
        let both = [
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        self.leaf(SanType::URI(id.to_string().try_into()?), &both, key, now)
    }

    /// A certificate for a server with a DNS name. It is no identity of the mesh.
    pub fn issue_server(
        &self,
        name: &str,
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<Option<(CertificateDer<'static>, SystemTime)>, rcgen::Error> {
        let name = SanType::DnsName(name.try_into()?);
        self.leaf(name, &[ExtendedKeyUsagePurpose::ServerAuth], key, now)
    }

    fn leaf(
        &self,
        name: SanType,
        usages: &[ExtendedKeyUsagePurpose],
        key: &impl PublicKeyData,
        now: SystemTime,
    ) -> Result<Option<(CertificateDer<'static>, SystemTime)>, rcgen::Error> {
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
        Ok(Some((certificate.der().clone(), expires)))
    }
}

/// What a new root says.
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
    // It signs leaves and no further authorities.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Whether a certificate read from a file can be issued with, and until when.
fn check(
    certificate: &CertificateDer<'_>,
    path: &Path,
    key: &KeyPair,
    trust_domain: &str,
    now: SystemTime,
) -> Result<SystemTime, CaError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|_| CaError::Certificate(path.to_owned()))?;
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
    let expires = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(expires);
    if now >= expires {
        return Err(CaError::Expired);
    }
    Ok(expires)
}

fn serial() -> SerialNumber {
    let mut bytes: [u8; SERIAL_BYTES] = rand::random();
    // Positive, and with no leading zeros.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// `None`: there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, CaError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CaError::File {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Writes a file as a whole or not at all, also where the machine stops in between.
fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = path.with_extension("new");
    // One that was left over could have another mode.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(directory) => fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
