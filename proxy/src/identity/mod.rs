//! Who the proxy is and whom it trusts: keys, certificates and the TLS configurations made of them.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, ServerConfig};

/// The protocol inside a TLS connection between two proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Alpn {
    Http1,
    Http2,
    Tcp,
}

impl Alpn {
    pub const ALL: [Self; 3] = [Self::Http2, Self::Http1, Self::Tcp];

    pub const fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"naru-http/1.1",
            Self::Http2 => b"naru-h2",
            Self::Tcp => b"naru-tcp",
        }
    }

    pub fn from_bytes(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|alpn| alpn.as_bytes() == name)
    }
}

/// The proxy's certificate and trust anchors in force. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Identity {}

impl Identity {
    /// For a connection to a peer that must prove `expected` (a SPIFFE ID). Cached by identity and protocol, and made anew
    /// when the certificate or the anchors change. `None`: there is no valid certificate.
    pub fn client_config(&self, expected: &Arc<str>, alpn: Alpn) -> Option<Arc<ClientConfig>> {
        let _ = (expected, alpn);
        todo!()
    }

    /// For connections from peers, whose certificate is demanded and verified. `None`: there is no valid certificate.
    pub fn server_config(&self) -> Option<Arc<ServerConfig>> {
        todo!()
    }

    /// The SPIFFE ID in a peer's verified certificate. Interned: the same identity is the same `Arc`.
    pub fn peer_identity(&self, certificates: &[CertificateDer<'_>]) -> Option<Arc<str>> {
        let _ = certificates;
        todo!()
    }
}

/// Whether a failed handshake failed because the peer proved another identity than expected.
pub fn is_identity_mismatch(error: &std::io::Error) -> bool {
    let _ = error;
    todo!()
}
