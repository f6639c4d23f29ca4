//! Connections that a TCPRoute or TLSRoutes in force on their port route as opaque bytes.
//!
//! ```text
//! TCPRoute ──────────────────────────────────────┐
//! TLSRoutes ─▶ ClientHello ─▶ the name in it ─▶ OpaqueRoute ─▶ backend, by weight ─▶ tcp
//! ```
//!
//! The ClientHello is inspected and passed on unchanged: the TLS session is between the client and
//! the app.
//!
//! # Floors
//!
//! ```text
//! explain
//! ```

mod explain;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::balance::{Backend, by_weight};
use crate::observe::reason::Reason;
use crate::wire::buffered::Buffered;
use crate::wire::client_hello::{self, Hello};

pub use explain::{Criterion, Explained, Verdict, explain, outcome};

/// The routes in force on a port.
#[derive(Debug)]
pub enum OpaqueRoutes {
    /// Applies to every connection.
    Tcp(Arc<OpaqueRoute>),
    Tls(TlsRoutes),
}

/// A TCPRoute or a TLSRoute.
#[derive(Debug)]
pub struct OpaqueRoute {
    /// `namespace/name`
    pub name: Box<str>,
    /// For a TLSRoute: its hostnames. For a TCPRoute: empty.
    pub hostnames: Vec<Box<str>>,
    pub backends: Vec<OpaqueBackend>,
}

#[derive(Debug)]
pub struct OpaqueBackend {
    pub weight: u32,
    /// `Err`: why the backend is invalid.
    pub backend: Result<Arc<Backend>, Arc<str>>,
}

/// TLSRoutes by server name.
#[derive(Debug, Default)]
pub struct TlsRoutes {
    /// In order of precedence between equal names.
    all: Vec<Arc<OpaqueRoute>>,
    exact: HashMap<Box<str>, Arc<OpaqueRoute>>,
    /// Keyed by the suffix after `*.`.
    wildcard: HashMap<Box<str>, Arc<OpaqueRoute>>,
}

impl OpaqueRoutes {
    /// The route for a new connection. TLSRoutes wait for the client's ClientHello, at most
    /// `patience`.
    pub async fn find<S>(
        &self,
        client: &mut Buffered<S>,
        patience: Duration,
    ) -> Result<&OpaqueRoute, Reason>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let hello = match self {
            Self::Tcp(route) => return Ok(route),
            Self::Tls(_) => timeout(patience, client_hello::read(client)).await,
        };
        let hello = hello.unwrap_or(Ok(Hello::Incomplete));
        self.decide(&hello.map_err(|_| Reason::ClientGone)?)
    }

    /// The route for a connection with these first bytes.
    pub fn decide(&self, hello: &Hello) -> Result<&OpaqueRoute, Reason> {
        match (self, hello) {
            (Self::Tcp(route), _) => Ok(route),
            (Self::Tls(routes), Hello::Complete(hello)) => {
                let name = hello.server_name.as_deref();
                let route = name.and_then(|name| routes.find(name));
                route.ok_or(Reason::NoRoute)
            }
            (Self::Tls(_), Hello::Incomplete | Hello::Unreadable | Hello::Other) => {
                Err(Reason::NoClientHello)
            }
        }
    }
}

impl OpaqueRoute {
    /// Picks one of the backends by weight.
    pub fn pick(&self, random: &mut SmallRng) -> Result<&Arc<Backend>, Reason> {
        let weights = self.backends.iter().map(|backend| backend.weight);
        let picked = by_weight(weights, random).ok_or(Reason::NoBackend)?;
        self.backends[picked].target()
    }
}

impl OpaqueBackend {
    fn target(&self) -> Result<&Arc<Backend>, Reason> {
        let backend = self.backend.as_ref();
        backend.map_err(|_| Reason::BackendInvalid)
    }
}

impl TlsRoutes {
    /// `routes` are in order of precedence between equal names.
    pub fn new(routes: Vec<Arc<OpaqueRoute>>) -> Self {
        let (mut exact, mut wildcard) = (HashMap::new(), HashMap::new());
        for route in &routes {
            for hostname in &route.hostnames {
                let (names, name) = match hostname.strip_prefix("*.") {
                    Some(parent) => (&mut wildcard, parent),
                    None => (&mut exact, &**hostname),
                };
                names.entry(name.into()).or_insert_with(|| route.clone());
            }
        }
        Self {
            all: routes,
            exact,
            wildcard,
        }
    }

    /// The route for a name in lower case: an exact hostname, else the longest matching wildcard
    /// (Gateway API).
    pub fn find(&self, name: &str) -> Option<&OpaqueRoute> {
        if let Some(route) = self.exact.get(name) {
            return Some(route);
        }
        let route = parents(name).find_map(|parent| self.wildcard.get(parent));
        route.map(Arc::as_ref)
    }
}

/// The suffixes after `*.` of the wildcards that match `name`, the longest first.
fn parents(name: &str) -> impl Iterator<Item = &str> {
    let dots = name.match_indices('.').map(|(dot, _)| dot);
    dots.filter(|dot| *dot > 0).map(|dot| &name[dot + 1..])
}
