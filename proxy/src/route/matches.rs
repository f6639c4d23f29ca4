//! Which rule applies to a request: the matches of Gateway API's HTTPRoute, compiled and in order
//! of precedence.
//!
//! Matching a request does not allocate, except for a regular expression over a repeated header.

use std::cmp::Reverse;
use std::sync::Arc;

use regex::bytes::Regex;

use super::{HeaderFields, RequestHead, Rule};

/// One rule with its matches. Without a match it applies to every request.
#[derive(Debug)]
pub struct RouteRule {
    pub matches: Vec<Match>,
    pub rule: Arc<Rule>,
}

/// A set of conditions, all of which must hold.
#[derive(Clone, Debug, Default)]
pub struct Match {
    pub path: PathMatch,
    /// Case-sensitive. `None`: any.
    pub method: Option<Box<str>>,
    /// Each name occurs once.
    pub headers: Vec<NamedMatch>,
    /// Each name occurs once.
    pub query: Vec<NamedMatch>,
}

/// A condition on the path, without its query. Percent-encoding is compared as sent.
#[derive(Clone, Debug)]
pub enum PathMatch {
    Exact(Box<str>),
    /// Must match the whole path.
    Regex(Regex),
    Prefix {
        /// Whole segments, with no slash at the end: `/a` for the prefixes `/a` and `/a/`, empty
        /// for `/`.
        segments: Box<str>,
        /// Length of the prefix as written, in characters.
        chars: usize,
    },
}

/// A condition on a header or a query parameter.
#[derive(Clone, Debug)]
pub struct NamedMatch {
    pub name: Box<str>,
    pub value: ValueMatch,
}

#[derive(Clone, Debug)]
pub enum ValueMatch {
    Exact(Box<str>),
    /// Must match the whole value.
    Regex(Regex),
}

/// The first condition of a match that a request does not meet.
#[derive(Clone, Copy, Debug)]
pub enum Unmet<'m> {
    Path(&'m PathMatch),
    Method(&'m str),
    Header(&'m NamedMatch),
    Query(&'m NamedMatch),
}

/// Orders matches: the smaller one comes first. HTTPRoute's order is: exact path, longest prefix,
/// method, most headers, most query parameters. It leaves the place of regular expressions open:
/// here, between exact paths and prefixes, longest pattern first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Precedence {
    /// 0: exact, 1: regular expression, 2: prefix.
    pub path: u8,
    pub chars: Reverse<usize>,
    pub any_method: bool,
    pub headers: Reverse<usize>,
    pub query: Reverse<usize>,
}

/// The rules of all routes of a Service, in order of precedence.
#[derive(Debug)]
pub struct Routes {
    entries: Vec<(Match, Arc<Rule>)>,
}

impl Routes {
    /// `rules`: those of the first route in their order, then those of the second, and so on.
    pub fn new(rules: Vec<RouteRule>) -> Self {
        let mut entries = Vec::with_capacity(rules.len());
        for RouteRule { matches, rule } in rules {
            if matches.is_empty() {
                entries.push((Match::default(), rule));
            } else {
                entries.extend(matches.into_iter().map(|m| (m, rule.clone())));
            }
        }
        // Stable: equal matches stay in the order of routes and rules.
        entries.sort_by_cached_key(|(m, _)| m.precedence());
        Self { entries }
    }

    /// Every rule, once for each of its matches.
    pub fn rules(&self) -> impl Iterator<Item = &Arc<Rule>> {
        self.entries.iter().map(|(_, rule)| rule)
    }

    /// Every match with its rule, in order of precedence.
    pub(super) fn entries(&self) -> &[(Match, Arc<Rule>)] {
        &self.entries
    }

    /// The first rule that applies to the request, and how many bytes of the path its prefix match
    /// covered.
    pub(super) fn find(&self, head: &impl RequestHead) -> Option<(&Arc<Rule>, usize)> {
        let (path, query) = split_query(head.path_and_query());
        let query = query.unwrap_or("");
        self.entries.iter().find_map(|(m, rule)| {
            let covered = m.check(head, path, query).ok()?;
            Some((rule, covered))
        })
    }
}

impl Match {
    pub(super) fn precedence(&self) -> Precedence {
        let (path, chars) = match &self.path {
            PathMatch::Exact(_) => (0, 0),
            PathMatch::Regex(regex) => (1, regex.as_str().chars().count()),
            PathMatch::Prefix { chars, .. } => (2, *chars),
        };
        Precedence {
            path,
            chars: Reverse(chars),
            any_method: self.method.is_none(),
            headers: Reverse(self.headers.len()),
            query: Reverse(self.query.len()),
        }
    }

    /// How many bytes of `path` the prefix covers, if all conditions hold. `path` and `query` are
    /// those of `head`.
    #[inline]
    pub(super) fn check(
        &self,
        head: &impl RequestHead,
        path: &str,
        query: &str,
    ) -> Result<usize, Unmet<'_>> {
        let Some(covered) = self.path.covers(path) else {
            return Err(Unmet::Path(&self.path));
        };
        if let Some(method) = self.method.as_deref()
            && method != head.method()
        {
            return Err(Unmet::Method(method));
        }
        if let Some(header) = self.headers.iter().find(|h| !h.takes_header(head)) {
            return Err(Unmet::Header(header));
        }
        let lacks = |param: &&NamedMatch| {
            query_value(query, &param.name).is_none_or(|value| !param.value.takes(value.as_bytes()))
        };
        match self.query.iter().find(lacks) {
            Some(param) => Err(Unmet::Query(param)),
            None => Ok(covered),
        }
    }
}

impl PathMatch {
    /// The prefix `path`, by whole segments.
    pub fn prefix(path: &str) -> Self {
        Self::Prefix {
            segments: path.strip_suffix('/').unwrap_or(path).into(),
            chars: path.chars().count(),
        }
    }

    /// How many bytes of `path` a prefix covers (0 for the other kinds), if it matches.
    fn covers(&self, path: &str) -> Option<usize> {
        match self {
            Self::Exact(exact) => (**exact == *path).then_some(0),
            Self::Regex(regex) => regex.is_match(path.as_bytes()).then_some(0),
            // `/` matches everything, also the empty path of CONNECT and the `*` of OPTIONS.
            Self::Prefix { segments, .. } if segments.is_empty() => Some(0),
            Self::Prefix { segments, .. } => path
                .strip_prefix(&**segments)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                .then_some(segments.len()),
        }
    }
}

/// `PathPrefix /`, which is HTTPRoute's default.
impl Default for PathMatch {
    fn default() -> Self {
        Self::prefix("/")
    }
}

impl NamedMatch {
    fn takes_header(&self, head: &impl RequestHead) -> bool {
        if self.name.eq_ignore_ascii_case("host") {
            return head
                .authority()
                .is_some_and(|authority| self.value.takes(authority.as_bytes()));
        }
        // HTTP/2 may split cookies into several fields, which are joined with a semicolon rather
        // than a comma (RFC 9113, 8.2.3).
        let separator = match self.name.eq_ignore_ascii_case("cookie") {
            true => b';',
            false => b',',
        };
        match &self.value {
            ValueMatch::Exact(expected) => {
                exact_over_fields(head, &self.name, expected.as_bytes(), separator)
            }
            ValueMatch::Regex(regex) => regex_over_fields(head, &self.name, regex, separator),
        }
    }
}

impl ValueMatch {
    fn takes(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => exact.as_bytes() == value,
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

/// Whether the values of all fields of that name, joined by the separator with or without a space,
/// equal `expected`.
fn exact_over_fields(head: &impl HeaderFields, name: &str, expected: &[u8], separator: u8) -> bool {
    // The rest that must still be matched, and whether all values matched so far.
    let mut rest = expected;
    let mut fields = 0_usize;
    let mut equal = true;
    head.for_each_value(name, &mut |value| {
        if fields > 0 {
            let joined = rest
                .strip_prefix(&[separator])
                .map(|after| after.strip_prefix(b" ").unwrap_or(after));
            match joined {
                Some(after) => rest = after,
                None => equal = false,
            }
        }
        match rest.strip_prefix(value) {
            Some(after) if equal => rest = after,
            _ => equal = false,
        }
        fields += 1;
        equal
    });
    equal && fields > 0 && rest.is_empty()
}

fn regex_over_fields(head: &impl HeaderFields, name: &str, regex: &Regex, separator: u8) -> bool {
    let mut fields = 0_usize;
    let mut only = false;
    head.for_each_value(name, &mut |value| {
        fields += 1;
        only = fields == 1 && regex.is_match(value);
        fields == 1
    });
    if fields < 2 {
        return only;
    }
    let mut joined = Vec::new();
    head.for_each_value(name, &mut |value| {
        if !joined.is_empty() {
            joined.push(separator);
            if separator == b';' {
                joined.push(b' ');
            }
        }
        joined.extend_from_slice(value);
        true
    });
    regex.is_match(&joined)
}

/// The value of the first parameter called `name`. Only the first of a repeated name counts.
pub(crate) fn query_value<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // An empty query has one empty pair, which is not a parameter.
        (key == name && !pair.is_empty()).then_some(value)
    })
}

/// A request target, split at its first `?`.
pub(crate) fn split_query(target: &str) -> (&str, Option<&str>) {
    match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    }
}
