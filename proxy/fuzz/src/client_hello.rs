//! Any bytes as a ClientHello: more bytes never change a result, and where rustls accepts it, it is
//! one, and the names that the client asks for are those that rustls reads.

use arbitrary::Arbitrary;
use naru_proxy::wire::client_hello::{Hello, MAX_CLIENT_HELLO, normal, parse};
use rustls::server::Acceptor;

/// Prefixes of up to this length are all tried, and some of the longer ones.
const MAX_PREFIX: usize = 64;

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    /// Records.
    Bytes(&'a [u8]),
    /// The body of a ClientHello, in records of this size.
    Body(u8, &'a [u8]),
    /// A ClientHello with these extensions, and those without which rustls refuses it.
    Extensions(u8, Vec<Extension<'a>>),
}

#[derive(Arbitrary, Debug)]
enum Extension<'a> {
    ServerName(Vec<(bool, &'a [u8])>),
    Protocols(Vec<&'a [u8]>),
    Other(u16, &'a [u8]),
}

/// `content` with its length in `N` bytes before it.
fn counted<const N: usize>(content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    [&length[length.len() - N..], content].concat()
}

impl Extension<'_> {
    fn bytes(&self) -> Vec<u8> {
        let (kind, content) = match self {
            Self::ServerName(names) => {
                let name = |(other, name): &(bool, &[u8])| {
                    [&[u8::from(*other)][..], &counted::<2>(name)].concat()
                };
                let names: Vec<u8> = names.iter().flat_map(name).collect();
                (0, counted::<2>(&names))
            }
            Self::Protocols(names) => {
                let short = |name: &&[u8]| counted::<1>(&name[..name.len().min(255)]);
                let names: Vec<u8> = names.iter().flat_map(short).collect();
                (16, counted::<2>(&names))
            }
            Self::Other(kind, content) => (*kind, content.to_vec()),
        };
        [&u16::to_be_bytes(kind)[..], &counted::<2>(&content)].concat()
    }
}

/// Signature algorithms, groups, and versions.
const NEEDED: [&[u8]; 3] = [
    &[0, 13, 0, 4, 0, 2, 4, 3],
    &[0, 10, 0, 4, 0, 2, 0, 29],
    &[0, 43, 0, 3, 2, 3, 4],
];

fn message(body: &[u8], record: u8) -> Vec<u8> {
    let message = [&[1][..], &counted::<3>(body)].concat();
    let records = message.chunks(usize::from(record) + 1);
    records
        .flat_map(|part| [&[22, 3, 1][..], &counted::<2>(part)].concat())
        .collect()
}

impl Input<'_> {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Bytes(bytes) => bytes.to_vec(),
            Self::Body(record, body) => message(body, *record),
            Self::Extensions(record, list) => {
                let list = list.iter().map(Extension::bytes);
                let list = list.chain(NEEDED.map(<[u8]>::to_vec));
                let list: Vec<u8> = list.flatten().collect();
                let start = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 1], &[1, 0]].concat();
                message(&[start, counted::<2>(&list)].concat(), *record)
            }
        }
    }
}

/// The server name and the protocols, as rustls reads them. `None`: rustls rejects the bytes, or
/// waits for more.
fn reference(mut bytes: &[u8]) -> Option<(Option<String>, Vec<Vec<u8>>)> {
    let mut acceptor = Acceptor::default();
    while acceptor.read_tls(&mut bytes).is_ok_and(|length| length > 0) {
        if let Some(accepted) = acceptor.accept().ok()? {
            let hello = accepted.client_hello();
            let protocols = hello.alpn().into_iter().flatten().map(<[u8]>::to_vec);
            return Some((hello.server_name().map(str::to_owned), protocols.collect()));
        }
    }
    None
}

/// Whether a record is longer than RFC 8446 allows, which rustls tolerates in plaintext.
fn has_long_record(mut bytes: &[u8]) -> bool {
    const MAX_RECORD: usize = 16 * 1024;
    while let [_, _, _, high, low, rest @ ..] = bytes {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length > MAX_RECORD {
            return true;
        }
        bytes = rest.get(length..).unwrap_or_default();
    }
    false
}

pub fn one(bytes: &[u8]) {
    let Some(input) = crate::input::input::<Input>(bytes) else {
        return;
    };
    let bytes = input.bytes();
    let hello = parse(&bytes);
    let longer = (MAX_PREFIX..bytes.len()).step_by(bytes.len() / 16 + 1);
    for length in (0..bytes.len().min(MAX_PREFIX)).chain(longer) {
        let early = parse(&bytes[..length]);
        assert!(early == Hello::Incomplete || early == hello, "{early:?}");
    }
    let Some((name, protocols)) = reference(&bytes) else {
        return;
    };
    match &hello {
        Hello::Complete(hello) => {
            if let Some(name) = name {
                assert_eq!(hello.server_name, normal(&name));
            }
            assert!(hello.protocols().eq(protocols));
        }
        Hello::Unreadable => assert!(bytes.len() > MAX_CLIENT_HELLO),
        other => assert!(has_long_record(&bytes), "{other:?}"),
    }
}
