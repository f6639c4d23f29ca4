//! Logins for a connection: NTLM and Negotiate (RFC 4559) authenticate the connection rather than
//! the request, so a server answers every later request on it as the user who has logged in.
//!
//! In: the credentials and challenges of requests and responses. Out: the upstream connection that
//! belongs to one downstream connection and must never be pooled. It lives as long as the
//! downstream connection, which ends when the server closes its connection, as without proxies.

use std::sync::Arc;
use std::task::{Context, Poll};

use crate::balance::Endpoint;
use crate::upstream::pool::Upstream;

/// Authentication schemes that authenticate the connection.
const SCHEMES: [&[u8]; 4] = [b"ntlm", b"negotiate", b"nego2", b"kerberos"];
/// The upstream connection on which a downstream connection's client has logged in, while it
/// carries no exchange. There is at most one: a client that is routed to another server logs in
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

    /// Returns the connection if it is to this endpoint.
    pub fn take(&mut self, endpoint: u64) -> Option<Upstream> {
        let held = self.held.take_if(|held| held.0.id == endpoint)?;
        let (_, mut upstream) = *held;
        upstream.reused = true;
        Some(upstream)
    }

    /// The ID of the endpoint that the client has logged in at.
    pub fn endpoint(&self) -> Option<u64> {
        self.held.as_ref().map(|held| held.0.id)
    }

    /// Ready when the server has closed the connection, or has sent unexpected bytes.
    pub fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.held {
            Some(held) => held.1.connection.poll_fill(cx).map(|_| ()),
            None => Poll::Pending,
        }
    }
}

/// Whether `value`, of `Authorization` or `WWW-Authenticate` or their proxy counterparts, belongs
/// to a login for the connection. A field may list several challenges.
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
    fn schemes_are_recognized_in_any_case_and_position() {
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
