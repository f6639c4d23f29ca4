//! The node's name server: Services and pods as in a cluster, and nothing else. It does not forward
//! queries.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use rand::seq::SliceRandom;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};

use super::address::NODE_V4;

/// The cluster's domain.
pub const ZONE: &str = "cluster.local";
const PORT: u16 = 53;
/// The TTL of CoreDNS: clients see a change soon.
const TTL_SECONDS: u32 = 5;
/// The size limit of a UDP response to a client without EDNS, and the largest UDP response, in
/// bytes.
const UDP_LEAST: u16 = 512;
const UDP_MOST: u16 = 1_232;
/// Concurrent TCP connections.
const MAX_CONNECTIONS: usize = 256;
/// CNAMEs that are followed from one name, as resolvers do.
const MAX_ALIASES: usize = 8;
/// Idle timeout of a connection.
const IDLE: Duration = Duration::from_secs(10);
/// Pause after a socket error.
const PAUSE: Duration = Duration::from_millis(100);

/// All names, in lower case and without the trailing dot. A name without records exists all the
/// same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    names: BTreeMap<String, Vec<Data>>,
}

/// The data of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    Address(IpAddr),
    Alias(String),
    Service {
        port: u16,
        target: String,
    },
    /// The host name of an address (PTR).
    Pointer(String),
}

impl Names {
    /// Adds a record, and creates the names above it.
    pub fn add(&mut self, name: &str, data: Data) {
        let held = self.names.entry(name.to_lowercase()).or_default();
        if !held.contains(&data) {
            held.push(data);
        }
        self.exists(name);
    }

    /// Creates a name and those above it.
    pub fn exists(&mut self, name: &str) {
        let name = name.to_lowercase();
        let mut rest = name.as_str();
        loop {
            self.names.entry(rest.to_owned()).or_default();
            match rest.split_once('.') {
                Some((_, above)) => rest = above,
                None => return,
            }
        }
    }

    /// Adds a PTR record.
    pub fn reverse(&mut self, address: IpAddr, name: &str) {
        let reversed = match address {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                format!("{d}.{c}.{b}.{a}.in-addr.arpa")
            }
            IpAddr::V6(v6) => {
                let nibbles = v6
                    .octets()
                    .into_iter()
                    .rev()
                    .flat_map(|byte| [byte & 15, byte >> 4]);
                let digits: Vec<String> = nibbles.map(|nibble| format!("{nibble:x}")).collect();
                format!("{}.ip6.arpa", digits.join("."))
            }
        };
        self.add(&reversed, Data::Pointer(name.to_owned()));
    }

    /// The response to a query. `None`: the query is dropped.
    fn answer(&self, query: &[u8]) -> Option<Message> {
        let query = Message::from_vec(query).ok()?;
        if query.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        // Without RA, a resolver may turn to another server, and there is none.
        answer.metadata.recursion_available = true;
        if query.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_MOST);
            answer.set_edns(edns);
        }
        let [question] = query.queries.as_slice() else {
            answer.metadata.response_code = ResponseCode::FormErr;
            return Some(answer);
        };
        answer.add_query(question.clone());
        if query.metadata.op_code != OpCode::Query {
            answer.metadata.response_code = ResponseCode::NotImp;
            return Some(answer);
        }
        answer.metadata.authoritative = true;
        let name = question.name().to_utf8().to_lowercase();
        let Some(held) = self.names.get(name.trim_end_matches('.')) else {
            answer.metadata.response_code = ResponseCode::NXDomain;
            answer.add_authority(authority());
            return Some(answer);
        };
        let kind = question.query_type();
        let (mut owner, mut held) = (question.name().clone(), held);
        for _ in 0..=MAX_ALIASES {
            let records = held
                .iter()
                .filter_map(Data::record)
                .filter(|data| {
                    let own = data.record_type();
                    own == kind || own == RecordType::CNAME || kind == RecordType::ANY
                })
                .map(|data| Record::from_rdata(owner.clone(), TTL_SECONDS, data));
            answer.add_answers(records);
            // A stub resolver does not query a CNAME's target itself: the response has to include
            // it.
            let target = held.iter().find_map(Data::target);
            let target = target.filter(|_| kind != RecordType::CNAME && kind != RecordType::ANY);
            let Some((name, records)) = target.and_then(|target| {
                let name = Name::from_str(&format!("{target}.")).ok()?;
                Some((name, self.names.get(&target)?))
            }) else {
                break;
            };
            (owner, held) = (name, records);
        }
        if answer.answers.is_empty() {
            answer.add_authority(authority());
        }
        Some(answer)
    }
}

impl Data {
    /// The target of a CNAME, in the form of [`Names`].
    fn target(&self) -> Option<String> {
        match self {
            Self::Alias(target) => Some(target.trim_end_matches('.').to_lowercase()),
            _ => None,
        }
    }

    fn record(&self) -> Option<RData> {
        let name = |text: &str| Name::from_str(&format!("{text}.")).ok();
        Some(match self {
            Self::Address(IpAddr::V4(v4)) => RData::A(A(*v4)),
            Self::Address(IpAddr::V6(v6)) => RData::AAAA(AAAA(*v6)),
            Self::Alias(target) => RData::CNAME(CNAME(name(target.trim_end_matches('.'))?)),
            Self::Service { port, target } => RData::SRV(SRV::new(0, 100, *port, name(target)?)),
            Self::Pointer(target) => RData::PTR(PTR(name(target)?)),
        })
    }
}

/// The SOA record, with the TTL of negative responses.
fn authority() -> Record {
    let name = |text: &str| Name::from_str(text).unwrap_or_default();
    let zone = name("cluster.local.");
    let soa = SOA::new(
        name("ns.dns.cluster.local."),
        name("hostmaster.cluster.local."),
        1,
        7_200,
        1_800,
        86_400,
        TTL_SECONDS,
    );
    Record::from_rdata(zone, TTL_SECONDS, RData::SOA(soa))
}

/// Serves on the node's address for the node's lifetime.
pub async fn start(names: watch::Receiver<Arc<Names>>) -> anyhow::Result<()> {
    let udp = UdpSocket::bind((NODE_V4, PORT))
        .await
        .context("listening for DNS by UDP")?;
    let tcp = TcpListener::bind((NODE_V4, PORT))
        .await
        .context("listening for DNS by TCP")?;
    tokio::spawn(by_udp(udp, names.clone()));
    tokio::spawn(by_tcp(tcp, names));
    Ok(())
}

async fn by_udp(socket: UdpSocket, names: watch::Receiver<Arc<Names>>) {
    let mut query = vec![0; usize::from(u16::MAX)];
    loop {
        let Ok((length, client)) = socket.recv_from(&mut query).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let names = names.borrow().clone();
        if let Some(answer) = names.answer(&query[..length]).and_then(|mut answer| {
            // Shuffle the addresses to spread load over pods, but keep CNAMEs before their targets.
            let is_alias = |record: &Record| record.record_type() == RecordType::CNAME;
            let aliases = answer.answers.iter().take_while(|r| is_alias(r)).count();
            answer.answers[aliases..].shuffle(&mut rand::rng());
            fit(answer, room(&query[..length]))
        }) {
            // The client retries.
            let _lost = socket.send_to(&answer, client).await;
        }
    }
}

/// The largest UDP response that the client accepts.
fn room(query: &[u8]) -> usize {
    let says = Message::from_vec(query).map_or(UDP_LEAST, |query| query.max_payload());
    usize::from(says.clamp(UDP_LEAST, UDP_MOST))
}

/// Encodes a response, truncated if it does not fit: the client retries over TCP.
fn fit(answer: Message, room: usize) -> Option<Vec<u8>> {
    let bytes = answer.to_vec().ok()?;
    if bytes.len() <= room {
        return Some(bytes);
    }
    answer.truncate().to_vec().ok()
}

async fn by_tcp(listener: TcpListener, names: watch::Receiver<Arc<Names>>) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Ok(place) = places.clone().acquire_owned().await {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let names = names.clone();
        tokio::spawn(async move {
            let _client_left = connection(stream, names).await;
            drop(place);
        });
    }
}

async fn connection(mut stream: TcpStream, names: watch::Receiver<Arc<Names>>) -> io::Result<()> {
    loop {
        let length = tokio::time::timeout(IDLE, stream.read_u16()).await??;
        let mut query = vec![0; usize::from(length)];
        tokio::time::timeout(IDLE, stream.read_exact(&mut query)).await??;
        let answer = names.borrow().answer(&query);
        let bytes = answer
            .and_then(|answer| fit(answer, usize::from(u16::MAX)))
            .ok_or(io::ErrorKind::InvalidData)?;
        stream.write_u16(bytes.len() as u16).await?;
        stream.write_all(&bytes).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;

    const WEB: &str = "web.shop.svc.cluster.local";

    fn names() -> Names {
        let mut names = Names::default();
        names.add(WEB, Data::Address("10.96.0.16".parse().unwrap()));
        names.add(WEB, Data::Address("fd00:10:96::10".parse().unwrap()));
        names.reverse("10.96.0.16".parse().unwrap(), WEB);
        names.reverse("fd00:10:96::10".parse().unwrap(), WEB);
        let service = Data::Service {
            port: 80,
            target: WEB.to_owned(),
        };
        names.add(&format!("_http._tcp.{WEB}"), service);
        names
    }

    fn ask(names: &Names, name: &str, kind: RecordType) -> Message {
        let mut query = Message::query();
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(Name::from_str(name).unwrap(), kind));
        names.answer(&query.to_vec().unwrap()).unwrap()
    }

    fn answers(name: &str, kind: RecordType) -> (ResponseCode, Vec<String>) {
        let answer = ask(&names(), name, kind);
        let texts = answer.answers.iter().map(|record| record.data.to_string());
        (answer.metadata.response_code, texts.collect())
    }

    #[test]
    fn names_resolve_to_addresses_of_the_queried_family() {
        let (code, texts) = answers("Web.Shop.svc.cluster.local.", RecordType::A);
        assert_eq!(
            (code, texts),
            (ResponseCode::NoError, vec!["10.96.0.16".to_owned()])
        );
        assert_eq!(
            answers(&format!("{WEB}."), RecordType::AAAA).1,
            ["fd00:10:96::10"]
        );
    }

    #[test]
    fn absent_names_are_nxdomain_and_existing_ones_may_lack_a_record_type() {
        let (code, texts) = answers("api.shop.svc.cluster.local.", RecordType::A);
        assert_eq!((code, texts.len()), (ResponseCode::NXDomain, 0));
        assert_eq!(
            answers("example.com.", RecordType::A).0,
            ResponseCode::NXDomain
        );
        for name in [WEB, "shop.svc.cluster.local", "svc.cluster.local"] {
            let (code, texts) = answers(&format!("{name}."), RecordType::TXT);
            assert_eq!((code, texts.len()), (ResponseCode::NoError, 0), "{name}");
        }
    }

    #[test]
    fn an_alias_resolves_to_the_addresses_of_its_target() {
        let mut names = names();
        let alias = |name: &str| Data::Alias(name.to_owned());
        names.add(
            "alias.shop.svc.cluster.local",
            alias("Web.shop.svc.cluster.local."),
        );
        names.add(
            "second.shop.svc.cluster.local",
            alias("alias.shop.svc.cluster.local"),
        );
        names.add("out.shop.svc.cluster.local", alias("example.com"));
        names.add(
            "loop.shop.svc.cluster.local",
            alias("loop.shop.svc.cluster.local"),
        );
        let told = |name: &str, kind| {
            let answer = ask(&names, &format!("{name}.shop.svc.cluster.local."), kind);
            let told = answer.answers.iter().map(|record| record.data.to_string());
            told.collect::<Vec<_>>()
        };
        let both = ["web.shop.svc.cluster.local.", "10.96.0.16"];
        assert_eq!(told("alias", RecordType::A), both);
        assert_eq!(told("second", RecordType::A)[2..], both[1..]);
        assert_eq!(told("second", RecordType::A).len(), 3);
        assert_eq!(told("alias", RecordType::CNAME), both[..1]);
        // External names are not resolved here, and CNAME loops are not followed.
        assert_eq!(told("out", RecordType::A), ["example.com."]);
        assert_eq!(told("loop", RecordType::A).len(), MAX_ALIASES + 1);
    }

    #[test]
    fn ports_and_addresses_are_found_as_well() {
        let (_, texts) = answers(&format!("_http._tcp.{WEB}."), RecordType::SRV);
        assert_eq!(texts, [format!("0 100 80 {WEB}.")]);
        assert_eq!(
            answers("16.0.96.10.in-addr.arpa.", RecordType::PTR).1,
            [format!("{WEB}.")]
        );
        let nibbles = "0.1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.1.0.0.0.0.d.f.ip6.arpa.";
        assert_eq!(answers(nibbles, RecordType::PTR).1, [format!("{WEB}.")]);
    }

    #[test]
    fn a_response_that_does_not_fit_is_marked_as_truncated() {
        let mut many = Names::default();
        for last in 1..100 {
            many.add(WEB, Data::Address([10, 244, 0, last].into()));
        }
        let answer = ask(&many, &format!("{WEB}."), RecordType::A);
        let bytes = fit(answer.clone(), usize::from(UDP_LEAST)).unwrap();
        assert!(bytes.len() <= usize::from(UDP_LEAST));
        assert!(Message::from_vec(&bytes).unwrap().metadata.truncation);
        assert_eq!(
            Message::from_vec(&fit(answer, 65_535).unwrap())
                .unwrap()
                .answers
                .len(),
            99
        );
    }

    #[test]
    fn a_malformed_query_gets_no_response() {
        assert!(names().answer(b"").is_none());
        assert!(names().answer(&[0; 7]).is_none());
        let response = Message::response(1, OpCode::Query).to_vec().unwrap();
        assert!(
            names().answer(&response).is_none(),
            "two servers would talk for ever"
        );
    }
}
