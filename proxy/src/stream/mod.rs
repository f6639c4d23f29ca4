//! Where a connection goes that is bytes by decree: a TCPRoute or TLSRoutes are in force on its port.
//!
//! ```text
//! TCPRoute ──────────────────────────────────────┐
//! TLSRoutes ─▶ ClientHello ─▶ the name in it ─▶ StreamRoute ─▶ backend, by weight ─▶ tcp
//! ```
//!
//! The ClientHello is looked at and passed on as it came: the TLS in it is between the client and the app.

pub mod client_hello;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

use crate::buffered::Buffered;
use crate::reason::Reason;
use crate::route::by_weight;
use crate::table::Backend;
use client_hello::{Hello, MAX_CLIENT_HELLO};

/// The routes in force on a port.
#[derive(Debug)]
pub enum StreamRoutes {
    /// Takes every connection.
    Tcp(Arc<StreamRoute>),
    Tls(TlsRoutes),
}

/// A TCPRoute or a TLSRoute, without what leads to it.
#[derive(Debug)]
pub struct StreamRoute {
    pub backends: Vec<StreamBackend>,
}

#[derive(Debug)]
pub struct StreamBackend {
    pub weight: u32,
    /// `Err`: why it can't be used.
    pub backend: Result<Arc<Backend>, Arc<str>>,
}

/// TLSRoutes by the names that clients ask for.
#[derive(Debug, Default)]
pub struct TlsRoutes {
    exact: HashMap<Box<str>, Arc<StreamRoute>>,
    /// By what follows `*.`.
    wildcard: HashMap<Box<str>, Arc<StreamRoute>>,
}

impl StreamRoutes {
    /// The route that takes a new connection. Its client may have to say first what it asks for, within `patience`.
    pub async fn find<S>(
        &self,
        client: &mut Buffered<S>,
        patience: Duration,
    ) -> Result<&StreamRoute, Reason>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match self {
            Self::Tcp(route) => Ok(route),
            Self::Tls(routes) => {
                let name = timeout(patience, asked_for(client))
                    .await
                    .unwrap_or(Err(Reason::NoClientHello))?;
                let route = name.and_then(|name| routes.find(&name));
                route.ok_or(Reason::NoRoute)
            }
        }
    }
}

impl StreamRoute {
    /// One of the backends by weight.
    pub fn pick(&self, random: &mut SmallRng) -> Result<&Backend, Reason> {
        let weights = self.backends.iter().map(|backend| backend.weight);
        let picked = by_weight(weights, random).ok_or(Reason::NoBackend)?;
        let backend = self.backends[picked].backend.as_deref();
        backend.map_err(|_| Reason::BackendInvalid)
    }
}

impl TlsRoutes {
    /// `routes` with their names, first the one that wins where names are equal.
    pub fn new<'a>(routes: impl IntoIterator<Item = (&'a [Box<str>], Arc<StreamRoute>)>) -> Self {
        let mut all = Self::default();
        for (hostnames, route) in routes {
            for hostname in hostnames {
                let (names, name) = match hostname.strip_prefix("*.") {
                    Some(parent) => (&mut all.wildcard, parent),
                    None => (&mut all.exact, &**hostname),
                };
                names.entry(name.into()).or_insert_with(|| route.clone());
            }
        }
        all
    }

    /// The route for a name in lower case: one that has this very name, else the longest that stands for it (Gateway API).
    pub fn find(&self, name: &str) -> Option<&StreamRoute> {
        if let Some(route) = self.exact.get(name) {
            return Some(route);
        }
        let dots = name.match_indices('.').map(|(dot, _)| dot);
        let mut parents = dots.filter(|dot| *dot > 0).map(|dot| &name[dot + 1..]);
        let route = parents.find_map(|parent| self.wildcard.get(parent));
        route.map(Arc::as_ref)
    }
}

/// Reads until the client has said which name it asks for, if any. What was read stays to be passed on.
async fn asked_for<S>(client: &mut Buffered<S>) -> Result<Option<String>, Reason>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match client_hello::read(&client.read) {
            Hello::Asks(name) => return Ok(name),
            Hello::Incomplete if client.read.len() <= MAX_CLIENT_HELLO => {}
            Hello::Incomplete | Hello::Other => return Err(Reason::NoClientHello),
        }
        match poll_fn(|cx| client.poll_fill(cx)).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Err(Reason::ClientGone),
        }
    }
}
