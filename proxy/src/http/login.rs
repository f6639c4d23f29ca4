//! Logins that hold for a connection: NTLM and Negotiate (RFC 4559) authenticate the connection and
//! not the request, so a server answers whatever follows on it as the user who has logged in.
//!
//! In: the credentials and challenges of requests and responses. Out: the upstream connection that
//! belongs to one downstream connection and must never reach a pool. It lives as long as that
//! connection does, which ends when the server ends it, as it would without proxies.

use std::sync::Arc;
use std::task::{Context, Poll};

use crate::balance::Endpoint;
use crate::upstream::pool::Upstream;

/// Schemes of credentials that authenticate the connection they are sent on.
const SCHEMES: [&[u8]; 4] = [b"ntlm", b"negotiate", b"nego2", b"kerberos"];
/// The upstream connection on which a downstream connection's client has logged in, as long as it
/// carries no exchange. There is one at most: a client that is routed to another server logs in
/// there.
#[derive(Default)]
pub struct Login {
    held: Option<Box<(Arc<Endpoint>, Upstream)>>,
}

impl Login {
    /// Keeps a connection whose exchange is complete.
    pub fn keep(&mut self, endpoint: &Arc<Endpoint>, mut upstream: Upstream) {
        upstream.connection.shrink();
        self.held = Some(Box::new((endpoint.clone(), upstream)));
    }

    /// Takes the connection, if it is to this endpoint.
    pub fn take(&mut self, endpoint: u64) -> Option<Upstream> {
        let held = self.held.take_if(|held| held.0.id == endpoint)?;
        let (_, mut upstream) = *held;
        upstream.reused = true;
        Some(upstream)
    }

    /// The id of the endpoint that the client has logged in at.
    pub fn endpoint(&self) -> Option<u64> {
        self.held.as_ref().map(|held| held.0.id)
    }

    /// Ready when the server has ended the connection, or has sent something unasked.
    pub fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.held {
            Some(held) => held.1.connection.poll_fill(cx).map(|_| ()),
            None => Poll::Pending,
        }
    }
}

/// Whether `value`, of `Authorization` or `WWW-Authenticate` or their twins for proxies, belongs to
/// a login that holds for the connection. A field may list several challenges.
pub fn is_of_connection(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|challenge| {
        let challenge = challenge.trim_ascii_start();
        let end = challenge.iter().position(u8::is_ascii_whitespace);
        let scheme = &challenge[..end.unwrap_or(challenge.len())];
        SCHEMES
            .iter()
            .any(|other| scheme.eq_ignore_ascii_case(other))
    })
}

#[cfg(test)]
mod tests {
    use super::is_of_connection;

    #[test]
    fn the_schemes_are_told_whatever_their_case_and_place() {
        for value in [
            "NTLM",
            "ntlm TlRMTVNTUAAB",
            "Negotiate YIIJ",
            "Basic realm=\"a\", Negotiate",
            "Digest nonce=\"x\",NTLM ",
            "Kerberos YII=",
            "Nego2 abc",
        ] {
            assert!(is_of_connection(value.as_bytes()), "{value}");
        }
        for value in [
            "",
            "Basic TlRMTQ==",
            "Bearer ntlm",
            "Digest username=\"ntlm\"",
            "NTLMv2",
            "Basic realm=\"NTLM\"",
        ] {
            assert!(!is_of_connection(value.as_bytes()), "{value}");
        }
    }
}
