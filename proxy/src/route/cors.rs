//! Cross-origin requests of browsers: which of them may read the response by a rule's CORS filter
//! (Gateway API, HTTPCORSFilter; Fetch standard, section 3.3). A preflight request is answered
//! here; for every other request only the response is changed.

use std::fmt::{self, Display, Formatter};

use naru_contract as contract;

use super::problem::{Problem, header_name, method, problem};
use super::{HeaderFields, RequestHead};

/// The wildcard, in the filter's lists and in headers.
const ANY: &str = "*";
/// Response fields that the filter controls. The app's own fields of these names are replaced.
const FIELDS: [&str; 6] = [
    ALLOW_ORIGIN,
    ALLOW_CREDENTIALS,
    ALLOW_METHODS,
    ALLOW_HEADERS,
    EXPOSE_HEADERS,
    MAX_AGE,
];
const ALLOW_ORIGIN: &str = "access-control-allow-origin";
const ALLOW_CREDENTIALS: &str = "access-control-allow-credentials";
const ALLOW_METHODS: &str = "access-control-allow-methods";
const ALLOW_HEADERS: &str = "access-control-allow-headers";
const EXPOSE_HEADERS: &str = "access-control-expose-headers";
const MAX_AGE: &str = "access-control-max-age";
const VARY: &str = "vary";
/// The request fields on which the answer to a preflight request depends.
const PREFLIGHT_VARY: &str =
    "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
const ALLOWED: u16 = 204;
const DENIED: u16 = 403;

/// A compiled CORS filter.
#[derive(Clone, Debug)]
pub struct Cors {
    /// `None`: all origins.
    origins: Option<Vec<OriginPattern>>,
    credentials: bool,
    methods: Allowed,
    headers: Allowed,
    /// As in the header, if it is sent.
    exposed: Option<Box<str>>,
    /// In seconds, as in the header.
    max_age: Box<str>,
}

/// The value of an `Access-Control-Allow-…` field in the answer to a preflight request.
#[derive(Clone, Debug)]
enum Allowed {
    /// The value requested.
    Asked,
    /// These, as in the header. `None`: only what is always allowed.
    These(Option<Box<str>>),
}

/// The answer to a preflight request.
#[derive(Debug)]
pub struct Preflight {
    pub status: u16,
    pub fields: Vec<(&'static str, String)>,
}

#[derive(Clone, Debug)]
struct OriginPattern {
    scheme: Box<str>,
    host: HostPattern,
    port: u16,
}

#[derive(Clone, Debug)]
enum HostPattern {
    Any,
    /// With the leading dot: at least one label must precede it.
    EndsIn(Box<str>),
    Is(Box<str>),
}

impl Cors {
    pub(super) fn decode(message: &contract::Cors) -> Result<Self, Problem> {
        let any = |list: &[String]| matches!(list, [only] if only == ANY);
        let origins = match any(&message.allow_origins) {
            true => None,
            false => {
                let patterns = message.allow_origins.iter().map(|o| OriginPattern::new(o));
                Some(patterns.collect::<Result<_, _>>()?)
            }
        };
        let methods = match any(&message.allow_methods) {
            true => Allowed::Asked,
            false => {
                for name in &message.allow_methods {
                    method(name)?;
                }
                Allowed::These(list(&message.allow_methods))
            }
        };
        for name in message.allow_headers.iter().chain(&message.expose_headers) {
            header_name(name)?;
        }
        let headers = match any(&message.allow_headers) {
            true => Allowed::Asked,
            false => Allowed::These(list(&message.allow_headers)),
        };
        // In requests with credentials a * is a literal header name, and allows nothing.
        let exposed = (message.expose_headers.iter().map(String::as_str))
            .filter(|name| *name != ANY || !message.allow_credentials);
        Ok(Self {
            origins,
            credentials: message.allow_credentials,
            methods,
            headers,
            exposed: list(&exposed.collect::<Vec<_>>()),
            max_age: message.max_age_seconds.to_string().into(),
        })
    }

    /// The answer, for a preflight request. For any other request: sets the `origin` that may read
    /// the response, as the response header gives it.
    pub(super) fn judge(
        &self,
        head: &impl RequestHead,
        origin: &mut Option<Box<str>>,
    ) -> Option<Preflight> {
        let asked = only_value(head, "origin");
        let allowed = asked.as_deref().filter(|asked| self.is_allowed(asked));
        // Requests without an origin get the same answer, so that caches may share it.
        let everyone = self.origins.is_none() && !self.credentials;
        let said: Option<Box<str>> = match everyone {
            true => Some(ANY.into()),
            false => allowed.map(Into::into),
        };
        let wanted = match head.method() {
            "OPTIONS" if asked_at_all(head, "origin") => {
                only_value(head, "access-control-request-method")
            }
            _ => None,
        };
        let Some(wanted) = wanted else {
            *origin = said;
            return None;
        };
        let mut answer = Preflight {
            status: DENIED,
            fields: vec![(VARY, PREFLIGHT_VARY.to_owned())],
        };
        let Some(said) = said.filter(|_| allowed.is_some()) else {
            return Some(answer);
        };
        answer.status = ALLOWED;
        let mut say = |name, value: &str| answer.fields.push((name, value.to_owned()));
        self.allow(&said, &mut say);
        if let Some(methods) = self.methods.of(Some(&wanted)) {
            say(ALLOW_METHODS, methods);
        }
        let headers = only_value(head, "access-control-request-headers");
        if let Some(headers) = self.headers.of(headers.as_deref()) {
            say(ALLOW_HEADERS, headers);
        }
        say(MAX_AGE, &self.max_age);
        Some(answer)
    }

    /// Replaces the app's fields with the filter's. `origin`: the one that may read the response.
    pub(super) fn apply_to_response(&self, origin: Option<&str>, head: &mut impl HeaderFields) {
        for name in FIELDS {
            head.remove_field(name);
        }
        let everyone = self.origins.is_none() && !self.credentials;
        if !everyone && !varies_by_origin(head) {
            head.add_field(VARY, "Origin");
        }
        if let Some(origin) = origin {
            self.allow(origin, &mut |name, value| head.set_field(name, value));
        }
    }

    /// The fields that every readable response has.
    fn allow(&self, origin: &str, say: &mut dyn FnMut(&'static str, &str)) {
        say(ALLOW_ORIGIN, origin);
        if self.credentials {
            say(ALLOW_CREDENTIALS, "true");
        }
        if let Some(exposed) = &self.exposed {
            say(EXPOSE_HEADERS, exposed);
        }
    }

    fn is_allowed(&self, origin: &str) -> bool {
        let Some(patterns) = &self.origins else {
            return true;
        };
        let Some((scheme, host, port)) = parts(origin) else {
            return false;
        };
        patterns.iter().any(|pattern| {
            pattern.port == port
                && pattern.scheme.eq_ignore_ascii_case(scheme)
                && pattern.host.covers(host)
        })
    }
}

/// A description, for `/why`.
impl Display for Cors {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let origins = match self.origins.as_deref() {
            None => "every origin".to_owned(),
            Some([]) => "no origin".to_owned(),
            Some(patterns) => {
                let texts = patterns.iter().map(ToString::to_string);
                texts.collect::<Vec<_>>().join(", ")
            }
        };
        write!(f, "CORS for {origins}")?;
        match self.credentials {
            true => f.write_str(", with credentials"),
            false => Ok(()),
        }
    }
}

impl Display for OriginPattern {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { scheme, host, port } = self;
        write!(f, "{scheme}://")?;
        match host {
            HostPattern::Any => f.write_str(ANY)?,
            HostPattern::EndsIn(suffix) => write!(f, "*{suffix}")?,
            HostPattern::Is(name) => f.write_str(name)?,
        }
        match well_known_port(scheme) == Some(*port) {
            true => Ok(()),
            false => write!(f, ":{port}"),
        }
    }
}

impl Allowed {
    fn of<'a>(&'a self, asked: Option<&'a str>) -> Option<&'a str> {
        match self {
            Self::These(these) => these.as_deref(),
            Self::Asked => asked,
        }
    }
}

/// Names as a field's value, if there are any.
fn list(names: &[impl AsRef<str>]) -> Option<Box<str>> {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    (!names.is_empty()).then(|| names.join(", ").into())
}

impl OriginPattern {
    fn new(text: &str) -> Result<Self, Problem> {
        let none = || problem(format_args!("{text:?} is no origin"));
        let (scheme, host, port) = parts(text).ok_or_else(none)?;
        let host = match host.strip_prefix(ANY) {
            Some("") => HostPattern::Any,
            Some(rest) if rest.contains(ANY) => return Err(none()),
            Some(suffix) if suffix.starts_with('.') => HostPattern::EndsIn(suffix.into()),
            None if !host.contains(ANY) => HostPattern::Is(host.into()),
            Some(_) | None => return Err(none()),
        };
        Ok(Self {
            scheme: scheme.into(),
            host,
            port,
        })
    }
}

impl HostPattern {
    fn covers(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Is(name) => name.eq_ignore_ascii_case(host),
            Self::EndsIn(suffix) => {
                let (host, suffix) = (host.as_bytes(), suffix.as_bytes());
                host.len() > suffix.len()
                    && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
            }
        }
    }
}

/// Scheme, host and port of an origin. Without a port it is the scheme's default.
fn parts(origin: &str) -> Option<(&str, &str, u16)> {
    let (scheme, rest) = origin.split_once("://")?;
    let well_known = well_known_port(scheme)?;
    // The colons of an IPv6 address are inside of brackets.
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            let digits = port.bytes().all(|b| b.is_ascii_digit());
            let port = port.parse().ok().filter(|port| digits && *port > 0)?;
            (host, port)
        }
        _ => (rest, well_known),
    };
    let fit = |b: u8| b.is_ascii_graphic() && !b"/?#@\"\\,".contains(&b);
    (!host.is_empty() && host.bytes().all(fit)).then_some((scheme, host, port))
}

fn well_known_port(scheme: &str) -> Option<u16> {
    match scheme {
        _ if scheme.eq_ignore_ascii_case("http") => Some(80),
        _ if scheme.eq_ignore_ascii_case("https") => Some(443),
        _ => None,
    }
}

fn asked_at_all(head: &impl HeaderFields, name: &str) -> bool {
    let mut any = false;
    head.for_each_value(name, &mut |_| {
        any = true;
        false
    });
    any
}

/// The value of a field that occurs once and can be sent back in a response.
fn only_value(head: &impl HeaderFields, name: &str) -> Option<String> {
    let (mut only, mut more) = (None, false);
    head.for_each_value(name, &mut |value| {
        more = only.is_some();
        let text = std::str::from_utf8(value).unwrap_or_default();
        only.get_or_insert_with(|| text.to_owned());
        !more
    });
    only.filter(|text| !more && !text.is_empty() && text.bytes().all(|b| matches!(b, b' '..=b'~')))
}

fn varies_by_origin(head: &impl HeaderFields) -> bool {
    let mut found = false;
    head.for_each_value(VARY, &mut |value| {
        let mut names = value.split(|b| *b == b',').map(<[u8]>::trim_ascii);
        found = names.any(|name| name == b"*" || name.eq_ignore_ascii_case(b"origin"));
        !found
    });
    found
}
