//! Filters of an HTTPRoute's rules and backends: validated like the CRD, and reduced.

use std::mem::discriminant;

use naru_contract::http_filter::Kind;
use naru_contract::{
    Header, HeaderModifier, HttpFilter, HttpMatch, PathMatchKind, PathModifier, PathModifierKind,
    Redirect, Rewrite,
};

use super::checks::{Failure, MAX_HOSTNAME, at_most, header_name, is_hostname, referent};
use super::cors::cors;
use crate::source::objects::{Filter, Mirror};
use crate::source::parse::gateway;
use crate::source::parse::problem::Invalid;

const MAX_FILTERS: usize = 16;
const MAX_HEADERS: usize = 16;
const MAX_HEADER_VALUE: usize = 4096;
const MAX_PATH: usize = 1024;
const REDIRECT_STATUSES: [i64; 5] = [301, 302, 303, 307, 308];
const DEFAULT_REDIRECT_STATUS: i64 = 302;
/// The default of a mirror's fraction.
const DEFAULT_DENOMINATOR: i64 = 100;

/// `namespace`: the route's.
pub fn filters(
    field: &str,
    namespace: &str,
    given: Vec<gateway::HttpFilter>,
) -> Result<Vec<Filter>, Failure> {
    at_most(field, given.len(), MAX_FILTERS)?;
    let mut reduced: Vec<Filter> = Vec::with_capacity(given.len());
    for (i, given) in given.into_iter().enumerate() {
        let field = format!("{field}[{i}]");
        if given.kind == "RequestMirror" {
            reduced.push(Filter::Mirror(mirror(&field, namespace, given)?));
            continue;
        }
        let kind = filter(&field, given)?;
        let same = |other: &Kind| discriminant(other) == discriminant(&kind);
        if reduced.iter().filter_map(Filter::kind).any(same) {
            return Err(Invalid::new(
                format!("{field}.type"),
                "there may be one filter of each type, but for mirrors",
            )
            .into());
        }
        reduced.push(Filter::Ready(HttpFilter { kind: Some(kind) }));
    }
    let has = |f: fn(&Kind) -> bool| reduced.iter().filter_map(Filter::kind).any(f);
    if has(|k| matches!(k, Kind::Redirect(_))) && has(|k| matches!(k, Kind::Rewrite(_))) {
        return Err(Invalid::new(field, "a redirect and a rewrite exclude each other").into());
    }
    Ok(reduced)
}

fn mirror(field: &str, namespace: &str, given: gateway::HttpFilter) -> Result<Mirror, Failure> {
    let field = format!("{field}.requestMirror");
    let Some(given) = given.request_mirror else {
        return Err(Invalid::new(field, "a filter of type RequestMirror needs it").into());
    };
    let (numerator, denominator) = match (given.percent, given.fraction) {
        (Some(_), Some(_)) => {
            return Err(Invalid::new(field, "percent and fraction exclude each other").into());
        }
        (Some(percent), None) => {
            if !(0..=100).contains(&percent) {
                return Err(Invalid::new(
                    format!("{field}.percent"),
                    format!("{percent} is not 0 to 100"),
                )
                .into());
            }
            (percent, 100)
        }
        (None, Some(fraction)) => {
            let denominator = fraction.denominator.unwrap_or(DEFAULT_DENOMINATOR);
            if !(1..=i64::from(i32::MAX)).contains(&denominator)
                || !(0..=denominator).contains(&fraction.numerator)
            {
                return Err(Invalid::new(
                    format!("{field}.fraction"),
                    format!(
                        "{} of {denominator} is not a share, of none to all",
                        fraction.numerator
                    ),
                )
                .into());
            }
            (fraction.numerator, denominator)
        }
        (None, None) => (1, 1),
    };
    Ok(Mirror {
        to: referent(&format!("{field}.backendRef"), namespace, given.backend_ref)?,
        numerator: u32::try_from(numerator).unwrap_or_default(),
        denominator: u32::try_from(denominator).unwrap_or(1),
    })
}

/// Checks that a prefix replacement is in a rule with a prefix match.
pub fn prefix_match_is_possible(
    field: &str,
    filters: &[Filter],
    matches: &[HttpMatch],
) -> Result<(), Invalid> {
    let replaces = filters.iter().any(|filter| {
        let path = match filter.kind() {
            Some(Kind::Redirect(redirect)) => redirect.path.as_ref(),
            Some(Kind::Rewrite(rewrite)) => rewrite.path.as_ref(),
            _ => None,
        };
        path.is_some_and(|path| path.kind == PathModifierKind::ReplacePrefixMatch as i32)
    });
    let prefixes = |m: &HttpMatch| match &m.path {
        Some(path) => path.kind == PathMatchKind::Prefix as i32,
        None => true,
    };
    if replaces && (matches.len() > 1 || !matches.iter().all(prefixes)) {
        return Err(Invalid::new(
            format!("{field}.matches"),
            "a filter that replaces the prefix needs exactly one match, of type PathPrefix",
        ));
    }
    Ok(())
}

fn filter(field: &str, given: gateway::HttpFilter) -> Result<Kind, Failure> {
    let missing = |name: &str| {
        Failure::Invalid(Invalid::new(
            format!("{field}.{name}"),
            format!("a filter of type {} needs it", given.kind),
        ))
    };
    match given.kind.as_str() {
        "RequestHeaderModifier" => {
            let name = "requestHeaderModifier";
            let given = given.request_header_modifier.ok_or_else(|| missing(name))?;
            Ok(Kind::RequestHeaders(headers(
                &format!("{field}.{name}"),
                given,
            )?))
        }
        "ResponseHeaderModifier" => {
            let name = "responseHeaderModifier";
            let given = (given.response_header_modifier).ok_or_else(|| missing(name))?;
            Ok(Kind::ResponseHeaders(headers(
                &format!("{field}.{name}"),
                given,
            )?))
        }
        "RequestRedirect" => {
            let name = "requestRedirect";
            let given = given.request_redirect.ok_or_else(|| missing(name))?;
            redirect(&format!("{field}.{name}"), given)
        }
        "URLRewrite" => {
            let name = "urlRewrite";
            let given = given.url_rewrite.ok_or_else(|| missing(name))?;
            let field = format!("{field}.{name}");
            Ok(Kind::Rewrite(Rewrite {
                hostname: hostname(&format!("{field}.hostname"), given.hostname)?,
                path: path(&format!("{field}.path"), given.path)?,
            }))
        }
        "CORS" => {
            let given = given.cors.ok_or_else(|| missing("cors"))?;
            Ok(Kind::Cors(cors(&format!("{field}.cors"), given)?))
        }
        other => Err(Failure::Unsupported(format!(
            "{field}.type {other:?} is not supported"
        ))),
    }
}

fn redirect(field: &str, given: gateway::Redirect) -> Result<Kind, Failure> {
    let scheme = given.scheme.unwrap_or_default();
    if !matches!(scheme.as_str(), "" | "http" | "https") {
        return Err(Invalid::new(
            format!("{field}.scheme"),
            format!("{scheme:?} is neither http nor https"),
        )
        .into());
    }
    let port = given.port.unwrap_or(0);
    if given.port == Some(0) || u16::try_from(port).is_err() {
        return Err(Invalid::new(
            format!("{field}.port"),
            format!("{port} is not a port, 1 to 65535"),
        )
        .into());
    }
    let status = given.status_code.unwrap_or(DEFAULT_REDIRECT_STATUS);
    if !REDIRECT_STATUSES.contains(&status) {
        return Err(Invalid::new(
            format!("{field}.statusCode"),
            format!("{status} is not one of 301, 302, 303, 307, 308"),
        )
        .into());
    }
    Ok(Kind::Redirect(Redirect {
        scheme,
        hostname: hostname(&format!("{field}.hostname"), given.hostname)?,
        path: path(&format!("{field}.path"), given.path)?,
        port: u32::try_from(port).unwrap_or_default(),
        status: u32::try_from(status).unwrap_or_default(),
    }))
}

fn headers(field: &str, given: gateway::HeaderModifier) -> Result<HeaderModifier, Failure> {
    let list = |field: String, given: Vec<gateway::Header>| -> Result<Vec<Header>, Failure> {
        at_most(&field, given.len(), MAX_HEADERS)?;
        let mut reduced: Vec<Header> = Vec::with_capacity(given.len());
        for (i, header) in given.into_iter().enumerate() {
            header_name(&format!("{field}[{i}].name"), &header.name)?;
            let value = &header.value;
            let right = (1..=MAX_HEADER_VALUE).contains(&value.len())
                && http::HeaderValue::from_str(value).is_ok();
            if !right {
                return Err(Invalid::new(
                    format!("{field}[{i}].value"),
                    format!(
                        "it has to have 1 to {MAX_HEADER_VALUE} characters that a header may have"
                    ),
                )
                .into());
            }
            // Of several headers with the same name only the first counts (Gateway API).
            if !(reduced.iter()).any(|other| other.name.eq_ignore_ascii_case(&header.name)) {
                reduced.push(Header {
                    name: header.name,
                    value: header.value,
                });
            }
        }
        Ok(reduced)
    };
    at_most(&format!("{field}.remove"), given.remove.len(), MAX_HEADERS)?;
    for (i, name) in given.remove.iter().enumerate() {
        header_name(&format!("{field}.remove[{i}]"), name)?;
    }
    Ok(HeaderModifier {
        set: list(format!("{field}.set"), given.set)?,
        add: list(format!("{field}.add"), given.add)?,
        remove: given.remove,
    })
}

fn hostname(field: &str, given: Option<String>) -> Result<String, Invalid> {
    let Some(hostname) = given else {
        return Ok(String::new());
    };
    if hostname.len() > MAX_HOSTNAME || !is_hostname(&hostname) {
        return Err(Invalid::new(
            field,
            format!("{hostname:?} is not a hostname in lower case, without a port"),
        ));
    }
    Ok(hostname)
}

fn path(
    field: &str,
    given: Option<gateway::PathModifier>,
) -> Result<Option<PathModifier>, Failure> {
    let Some(given) = given else { return Ok(None) };
    let (kind, name, value) = match given.kind.as_str() {
        "ReplaceFullPath" => (
            PathModifierKind::ReplaceFullPath,
            "replaceFullPath",
            given.replace_full_path,
        ),
        "ReplacePrefixMatch" => (
            PathModifierKind::ReplacePrefixMatch,
            "replacePrefixMatch",
            given.replace_prefix_match,
        ),
        other => {
            return Err(Failure::Unsupported(format!(
                "{field}.type {other:?} is not supported"
            )));
        }
    };
    let field = format!("{field}.{name}");
    let Some(value) = value else {
        return Err(Invalid::new(field, format!("a path of type {} needs it", given.kind)).into());
    };
    let right = value.len() <= MAX_PATH && value.bytes().all(|b| b.is_ascii_graphic());
    if !right || value.contains(['#', '?']) {
        return Err(Invalid::new(field, format!("{value:?} is not a path")).into());
    }
    Ok(Some(PathModifier {
        kind: kind as i32,
        value,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The filters of a JSON list, or the invalid field.
    fn filtered(list: &str) -> Result<Vec<Filter>, String> {
        let given = serde_json::from_str(list).expect("JSON");
        filters("filters", "shop", given).map_err(|failure| match failure {
            Failure::Invalid(invalid) => invalid.field,
            Failure::Unsupported(reason) => reason,
        })
    }

    fn mirror(more: &str) -> Result<(u32, u32), String> {
        let list = format!(
            r#"[{{"type":"RequestMirror",
                "requestMirror":{{"backendRef":{{"name":"a","port":80}}{more}}}}}]"#
        );
        filtered(&list).map(|filters| match &filters[..] {
            [Filter::Mirror(mirror)] => (mirror.numerator, mirror.denominator),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_mirror_gets_every_request_or_the_given_share() {
        assert_eq!(mirror(""), Ok((1, 1)));
        assert_eq!(mirror(r#","percent":0"#), Ok((0, 100)));
        assert_eq!(mirror(r#","percent":35"#), Ok((35, 100)));
        assert_eq!(mirror(r#","fraction":{"numerator":1}"#), Ok((1, 100)));
        let fraction = r#","fraction":{"numerator":1,"denominator":2147483647}"#;
        assert_eq!(mirror(fraction), Ok((1, 2_147_483_647)));
        for wrong in [
            r#","percent":-1"#,
            r#","percent":101"#,
            r#","fraction":{"numerator":2,"denominator":1}"#,
            r#","fraction":{"numerator":-1}"#,
            r#","fraction":{"numerator":0,"denominator":0}"#,
            r#","fraction":{"numerator":1,"denominator":2147483648}"#,
            r#","percent":1,"fraction":{"numerator":1}"#,
        ] {
            let field = mirror(wrong).unwrap_err();
            assert!(field.starts_with("filters[0].requestMirror"), "{field}");
        }
        let missing = filtered(r#"[{"type":"RequestMirror"}]"#);
        assert_eq!(missing, Err("filters[0].requestMirror".to_owned()));
    }

    #[test]
    fn mirrors_may_be_repeated_and_other_filters_may_not() {
        let mirror =
            r#"{"type":"RequestMirror","requestMirror":{"backendRef":{"name":"a","port":80}}}"#;
        let cors = r#"{"type":"CORS","cors":{}}"#;
        let mirrors = filtered(&format!("[{mirror},{cors},{mirror}]")).unwrap();
        assert_eq!(mirrors.len(), 3);
        let twice = filtered(&format!("[{cors},{mirror},{cors}]"));
        assert_eq!(twice, Err("filters[2].type".to_owned()));
    }

    fn cors_filter(cors: &str) -> Result<naru_contract::Cors, String> {
        filtered(&format!(r#"[{{"type":"CORS","cors":{cors}}}]"#)).map(|filters| {
            match filters[0].kind() {
                Some(Kind::Cors(cors)) => cors.clone(),
                other => panic!("{other:?}"),
            }
        })
    }

    #[test]
    fn a_cors_filter_has_the_defaults_of_the_specification() {
        let cors = cors_filter("{}").unwrap();
        assert_eq!((cors.allow_credentials, cors.max_age_seconds), (false, 5));
        assert!(cors.allow_origins.is_empty());
    }

    #[test]
    fn a_cors_filter_is_validated_like_its_definition() {
        for origin in [
            "*",
            "http://*",
            "https://*:8443",
            "https://*.example.com",
            "https://www.example.com:443",
            "http://192.0.2.1",
        ] {
            let cors = format!(r#"{{"allowOrigins":["{origin}"]}}"#);
            assert!(cors_filter(&cors).is_ok(), "{origin}");
        }
        for (wrong, field) in [
            (r#"{"allowOrigins":["null"]}"#, "allowOrigins[0]"),
            (r#"{"allowOrigins":["ftp://a.b"]}"#, "allowOrigins[0]"),
            (r#"{"allowOrigins":["https://a.*.b"]}"#, "allowOrigins[0]"),
            (r#"{"allowOrigins":["https://a.b:0"]}"#, "allowOrigins[0]"),
            (
                r#"{"allowOrigins":["https://a.b:70000"]}"#,
                "allowOrigins[0]",
            ),
            (r#"{"allowOrigins":["https://a.b/"]}"#, "allowOrigins[0]"),
            (
                r#"{"allowOrigins":["http://a","http://a"]}"#,
                "allowOrigins[1]",
            ),
            (r#"{"allowOrigins":["http://a","*"]}"#, "allowOrigins"),
            (r#"{"allowMethods":["get"]}"#, "allowMethods[0]"),
            (r#"{"allowMethods":["*","GET"]}"#, "allowMethods"),
            (r#"{"allowHeaders":["a b"]}"#, "allowHeaders[0]"),
            (r#"{"allowHeaders":["*","a"]}"#, "allowHeaders"),
            (r#"{"exposeHeaders":[""]}"#, "exposeHeaders[0]"),
            (r#"{"maxAge":0}"#, "maxAge"),
            (r#"{"maxAge":2147483648}"#, "maxAge"),
        ] {
            let expected = format!("filters[0].cors.{field}");
            assert_eq!(cors_filter(wrong), Err(expected), "{wrong}");
        }
        assert!(cors_filter(r#"{"exposeHeaders":["*","a"]}"#).is_ok());
    }
}
