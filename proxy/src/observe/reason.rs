//! The closed list of reasons why the proxy itself answered a request or ended a connection.
//!
//! The same word is used in the `naru-reason` header, the access log and the metrics.

use std::fmt;

/// Response header with a [`Reason`]. Only proxies set it; it is removed from responses of apps and
/// of peers without a sidecar.
pub const REASON_HEADER: &str = "naru-reason";

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal, $status:expr;)*) => {
        /// Why the proxy itself acted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])* $name,)*
        }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The word in headers, logs and metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The corresponding HTTP status. `None`: no response is possible, the proxy sends
            /// none, or the reason does not determine it.
            pub const fn status(self) -> Option<u16> {
                match self { $(Self::$name => $status,)* }
            }
        }
    };
}

reasons! {
    /// A rule's RequestRedirect filter answered. The status is the filter's.
    Redirect = "redirect", None;
    /// A rule's CORS filter answered a browser's preflight request: 204, or 403 for an origin that
    /// it does not allow.
    CorsPreflight = "cors-preflight", None;
    /// Routes are attached to the Service, and no rule of theirs matches the request, or the name
    /// that a TLS client asks for.
    NoRoute = "no-route", Some(404);
    /// TLSRoutes are attached to the Service's port, and the client did not begin with a TLS
    /// ClientHello, or not in time.
    NoClientHello = "no-client-hello", None;
    /// The rule's backend does not exist or may not be used.
    BackendInvalid = "backend-invalid", Some(500);
    /// The rule has no backend at all, or none with a weight.
    NoBackend = "no-backend", Some(500);
    /// The backend has no endpoint that may be given work.
    NoEndpoint = "no-endpoint", Some(503);
    /// The controller has not yet resolved the destination.
    DestinationUnknown = "destination-unknown", Some(503);
    /// No endpoint that was tried accepted a connection.
    ConnectFailed = "connect-failed", Some(503);
    /// No endpoint that was tried accepted a connection in time.
    ConnectTimeout = "connect-timeout", Some(504);
    /// The endpoint proved another identity than it must have, or none.
    IdentityMismatch = "identity-mismatch", Some(503);
    /// TLS with the endpoint failed for another reason.
    TlsFailed = "tls-failed", Some(503);
    /// This proxy has no valid certificate.
    NoCertificate = "no-certificate", Some(503);
    /// The rule's `timeouts.request` ran out.
    RequestTimeout = "request-timeout", Some(504);
    /// The rule's `timeouts.backendRequest` ran out.
    BackendRequestTimeout = "backend-request-timeout", Some(504);
    /// The upstream connection or stream ended before a response began.
    UpstreamReset = "upstream-reset", Some(503);
    /// The upstream's response broke the protocol.
    UpstreamProtocolError = "upstream-protocol-error", Some(502);
    /// The upstream's response ended before it was complete.
    ResponseTruncated = "response-truncated", None;
    /// A pool or the proxy itself is full.
    Overload = "overload", Some(503);
    /// The request breaks the protocol, or two parsers could read it differently.
    BadRequest = "bad-request", Some(400);
    /// The request's head is larger than the limit.
    HeaderTooLarge = "header-too-large", Some(431);
    /// The client took too long to send a request's head.
    HeaderTimeout = "header-timeout", Some(408);
    /// The request's method is CONNECT: no route would see what goes through its tunnel. A forward
    /// proxy's port is declared opaque.
    ConnectMethod = "connect-method", Some(501);
    /// The HTTP version is not one that the proxy speaks, or not the one that the port is declared
    /// to speak.
    VersionNotSupported = "version-not-supported", Some(505);
    /// The client went away, or broke off its request body.
    ClientGone = "client-gone", None;
    /// The memory budget had no room for the rest of a request that may have reached the app.
    MemoryExhausted = "memory-exhausted", Some(503);
    /// The client has not read its response for too long (`--reader-timeout`).
    ReaderStopped = "reader-stopped", None;
    /// The client has no mesh identity and the workload is strict.
    IdentityRequired = "identity-required", None;
    /// The proxy is shutting down.
    ShuttingDown = "shutting-down", Some(503);
}

impl Reason {
    /// The reason with this word.
    pub fn from_word(word: &[u8]) -> Option<Self> {
        let mut all = Self::ALL.iter();
        all.find(|reason| reason.as_str().as_bytes() == word)
            .copied()
    }

    /// The HTTP status of a response that the proxy generates for this reason.
    pub fn response_status(self) -> u16 {
        self.status().unwrap_or(503)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_word_fit_for_a_header() {
        let words: std::collections::HashSet<_> =
            Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
        for word in words {
            assert!(word.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'));
        }
    }
}
