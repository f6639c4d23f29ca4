//! The client's identity and address in requests: `X-Forwarded-Client-Cert`, in Envoy's format,
//! with the identities that mutual TLS has proved; and, where the pod asks for them,
//! `X-Forwarded-For` and `Forwarded` (RFC 7239) with the client's address appended.
//!
//! In: the facts known about a client, once for its connection. Out: requests with those fields. A
//! client's own `X-Forwarded-Client-Cert` is always removed: the app trusts this field.

use std::net::IpAddr;

use http::{HeaderName, HeaderValue};

use crate::config::AddressField;
use crate::identity::SpiffeId;
use crate::route::HeaderFields;

/// Carries the identities that a connection has proved.
const CLIENT_CERT: &str = "x-forwarded-client-cert";
const CLIENT_CERT_NAME: HeaderName = HeaderName::from_static(CLIENT_CERT);

impl AddressField {
    fn name(self) -> &'static str {
        match self {
            Self::XForwardedFor => "x-forwarded-for",
            Self::Forwarded => "forwarded",
        }
    }

    /// The element that is appended for a client.
    fn element(self, client: IpAddr) -> String {
        match (self, client.to_canonical()) {
            (Self::XForwardedFor, address) => address.to_string(),
            (Self::Forwarded, IpAddr::V4(address)) => format!("for={address}"),
            (Self::Forwarded, IpAddr::V6(address)) => format!("for=\"[{address}]\""),
        }
    }
}

/// The fields that the requests of one connection get.
#[derive(Debug, Default)]
pub struct Forwarded {
    /// Built once, so that a request needs no allocation for it.
    client_cert: Option<HeaderValue>,
    addresses: Vec<(AddressField, String)>,
}

impl Forwarded {
    /// `own` and `client`: the identities that are known and proved.
    pub fn new(
        own: Option<&SpiffeId>,
        client: Option<&SpiffeId>,
        address: Option<IpAddr>,
        fields: &[AddressField],
    ) -> Self {
        let by = own.map(|own| format!("By={own};")).unwrap_or_default();
        let addresses = address.into_iter().flat_map(|address| {
            let named = fields.iter().enumerate();
            // A field that is named twice gets the address once.
            let once = named.filter(|(index, field)| !fields[..*index].contains(field));
            once.map(move |(_, field)| (*field, field.element(address)))
        });
        Self {
            client_cert: client
                .and_then(|client| HeaderValue::try_from(format!("{by}URI={client}")).ok()),
            addresses: addresses.collect(),
        }
    }

    /// Writes the fields into a request.
    pub fn write(&self, head: &mut impl HeaderFields) {
        head.remove_spellings(CLIENT_CERT);
        if let Some(value) = &self.client_cert {
            head.add_shared(&CLIENT_CERT_NAME, value);
        }
        for (field, element) in &self.addresses {
            append(head, field.name(), element);
        }
    }
}

/// Appends to the list in a field, on one line: many apps read only one line. Values that are not
/// text, and fields with another spelling of the name, are removed.
fn append(head: &mut impl HeaderFields, name: &str, element: &str) {
    let mut list = String::new();
    head.for_each_value(name, &mut |value| {
        if let Ok(value) = std::str::from_utf8(value)
            && !value.is_empty()
        {
            list.push_str(value);
            list.push_str(", ");
        }
        true
    });
    list.push_str(element);
    head.remove_spellings(name);
    head.add_field(name, &list);
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use crate::identity::testing::spiffe_id;

    const OWN: &str = "spiffe://cluster.local/ns/shop/sa/web";
    const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";

    fn written(forwarded: &Forwarded, before: &[(&'static str, &str)]) -> Vec<String> {
        let mut head = HeaderMap::new();
        for (name, value) in before {
            head.append(*name, value.parse().expect("a value"));
        }
        forwarded.write(&mut head);
        let fields = head.iter();
        let mut lines: Vec<_> = fields
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn a_proved_identity_replaces_the_clients_own_field() {
        let (own, client) = (spiffe_id(OWN), spiffe_id(CLIENT));
        let forwarded = Forwarded::new(Some(&own), Some(&client), None, &[]);
        let forged = [
            (CLIENT_CERT, "URI=spiffe://a"),
            (CLIENT_CERT, "URI=spiffe://b"),
            ("x_forwarded_client_cert", "URI=spiffe://c"),
            ("x-forwarded_client-cert", "URI=spiffe://d"),
        ];
        assert_eq!(
            written(&forwarded, &forged),
            [format!("{CLIENT_CERT}: By={OWN};URI={CLIENT}")]
        );
        let stranger = Forwarded::new(Some(&own), None, None, &[]);
        assert_eq!(written(&stranger, &forged), [""; 0]);
    }

    #[test]
    fn the_clients_address_is_appended_last() {
        let fields = [
            AddressField::XForwardedFor,
            AddressField::Forwarded,
            AddressField::XForwardedFor,
        ];
        let address = "10.1.2.3".parse().ok();
        let forwarded = Forwarded::new(None, None, address, &fields);
        let before = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2, 3.3.3.3"),
            ("x_forwarded_for", "127.0.0.1"),
        ];
        assert_eq!(
            written(&forwarded, &before),
            [
                "forwarded: for=10.1.2.3",
                "x-forwarded-for: 1.1.1.1, 2.2.2.2, 3.3.3.3, 10.1.2.3"
            ]
        );
        let address = "fd00::7".parse().ok();
        let forwarded = Forwarded::new(None, None, address, &fields);
        assert_eq!(
            written(&forwarded, &[("forwarded", "for=a;by=b")]),
            [
                "forwarded: for=a;by=b, for=\"[fd00::7]\"",
                "x-forwarded-for: fd00::7"
            ]
        );
    }
}
