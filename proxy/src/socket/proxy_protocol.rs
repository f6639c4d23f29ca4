//! The PROXY protocol, version 2: a header at the start of a connection to the app with the address
//! of the client, for apps that use it in place of the connection's own address. Written only, to
//! the ports configured for the pod.

use std::net::{IpAddr, SocketAddr};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, on behalf of a client.
const PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// The header of a connection from `client` to `app`. Addresses of different families are both
/// written as IPv6.
pub fn header(client: SocketAddr, app: SocketAddr) -> Vec<u8> {
    let (from, to) = (client.ip().to_canonical(), app.ip().to_canonical());
    let (family, addresses) = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            (TCP_OVER_IPV4, [from.octets(), to.octets()].concat())
        }
        (from, to) => {
            let octets = |address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            (TCP_OVER_IPV6, [octets(from), octets(to)].concat())
        }
    };
    let mut header = SIGNATURE.to_vec();
    header.extend([PROXY, family]);
    let ports = [client.port(), app.port()].map(u16::to_be_bytes).concat();
    let length = (addresses.len() + ports.len()) as u16;
    header.extend(length.to_be_bytes());
    header.extend(addresses);
    header.extend(ports);
    header
}

#[cfg(test)]
mod tests {
    use super::header;

    fn of(client: &str, app: &str) -> Vec<u8> {
        header(client.parse().expect("one"), app.parse().expect("one"))
    }

    #[test]
    fn the_header_follows_the_specification() {
        const START: &[u8] = b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A\x21";
        let v4 = [
            START,
            b"\x11\x00\x0c\x0a\x01\x02\x03\x0a\xf4\x00\x09\xd4\x31\x00\x19",
        ];
        assert_eq!(of("10.1.2.3:54321", "10.244.0.9:25"), v4.concat());
        assert_eq!(of("[::ffff:10.1.2.3]:54321", "10.244.0.9:25"), v4.concat());
        let v6 = of("[fd00::7]:1", "[fd00::9]:2");
        assert_eq!(&v6[..16], [START, b"\x21\x00\x24"].concat());
        assert_eq!(v6.len(), 16 + 36);
        assert_eq!(&v6[48..], b"\x00\x01\x00\x02");
    }
}
