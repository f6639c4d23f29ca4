//! Names of resources.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

/// The name of a resource. [`fmt::Display`] and [`FromStr`] convert to and from its text form on
/// the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceName {
    /// `trust-anchors`
    TrustAnchors,
    /// `inbound`: the subscriber's own.
    Inbound,
    /// `destination/10.96.0.10:80`
    Destination(SocketAddr),
    /// `service/<client-namespace>/<namespace>/<name>/<port>`
    Service {
        client_namespace: String,
        namespace: String,
        name: String,
        port: u16,
    },
    /// `http-route/<namespace>/<name>`
    HttpRoute { namespace: String, name: String },
    /// `grpc-route/<namespace>/<name>`: the same as an HTTPRoute, except for its origin.
    GrpcRoute { namespace: String, name: String },
    /// `tls-route/<namespace>/<name>`
    TlsRoute { namespace: String, name: String },
    /// `tcp-route/<namespace>/<name>`
    TcpRoute { namespace: String, name: String },
    /// `endpoints/<namespace>/<service>/<port>`
    Endpoints {
        namespace: String,
        service: String,
        port: u16,
    },
}

/// The text is not a valid resource name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameError(String);

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not the name of a resource", self.0)
    }
}

impl std::error::Error for NameError {}

impl fmt::Display for ResourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TrustAnchors => f.write_str("trust-anchors"),
            Self::Inbound => f.write_str("inbound"),
            Self::Destination(address) => write!(f, "destination/{address}"),
            Self::Service {
                client_namespace,
                namespace,
                name,
                port,
            } => write!(f, "service/{client_namespace}/{namespace}/{name}/{port}"),
            Self::HttpRoute { namespace, name } => write!(f, "http-route/{namespace}/{name}"),
            Self::GrpcRoute { namespace, name } => write!(f, "grpc-route/{namespace}/{name}"),
            Self::TlsRoute { namespace, name } => write!(f, "tls-route/{namespace}/{name}"),
            Self::TcpRoute { namespace, name } => write!(f, "tcp-route/{namespace}/{name}"),
            Self::Endpoints {
                namespace,
                service,
                port,
            } => write!(f, "endpoints/{namespace}/{service}/{port}"),
        }
    }
}

impl FromStr for ResourceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let error = || NameError(text.chars().take(256).collect());
        let mut parts = text.split('/');
        let kind = parts.next().unwrap_or_default();
        let rest: Vec<&str> = parts.collect();
        if rest.iter().any(|part| part.is_empty()) {
            return Err(error());
        }
        match (kind, rest.as_slice()) {
            ("trust-anchors", []) => Ok(Self::TrustAnchors),
            ("inbound", []) => Ok(Self::Inbound),
            ("destination", [address]) => {
                address.parse().map(Self::Destination).map_err(|_| error())
            }
            ("service", [client_namespace, namespace, name, port]) => Ok(Self::Service {
                client_namespace: client_namespace.to_string(),
                namespace: namespace.to_string(),
                name: name.to_string(),
                port: port.parse().map_err(|_| error())?,
            }),
            ("http-route", [namespace, name]) => Ok(Self::HttpRoute {
                namespace: namespace.to_string(),
                name: name.to_string(),
            }),
            ("grpc-route", [namespace, name]) => Ok(Self::GrpcRoute {
                namespace: namespace.to_string(),
                name: name.to_string(),
            }),
            ("tls-route", [namespace, name]) => Ok(Self::TlsRoute {
                namespace: namespace.to_string(),
                name: name.to_string(),
            }),
            ("tcp-route", [namespace, name]) => Ok(Self::TcpRoute {
                namespace: namespace.to_string(),
                name: name.to_string(),
            }),
            ("endpoints", [namespace, service, port]) => Ok(Self::Endpoints {
                namespace: namespace.to_string(),
                service: service.to_string(),
                port: port.parse().map_err(|_| error())?,
            }),
            _ => Err(error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn label() -> impl Strategy<Value = String> {
        "[a-z0-9]([-a-z0-9.]{0,20}[a-z0-9])?"
    }

    fn name() -> impl Strategy<Value = ResourceName> {
        prop_oneof![
            Just(ResourceName::TrustAnchors),
            Just(ResourceName::Inbound),
            any::<SocketAddr>().prop_map(|mut address| {
                if let SocketAddr::V6(v6) = &mut address {
                    v6.set_flowinfo(0);
                    v6.set_scope_id(0);
                }
                ResourceName::Destination(address)
            }),
            (label(), label(), label(), any::<u16>()).prop_map(
                |(client_namespace, namespace, name, port)| ResourceName::Service {
                    client_namespace,
                    namespace,
                    name,
                    port
                }
            ),
            (label(), label())
                .prop_map(|(namespace, name)| ResourceName::HttpRoute { namespace, name }),
            (label(), label())
                .prop_map(|(namespace, name)| ResourceName::GrpcRoute { namespace, name }),
            (label(), label())
                .prop_map(|(namespace, name)| ResourceName::TlsRoute { namespace, name }),
            (label(), label())
                .prop_map(|(namespace, name)| ResourceName::TcpRoute { namespace, name }),
            (label(), label(), any::<u16>()).prop_map(|(namespace, service, port)| {
                ResourceName::Endpoints {
                    namespace,
                    service,
                    port,
                }
            }),
        ]
    }

    proptest! {
        #[test]
        fn a_name_round_trips_through_its_text_form(name in name()) {
            prop_assert_eq!(name.to_string().parse::<ResourceName>(), Ok(name));
        }

        #[test]
        fn any_text_is_a_name_or_an_error(text in ".{0,80}") {
            if let Ok(name) = text.parse::<ResourceName>() {
                prop_assert_eq!(name.to_string().parse::<ResourceName>(), Ok(name));
            }
        }
    }
}
