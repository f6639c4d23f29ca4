//! Connections to endpoints.

pub mod client_address;
pub mod count;
pub mod dialer;
mod http1;
pub mod http2;
pub mod mux;
pub mod pool;
pub mod share;
pub mod streams;
mod waiting;

use std::sync::Arc;

use client_address::Source;
pub use dialer::{ConnectError, Dialer, Stream};

/// For whom an upstream connection is. Those who are equal share connections to an endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    /// What the app sees it come from. `None` on the way to other pods, and where all are seen as
    /// the pod itself. Shared with connections that wait in pools.
    pub source: Option<Arc<Source>>,
    /// The downstream HTTP/2 connection whose client has logged in on its connection
    /// ([`crate::http::login`]). 0: there is no login.
    pub login: u64,
}

impl Caller {
    /// The same for the downstream connection `id` alone.
    pub fn alone(&self, id: u64) -> Self {
        let login = match self.login {
            0 => id,
            login => login,
        };
        Self {
            source: self.source.clone(),
            login,
        }
    }

    pub fn source(&self) -> Source {
        self.source.as_deref().copied().unwrap_or_default()
    }
}
