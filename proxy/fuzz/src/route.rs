//! Any route that the contract can carry, and any request that the `http` crate accepts: decoding
//! accepts or rejects it, matching and rewriting never panic, and the result is valid to be sent.

use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use naru_contract as contract;
use naru_contract::http_filter::Kind;
use naru_proxy::balance::{Backend, EndpointSet, RetryBudget};
use naru_proxy::observe::metrics::{Metrics, ServiceLabels, TcpLabels};
use naru_proxy::route::{
    Decision, Logical, Protocol, RequestHead, decide, decode_routes, default_rule,
};
use naru_proxy::socket::Direction;
use rand::SeedableRng;
use rand::rngs::SmallRng;

#[derive(Arbitrary, Debug)]
struct Input {
    rules: Vec<Rule>,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    seed: u64,
}

#[derive(Arbitrary, Debug)]
struct Rule {
    matches: Vec<Match>,
    filters: Vec<Filter>,
    backends: Vec<(u32, bool, Vec<Filter>)>,
}

#[derive(Arbitrary, Debug)]
struct Match {
    path: Option<(u8, String)>,
    headers: Vec<(String, String, bool)>,
    query: Vec<(String, String, bool)>,
    method: String,
}

#[derive(Arbitrary, Debug)]
enum Filter {
    Request(Modifier),
    Response(Modifier),
    Redirect {
        scheme: String,
        hostname: String,
        path: Option<(u8, String)>,
        port: u16,
        status: u16,
    },
    Rewrite {
        hostname: String,
        path: Option<(u8, String)>,
    },
    Mirror {
        endpoints: String,
        numerator: u32,
        denominator: u32,
    },
    Cors {
        origins: Vec<String>,
        credentials: bool,
        methods: Vec<String>,
        headers: Vec<String>,
        exposed: Vec<String>,
        max_age: u32,
    },
    Unknown,
}

#[derive(Arbitrary, Debug)]
struct Modifier {
    set: Vec<(String, String)>,
    add: Vec<(String, String)>,
    remove: Vec<String>,
}

impl Modifier {
    fn message(&self) -> contract::HeaderModifier {
        let headers = |pairs: &[(String, String)]| {
            pairs
                .iter()
                .map(|(name, value)| contract::Header {
                    name: name.clone(),
                    value: value.clone(),
                })
                .collect()
        };
        contract::HeaderModifier {
            set: headers(&self.set),
            add: headers(&self.add),
            remove: self.remove.clone(),
        }
    }
}

fn path_modifier(path: &Option<(u8, String)>) -> Option<contract::PathModifier> {
    path.as_ref().map(|(kind, value)| contract::PathModifier {
        kind: i32::from(kind % 3),
        value: value.clone(),
    })
}

impl Filter {
    fn message(&self) -> contract::HttpFilter {
        let kind = match self {
            Self::Request(modifier) => Some(Kind::RequestHeaders(modifier.message())),
            Self::Response(modifier) => Some(Kind::ResponseHeaders(modifier.message())),
            Self::Redirect {
                scheme,
                hostname,
                path,
                port,
                status,
            } => Some(Kind::Redirect(contract::Redirect {
                scheme: scheme.clone(),
                hostname: hostname.clone(),
                path: path_modifier(path),
                port: u32::from(*port),
                status: 300 + u32::from(status % 10),
            })),
            Self::Rewrite { hostname, path } => Some(Kind::Rewrite(contract::Rewrite {
                hostname: hostname.clone(),
                path: path_modifier(path),
            })),
            Self::Mirror {
                endpoints,
                numerator,
                denominator,
            } => Some(Kind::Mirror(contract::Mirror {
                endpoints: endpoints.clone(),
                numerator: *numerator,
                denominator: *denominator,
            })),
            Self::Cors {
                origins,
                credentials,
                methods,
                headers,
                exposed,
                max_age,
            } => Some(Kind::Cors(contract::Cors {
                allow_origins: origins.clone(),
                allow_credentials: *credentials,
                allow_methods: methods.clone(),
                allow_headers: headers.clone(),
                expose_headers: exposed.clone(),
                max_age_seconds: *max_age,
            })),
            Self::Unknown => None,
        };
        contract::HttpFilter { kind }
    }
}

impl Match {
    fn message(&self) -> contract::HttpMatch {
        let named = |all: &[(String, String, bool)]| {
            all.iter()
                .map(|(name, value, regular_expression)| contract::NamedMatch {
                    name: name.clone(),
                    value: value.clone(),
                    regular_expression: *regular_expression,
                })
                .collect()
        };
        contract::HttpMatch {
            path: self.path.as_ref().map(|(kind, value)| contract::PathMatch {
                kind: i32::from(kind % 4),
                value: value.clone(),
            }),
            headers: named(&self.headers),
            query: named(&self.query),
            method: self.method.clone(),
        }
    }
}

impl Rule {
    fn message(&self) -> contract::HttpRule {
        contract::HttpRule {
            matches: self.matches.iter().map(Match::message).collect(),
            filters: self.filters.iter().map(Filter::message).collect(),
            backends: self
                .backends
                .iter()
                .map(|(weight, invalid, filters)| contract::HttpBackend {
                    weight: *weight,
                    endpoints: "endpoints/a/b/80".to_owned(),
                    invalid: if *invalid { "gone" } else { "" }.to_owned(),
                    filters: filters.iter().map(Filter::message).collect(),
                })
                .collect(),
            ..Default::default()
        }
    }
}

/// A destination with these routes. `None`: they are rejected.
pub fn logical(routes: &contract::HttpRoute, metrics: &Metrics) -> Option<Logical> {
    let service = ServiceLabels {
        namespace: "a".into(),
        service: "b".into(),
        port: 80,
    };
    let backend = Arc::new(Backend::new(
        "a".into(),
        "b".into(),
        80,
        EndpointSet::default(),
    ));
    let routes = decode_routes(&[routes], &mut |_| Some(backend.clone()), metrics, &service);
    Some(Logical {
        namespace: "a".into(),
        service: "b".into(),
        port: 80,
        protocol: Protocol::Http,
        routes: Some(routes.ok()?),
        opaque_routes: None,
        default_rule: Arc::new(default_rule(backend, metrics, &service)),
        budget: Arc::new(RetryBudget::default()),
        tcp: metrics.tcp(TcpLabels {
            direction: Direction::Outbound,
            client: "".into(),
            namespace: "a".into(),
            service: "b".into(),
            port: Some(80),
        }),
    })
}

fn head(input: &Input) -> Option<http::request::Parts> {
    let mut request = http::Request::builder()
        .method(input.method.as_str())
        .uri(input.target.as_str());
    for (name, value) in &input.headers {
        request = request.header(name.as_str(), value.as_str());
    }
    Some(request.body(()).ok()?.into_parts().0)
}

pub fn one(bytes: &[u8]) {
    let Some(input) = crate::input::input::<Input>(bytes) else {
        return;
    };
    let route = contract::HttpRoute {
        namespace: "a".to_owned(),
        name: "r".to_owned(),
        rules: input.rules.iter().map(Rule::message).collect(),
    };
    // Once: its series are bounded, and not under test here.
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::default);
    let Some(logical) = logical(&route, &METRICS) else {
        return;
    };
    let Some(head) = head(&input) else {
        return;
    };
    let random = || SmallRng::seed_from_u64(input.seed);
    let mut changed = head.clone();
    let decision = decide(&logical, &mut changed, &mut random());
    match &decision {
        Decision::Forward {
            rule,
            backend,
            origin,
        } => {
            assert!(rule.backends[*backend].weight > 0);
            // The target written by a filter is valid.
            let target = changed.path_and_query();
            assert!(target.is_empty() || target == "*" || target.starts_with('/'));
            rule.filter_response(
                Some(*backend),
                origin.as_deref(),
                &mut changed.headers.clone(),
            );
            // A selected mirror implies `is_mirrored`.
            if rule.mirrors(*backend, &mut random()).next().is_some() {
                assert!(rule.is_mirrored(*backend));
            }
        }
        Decision::Redirect { location, .. } => {
            if head.path_and_query().is_ascii() {
                assert!(http::HeaderValue::from_str(location).is_ok(), "{location}");
            }
        }
        Decision::Preflight { answer, .. } => {
            for (name, value) in &answer.fields {
                assert!(
                    http::HeaderValue::from_str(value).is_ok(),
                    "{name}: {value}"
                );
            }
        }
        Decision::Fail { .. } => {}
    }
    // The same request gets the same answer.
    let again = decide(&logical, &mut head.clone(), &mut random());
    assert_eq!(
        std::mem::discriminant(&decision),
        std::mem::discriminant(&again)
    );
}
