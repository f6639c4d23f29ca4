//! Whose connection it is. Admission compares these variants, never texts.

use std::sync::Arc;

use crate::identity::SpiffeId;
use crate::socket::Direction;

/// What a client has proved of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientIdentity {
    /// The app in this pod. Its connections are the outbound ones.
    App,
    /// From outside, without a certificate.
    Unauthenticated,
    /// A peer, which has proved this identity in the handshake.
    Peer(SpiffeId),
}

impl ClientIdentity {
    pub fn direction(&self) -> Direction {
        match self {
            Self::App => Direction::Outbound,
            Self::Unauthenticated | Self::Peer(_) => Direction::Inbound,
        }
    }

    /// The identity, if one is proved.
    pub fn spiffe_id(&self) -> Option<&SpiffeId> {
        match self {
            Self::App | Self::Unauthenticated => None,
            Self::Peer(id) => Some(id),
        }
    }

    /// The `client` in the access log.
    pub fn as_str(&self) -> &str {
        match self {
            Self::App => "",
            Self::Unauthenticated => "unauthenticated",
            Self::Peer(id) => id.as_str(),
        }
    }

    /// The `client` of a series in metrics.
    pub fn label(&self) -> Arc<str> {
        match self {
            Self::App | Self::Unauthenticated => self.as_str().into(),
            Self::Peer(id) => id.text(),
        }
    }
}
