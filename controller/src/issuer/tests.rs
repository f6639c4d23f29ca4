//! Requests for certificates that succeed, and those that are refused.

use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::*;

const TRUST_DOMAIN: &str = "cluster.local";
const TOKEN_ISSUER: &str = "https://tokens.test";
const DAY: Duration = Duration::from_secs(86_400);

struct Fixture {
    issuer: Issuer,
    token_key: KeyPair,
}

impl Fixture {
    fn new() -> Self {
        let token_key = KeyPair::generate().unwrap();
        let key = PublicKey::from_pem(token_key.public_key_pem().as_bytes(), TOKEN_ISSUER).unwrap();
        Self {
            issuer: Issuer::new(in_force(), TRUST_DOMAIN, TokenCheck::PublicKey(key)),
            token_key,
        }
    }

    fn sign(&self, claims: &Value) -> String {
        sign(claims, &self.token_key)
    }

    fn certify(&self, request: &[u8], token: &str, now: SystemTime) -> Result<Issued, Refusal> {
        let certified = self.issuer.certify(request, token, now).now_or_never();
        certified.expect("with a public key nothing has to be asked")
    }

    fn refusal(&self, claims: &Value) -> Refusal {
        let (request, _) = request();
        match self.certify(&request, &self.sign(claims), SystemTime::now()) {
            Ok(issued) => panic!("a certificate for {}", issued.id),
            Err(refusal) => refusal,
        }
    }
}

fn sign(claims: &Value, key: &KeyPair) -> String {
    let key = EncodingKey::from_ec_der(&key.serialize_der());
    jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &key).unwrap()
}

fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_secs() as i64 + seconds
}

fn claims() -> Value {
    json!({
        "iss": TOKEN_ISSUER,
        "sub": "system:serviceaccount:shop:web",
        "aud": ["naru.dev"],
        "iat": in_seconds(-1),
        "exp": in_seconds(3600),
        "kubernetes.io": {
            "namespace": "shop",
            "pod": {"name": "web-1", "uid": "1"},
            "serviceaccount": {"name": "web", "uid": "2"},
        },
    })
}

fn with(path: &str, value: Value) -> Value {
    let mut claims = claims();
    *claims.pointer_mut(path).unwrap() = value;
    claims
}

fn without(claim: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(claim);
    claims
}

/// A signing request with more fields than are honoured.
fn request() -> (Vec<u8>, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["admin.example".to_owned()]).unwrap();
    let other = "spiffe://cluster.local/ns/shop/sa/admin";
    params
        .subject_alt_names
        .push(SanType::URI(other.try_into().unwrap()));
    let request = params.serialize_request(&key).unwrap();
    (request.der().to_vec(), key)
}

#[test]
fn a_certificate_has_the_tokens_identity_and_ignores_the_requests() {
    let fixture = Fixture::new();
    let (request, key) = request();
    let now = SystemTime::now();
    let token = fixture.sign(&claims());
    let issued = fixture.certify(&request, &token, now).unwrap();
    let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(
        names.value.general_names,
        [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]
    );
    assert!(
        names.critical,
        "with no subject, the name has to be critical"
    );
    assert_eq!(leaf.subject().iter().count(), 0);
    assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
    assert!(!leaf.is_ca());
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth);
    let (id, expires) = SpiffeId::of(&issued.chain[0]).unwrap();
    assert_eq!(id, issued.id);
    let lifetime = expires.duration_since(now).unwrap();
    assert!(lifetime <= DAY && lifetime > DAY - Duration::from_secs(5));
    assert!(leaf.validity().not_before.timestamp() < in_seconds(0));
    let in_force = fixture.issuer.in_force();
    let (_, root) = X509Certificate::from_der(in_force.ca.root()).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
}

#[test]
fn two_certificates_for_one_key_have_different_serial_numbers() {
    let fixture = Fixture::new();
    let (request, _) = request();
    let token = fixture.sign(&claims());
    let serial = || {
        let issued = fixture
            .certify(&request, &token, SystemTime::now())
            .unwrap();
        let (_, leaf) = X509Certificate::from_der(&issued.chain[0]).unwrap();
        leaf.raw_serial().to_vec()
    };
    assert_ne!(serial(), serial());
}

#[test]
fn an_invalid_token_is_refused_with_the_reason() {
    let fixture = Fixture::new();
    let token = |claims: &Value| match fixture.refusal(claims) {
        Refusal::Token(error) => error,
        other => panic!("{other}"),
    };
    assert_eq!(
        token(&with("/exp", json!(in_seconds(-60)))),
        TokenError::Expired
    );
    assert_eq!(token(&with("/aud", json!(["other"]))), TokenError::Audience);
    assert_eq!(token(&with("/iss", json!("other"))), TokenError::Issuer);
    let mut later = claims();
    later["nbf"] = json!(in_seconds(60));
    assert_eq!(token(&later), TokenError::NotYet);
    for claim in ["exp", "iss", "aud", "sub", "kubernetes.io"] {
        let expected = TokenError::Missing(claim.to_owned());
        assert_eq!(token(&without(claim)), expected, "{claim}");
    }
    for subject in [
        "web",
        "system:node:web",
        "system:serviceaccount:shop",
        "system:serviceaccount:shop:web:x",
    ] {
        assert_eq!(token(&with("/sub", json!(subject))), TokenError::Subject);
    }
    assert_eq!(
        token(&with("/kubernetes.io/namespace", json!("other"))),
        TokenError::Contradiction("namespace")
    );
    assert_eq!(
        token(&with("/kubernetes.io/serviceaccount/name", json!("other"))),
        TokenError::Contradiction("serviceaccount")
    );
}

#[test]
fn a_token_of_another_key_or_another_algorithm_is_refused() {
    let fixture = Fixture::new();
    let (request, _) = request();
    let refused = |token: &str| {
        let now = SystemTime::now();
        match fixture.certify(&request, token, now) {
            Err(Refusal::Token(error)) => error,
            Err(other) => panic!("{other}"),
            Ok(issued) => panic!("a certificate for {}", issued.id),
        }
    };
    let foreign = sign(&claims(), &KeyPair::generate().unwrap());
    assert_eq!(refused(&foreign), TokenError::Signature);
    let public = fixture.token_key.public_key_pem();
    let symmetric = jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        &claims(),
        &EncodingKey::from_secret(public.as_bytes()),
    );
    assert_eq!(refused(&symmetric.unwrap()), TokenError::Malformed);
    // {"alg":"none"}
    let good = fixture.sign(&claims());
    let payload = good.split('.').nth(1).unwrap();
    let unsigned = format!("eyJhbGciOiJub25lIn0.{payload}.");
    assert_eq!(refused(&unsigned), TokenError::Malformed);
    assert_eq!(refused("nonsense"), TokenError::Malformed);
    assert_eq!(refused(&"a".repeat(20_000)), TokenError::TooLong);
}

#[test]
fn invalid_names_and_the_controllers_own_are_refused() {
    let fixture = Fixture::new();
    let named = |namespace: &str, name: &str| {
        let mut claims = claims();
        claims["sub"] = json!(format!("system:serviceaccount:{namespace}:{name}"));
        claims["kubernetes.io"] = json!({"namespace": namespace});
        fixture.refusal(&claims)
    };
    assert!(matches!(named("shop/sa/admin", "web"), Refusal::Name));
    assert!(matches!(named("shop", "web/../admin"), Refusal::Name));
    assert!(matches!(named("", ""), Refusal::Name));
    let own = named("naru-system", "naru-controller");
    assert!(matches!(own, Refusal::Reserved));
}

#[test]
fn a_request_that_was_tampered_with_or_has_another_kind_of_key_is_refused() {
    let fixture = Fixture::new();
    let token = fixture.sign(&claims());
    let refused = |request: &[u8]| match fixture.certify(request, &token, SystemTime::now()) {
        Ok(issued) => panic!("a certificate for {}", issued.id),
        Err(refusal) => refusal.reason(),
    };
    let (good, _) = request();
    let mut tampered = good.clone();
    *tampered.last_mut().unwrap() ^= 1;
    assert_eq!(refused(&tampered), "request");
    assert_eq!(refused(b"nonsense"), "request");
    assert_eq!(refused(&vec![0x30; 100_000]), "request");
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let request = CertificateParams::default().serialize_request(&key);
        assert_eq!(refused(request.unwrap().der()), "key");
    }
}

/// A new authority as the only trust anchor.
pub fn in_force() -> InForce {
    let pair = Ca::make(TRUST_DOMAIN, SystemTime::now()).unwrap();
    InForce::new(
        Arc::new(taken(&pair, TRUST_DOMAIN, SystemTime::now()).unwrap()),
        [],
    )
}

fn taken(pair: &Pair, trust_domain: &str, now: SystemTime) -> Result<Ca, CaError> {
    let (certificates, key) = (pair.certificates.as_bytes(), pair.key.as_bytes());
    Ca::from_pem(certificates, &[], key, trust_domain, now)
}

#[test]
fn a_root_of_our_own_lives_for_ten_years_and_signs_only_leaves() {
    let in_force = in_force();
    let (_, root) = X509Certificate::from_der(in_force.ca.root()).unwrap();
    let years = root.validity().not_after.timestamp() - in_seconds(0);
    assert!(years > 3_650 * 86_400);
    let constraints = root.basic_constraints().unwrap().unwrap().value;
    assert_eq!(constraints.path_len_constraint, Some(0));
}

#[test]
fn an_invalid_authority_is_not_used() {
    let now = SystemTime::now();
    let pair = Ca::make(TRUST_DOMAIN, now).unwrap();
    let refused = |pair: &Pair, trust_domain: &str, now| taken(pair, trust_domain, now).err();
    let with_key = |key: String| Pair {
        key,
        ..pair.clone()
    };
    let other = refused(&pair, "other", now);
    assert!(matches!(other, Some(CaError::TrustDomain { .. })));
    let later = refused(&pair, TRUST_DOMAIN, now + DAY * 4_000);
    assert!(matches!(later, Some(CaError::Expired)));
    let key = with_key(KeyPair::generate().unwrap().serialize_pem());
    let mismatch = refused(&key, TRUST_DOMAIN, now);
    assert!(matches!(mismatch, Some(CaError::Mismatch)));
    let key = refused(&with_key("nothing".to_owned()), TRUST_DOMAIN, now);
    assert!(matches!(key, Some(CaError::Key)));
    let rsa_sized = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let key = refused(&with_key(rsa_sized.serialize_pem()), TRUST_DOMAIN, now);
    assert!(matches!(key, Some(CaError::Key)));
    let none = Pair {
        certificates: "nothing".to_owned(),
        ..pair.clone()
    };
    let none = refused(&none, TRUST_DOMAIN, now);
    assert!(matches!(none, Some(CaError::Certificate)));
}

#[test]
fn a_leaf_never_outlives_the_authority() {
    let fixture = Fixture::new();
    let (request, _) = request();
    let end = fixture.issuer.in_force().ca.expires();
    let token = fixture.sign(&claims());
    let hour = Duration::from_secs(3_600);
    let late = fixture.certify(&request, &token, end - hour);
    assert_eq!(SpiffeId::of(&late.unwrap().chain[0]).unwrap().1, end);
    let too_late = fixture.certify(&request, &token, end);
    assert!(matches!(too_late, Err(Refusal::AuthorityExpired)));
}

#[test]
fn the_controller_has_a_certificate_of_its_own() {
    let fixture = Fixture::new();
    let (issued, _) = fixture.issuer.own(SystemTime::now()).unwrap();
    assert_eq!(
        issued.id.to_string(),
        "spiffe://cluster.local/ns/naru-system/sa/naru-controller"
    );
}
