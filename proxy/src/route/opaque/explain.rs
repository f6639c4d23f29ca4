//! Why a connection goes where it goes, for people: every name of every route with what speaks
//! against it, and what would become of the connection.
//!
//! In: a beginning that nobody has sent. Out: what [`StreamRoutes::decide`] makes of it, and the
//! same for what it does not take.

use std::cmp::Reverse;

use super::client_hello::Hello;
use super::{StreamRoute, StreamRoutes, parents};
use crate::balance;
use crate::observe::reason::Reason;

/// A name that leads to a route, and what it makes of a connection.
#[derive(Debug)]
pub struct Explained<'r> {
    pub route: &'r StreamRoute,
    /// `None`: it is a TCPRoute.
    pub hostname: Option<&'r str>,
    /// `None`: no connection was given.
    pub verdict: Option<Verdict>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Takes,
    /// It would take it. The one that does comes first by this.
    Outranked(Criterion),
    /// The client asks for another name, or for none.
    OtherName,
    /// The client does not begin with a ClientHello.
    NoHello,
}

/// By what one name comes before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Criterion {
    ExactName,
    LongerName,
    /// Its route is older, or as old and first by name: the controller gives routes in this order.
    OlderRoute,
    /// It is the same name once more.
    EarlierMatch,
}

impl Criterion {
    /// The word for programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ExactName => "exact-name",
            Self::LongerName => "longer-name",
            Self::OlderRoute => "older-route",
            Self::EarlierMatch => "earlier-match",
        }
    }

    fn between(first: (&str, &StreamRoute), second: (&str, &StreamRoute)) -> Self {
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

/// Every name in order of precedence, and what it makes of a connection that begins with `hello`,
/// if there is one.
pub fn explain<'r>(routes: &'r StreamRoutes, hello: Option<&Hello>) -> Vec<Explained<'r>> {
    let routes_of = match routes {
        StreamRoutes::Tcp(route) => {
            return vec![Explained {
                route,
                hostname: None,
                verdict: hello.map(|_| Verdict::Takes),
            }];
        }
        StreamRoutes::Tls(routes) => &routes.all,
    };
    let names = routes_of.iter().flat_map(|route| {
        let hostnames = route.hostnames.iter();
        hostnames.map(|hostname| (&**hostname, &**route))
    });
    let mut names: Vec<(&str, &StreamRoute)> = names.collect();
    names.sort_by_key(|(hostname, _)| match is_wildcard(hostname) {
        true => (true, Reverse(hostname.len())),
        false => (false, Reverse(0)),
    });
    let found = hello.and_then(|hello| routes.decide(hello).ok());
    let asked = match hello {
        Some(Hello::Asks(name)) => name.as_deref(),
        _ => None,
    };
    let fits = |hostname| asked.is_some_and(|name| stands_for(hostname, name));
    let taken = names.iter().position(|(hostname, route)| {
        fits(hostname) && found.is_some_and(|found| std::ptr::eq(found, *route))
    });
    let verdict = |index: usize, hello: &Hello| match (hello, taken) {
        (Hello::Asks(_), Some(taken)) if taken == index => Verdict::Takes,
        (Hello::Asks(_), Some(taken)) if fits(names[index].0) => {
            Verdict::Outranked(Criterion::between(names[taken], names[index]))
        }
        (Hello::Asks(_), _) => Verdict::OtherName,
        (Hello::Incomplete | Hello::Other, _) => Verdict::NoHello,
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

/// What would become of a connection that begins with `hello`: for each backend of its route in
/// their order, why it would get nothing, if so. `Err`: the same for all.
pub fn outcome(routes: &StreamRoutes, hello: &Hello) -> Result<Vec<Result<(), Reason>>, Reason> {
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
