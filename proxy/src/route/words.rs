//! Descriptions of matches and filters, for `/why`.
//!
//! Possible secrets are hidden: values of header fields whose name suggests credentials, and the
//! values that filters add to fields, which an app that calls a backend does not see either.

use std::fmt::{self, Display, Formatter};

use super::{
    Filter, HeaderModifier, Match, Mirror, NamedMatch, PathMatch, PathModifier, Redirect, Rewrite,
    ValueMatch,
};

/// Parts of field names whose values are hidden.
const CREDENTIALS: [&str; 7] = [
    "authorization",
    "cookie",
    "token",
    "secret",
    "password",
    "api-key",
    "apikey",
];

/// Whether the values of a field are likely to be credentials.
pub fn is_credential(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    CREDENTIALS.iter().any(|part| name.contains(part))
}

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path)?;
        if let Some(method) = &self.method {
            write!(f, ", method {method}")?;
        }
        for header in &self.headers {
            write!(f, ", header {header}")?;
        }
        for param in &self.query {
            write!(f, ", query parameter {param}")?;
        }
        Ok(())
    }
}

impl Display for PathMatch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => write!(f, "path = {path}"),
            Self::Regex(regex) => write!(f, "path ~ {}", pattern(regex.as_str())),
            Self::Prefix { segments, .. } if segments.is_empty() => f.write_str("any path"),
            Self::Prefix { segments, .. } => write!(f, "path {segments}/…"),
        }
    }
}

impl Display for NamedMatch {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { name, value } = self;
        let sign = match value {
            ValueMatch::Exact(_) => "=",
            ValueMatch::Regex(_) => "~",
        };
        write!(f, "{name} {sign} ")?;
        match value {
            _ if is_credential(name) => f.write_str("(not shown)"),
            ValueMatch::Exact(value) => write!(f, "{value:?}"),
            ValueMatch::Regex(regex) => f.write_str(pattern(regex.as_str())),
        }
    }
}

/// The pattern as written, before it was extended to match the whole text.
fn pattern(whole: &str) -> &str {
    let inside = whole.strip_prefix(r"\A(?:");
    let inside = inside.and_then(|rest| rest.strip_suffix(r")\z"));
    inside.unwrap_or(whole)
}

impl Display for Filter {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::RequestHeaders(modifier) => write!(f, "request headers: {modifier}"),
            Self::ResponseHeaders(modifier) => write!(f, "response headers: {modifier}"),
            Self::Redirect(redirect) => write!(f, "{redirect}"),
            Self::Rewrite(rewrite) => write!(f, "{rewrite}"),
            Self::Cors(cors) => write!(f, "{cors}"),
        }
    }
}

impl Display for Mirror {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("mirror")?;
        if self.numerator < self.denominator {
            write!(f, " {} of {}", self.numerator, self.denominator)?;
        }
        let to = &self.backend;
        write!(f, " to {}/{}:{}", to.namespace, to.service, to.port)
    }
}

impl Display for HeaderModifier {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let named = |fields: &[(Box<str>, Box<str>)]| -> Vec<String> {
            fields.iter().map(|(name, _)| name.to_string()).collect()
        };
        let host = self.host.as_ref().map(|host| format!("host to {host}"));
        let set = named(&self.set).into_iter().chain(host).collect();
        let remove = self.remove.iter().map(ToString::to_string).collect();
        let mut parts = Vec::new();
        for (what, names) in [("set", set), ("add", named(&self.add)), ("remove", remove)] {
            if !names.is_empty() {
                parts.push(format!("{what} {}", names.join(", ")));
            }
        }
        f.write_str(&parts.join("; "))
    }
}

impl Display for Redirect {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "redirect with {}", self.status)?;
        if let Some(scheme) = self.scheme {
            write!(f, ", scheme {}", scheme.as_str())?;
        }
        if let Some(hostname) = &self.hostname {
            write!(f, ", host {hostname}")?;
        }
        if let Some(port) = self.port {
            write!(f, ", port {port}")?;
        }
        match &self.path {
            Some(path) => write!(f, ", {path}"),
            None => Ok(()),
        }
    }
}

impl Display for Rewrite {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let host = self.hostname.as_ref().map(|host| format!("host {host}"));
        let path = self.path.as_ref().map(ToString::to_string);
        let parts: Vec<String> = host.into_iter().chain(path).collect();
        write!(f, "rewrite to {}", parts.join(", "))
    }
}

impl Display for PathModifier {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReplaceFull(path) => write!(f, "path {path}"),
            Self::ReplacePrefix(prefix) => write!(f, "path {prefix} in the place of the prefix"),
        }
    }
}
