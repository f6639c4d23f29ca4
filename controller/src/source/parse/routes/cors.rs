//! The CORS filter of an HTTPRoute, validated like its CRD, and reduced.

use std::sync::LazyLock;

use naru_contract::Cors;
use regex::Regex;

use super::checks::{Failure, METHODS, at_most, header_name};
use crate::source::parse::gateway;
use crate::source::parse::problem::Invalid;

const MAX_ORIGINS: usize = 64;
const MAX_ORIGIN: usize = 253;
const MAX_METHODS: usize = 9;
const MAX_HEADERS: usize = 64;
/// Default time that a browser may cache a response, in seconds.
const DEFAULT_MAX_AGE: i64 = 5;
/// The wildcard.
const ANY: &str = "*";

/// The pattern of the CRD.
static ORIGIN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(^\*$)|(^(http(s)?):\/\/(((\*\.)?([a-zA-Z0-9\-]+\.)*[a-zA-Z0-9-]+|\*)(:([0-9]{1,5}))?)$)",
    )
    .expect("a constant pattern")
});

pub fn cors(field: &str, given: gateway::Cors) -> Result<Cors, Failure> {
    let origins = format!("{field}.allowOrigins");
    set(&origins, &given.allow_origins, MAX_ORIGINS, true)?;
    for (i, origin) in given.allow_origins.iter().enumerate() {
        if origin.len() > MAX_ORIGIN || !ORIGIN.is_match(origin) || !has_port(origin) {
            return Err(Invalid::new(
                format!("{origins}[{i}]"),
                format!(
                    "{origin:?} is neither * nor an origin, as https://example.com, \
                     http://example.com:8080 or https://*.example.com"
                ),
            )
            .into());
        }
    }
    let methods = format!("{field}.allowMethods");
    set(&methods, &given.allow_methods, MAX_METHODS, true)?;
    for (i, method) in given.allow_methods.iter().enumerate() {
        if method != ANY && !METHODS.contains(&method.as_str()) {
            return Err(Invalid::new(
                format!("{methods}[{i}]"),
                format!("{method:?} is not one of {}, {ANY}", METHODS.join(", ")),
            )
            .into());
        }
    }
    // In the list of exposed headers the CRD allows a * next to others.
    for (name, headers, alone) in [
        ("allowHeaders", &given.allow_headers, true),
        ("exposeHeaders", &given.expose_headers, false),
    ] {
        let field = format!("{field}.{name}");
        set(&field, headers, MAX_HEADERS, alone)?;
        for (i, header) in headers.iter().enumerate() {
            header_name(&format!("{field}[{i}]"), header)?;
        }
    }
    let max_age = given.max_age.unwrap_or(DEFAULT_MAX_AGE);
    let max_age_seconds = (i32::try_from(max_age).ok())
        .filter(|seconds| *seconds >= 1)
        .and_then(|seconds| u32::try_from(seconds).ok())
        .ok_or_else(|| {
            Invalid::new(
                format!("{field}.maxAge"),
                format!("{max_age} is not 1 to {} seconds", i32::MAX),
            )
        })?;
    Ok(Cors {
        allow_origins: given.allow_origins,
        allow_credentials: given.allow_credentials.unwrap_or_default(),
        allow_methods: given.allow_methods,
        allow_headers: given.allow_headers,
        expose_headers: given.expose_headers,
        max_age_seconds,
    })
}

/// Items must be unique. `alone`: a `*` must be the only item.
fn set(field: &str, all: &[String], most: usize, alone: bool) -> Result<(), Invalid> {
    at_most(field, all.len(), most)?;
    if let Some((i, again)) = (all.iter().enumerate()).find(|(i, one)| all[..*i].contains(one)) {
        return Err(Invalid::new(
            format!("{field}[{i}]"),
            format!("{again:?} is there twice"),
        ));
    }
    if alone && all.len() > 1 && all.iter().any(|one| one == ANY) {
        return Err(Invalid::new(field, "a * stands alone"));
    }
    Ok(())
}

/// Whether the port, if any, is valid.
fn has_port(origin: &str) -> bool {
    match origin.rsplit_once(':') {
        Some((_, port)) if port.bytes().all(|b| b.is_ascii_digit()) => {
            port.parse::<u16>().is_ok_and(|port| port > 0)
        }
        _ => true,
    }
}
