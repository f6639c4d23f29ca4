//! Decodes a rule's filters one by one, and checks their combination.

use http::header::HeaderValue;
use http::uri::Authority;
use naru_contract as contract;
use naru_contract::PathModifierKind;
use naru_contract::http_filter::Kind;

use super::super::filter::Scheme;
use super::super::{
    Cors, Filter, HeaderModifier, Match, PathMatch, PathModifier, Redirect, Rewrite,
};
use super::{In as _, Problem, header_name, path_text, problem, unknown_kind};
use crate::observe::reason::REASON_HEADER;

/// Fields that frame a message or belong to one connection. The proxy controls them itself.
const UNTOUCHABLE: [&str; 11] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
    REASON_HEADER,
];

/// Decodes a filter that changes or answers requests. Mirrors do neither: the decoder of the rule
/// handles them.
pub(super) fn decode_filter(message: &contract::HttpFilter) -> Result<Filter, Problem> {
    match &message.kind {
        None | Some(Kind::Mirror(_)) => {
            Err(problem("a kind of filter that this proxy does not know"))
        }
        Some(Kind::Cors(cors)) => Ok(Filter::Cors(Cors::decode(cors)?)),
        Some(Kind::RequestHeaders(modifier)) => {
            Ok(Filter::RequestHeaders(decode_modifier(modifier)?))
        }
        Some(Kind::ResponseHeaders(modifier)) => {
            let modifier = decode_modifier(modifier)?;
            if modifier.host.is_some() {
                return Err(problem("a response has no host"));
            }
            Ok(Filter::ResponseHeaders(modifier))
        }
        Some(Kind::Redirect(redirect)) => Ok(Filter::Redirect(decode_redirect(redirect)?)),
        Some(Kind::Rewrite(rewrite)) => Ok(Filter::Rewrite(Rewrite {
            hostname: hostname(&rewrite.hostname).within(".hostname")?,
            path: path_modifier(rewrite.path.as_ref()).within(".path")?,
        })),
    }
}

/// Conditions between the filters of one list, and between them and the rule's matches.
pub(super) fn check_filters(matches: &[Match], filters: &[Filter]) -> Result<(), Problem> {
    let redirects = filters.iter().filter(|f| is_redirect(f)).count();
    let rewrites = filters.iter().filter(|f| is_rewrite(f)).count();
    if redirects + rewrites > 1 {
        return Err(problem("more than one redirect or rewrite"));
    }
    if filters
        .iter()
        .filter(|f| matches!(f, Filter::Cors(_)))
        .count()
        > 1
    {
        return Err(problem("more than one CORS filter"));
    }
    let replaces_prefix = filters.iter().any(|filter| {
        let (Filter::Rewrite(Rewrite { path, .. }) | Filter::Redirect(Redirect { path, .. })) =
            filter
        else {
            return false;
        };
        matches!(path, Some(PathModifier::ReplacePrefix(_)))
    });
    let all_prefixes = matches
        .iter()
        .all(|m| matches!(m.path, PathMatch::Prefix { .. }));
    if replaces_prefix && !all_prefixes {
        return Err(problem("a prefix is replaced where none was matched"));
    }
    Ok(())
}

fn is_redirect(filter: &Filter) -> bool {
    matches!(filter, Filter::Redirect(_))
}

pub(super) fn is_rewrite(filter: &Filter) -> bool {
    matches!(filter, Filter::Rewrite(_))
}

fn decode_modifier(message: &contract::HeaderModifier) -> Result<HeaderModifier, Problem> {
    let mut modifier = HeaderModifier::default();
    let set = message.set.iter().map(|header| (header, true));
    let add = message.add.iter().map(|header| (header, false));
    for (header, replaces) in set.chain(add) {
        let name = header_name(&header.name)?;
        let value = header_value(header)?;
        if name.eq_ignore_ascii_case("host") {
            let host = Authority::try_from(value)
                .map_err(|error| problem(format_args!("Host {value:?}: {error}")))?;
            modifier.host.get_or_insert_with(|| host.as_str().into());
            continue;
        }
        let list = if replaces {
            &mut modifier.set
        } else {
            &mut modifier.add
        };
        // The specification uses only the first of several entries for one name.
        if !list
            .iter()
            .any(|(other, _)| other.eq_ignore_ascii_case(name))
        {
            list.push((name.into(), value.into()));
        }
    }
    for name in &message.remove {
        let name = header_name(name)?;
        if name.eq_ignore_ascii_case("host") {
            return Err(problem("a request can't do without Host"));
        }
        modifier.remove.push(name.into());
    }
    for name in modifier.names() {
        if UNTOUCHABLE
            .iter()
            .any(|other| other.eq_ignore_ascii_case(name))
        {
            return Err(problem(format_args!(
                "{name} is the proxy's own and can't be modified"
            )));
        }
    }
    Ok(modifier)
}

impl HeaderModifier {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.set
            .iter()
            .chain(&self.add)
            .map(|(name, _)| &**name)
            .chain(self.remove.iter().map(|name| &**name))
    }
}

fn decode_redirect(message: &contract::Redirect) -> Result<Redirect, Problem> {
    let scheme = match message.scheme.as_str() {
        "" => None,
        "http" => Some(Scheme::Http),
        "https" => Some(Scheme::Https),
        other => return Err(problem(format_args!("{other:?} is no scheme"))).within(".scheme"),
    };
    let port = match u16::try_from(message.port) {
        Ok(0) => None,
        Ok(port) => Some(port),
        Err(_) => {
            return Err(problem(format_args!("{} is not a port", message.port))).within(".port");
        }
    };
    let status = match message.status {
        // The redirects that every client can follow.
        301 | 302 | 303 | 307 | 308 => message.status as u16,
        other => {
            return Err(problem(format_args!("{other} is no redirect"))).within(".status");
        }
    };
    Ok(Redirect {
        scheme,
        hostname: hostname(&message.hostname).within(".hostname")?,
        path: path_modifier(message.path.as_ref()).within(".path")?,
        port,
        status,
    })
}

fn path_modifier(
    message: Option<&contract::PathModifier>,
) -> Result<Option<PathModifier>, Problem> {
    let Some(message) = message else {
        return Ok(None);
    };
    let value = message.value.as_str();
    if !value.is_empty() {
        path_text(value)?;
    }
    match PathModifierKind::try_from(message.kind) {
        Ok(PathModifierKind::ReplaceFullPath) => Ok(Some(PathModifier::ReplaceFull(value.into()))),
        Ok(PathModifierKind::ReplacePrefixMatch) => {
            Ok(Some(PathModifier::ReplacePrefix(value.into())))
        }
        Err(_) => Err(unknown_kind(message.kind)),
    }
}

fn hostname(value: &str) -> Result<Option<Box<str>>, Problem> {
    if value.is_empty() {
        return Ok(None);
    }
    let fit = value
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    if fit && Authority::try_from(value).is_ok() {
        Ok(Some(value.into()))
    } else {
        Err(problem(format_args!("{value:?} is no host name")))
    }
}

fn header_value(header: &contract::Header) -> Result<&str, Problem> {
    let value = header.value.trim_matches([' ', '\t']);
    HeaderValue::from_str(value).map(|_| value).map_err(|_| {
        problem(format_args!(
            "the value of {} is not a valid header value",
            header.name
        ))
    })
}
