//! Any pushes of a controller, as bytes and as messages that refer to each other: the table never
//! panics, holds all that it did not reject, and keeps the previous version of what it rejected.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;
use std::time::Duration;

use arbitrary::Arbitrary;
use naru_contract as contract;
use naru_contract::destination::Target;
use naru_contract::resource::Body;
use naru_proxy::identity::Identity;
use naru_proxy::observe::metrics::Metrics;
use naru_proxy::table::{Store, tables};
use prost::Message;

#[derive(Arbitrary, Debug)]
enum Push {
    Bytes(Vec<u8>),
    Resources(Vec<Resource>, Vec<Name>),
}

#[derive(Arbitrary, Debug)]
struct Resource {
    name: Name,
    version: u8,
    body: Content,
}

/// Few names, so that resources refer to each other.
#[derive(Arbitrary, Debug)]
enum Name {
    TrustAnchors,
    Inbound,
    Destination(bool),
    Service(bool),
    HttpRoute(bool),
    TlsRoute(bool),
    TcpRoute(bool),
    Endpoints(bool),
    Text(String),
}

#[derive(Arbitrary, Debug)]
enum Content {
    /// Content of the kind that the name has.
    Fitting {
        name: bool,
        number: u32,
        protocol: i8,
        endpoints: Vec<Endpoint>,
        weights: Vec<u32>,
        route: bool,
    },
    Delta {
        base: u8,
        upserted: Vec<Endpoint>,
        removed: Vec<Endpoint>,
    },
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Clone, Debug)]
struct Endpoint {
    ip: Vec<u8>,
    last: u8,
    port: u16,
    meshed: bool,
    text: String,
    hints: Vec<bool>,
}

const NAMES: [&str; 2] = ["web", "db"];
/// Zones, and nodes.
const PLACES: [&str; 2] = ["a", "b"];
const ADDRESSES: [&str; 2] = ["10.96.0.1:80", "[fd00::1]:80"];

fn pick<T: Copy>(of: [T; 2], second: bool) -> T {
    of[usize::from(second)]
}

impl Name {
    fn text(&self) -> String {
        match self {
            Self::TrustAnchors => "trust-anchors".to_owned(),
            Self::Inbound => "inbound".to_owned(),
            Self::Destination(i) => format!("destination/{}", pick(ADDRESSES, *i)),
            Self::Service(i) => service(*i),
            Self::HttpRoute(i) => format!("http-route/shop/{}", pick(NAMES, *i)),
            Self::TlsRoute(i) => format!("tls-route/shop/{}", pick(NAMES, *i)),
            Self::TcpRoute(i) => format!("tcp-route/shop/{}", pick(NAMES, *i)),
            Self::Endpoints(i) => endpoints(*i),
            Self::Text(text) => text.clone(),
        }
    }
}

fn service(second: bool) -> String {
    format!("service/shop/shop/{}/80", pick(NAMES, second))
}

fn endpoints(second: bool) -> String {
    format!("endpoints/shop/{}/80", pick(NAMES, second))
}

impl Endpoint {
    fn message(&self) -> contract::Endpoint {
        let ip = match self.ip.len() {
            4 | 16 => self.ip.clone(),
            _ => vec![10, 0, 0, self.last],
        };
        contract::Endpoint {
            ip: ip.into(),
            port: u32::from(self.port),
            identity: match self.meshed {
                true => "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
                false => String::new(),
            },
            pod: self.text.clone(),
            workload: String::new(),
            zone: self.text.clone(),
            node: pick(PLACES, self.last % 2 == 1).to_owned(),
            for_zones: self
                .hints
                .iter()
                .map(|i| pick(PLACES, *i).to_owned())
                .collect(),
            for_nodes: self
                .hints
                .iter()
                .map(|i| pick(PLACES, !i).to_owned())
                .collect(),
        }
    }
}

impl Resource {
    fn message(&self) -> contract::Resource {
        let name = self.name.text();
        let body = match &self.body {
            Content::Bytes(bytes) => {
                let mut resource = contract::Resource::decode(bytes.as_slice()).unwrap_or_default();
                resource.body.take()
            }
            Content::Delta {
                base,
                upserted,
                removed,
            } => Some(Body::EndpointsDelta(contract::EndpointsDelta {
                base_version: u64::from(*base),
                upserted: upserted.iter().map(Endpoint::message).collect(),
                removed: removed.iter().map(Endpoint::message).collect(),
            })),
            fitting => fitting.body(&self.name),
        };
        contract::Resource {
            name,
            version: u64::from(self.version),
            body,
        }
    }
}

impl Content {
    fn body(&self, of: &Name) -> Option<Body> {
        let Self::Fitting {
            name,
            number,
            protocol,
            endpoints: members,
            weights,
            route,
        } = self
        else {
            return None;
        };
        let protocol = i32::from(*protocol);
        Some(match of {
            Name::TrustAnchors => Body::TrustAnchors(contract::TrustAnchors {
                certificates_der: vec![match route {
                    true => ANCHOR.as_slice().to_vec().into(),
                    false => number.to_be_bytes().to_vec().into(),
                }],
                issuer: format!("{number:x}{}", if *route { "" } else { "\"" }),
                renew_within_seconds: *number,
            }),
            Name::Inbound => Body::Inbound(contract::Inbound {
                workload: "deployment/web".to_owned(),
                ports: vec![contract::InboundPort {
                    port: *number,
                    protocol,
                }],
                mtls: protocol,
                node: pick(PLACES, *name).to_owned(),
                zone: pick(PLACES, *route).to_owned(),
            }),
            Name::Destination(_) => Body::Destination(contract::Destination {
                target: match (route, members.first()) {
                    (true, _) => Some(Target::Service(service(*name))),
                    (false, Some(member)) => {
                        Some(Target::Pod(Box::new(contract::PodDestination {
                            endpoint: Some(member.message()),
                            protocol,
                            namespace: "shop".to_owned(),
                            service: String::new(),
                        })))
                    }
                    (false, None) => None,
                },
            }),
            Name::Service(own) => Body::Service(contract::Service {
                namespace: "shop".to_owned(),
                name: pick(NAMES, *own).to_owned(),
                port: 80,
                protocol,
                http_routes: match route {
                    true => vec![Name::HttpRoute(*name).text()],
                    false => Vec::new(),
                },
                endpoints: endpoints(*name),
                retry_budget: weights.first().map(|weight| contract::RetryBudget {
                    percent: *weight,
                    interval_ms: u64::from(*number),
                    min_retries_per_1000_s: u64::from(*number),
                }),
                opaque_routes: match number % 4 {
                    0 => vec![Name::TcpRoute(*name).text()],
                    1 => [false, true].map(|i| Name::TlsRoute(i).text()).to_vec(),
                    _ => Vec::new(),
                },
            }),
            Name::TlsRoute(own) => Body::TlsRoute(contract::TlsRoute {
                namespace: "shop".to_owned(),
                name: pick(NAMES, *own).to_owned(),
                hostnames: (members.iter())
                    .map(|member| format!("{}.example", member.text))
                    .collect(),
                backends: weights.iter().map(opaque_backend).collect(),
            }),
            Name::TcpRoute(own) => Body::TcpRoute(contract::TcpRoute {
                namespace: "shop".to_owned(),
                name: pick(NAMES, *own).to_owned(),
                backends: weights.iter().map(opaque_backend).collect(),
            }),
            Name::HttpRoute(own) => Body::HttpRoute(contract::HttpRoute {
                namespace: "shop".to_owned(),
                name: pick(NAMES, *own).to_owned(),
                rules: vec![contract::HttpRule {
                    backends: weights
                        .iter()
                        .map(|weight| contract::HttpBackend {
                            weight: *weight,
                            endpoints: endpoints(weight % 2 == 1),
                            ..Default::default()
                        })
                        .collect(),
                    request_timeout_ms: u64::from(*number),
                    ..Default::default()
                }],
            }),
            Name::Endpoints(own) => Body::Endpoints(contract::Endpoints {
                namespace: "shop".to_owned(),
                service: pick(NAMES, *own).to_owned(),
                port: 80,
                endpoints: members.iter().map(Endpoint::message).collect(),
                protocol,
                node_local: *route,
            }),
            Name::Text(_) => return None,
        })
    }
}

fn opaque_backend(weight: &u32) -> contract::OpaqueBackend {
    contract::OpaqueBackend {
        weight: *weight,
        endpoints: endpoints(weight % 2 == 1),
        ..Default::default()
    }
}

impl Push {
    fn message(&self, sequence: u64) -> contract::Push {
        match self {
            Self::Bytes(bytes) => contract::Push::decode(bytes.as_slice()).unwrap_or_default(),
            Self::Resources(updates, removed) => contract::Push {
                sequence,
                updates: updates.iter().map(Resource::message).collect(),
                removed: removed.iter().map(Name::text).collect(),
            },
        }
    }
}

static ANCHOR: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().expect("a key");
    params
        .self_signed(&key)
        .expect("a certificate")
        .der()
        .to_vec()
});

pub fn one(bytes: &[u8]) {
    let Some(pushes) = crate::input::input::<Vec<Push>>(bytes) else {
        return;
    };
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::default);
    static IDENTITY: LazyLock<Identity> = LazyLock::new(|| {
        let anchor = ANCHOR.clone().into();
        Identity::new("cluster.local", vec![anchor]).expect("an anchor")
    });
    let (tables, _misses) = tables("shop", METRICS.clone(), Duration::from_secs(1));
    let mut store = Store::new(&tables, IDENTITY.clone(), METRICS.clone());
    let cells = ADDRESSES.map(|address| store.subscribe(address.parse().expect("an address")));
    let mut held = HashMap::new();
    for (push, sequence) in pushes.iter().zip(1..) {
        let push = push.message(sequence);
        let sequence = push.sequence;
        let updates: Vec<_> = (push.updates.iter())
            .map(|resource| (resource.name.clone(), resource.version))
            .collect();
        let touched: HashSet<String> = (updates.iter().map(|(name, _)| name))
            .chain(&push.removed)
            .cloned()
            .collect();
        // A resource that is both set and removed in one push is undefined.
        let removed: HashSet<String> = push.removed.iter().cloned().collect();
        let answer = store.apply(push);
        assert_eq!(answer.sequence, sequence);
        let (_, now) = store.hello();
        let now: HashMap<String, u64> = now.into_iter().map(|h| (h.name, h.version)).collect();
        for (name, version) in &now {
            assert_ne!(*version, 0, "{name}");
            if !touched.contains(name) {
                assert_eq!(held.get(name), Some(version), "{name}: nobody spoke of it");
            }
        }
        for rejection in &answer.rejected {
            assert!(!rejection.reason.is_empty());
            if removed.contains(&rejection.name) {
                continue;
            }
            if let (Some(before), Some(after)) =
                (held.get(&rejection.name), now.get(&rejection.name))
            {
                assert_eq!(before, after, "{} was rejected", rejection.name);
            }
        }
        held = now;
        serde_json::to_string(&store.view()).expect("JSON");
        for cell in cells.iter().flatten() {
            drop(cell.load());
        }
    }
}
