//! Validation that routes of all kinds and their filters share, as in the CRDs.

use crate::source::objects::{Name, Referent};
use crate::source::parse::problem::Invalid;
use crate::source::parse::{builtin, gateway};

pub const METHODS: [&str; 9] = [
    "GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH",
];
const MAX_HEADER_NAME: usize = 256;
pub const MAX_HOSTNAME: usize = 253;

/// Why an object is not used as written.
pub enum Failure {
    /// The API server would reject it.
    Invalid(Invalid),
    /// It is valid but unsupported: the field, and the feature.
    Unsupported(String),
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

/// `namespace`: the route's.
pub fn referent(
    field: &str,
    namespace: &str,
    given: gateway::BackendObject,
) -> Result<Referent, Invalid> {
    let group = given.group.filter(|group| !builtin::is_core(group));
    let referent = Referent {
        group: group.unwrap_or_default(),
        kind: given.kind.unwrap_or_else(|| "Service".to_owned()),
        name: Name::new(
            given.namespace.unwrap_or_else(|| namespace.to_owned()),
            given.name,
        ),
        port: optional_port(&format!("{field}.port"), given.port)?,
    };
    if referent.is_service() && referent.port.is_none() {
        return Err(Invalid::new(
            format!("{field}.port"),
            "a backend that is a Service needs a port",
        ));
    }
    Ok(referent)
}

pub fn optional_port(field: &str, port: Option<i64>) -> Result<Option<u16>, Invalid> {
    let Some(number) = port else { return Ok(None) };
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(Some(port)),
        _ => Err(Invalid::new(
            field,
            format!("{number} is not a port, 1 to 65535"),
        )),
    }
}

/// Checks the name of a header (or of a query parameter, for which the CRD has the same pattern).
pub fn header_name(field: &str, name: &str) -> Result<(), Invalid> {
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if name.is_empty() || name.len() > MAX_HEADER_NAME || !name.bytes().all(token) {
        return Err(Invalid::new(
            field,
            format!(
                "{name:?} is not a name: 1 to {MAX_HEADER_NAME} letters, digits, -, _ and the like"
            ),
        ));
    }
    Ok(())
}

/// Whether a text is a DNS subdomain (RFC 1123), regardless of its length.
pub fn is_hostname(text: &str) -> bool {
    let label = |label: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !label.is_empty()
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.split('.').all(label)
}

/// Checks that there are at most `most` items.
pub fn at_most(field: &str, count: usize, most: usize) -> Result<(), Invalid> {
    if count > most {
        return Err(Invalid::new(
            field,
            format!("there may be {most}, not {count}"),
        ));
    }
    Ok(())
}
