//! CORS and header filters against a model of what they promise: which origin may read a response,
//! what a preflight request is answered, and which fields a request and a response have then.

use std::sync::LazyLock;

use arbitrary::Arbitrary;
use http::HeaderMap;
use naru_contract as contract;
use naru_contract::http_filter::Kind;
use naru_proxy::observe::metrics::Metrics;
use naru_proxy::route::{Decision, decide};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::route::logical;

#[derive(Arbitrary, Debug)]
struct Input {
    request: Modifier,
    response: Modifier,
    cors: Option<Cors>,
    preflight: bool,
    origin: Option<Origin>,
    /// Fields of the request, and of the app's response.
    fields: Vec<(u8, Text)>,
}

#[derive(Arbitrary, Debug)]
struct Modifier {
    set: Vec<(u8, Text)>,
    add: Vec<(u8, Text)>,
    remove: Vec<u8>,
}

/// Few texts, so that they meet.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq)]
enum Text {
    A,
    B,
    Spaced,
    Origin,
}

#[derive(Arbitrary, Debug)]
struct Cors {
    /// `None`: all.
    origins: Option<Vec<Pattern>>,
    credentials: bool,
    all_methods: bool,
    all_headers: bool,
    exposed: bool,
    max_age: u32,
}

#[derive(Arbitrary, Debug)]
struct Origin {
    https: bool,
    upper: bool,
    labels: Vec<bool>,
    port: Option<u16>,
}

#[derive(Arbitrary, Debug)]
enum Pattern {
    AnyHost { https: bool, port: Option<u16> },
    Below(Origin),
    Is(Origin),
}

const NAMES: [&str; 6] = [
    "x-a",
    "X-A",
    "x-b",
    "vary",
    "access-control-allow-origin",
    "access-control-allow-credentials",
];

fn name(index: u8) -> &'static str {
    NAMES[usize::from(index) % NAMES.len()]
}

impl Text {
    fn text(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b, c",
            Self::Spaced => " d\t",
            Self::Origin => "Origin",
        }
    }
}

impl Origin {
    fn scheme(&self) -> &'static str {
        match (self.https, self.upper) {
            (false, false) => "http",
            (false, true) => "HTTP",
            (true, false) => "https",
            (true, true) => "HTTPS",
        }
    }

    fn host(&self) -> String {
        let label = |second: &bool| if *second { "b" } else { "a" };
        let labels: Vec<_> = self.labels.iter().take(3).map(label).collect();
        match labels.is_empty() {
            true => "a".to_owned(),
            false => labels.join("."),
        }
    }

    fn port(&self) -> u16 {
        port(self.https, self.port)
    }

    fn text(&self, host: &str) -> String {
        format!("{}://{host}{}", self.scheme(), suffix(self.port))
    }
}

/// Zero stands for none.
fn port(https: bool, port: Option<u16>) -> u16 {
    let default = if https { 443 } else { 80 };
    port.filter(|port| *port > 0).unwrap_or(default)
}

fn suffix(port: Option<u16>) -> String {
    let port = port.filter(|port| *port > 0);
    port.map(|port| format!(":{port}")).unwrap_or_default()
}

impl Pattern {
    fn text(&self) -> String {
        match self {
            Self::AnyHost { https, port } => {
                let scheme = if *https { "https" } else { "http" };
                format!("{scheme}://*{}", suffix(*port))
            }
            Self::Below(origin) => origin.text(&format!("*.{}", origin.host())),
            Self::Is(origin) => origin.text(&origin.host()),
        }
    }

    fn covers(&self, asked: &Origin) -> bool {
        let (https, port) = match self {
            Self::AnyHost { https, port: own } => (*https, port(*https, *own)),
            Self::Below(origin) | Self::Is(origin) => (origin.https, origin.port()),
        };
        https == asked.https
            && port == asked.port()
            && match self {
                Self::AnyHost { .. } => true,
                Self::Below(origin) => asked.host().ends_with(&format!(".{}", origin.host())),
                Self::Is(origin) => asked.host() == origin.host(),
            }
    }
}

impl Cors {
    fn message(&self) -> contract::Cors {
        let list = |all: bool, some: &str| vec![if all { "*" } else { some }.to_owned()];
        contract::Cors {
            allow_origins: match &self.origins {
                None => vec!["*".to_owned()],
                Some(origins) => origins.iter().map(Pattern::text).collect(),
            },
            allow_credentials: self.credentials,
            allow_methods: list(self.all_methods, "PUT"),
            allow_headers: list(self.all_headers, "x-a"),
            expose_headers: list(self.exposed, "x-b"),
            max_age_seconds: self.max_age,
        }
    }

    fn allows(&self, asked: &Origin) -> bool {
        let listed = self.origins.as_ref();
        listed.is_none_or(|list| list.iter().any(|pattern| pattern.covers(asked)))
    }

    /// Every client gets the same answer.
    fn is_public(&self) -> bool {
        self.origins.is_none() && !self.credentials
    }
}

impl Modifier {
    fn message(&self) -> contract::HeaderModifier {
        let headers = |list: &[(u8, Text)]| {
            let header = |(index, value): &(u8, Text)| contract::Header {
                name: name(*index).to_owned(),
                value: value.text().to_owned(),
            };
            list.iter().map(header).collect()
        };
        contract::HeaderModifier {
            set: headers(&self.set),
            add: headers(&self.add),
            remove: self.remove.iter().map(|i| name(*i).to_owned()).collect(),
        }
    }

    /// Set, add, remove; of several entries for one name the first.
    fn apply(&self, fields: &mut Vec<(String, String)>) {
        let firsts = |list: &[(u8, Text)]| {
            let mut firsts: Vec<(String, String)> = Vec::new();
            for (index, value) in list {
                let name = name(*index).to_ascii_lowercase();
                if firsts.iter().all(|(other, _)| *other != name) {
                    firsts.push((name, value.text().trim().to_owned()));
                }
            }
            firsts
        };
        for (name, value) in firsts(&self.set) {
            fields.retain(|(other, _)| *other != name);
            fields.push((name, value));
        }
        fields.extend(firsts(&self.add));
        for index in &self.remove {
            fields.retain(|(other, _)| !other.eq_ignore_ascii_case(name(*index)));
        }
    }
}

/// The fields in an order that does not depend on that of their names.
fn sorted(mut fields: Vec<(String, String)>) -> Vec<(String, String)> {
    fields.sort_by(|(one, _), (other, _)| one.cmp(other));
    fields
}

fn fields_of(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| value.to_str().expect("ASCII").to_owned();
    let fields = headers.iter();
    sorted(
        fields
            .map(|(name, value)| (name.as_str().to_owned(), text(value)))
            .collect(),
    )
}

impl Input {
    fn route(&self) -> contract::HttpRoute {
        let mut kinds = vec![
            Kind::RequestHeaders(self.request.message()),
            Kind::ResponseHeaders(self.response.message()),
        ];
        kinds.extend(self.cors.as_ref().map(|cors| Kind::Cors(cors.message())));
        let filters = kinds.into_iter();
        contract::HttpRoute {
            namespace: "a".to_owned(),
            name: "r".to_owned(),
            rules: vec![contract::HttpRule {
                filters: filters
                    .map(|kind| contract::HttpFilter { kind: Some(kind) })
                    .collect(),
                backends: vec![contract::HttpBackend {
                    weight: 1,
                    endpoints: "endpoints/a/b/80".to_owned(),
                    ..Default::default()
                }],
                ..Default::default()
            }],
        }
    }

    fn request(&self) -> http::request::Parts {
        let mut request = http::Request::builder().uri("/");
        if let Some(origin) = &self.origin {
            request = request.header("origin", origin.text(&origin.host()));
        }
        if self.preflight {
            request = request.method("OPTIONS");
            request = request.header("access-control-request-method", "PUT");
        }
        for (index, value) in &self.fields {
            request = request.header(name(*index), value.text().trim());
        }
        request.body(()).expect("valid names").into_parts().0
    }

    /// The origin that may read the response, as the header has it.
    fn reader(&self) -> Option<String> {
        let cors = self.cors.as_ref()?;
        let asked = self.origin.as_ref().filter(|asked| cors.allows(asked));
        match cors.is_public() {
            true => Some("*".to_owned()),
            false => asked.map(|asked| asked.text(&asked.host())),
        }
    }

    fn check_preflight(&self, status: u16, fields: &[(&'static str, String)]) {
        let cors = self.cors.as_ref().expect("only the filter answers");
        let asked = self.origin.as_ref().expect("only an origin is answered");
        let get = |name: &str| {
            let found = fields.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| value.as_str())
        };
        assert_eq!(status, if cors.allows(asked) { 204 } else { 403 });
        assert!(get("vary").is_some_and(|names| names.contains("Origin")));
        let reader = self.reader().filter(|_| cors.allows(asked));
        assert_eq!(get("access-control-allow-origin"), reader.as_deref());
        let credentials = (status == 204 && cors.credentials).then_some("true");
        assert_eq!(get("access-control-allow-credentials"), credentials);
        let methods = (status == 204).then_some("PUT");
        assert_eq!(get("access-control-allow-methods"), methods);
    }

    fn check_response(&self, before: &HeaderMap, after: &HeaderMap) {
        let mut expected = fields_of(before);
        self.response.apply(&mut expected);
        let Some(cors) = &self.cors else {
            return assert_eq!(fields_of(after), sorted(expected));
        };
        let get = |name: &str| {
            let all: Vec<_> = after.get_all(name).iter().collect();
            assert!(all.len() <= 1, "{all:?}");
            all.first()
                .map(|value| value.to_str().expect("ASCII").to_owned())
        };
        let reader = self.reader();
        assert_eq!(get("access-control-allow-origin"), reader);
        let credentials = reader.is_some() && cors.credentials;
        assert_eq!(
            get("access-control-allow-credentials").is_some(),
            credentials
        );
        // A cache must not give one origin's response to another one.
        let vary = after
            .get_all("vary")
            .iter()
            .flat_map(|value| value.as_bytes().split(|b| *b == b','));
        let varies = vary
            .map(<[u8]>::trim_ascii)
            .any(|name| name.eq_ignore_ascii_case(b"origin"));
        assert!(varies || cors.is_public());
    }
}

pub fn one(bytes: &[u8]) {
    let Some(input) = crate::input::input::<Input>(bytes) else {
        return;
    };
    static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::default);
    let logical = logical(&input.route(), &METRICS).expect("a valid route");
    let head = input.request();
    let mut changed = head.clone();
    let decision = decide(&logical, &mut changed, &mut SmallRng::seed_from_u64(1));
    match decision {
        Decision::Forward {
            rule,
            backend,
            origin,
        } => {
            let answers = input.cors.is_some() && input.preflight && input.origin.is_some();
            assert!(!answers, "a preflight request reaches the app");
            let mut expected = fields_of(&head.headers);
            input.request.apply(&mut expected);
            assert_eq!(fields_of(&changed.headers), sorted(expected));
            assert_eq!(origin.as_deref(), input.reader().as_deref());
            let mut response = head.headers.clone();
            rule.filter_response(Some(backend), origin.as_deref(), &mut response);
            input.check_response(&head.headers, &response);
        }
        Decision::Preflight { answer, .. } => {
            assert!(input.preflight);
            input.check_preflight(answer.status, &answer.fields);
        }
        Decision::Redirect { .. } | Decision::Fail { .. } => panic!("no filter of these kinds"),
    }
}
