//! Rotations over an API server in memory, at times that the tests choose.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};

use super::*;
use crate::issuer::{Pair, SpiffeId};
use crate::kubernetes::fake_api::{self, FakeApi};

const SECRETS: &str = "/api/v1/secrets";
const PODS: &str = "/api/v1/pods";
const TRUST_DOMAIN: &str = "cluster.local";
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
const TERMS: Terms = Terms {
    trust_for: Duration::from_secs(600),
    retire_for: Duration::from_secs(25 * 3_600),
};

fn api() -> FakeApi {
    FakeApi::new(&[SECRETS, PODS])
}

async fn opened(api: &FakeApi) -> Result<Keeper, AuthorityError> {
    opened_by(api, &Make::WithoutSidecars(api.client())).await
}

async fn opened_by(api: &FakeApi, may_make: &Make) -> Result<Keeper, AuthorityError> {
    let store = Store::Secret(Box::new(SecretStore {
        client: api.client(),
        namespace: "naru-system".to_owned(),
        name: "naru-ca".to_owned(),
    }));
    Keeper::open(store, TERMS, TRUST_DOMAIN, may_make).await
}

async fn keeper(api: &FakeApi) -> Keeper {
    opened(api).await.expect("an authority")
}

fn secret(api: &FakeApi) -> Value {
    api.get(SECRETS, "naru-system", "naru-ca")
        .expect("a Secret")
}

fn base64(bytes: &[u8]) -> Value {
    json!(k8s_openapi::ByteString(bytes.to_vec()))
}

/// Merges data into the Secret.
fn give(api: &FakeApi, data: &[(&str, &str)]) {
    let name = json!({ "metadata": { "namespace": "naru-system", "name": "naru-ca" } });
    let mut object = api.get(SECRETS, "naru-system", "naru-ca").unwrap_or(name);
    for (key, value) in data {
        object["data"][*key] = base64(value.as_bytes());
    }
    api.apply(SECRETS, object);
}

fn give_pair(api: &FakeApi, pair: &Pair) {
    let data = [("tls.crt", &*pair.certificates), ("tls.key", &*pair.key)];
    give(api, &data);
}

fn pair() -> Pair {
    Ca::make(TRUST_DOMAIN, SystemTime::now()).expect("an authority")
}

fn request_rotation(api: &FakeApi, text: &str) {
    let mut object = secret(api);
    object["metadata"]["annotations"]["naru.dev/rotate"] = json!(text);
    api.apply(SECRETS, object);
}

/// The state in force: the issuing authority, and the number of anchors.
fn shown(keeper: &Keeper, now: SystemTime) -> (String, usize) {
    let in_force = keeper.view(now, false).in_force();
    (in_force.ca.id().to_owned(), in_force.anchors.len())
}

fn id(pair: &Pair) -> String {
    let (certificates, key) = (pair.certificates.as_bytes(), pair.key.as_bytes());
    let ca = Ca::from_pem(certificates, &[], key, TRUST_DOMAIN, SystemTime::now());
    ca.expect("an authority").id().to_owned()
}

#[tokio::test]
async fn replicas_share_the_authority_that_the_first_one_made() {
    let api = api();
    let now = SystemTime::now();
    let (first, second) = (keeper(&api).await, keeper(&api).await);
    assert_eq!(shown(&first, now), shown(&second, now));
    assert_eq!(secret(&api)["type"], "kubernetes.io/tls");
}

#[tokio::test]
async fn a_replica_that_comes_second_keeps_what_the_first_has_made() {
    let api = api();
    // Another replica writes between its read and its write.
    let path = "/api/v1/namespaces/naru-system/secrets";
    api.answer(path, 409, fake_api::status(409, "AlreadyExists"));
    let error = opened(&api).await.err().expect("no Secret yet");
    assert!(
        matches!(error, AuthorityError::Store(StoreError::Conflict)),
        "{error}"
    );
}

#[tokio::test]
async fn a_new_authority_is_trusted_first_then_issues_and_then_the_old_one_retires() {
    let api = api();
    let start = SystemTime::now();
    let old = pair();
    give_pair(&api, &old);
    let mut first = keeper(&api).await;
    let mut second = keeper(&api).await;
    assert_eq!(shown(&first, start), (id(&old), 1));
    let new = pair();
    give_pair(&api, &new);
    // At each time: the phase, the issuing authority, and the number of anchors.
    let expected = [
        (Duration::ZERO, AuthorityState::Trusting, &old, 2),
        (9 * MINUTE, AuthorityState::Trusting, &old, 2),
        (11 * MINUTE, AuthorityState::Retiring, &new, 2),
        (24 * HOUR, AuthorityState::Retiring, &new, 2),
        (26 * HOUR, AuthorityState::Steady, &new, 1),
    ];
    for (after, state, issuing, anchors) in expected {
        let now = start + after;
        assert_eq!(first.look(now, false).await, state, "{after:?}");
        assert_eq!(second.look(now, false).await, state, "{after:?}");
        assert_eq!(shown(&first, now), (id(issuing), anchors), "{after:?}");
        assert_eq!(shown(&second, now), (id(issuing), anchors), "{after:?}");
        // A replica that starts now has the same state.
        let mut third = keeper(&api).await;
        third.look(now, false).await;
        assert_eq!(shown(&third, now), (id(issuing), anchors), "{after:?}");
    }
}

#[tokio::test]
async fn a_step_that_replicas_take_at_the_same_time_is_taken_once() {
    let api = api();
    let start = SystemTime::now();
    give_pair(&api, &pair());
    let mut keepers = [keeper(&api).await, keeper(&api).await, keeper(&api).await];
    give_pair(&api, &pair());
    for after in [Duration::ZERO, 11 * MINUTE] {
        let looks = keepers.iter_mut();
        let looks = looks.map(|keeper| keeper.look(start + after, false));
        futures_util::future::join_all(looks).await;
    }
    let data = secret(&api)["data"]["naru-rotation.json"].clone();
    let json: k8s_openapi::ByteString = serde_json::from_value(data).expect("base64");
    let record = Record::parse(&json.0).expect("a record");
    assert_eq!(record.retired.len(), 1);
    assert_eq!(record.next, None);
}

#[tokio::test]
async fn an_invalid_authority_leaves_the_last_good_one_in_force() {
    let api = api();
    let now = SystemTime::now();
    let good = pair();
    give_pair(&api, &good);
    let mut keeper = keeper(&api).await;
    let foreign = Ca::make("other", now).expect("an authority");
    let bad: [&[(&str, &str)]; 4] = [
        &[("tls.crt", "nothing")],
        &[("tls.crt", &good.certificates), ("tls.key", &pair().key)],
        &[
            ("tls.crt", &foreign.certificates),
            ("tls.key", &foreign.key),
        ],
        &[
            ("tls.crt", &good.certificates),
            ("tls.key", &good.key),
            ("ca.crt", "-----BEGIN CERTIFICATE-----\nbm8=\n"),
        ],
    ];
    for data in bad {
        give(&api, data);
        let later = now + HOUR;
        assert_eq!(keeper.look(later, false).await, AuthorityState::Invalid);
        assert_eq!(shown(&keeper, later), (id(&good), 1));
        assert!(keeper.logged.is_some());
        // A replica that starts meanwhile issues with the last good one as well.
        let other = opened(&api).await.expect("an authority");
        assert_eq!(shown(&other, later), (id(&good), 1));
    }
    give(&api, &[("ca.crt", "")]);
    assert_eq!(keeper.look(now, false).await, AuthorityState::Steady);
    assert_eq!(keeper.logged, None);
}

#[tokio::test]
async fn without_a_valid_authority_the_controller_does_not_start() {
    let api = api();
    give(&api, &[("tls.crt", &pair().certificates)]);
    let error = opened(&api).await.err().expect("no key");
    assert!(error.to_string().contains("tls.key"), "{error}");
    give(&api, &[("tls.key", &pair().key)]);
    let error = opened(&api).await.err().expect("another key");
    assert!(
        matches!(error, AuthorityError::Ca(CaError::Mismatch)),
        "{error}"
    );
}

#[tokio::test]
async fn a_secret_that_vanishes_is_restored_and_its_rotation_continues() {
    let api = api();
    let start = SystemTime::now();
    let old = pair();
    give_pair(&api, &old);
    let mut keeper = keeper(&api).await;
    let new = pair();
    give_pair(&api, &new);
    keeper.look(start, false).await;
    api.delete(SECRETS, "naru-system", "naru-ca");
    assert_eq!(keeper.look(start, false).await, AuthorityState::Missing);
    assert_eq!(shown(&keeper, start), (id(&old), 2));
    // Backdated, so that the delay is over.
    keeper.missing_since = Instant::now().checked_sub(RESTORE_AFTER);
    assert_eq!(keeper.look(start, false).await, AuthorityState::Trusting);
    let later = start + 11 * MINUTE;
    assert_eq!(keeper.look(later, false).await, AuthorityState::Retiring);
    assert_eq!(shown(&keeper, later), (id(&new), 2));
}

#[tokio::test]
async fn a_secret_that_is_replaced_with_its_record_is_another_authority() {
    let api = api();
    let now = SystemTime::now();
    let old = pair();
    give_pair(&api, &old);
    let mut keeper = keeper(&api).await;
    api.delete(SECRETS, "naru-system", "naru-ca");
    give_pair(&api, &pair());
    assert_eq!(keeper.look(now, false).await, AuthorityState::Trusting);
    assert_eq!(shown(&keeper, now), (id(&old), 2));
}

#[tokio::test]
async fn an_api_server_that_is_unreachable_or_refuses_changes_nothing() {
    let api = api();
    let start = SystemTime::now();
    let old = pair();
    give_pair(&api, &old);
    let mut keeper = keeper(&api).await;
    let new = pair();
    give_pair(&api, &new);
    keeper.look(start, false).await;
    let due = start + 11 * MINUTE;
    api.down(true);
    assert_eq!(keeper.look(due, false).await, AuthorityState::Trusting);
    assert_eq!(shown(&keeper, due).0, id(&old));
    api.down(false);
    let path = "/api/v1/namespaces/naru-system/secrets/naru-ca";
    api.answer(path, 403, fake_api::status(403, "Forbidden"));
    assert_eq!(keeper.look(due, false).await, AuthorityState::Trusting);
    assert_eq!(shown(&keeper, due).0, id(&old));
    assert!(keeper.logged.is_some());
    api.answer_no_more(path);
    assert_eq!(keeper.look(due, false).await, AuthorityState::Retiring);
    assert_eq!(shown(&keeper, due).0, id(&new));
}

#[tokio::test]
async fn a_rotation_waits_for_proxies_that_do_not_trust_the_new_authority_yet() {
    let api = api();
    let start = SystemTime::now();
    let old = pair();
    give_pair(&api, &old);
    let (mut quick, mut slow) = (keeper(&api).await, keeper(&api).await);
    let new = pair();
    give_pair(&api, &new);
    quick.look(start, false).await;
    for seconds in (570..900).step_by(15) {
        let now = start + Duration::from_secs(seconds);
        slow.look(now, true).await;
        quick.look(now, false).await;
        assert_eq!(shown(&quick, now).0, id(&old), "{seconds}");
    }
    let now = start + 17 * MINUTE;
    quick.look(now, false).await;
    assert_eq!(shown(&quick, now).0, id(&new));
}

#[tokio::test]
async fn an_authority_of_our_own_is_renewed_in_time_and_on_request() {
    let api = api();
    let start = SystemTime::now();
    let mut keeper = keeper(&api).await;
    let (first, _) = shown(&keeper, start);
    assert_eq!(keeper.look(start, false).await, AuthorityState::Steady);
    // No renewal is due for six years.
    let early = start + 365 * 6 * DAY;
    assert_eq!(keeper.look(early, false).await, AuthorityState::Steady);
    let due = start + 365 * 7 * DAY;
    assert_eq!(keeper.look(due, false).await, AuthorityState::Trusting);
    assert_eq!(shown(&keeper, due), (first.clone(), 2));
    let later = due + 11 * MINUTE;
    assert_eq!(keeper.look(later, false).await, AuthorityState::Retiring);
    let (second, _) = shown(&keeper, later);
    assert_ne!(first, second);
    // Each request is handled once.
    request_rotation(&api, "now");
    assert_eq!(keeper.look(later, false).await, AuthorityState::Trusting);
    let later = later + 11 * MINUTE;
    keeper.look(later, false).await;
    let (third, anchors) = shown(&keeper, later);
    assert_ne!(second, third);
    assert_eq!(anchors, 3);
    let later = later + 11 * MINUTE;
    assert_eq!(keeper.look(later, false).await, AuthorityState::Retiring);
    assert_eq!(shown(&keeper, later).0, third);
    request_rotation(&api, "again");
    assert_eq!(keeper.look(later, false).await, AuthorityState::Trusting);
}

#[tokio::test]
async fn a_given_authority_is_never_replaced_by_ours() {
    let api = api();
    let start = SystemTime::now();
    let given = pair();
    give_pair(&api, &given);
    let mut keeper = keeper(&api).await;
    request_rotation(&api, "now");
    for after in [Duration::ZERO, 365 * 7 * DAY] {
        let state = keeper.look(start + after, false).await;
        assert_eq!(state, AuthorityState::Steady);
    }
    assert_eq!(
        secret(&api)["data"]["tls.crt"],
        base64(given.certificates.as_bytes())
    );
}

/// A pod with a sidecar.
fn injected(api: &FakeApi) {
    api.apply(
        PODS,
        json!({
            "metadata": { "namespace": "shop", "name": "web-1",
                "labels": { "naru.dev/injected": "true" } },
            "spec": { "containers": [
                { "name": "naru-proxy", "command": ["/usr/local/bin/naru-proxy"] },
                { "name": "web" },
            ] },
        }),
    );
}

#[tokio::test]
async fn no_authority_is_made_while_sidecars_trust_a_lost_one() {
    let api = api();
    keeper(&api).await;
    injected(&api);
    let backup = secret(&api);
    api.delete(SECRETS, "naru-system", "naru-ca");
    let refused = opened(&api).await.err().expect("a refusal").to_string();
    for said in [
        "shop/web-1",
        "backup",
        "--ca-replace-lost",
        "identity.replaceLost",
    ] {
        assert!(refused.contains(said), "{said} in {refused}");
    }
    assert_eq!(api.get(SECRETS, "naru-system", "naru-ca"), None);
    // A Secret restored from a backup is the same authority.
    api.apply(SECRETS, backup.clone());
    keeper(&api).await;
    assert_eq!(secret(&api)["data"]["tls.crt"], backup["data"]["tls.crt"]);
    // With `--ca-replace-lost` a new authority is created.
    api.delete(SECRETS, "naru-system", "naru-ca");
    opened_by(&api, &Make::Always).await.expect("an authority");
    assert_ne!(secret(&api)["data"]["tls.crt"], backup["data"]["tls.crt"]);
}

#[tokio::test]
async fn no_authority_is_made_if_the_api_server_cannot_list_sidecars() {
    let api = api();
    api.uninstall(PODS);
    let error = opened(&api).await.err().expect("no answer");
    assert!(
        matches!(error, AuthorityError::Store(StoreError::Api(_))),
        "{error}"
    );
    assert_eq!(api.get(SECRETS, "naru-system", "naru-ca"), None);
}

#[tokio::test]
async fn the_secret_has_no_owner_and_a_former_owner_is_removed() {
    let api = api();
    let mut keeper = keeper(&api).await;
    assert!(secret(&api)["metadata"]["ownerReferences"].is_null());
    let owner = |kind: &str| json!({ "apiVersion": "x/v1", "kind": kind, "name": "x", "uid": "u" });
    let mut object = secret(&api);
    let both = [owner("MutatingWebhookConfiguration"), owner("Certificate")];
    object["metadata"]["ownerReferences"] = json!(both);
    api.apply(SECRETS, object.clone());
    keeper.look(SystemTime::now(), false).await;
    assert_eq!(
        secret(&api)["metadata"]["ownerReferences"],
        json!([owner("Certificate")])
    );
    // If that is forbidden, everything else still works.
    api.apply(SECRETS, object);
    let path = "/api/v1/namespaces/naru-system/secrets/naru-ca";
    api.answer(path, 403, fake_api::status(403, "Forbidden"));
    let state = keeper.look(SystemTime::now(), false).await;
    assert_eq!(state, AuthorityState::Steady);
}

/// As created by cert-manager: a root, and an authority below it.
struct Company {
    root: CertifiedIssuer<'static, KeyPair>,
}

impl Company {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "the company");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let root = CertifiedIssuer::self_signed(params, key).expect("a root");
        Self { root }
    }

    /// The PEM of an authority's certificate for `key`.
    fn authority(&self, key: &KeyPair) -> String {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "the mesh");
        let name = format!("spiffe://{TRUST_DOMAIN}");
        let name = SanType::URI(name.try_into().expect("a URI"));
        params.subject_alt_names.push(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.serial_number = Some(rcgen::SerialNumber::from(rand::random::<u64>() >> 1));
        params.signed_by(key, &self.root).expect("signed").pem()
    }
}

#[tokio::test]
async fn an_authority_below_a_root_issues_with_its_chain_and_is_renewed_with_its_old_key() {
    let api = api();
    let start = SystemTime::now();
    let company = Company::new();
    let key = KeyPair::generate().expect("a key");
    give(
        &api,
        &[
            ("tls.crt", &company.authority(&key)),
            ("tls.key", &key.serialize_pem()),
            ("ca.crt", &company.root.pem()),
        ],
    );
    let mut keeper = keeper(&api).await;
    let root: CertificateDer<'static> = company.root.der().clone();
    let in_force = keeper.in_force();
    assert_eq!(in_force.anchors, [root]);
    let id = SpiffeId::new(TRUST_DOMAIN, "shop", "web").expect("an id");
    let leaf = KeyPair::generate().expect("a key");
    let issued = in_force.ca.issue(&id, &leaf, start);
    let (chain, _) = issued.expect("a certificate").expect("in time");
    assert_eq!(chain.len(), 2);
    let (first, _) = shown(&keeper, start);

    // The same key with another certificate; the root stays.
    give(&api, &[("tls.crt", &company.authority(&key))]);
    assert_eq!(keeper.look(start, false).await, AuthorityState::Trusting);
    assert_eq!(shown(&keeper, start), (first.clone(), 1));
    let later = start + 11 * MINUTE;
    assert_eq!(keeper.look(later, false).await, AuthorityState::Steady);
    let (second, anchors) = shown(&keeper, later);
    assert_ne!(first, second);
    assert_eq!(anchors, 1);
}

#[tokio::test]
async fn a_chain_with_a_gap_does_not_issue() {
    let api = api();
    let now = SystemTime::now();
    let good = pair();
    give_pair(&api, &good);
    let mut keeper = keeper(&api).await;
    let (company, other) = (Company::new(), Company::new());
    let key = KeyPair::generate().expect("a key");
    // Signed by a root of the same name.
    give(
        &api,
        &[
            ("tls.crt", &company.authority(&key)),
            ("tls.key", &key.serialize_pem()),
            ("ca.crt", &other.root.pem()),
        ],
    );
    assert_eq!(keeper.look(now, false).await, AuthorityState::Invalid);
    assert_eq!(shown(&keeper, now), (id(&good), 1));
}

/// Deleted on drop.
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        let random = rand::random::<u64>();
        let name = format!("naru-authority-{}-{random:x}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    async fn keeper(&self) -> Keeper {
        let store = Store::Directory(self.0.clone());
        let opened = Keeper::open(store, TERMS, TRUST_DOMAIN, &Make::Always).await;
        opened.expect("an authority")
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.join(name)).expect(name)
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.0.join(name), content).expect(name);
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _only_litter = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test]
async fn in_a_directory_it_is_made_once_and_kept() {
    let directory = Directory::new();
    let now = SystemTime::now();
    let first = shown(&directory.keeper().await, now);
    assert_eq!(shown(&directory.keeper().await, now), first);
    for name in ["ca.key", "rotation.json"] {
        let metadata = std::fs::metadata(directory.0.join(name)).expect(name);
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600, "{name}");
    }
    let anchors = directory.read("trust-anchors.pem");
    assert_eq!(anchors, directory.read("ca.crt"));
    assert!(!anchors.contains("PRIVATE"));
}

#[tokio::test]
async fn in_a_directory_an_interrupted_first_start_is_completed() {
    let directory = Directory::new();
    std::fs::create_dir_all(&directory.0).expect("a directory");
    directory.write("ca.key", &pair().key);
    directory.write("ca.new", "half a file");
    directory.keeper().await;
    directory.read("ca.crt");
}

#[tokio::test]
async fn in_a_directory_another_authority_is_applied_and_a_request_makes_one() {
    let directory = Directory::new();
    let start = SystemTime::now();
    let mut keeper = directory.keeper().await;
    directory.write("rotate", "now\n");
    assert_eq!(keeper.look(start, false).await, AuthorityState::Trusting);
    let both = directory.read("trust-anchors.pem");
    assert_eq!(both.matches("BEGIN").count(), 2);
    let later = start + 11 * MINUTE;
    assert_eq!(keeper.look(later, false).await, AuthorityState::Retiring);
    let end = later + 26 * HOUR;
    assert_eq!(keeper.look(end, false).await, AuthorityState::Steady);
    assert_eq!(
        directory.read("trust-anchors.pem"),
        directory.read("ca.crt")
    );
}
