//! Explains the routing of connections: every name of every route with the reason why it does not
//! apply, and the outcome of the connection.
//!
//! In: the first bytes of a hypothetical connection. Out: the result of [`OpaqueRoutes::decide`],
//! and the reasons why other routes do not apply.

use std::cmp::Reverse;

use super::{OpaqueRoute, OpaqueRoutes, parents};
use crate::balance;
use crate::observe::reason::Reason;
use crate::wire::client_hello::Hello;

/// A name of a route, and its verdict on a connection.
#[derive(Debug)]
pub struct Explained<'r> {
    pub route: &'r OpaqueRoute,
    /// `None`: the route is a TCPRoute.
    pub hostname: Option<&'r str>,
    /// `None`: no connection was given.
    pub verdict: Option<Verdict>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Takes,
    /// It matches, but another name comes first by this criterion.
    Outranked(Criterion),
    /// The ClientHello has another server name, or none.
    OtherName,
    /// The connection does not begin with a ClientHello.
    NoHello,
}

/// The criterion by which one name precedes another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Criterion {
    ExactName,
    LongerName,
    /// Its route is older, or equally old and first by name: the controller sends routes in this
    /// order.
    OlderRoute,
    /// It is a duplicate of the same name.
    EarlierMatch,
}

impl Criterion {
    /// The identifier in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ExactName => "exact-name",
            Self::LongerName => "longer-name",
            Self::OlderRoute => "older-route",
            Self::EarlierMatch => "earlier-match",
        }
    }

    fn between(first: (&str, &OpaqueRoute), second: (&str, &OpaqueRoute)) -> Self {
        if !is_wildcard(first.0) && is_wildcard(second.0) {
            Self::ExactName
        } else if first.0 != second.0 {
            Self::LongerName
        } else if !std::ptr::eq(first.1, second.1) {
            Self::OlderRoute
        } else {
            Self::EarlierMatch
        }
    }
}

/// Every name in order of precedence, with its verdict on a connection that begins with `hello`, if
/// given.
pub fn explain<'r>(routes: &'r OpaqueRoutes, hello: Option<&Hello>) -> Vec<Explained<'r>> {
    let routes_of = match routes {
        OpaqueRoutes::Tcp(route) => {
            return vec![Explained {
                route,
                hostname: None,
                verdict: hello.map(|_| Verdict::Takes),
            }];
        }
        OpaqueRoutes::Tls(routes) => &routes.all,
    };
    let names = routes_of.iter().flat_map(|route| {
        let hostnames = route.hostnames.iter();
        hostnames.map(|hostname| (&**hostname, &**route))
    });
    let mut names: Vec<(&str, &OpaqueRoute)> = names.collect();
    names.sort_by_key(|(hostname, _)| match is_wildcard(hostname) {
        true => (true, Reverse(hostname.len())),
        false => (false, Reverse(0)),
    });
    let found = hello.and_then(|hello| routes.decide(hello).ok());
    let asked = match hello {
        Some(Hello::Complete(hello)) => hello.server_name.as_deref(),
        _ => None,
    };
    let fits = |hostname| asked.is_some_and(|name| stands_for(hostname, name));
    let taken = names.iter().position(|(hostname, route)| {
        fits(hostname) && found.is_some_and(|found| std::ptr::eq(found, *route))
    });
    let verdict = |index: usize, hello: &Hello| match (hello, taken) {
        (Hello::Complete(_), Some(taken)) if taken == index => Verdict::Takes,
        (Hello::Complete(_), Some(taken)) if fits(names[index].0) => {
            Verdict::Outranked(Criterion::between(names[taken], names[index]))
        }
        (Hello::Complete(_), _) => Verdict::OtherName,
        (Hello::Incomplete | Hello::Unreadable | Hello::Other, _) => Verdict::NoHello,
    };
    let explained = names.iter().enumerate();
    explained
        .map(|(index, (hostname, route))| Explained {
            route,
            hostname: Some(hostname),
            verdict: hello.map(|hello| verdict(index, hello)),
        })
        .collect()
}

/// The outcome of a connection that begins with `hello`: for each backend of its route in their
/// order, the reason if it can't be used. `Err`: no backend is reached.
pub fn outcome(routes: &OpaqueRoutes, hello: &Hello) -> Result<Vec<Result<(), Reason>>, Reason> {
    let route = routes.decide(hello)?;
    if route.backends.iter().all(|backend| backend.weight == 0) {
        return Err(Reason::NoBackend);
    }
    let prospects = route.backends.iter().map(|backend| {
        let target = backend.target()?;
        match balance::is_usable(&target.endpoints()) {
            true => Ok(()),
            false => Err(Reason::NoEndpoint),
        }
    });
    Ok(prospects.collect())
}

fn is_wildcard(hostname: &str) -> bool {
    hostname.starts_with("*.")
}

fn stands_for(hostname: &str, name: &str) -> bool {
    match hostname.strip_prefix("*.") {
        Some(wanted) => parents(name).any(|parent| parent == wanted),
        None => hostname == name,
    }
}
