//! The closed list of reasons why the proxy itself answered a request or ended a connection.
//!
//! The same word is used in the `naru-reason` header, the access log and the metrics.

use std::fmt;

/// Response header with a [`Reason`]. Only proxies set it; it is removed from responses of apps and
/// of peers without a sidecar.
pub const REASON_HEADER: &str = "naru-reason";

macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $text:literal, $status:literal;)*) => {
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

            /// The corresponding HTTP status; 0 where no response is possible, or the proxy sends
            /// none.
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }
        }
    };
}

reasons! {
    /// A rule's RequestRedirect filter answered. The status is the filter's.
    Redirect = "redirect", 0;
    /// A rule's CORS filter answered a browser's preflight request: 204, or 403 for an origin that
    /// it does not allow.
    CorsPreflight = "cors-preflight", 0;
    /// Routes are attached to the Service, and no rule of theirs matches the request, or the name
    /// that a TLS client asks for.
    NoRoute = "no-route", 404;
    /// TLSRoutes are attached to the Service's port, and the client did not begin with a TLS
    /// ClientHello, or not in time.
    NoClientHello = "no-client-hello", 0;
    /// The rule's backend does not exist or may not be used.
    BackendInvalid = "backend-invalid", 500;
    /// The rule has no backend at all, or none with a weight.
    NoBackend = "no-backend", 500;
    /// The backend has no endpoint that may be given work.
    NoEndpoint = "no-endpoint", 503;
    /// The controller has not yet resolved the destination.
    DestinationUnknown = "destination-unknown", 503;
    /// No endpoint that was tried accepted a connection.
    ConnectFailed = "connect-failed", 503;
    /// No endpoint that was tried accepted a connection in time.
    ConnectTimeout = "connect-timeout", 504;
    /// The endpoint proved another identity than it must have, or none.
    IdentityMismatch = "identity-mismatch", 503;
    /// TLS with the endpoint failed for another reason.
    TlsFailed = "tls-failed", 503;
    /// This proxy has no valid certificate.
    NoCertificate = "no-certificate", 503;
    /// The rule's `timeouts.request` ran out.
    RequestTimeout = "request-timeout", 504;
    /// The rule's `timeouts.backendRequest` ran out.
    BackendRequestTimeout = "backend-request-timeout", 504;
    /// The upstream connection or stream ended before a response began.
    UpstreamReset = "upstream-reset", 503;
    /// The upstream's response broke the protocol.
    UpstreamProtocolError = "upstream-protocol-error", 502;
    /// The upstream's response ended before it was complete.
    ResponseTruncated = "response-truncated", 0;
    /// A pool or the proxy itself is full.
    Overload = "overload", 503;
    /// The request breaks the protocol, or two parsers could read it differently.
    BadRequest = "bad-request", 400;
    /// The request's head is larger than the limit.
    HeaderTooLarge = "header-too-large", 431;
    /// The client took too long to send a request's head.
    HeaderTimeout = "header-timeout", 408;
    /// The request's method is CONNECT: no route would see what goes through its tunnel. A forward
    /// proxy's port is declared opaque.
    ConnectMethod = "connect-method", 501;
    /// The HTTP version is not one that the proxy speaks, or not the one that the port is declared
    /// to speak.
    VersionNotSupported = "version-not-supported", 505;
    /// The client went away, or broke off its request body.
    ClientGone = "client-gone", 0;
    /// The memory budget had no room for the rest of a request that may have reached the app.
    MemoryExhausted = "memory-exhausted", 503;
    /// The client has not read its response for too long (`--reader-timeout`).
    ReaderStopped = "reader-stopped", 0;
    /// The client has no mesh identity and the workload is strict.
    IdentityRequired = "identity-required", 0;
    /// The proxy is shutting down.
    ShuttingDown = "shutting-down", 503;
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
