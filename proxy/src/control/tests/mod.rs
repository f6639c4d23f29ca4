//! The control thread against a fake controller.

mod fake;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use naru_contract as contract;
use naru_contract::Resource;
use naru_contract::resource::Body;
use rustls::pki_types::CertificateDer;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use self::fake::{CONTROLLER, Fake, Stream, WEB};
use super::*;
use crate::config::Config;
use crate::control::{Certify, Renewal};
use crate::identity::Identity;
use crate::identity::testing::{Authority, Leaf, TRUST_DOMAIN};
use crate::observe::metrics::Metrics;
use crate::table::{Destination, Store, Tables, tables};

const CLUSTER_IP: &str = "10.96.0.1:80";
const SERVICE: &str = "service/shop/shop/web/80";
const ENDPOINTS: &str = "endpoints/shop/web/80";
/// Longer than any step here takes, and short enough to wait for when a test fails.
const LONG: Duration = Duration::from_secs(20);

/// Everything that runs on a proxy's control thread, except the admin port.
struct Proxy {
    identity: Identity,
    metrics: Metrics,
    tables: Tables,
    store: Arc<Mutex<Store>>,
    files: Files,
    _tasks: JoinSet<()>,
}

/// The token and the trust anchors.
struct Files(PathBuf);

impl Files {
    fn new(anchors: &Authority) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("naru-proxy-control-{}-{number}", std::process::id());
        let files = Self(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&files.0).unwrap();
        std::fs::write(files.token(), "token-1\n").unwrap();
        std::fs::write(files.anchors(), anchors.pem()).unwrap();
        files
    }

    fn token(&self) -> PathBuf {
        self.0.join("token")
    }

    fn anchors(&self) -> PathBuf {
        self.0.join("anchors.pem")
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Proxy {
    fn start(fake: &Fake) -> Self {
        Self::start_with(fake, |_| {})
    }

    fn start_with(fake: &Fake, change: impl FnOnce(&mut Sync)) -> Self {
        let files = Files::new(&fake.authority);
        let config = config(&fake.address.to_string(), &files);
        let metrics = Metrics::default();
        let identity = Identity::new(TRUST_DOMAIN, vec![fake.authority.anchor()]).unwrap();
        let (tables, misses) = tables("shop", metrics.clone(), Duration::from_millis(500));
        let store = Store::new(&tables, identity.clone(), metrics.clone());
        let store = Arc::new(Mutex::new(store));
        let controller = Controller {
            config: config.clone(),
            identity: identity.clone(),
        };
        let mut sync = Sync::new(controller.clone(), store.clone(), misses, metrics.clone());
        change(&mut sync);
        let mut tasks = JoinSet::new();
        tasks.spawn(sync.run());
        tasks.spawn(
            Renewal {
                identity: identity.clone(),
                metrics: metrics.clone(),
                controller,
            }
            .run(),
        );
        Self {
            identity,
            metrics,
            tables,
            store,
            files,
            _tasks: tasks,
        }
    }

    fn metric(&self, name: &str) -> f64 {
        let text = String::from_utf8(self.metrics.render().unwrap()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}"))
            .trim()
            .parse()
            .unwrap()
    }

    async fn endpoints(&self) -> Vec<String> {
        let cell = self.tables.destination(CLUSTER_IP.parse().unwrap()).await;
        let destination = cell.load();
        let Destination::Logical(logical) = &**destination else {
            panic!("{destination:?}");
        };
        let backend = logical.default_rule.backends[0].backend.clone().unwrap();
        let endpoints = backend.endpoints();
        let addresses = endpoints.endpoints.iter().map(|e| e.address.to_string());
        addresses.collect()
    }
}

fn config(controller: &str, files: &Files) -> Arc<Config> {
    Arc::new(Config {
        controller: controller.to_owned(),
        controller_identity: CONTROLLER.parse().unwrap(),
        trust_anchors: files.anchors(),
        token: files.token(),
        ..Config::for_tests()
    })
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(LONG, future).await.expect("in time")
}

async fn until(mut condition: impl FnMut() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

fn resource(name: &str, version: u64, body: Body) -> Resource {
    Resource {
        name: name.to_owned(),
        version,
        body: Some(body),
    }
}

fn web(version: u64, ip: [u8; 4]) -> Vec<Resource> {
    let target = contract::destination::Target::Service(SERVICE.to_owned());
    let destination = contract::Destination {
        target: Some(target),
    };
    let service = contract::Service {
        namespace: "shop".to_owned(),
        name: "web".to_owned(),
        port: 80,
        endpoints: ENDPOINTS.to_owned(),
        ..contract::Service::default()
    };
    let endpoints = contract::Endpoints {
        namespace: "shop".to_owned(),
        service: "web".to_owned(),
        port: 80,
        endpoints: vec![contract::Endpoint {
            ip: ip.to_vec().into(),
            port: 8080,
            identity: WEB.to_owned(),
            ..contract::Endpoint::default()
        }],
        ..contract::Endpoints::default()
    };
    let name = format!("destination/{CLUSTER_IP}");
    vec![
        resource(&name, 1, Body::Destination(destination)),
        resource(SERVICE, 1, Body::Service(service)),
        resource(ENDPOINTS, version, Body::Endpoints(endpoints)),
    ]
}

/// A proxy that has received the destination `web`.
async fn synced(fake: &mut Fake) -> (Proxy, Stream) {
    let proxy = Proxy::start(fake);
    let mut stream = soon(fake.stream()).await;
    stream.hello().await;
    let lookup = proxy.endpoints();
    let serve = async {
        assert_eq!(stream.subscribed().await, [CLUSTER_IP]);
        assert_eq!(stream.push(web(1, [10, 0, 0, 1])).await.rejected, []);
    };
    let (endpoints, ()) = soon(async { tokio::join!(lookup, serve) }).await;
    assert_eq!(endpoints, ["10.0.0.1:8080"]);
    (proxy, stream)
}

#[tokio::test]
async fn the_certificate_comes_first_then_the_stream_that_uses_it() {
    let mut fake = Fake::start().await;
    let proxy = Proxy::start(&fake);
    let mut stream = soon(fake.stream()).await;
    assert_eq!(stream.certificates, 1);
    let hello = stream.hello().await;
    assert_eq!((&*hello.namespace, &*hello.pod), ("shop", "web-1"));
    assert_eq!((hello.destinations.len(), hello.held.len()), (0, 0));
    assert_eq!(proxy.identity.id().unwrap().as_str(), WEB);
    assert_eq!(fake.settings.lock().unwrap().tokens, ["token-1"]);
    let body = contract::Inbound {
        workload: "deployment/web".to_owned(),
        ..contract::Inbound::default()
    };
    let answer = soon(stream.push(vec![resource("inbound", 1, Body::Inbound(body))])).await;
    assert_eq!(answer.rejected, []);
    assert!(proxy.store.lock().unwrap().knows_inbound());
    assert!(!proxy.tables.inbound().strict);
    assert_eq!(proxy.metric("naru_controller_connected "), 1.0);
    assert_eq!(
        proxy.metric("naru_certificate_renewals_total{outcome=\"renewed\"} "),
        1.0
    );
    assert!(proxy.metric("naru_certificate_expiry_timestamp_seconds ") > 1e9);
    assert!(proxy.metric("naru_table_staleness_seconds ") < 5.0);
}

#[tokio::test]
async fn many_calls_of_the_same_new_destination_make_one_subscription() {
    let mut fake = Fake::start().await;
    let proxy = Proxy::start(&fake);
    let mut stream = soon(fake.stream()).await;
    stream.hello().await;
    let mut lookups = JoinSet::new();
    for _ in 0..50 {
        let tables = proxy.tables.clone();
        lookups.spawn(async move { tables.destination(CLUSTER_IP.parse().unwrap()).await });
    }
    assert_eq!(soon(stream.subscribed()).await, [CLUSTER_IP]);
    soon(stream.push(web(1, [10, 0, 0, 1]))).await;
    let cells = soon(lookups.join_all()).await;
    assert!(cells.iter().all(|cell| Arc::ptr_eq(cell, &cells[0])));
    assert!(
        cells
            .iter()
            .all(|cell| matches!(**cell.load(), Destination::Logical(_)))
    );
}

#[tokio::test]
async fn without_the_controller_tables_stay_and_later_only_changes_are_requested() {
    let mut fake = Fake::start().await;
    let (proxy, stream) = synced(&mut fake).await;
    let (authority, address) = (fake.authority.clone(), fake.address.to_string());
    drop((stream, fake));
    until(|| proxy.metric("naru_controller_connected ") == 0.0).await;
    assert_eq!(proxy.endpoints().await, ["10.0.0.1:8080"]);
    // A destination that is called in the meantime is unknown, and requested later.
    let called = proxy
        .tables
        .destination("10.96.0.9:80".parse().unwrap())
        .await;
    assert!(matches!(**called.load(), Destination::Unknown));
    let mut fake = Fake::start_as(authority, Leaf::new(CONTROLLER), &address).await;
    let mut stream = soon(fake.stream()).await;
    let mut hello = stream.hello().await;
    hello.destinations.sort();
    assert_eq!(hello.destinations, [CLUSTER_IP, "10.96.0.9:80"]);
    let mut held: Vec<_> = hello
        .held
        .iter()
        .map(|h| (h.name.as_str(), h.version))
        .collect();
    held.sort();
    assert_eq!(
        held,
        [
            ("destination/10.96.0.1:80", 1),
            (ENDPOINTS, 1),
            (SERVICE, 1)
        ]
    );
    let passthrough = Body::Destination(contract::Destination { target: None });
    soon(stream.push(vec![resource("destination/10.96.0.9:80", 1, passthrough)])).await;
    assert!(matches!(**called.load(), Destination::Passthrough));
    assert_eq!(proxy.metric("naru_table_received_resources_total "), 4.0);
}

#[tokio::test]
async fn a_rejection_is_reported_with_its_reason_and_the_rest_applies() {
    let mut fake = Fake::start().await;
    let (proxy, mut stream) = synced(&mut fake).await;
    let mut wrong = web(2, [10, 0, 0, 2]);
    if let Some(Body::Endpoints(endpoints)) = &mut wrong[2].body {
        endpoints.endpoints[0].port = 0;
    }
    wrong.push(resource(
        "inbound",
        1,
        Body::Inbound(contract::Inbound::default()),
    ));
    let answer = soon(stream.push(wrong)).await;
    assert_eq!(answer.rejected.len(), 1);
    assert_eq!(answer.rejected[0].name, ENDPOINTS);
    assert!(answer.rejected[0].reason.contains("endpoints[0].port"));
    assert_eq!(proxy.endpoints().await, ["10.0.0.1:8080"]);
    assert!(!proxy.tables.inbound().strict);
}

#[tokio::test]
async fn unused_destinations_are_unsubscribed() {
    let mut fake = Fake::start().await;
    let (proxy, mut stream) = synced(&mut fake).await;
    let later = Instant::now() + Duration::from_secs(700);
    {
        let mut store = proxy.store.lock().unwrap();
        store.sweep(later);
        store.sweep(later + Duration::from_secs(1));
    }
    assert_eq!(soon(stream.unsubscribed()).await, [CLUSTER_IP]);
    // And they are requested again when they are called again.
    let (endpoints, subscribed) =
        soon(async { tokio::join!(proxy.endpoints(), stream.subscribed()) }).await;
    assert_eq!(subscribed, [CLUSTER_IP]);
    assert_eq!(endpoints, ["10.0.0.1:8080"]);
}

fn trust_anchors(anchors: &[CertificateDer<'_>], issuer: &str) -> contract::TrustAnchors {
    contract::TrustAnchors {
        certificates_der: anchors.iter().map(|a| a.to_vec().into()).collect(),
        issuer: issuer.to_owned(),
        renew_within_seconds: 1,
    }
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_renewed_at_once_and_only_once() {
    let mut fake = Fake::start().await;
    fake.settings.lock().unwrap().issuer = "old".to_owned();
    let (proxy, mut stream) = synced(&mut fake).await;
    let of = |issuer: &str| format!("naru_certificate_info{{issuer=\"{issuer}\"}} ");
    let renewed = "naru_certificate_renewals_total{outcome=\"renewed\"} ";
    assert_eq!(proxy.metric(&of("old")), 1.0);
    fake.settings.lock().unwrap().issuer = "new".to_owned();
    let anchors = [fake.authority.anchor()];
    let push = |version, issuer: &str| {
        let body = Body::TrustAnchors(trust_anchors(&anchors, issuer));
        vec![resource("trust-anchors", version, body)]
    };
    // The certificate is already from this authority.
    assert_eq!(soon(stream.push(push(1, "old"))).await.rejected, []);
    assert_eq!(proxy.metric(renewed), 1.0);
    assert_eq!(soon(stream.push(push(2, "new"))).await.rejected, []);
    until(|| proxy.metric(renewed) == 2.0).await;
    assert_eq!(proxy.metric(&of("new")), 1.0);
    // An invalid authority name is rejected.
    let rejected = soon(stream.push(push(3, "a\"b"))).await.rejected;
    assert_eq!(rejected.len(), 1);
}

#[tokio::test]
async fn anchors_that_come_with_a_certificate_do_not_displace_streamed_ones() {
    let mut fake = Fake::start().await;
    fake.settings.lock().unwrap().issuer = "old".to_owned();
    let (proxy, mut stream) = synced(&mut fake).await;
    let (ours, next) = (fake.authority.anchor(), Authority::new("next").anchor());
    let lagging = Authority::new("lagging").anchor();
    fake.settings.lock().unwrap().more_anchors = vec![lagging.clone()];
    let streamed = [ours.clone(), next.clone()];
    // The certificate comes from a controller that has other anchors than the stream's.
    fake.settings.lock().unwrap().issuer = "new".to_owned();
    let body = Body::TrustAnchors(trust_anchors(&streamed, "new"));
    soon(stream.push(vec![resource("trust-anchors", 7, body)])).await;
    until(|| {
        proxy
            .identity
            .trusts(&[ours.clone(), next.clone(), lagging.clone()])
    })
    .await;
    // So the next stream requests all of them again.
    drop(stream);
    let mut stream = soon(fake.stream()).await;
    let held = soon(stream.hello()).await.held;
    assert!(
        held.iter().all(|held| held.name != "trust-anchors"),
        "{held:?}"
    );
    let body = Body::TrustAnchors(trust_anchors(&streamed, "new"));
    soon(stream.push(vec![resource("trust-anchors", 7, body)])).await;
    assert!(proxy.identity.trusts(&streamed));
}

#[tokio::test]
async fn anchors_are_streamed() {
    let mut fake = Fake::start().await;
    let (proxy, mut stream) = synced(&mut fake).await;
    let new = Authority::new("new");
    let anchors = [fake.authority.anchor(), new.anchor()];
    let body = trust_anchors(&anchors, "");
    let changes = proxy.identity.changes();
    let push = vec![resource("trust-anchors", 1, Body::TrustAnchors(body))];
    assert_eq!(soon(stream.push(push)).await.rejected, []);
    assert!(changes.has_changed().unwrap());
    assert!(!proxy.identity.set_trust_anchors(anchors.to_vec()).unwrap());
    assert!(proxy.identity.is_valid());
    // The stream that is open stays open.
    stream.heartbeat();
    assert_eq!(proxy.metric("naru_controller_connected "), 1.0);
}

#[tokio::test]
async fn each_renewal_uses_the_current_token() {
    let mut fake = Fake::start().await;
    fake.settings.lock().unwrap().leaf.not_after = 4;
    let proxy = Proxy::start(&fake);
    soon(fake.stream()).await;
    let first = proxy.identity.validity().unwrap();
    std::fs::write(proxy.files.token(), "token-2").unwrap();
    {
        let mut settings = fake.settings.lock().unwrap();
        settings.refuse = true;
        settings.leaf = Leaf::new(WEB);
    }
    let failed = "naru_certificate_renewals_total{outcome=\"failed\"} ";
    until(|| proxy.metric(failed) >= 1.0).await;
    assert_eq!(proxy.identity.validity(), Some(first), "the old one stays");
    fake.settings.lock().unwrap().refuse = false;
    until(|| proxy.identity.validity() != Some(first)).await;
    let tokens = fake.settings.lock().unwrap().tokens.clone();
    assert_eq!(tokens.first().map(String::as_str), Some("token-1"));
    assert_eq!(tokens.last().map(String::as_str), Some("token-2"));
    let second = proxy.identity.validity().unwrap();
    assert!(second.not_after > first.not_after + 10_000);
}

#[tokio::test]
async fn a_silent_controller_is_abandoned() {
    let mut fake = Fake::start().await;
    let _proxy = Proxy::start_with(&fake, |sync| sync.silence = Duration::from_millis(300));
    let mut stream = soon(fake.stream()).await;
    stream.hello().await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.heartbeat();
    }
    let began = Instant::now();
    assert_eq!(soon(stream.next()).await, None);
    assert!(began.elapsed() >= Duration::from_millis(200));
    soon(fake.stream()).await.hello().await;
}

/// The result of requesting a certificate from a controller that presents `leaf`.
async fn certify(leaf: Leaf, issuer: &Arc<Authority>, known: &Authority) -> Result<(), String> {
    let fake = Fake::start_as(issuer.clone(), leaf, "127.0.0.1:0").await;
    let files = Files::new(known);
    let mut controller = Controller {
        // All other addresses of the name are tried as well.
        config: config(&format!("localhost:{}", fake.address.port()), &files),
        identity: Identity::new(TRUST_DOMAIN, vec![known.anchor()]).unwrap(),
    };
    let csr = rcgen::CertificateParams::default();
    let csr = csr
        .serialize_request(&rcgen::KeyPair::generate().unwrap())
        .unwrap();
    let request = contract::CertifyRequest {
        csr_der: csr.der().to_vec().into(),
        token: String::new(),
    };
    let result = soon(controller.certify(request)).await;
    result.map(|_| ()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn only_the_controller_receives_the_token() {
    let authority = Arc::new(Authority::new("a"));
    let expect = |result: Result<(), String>, text: &str| {
        let error = result.unwrap_err();
        assert!(error.contains(text), "{error:?} does not say {text:?}");
    };
    let good = Leaf::new(CONTROLLER);
    certify(good.clone(), &authority, &authority).await.unwrap();
    expect(certify(Leaf::new(WEB), &authority, &authority).await, WEB);
    let foreign = Arc::new(Authority::new("b"));
    expect(
        certify(good.clone(), &foreign, &authority).await,
        "UnknownIssuer",
    );
    let expired = Leaf {
        not_before: -1_000,
        not_after: -10,
        ..good
    };
    expect(certify(expired, &authority, &authority).await, "clock");
}

#[tokio::test]
async fn a_proxy_that_missed_a_rotation_is_readmitted_by_its_anchors_file() {
    let fake = Fake::start().await;
    let files = Files::new(&fake.authority);
    let old = Authority::new("old");
    let mut controller = Controller {
        config: config(&fake.address.to_string(), &files),
        identity: Identity::new(TRUST_DOMAIN, vec![old.anchor()]).unwrap(),
    };
    let renewal = Renewal {
        identity: controller.identity.clone(),
        metrics: Metrics::default(),
        controller: controller.clone(),
    };
    let task = tokio::spawn(renewal.run());
    until(|| controller.identity.is_valid()).await;
    task.abort();
    // The missing file is named.
    std::fs::remove_file(files.token()).unwrap();
    let error = controller
        .certify(contract::CertifyRequest::default())
        .await;
    let error = error.unwrap_err().to_string();
    let token = controller.config.token.display().to_string();
    assert!(error.contains(&token), "{error}");
}

#[tokio::test]
async fn an_error_names_an_unreachable_controller() {
    let files = Files::new(&Authority::new("a"));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let mut controller = Controller {
        config: config(&address, &files),
        identity: Identity::new(TRUST_DOMAIN, vec![Authority::new("a").anchor()]).unwrap(),
    };
    let error = controller
        .certify(contract::CertifyRequest::default())
        .await;
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains(&address) && error.contains("refused"),
        "{error}"
    );
}

#[tokio::test]
async fn a_proxy_whose_certificate_is_refused_gets_another_with_its_token() {
    let mut fake = Fake::start().await;
    let (proxy, stream) = synced(&mut fake).await;
    let address = fake.address.to_string();
    drop((stream, fake));
    until(|| proxy.metric("naru_controller_connected ") == 0.0).await;
    // The old authority is lost: the new one's root comes with the file, and the certificate in
    // force is valid for ten hours.
    let new = Arc::new(Authority::new("b"));
    std::fs::write(proxy.files.anchors(), new.pem()).unwrap();
    let mut fake = Fake::start_as(new.clone(), Leaf::new(CONTROLLER), &address).await;
    let mut stream = timeout(3 * LONG, fake.stream()).await.expect("a stream");
    assert_eq!(stream.certificates, 1);
    stream.hello().await;
    assert_eq!(fake.settings.lock().unwrap().tokens, ["token-1"]);
    let body = Body::TrustAnchors(trust_anchors(&[new.anchor()], ""));
    soon(stream.push(vec![resource("trust-anchors", 9, body)])).await;
    assert!(proxy.identity.trusts(&[new.anchor()]));
    assert_eq!(proxy.endpoints().await, ["10.0.0.1:8080"]);
}

#[tokio::test]
async fn a_controller_under_an_unlisted_authority_does_not_receive_the_token() {
    let mut fake = Fake::start().await;
    let (proxy, stream) = synced(&mut fake).await;
    let address = fake.address.to_string();
    drop((stream, fake));
    until(|| proxy.metric("naru_controller_connected ") == 0.0).await;
    let stranger = Arc::new(Authority::new("stranger"));
    let fake = Fake::start_as(stranger, Leaf::new(CONTROLLER), &address).await;
    proxy.identity.certificate_refused();
    let failed = "naru_certificate_renewals_total{outcome=\"failed\"} ";
    until(|| proxy.metric(failed) > 0.0).await;
    assert!(fake.settings.lock().unwrap().tokens.is_empty());
}
