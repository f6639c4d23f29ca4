//! The ports of this pod on which something listens. A port that a client has made up gets no
//! series of its own.
//!
//! In: a port that clients call. Out: whether it is worth a series. The kernel is asked, at most
//! ten times a second.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

/// Where the kernel tells what listens: sockets that do come first.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
/// The state of a socket that listens, as these tables have it.
const LISTEN: &str = "0A";
/// How long what was looked up holds for ports that were not found.
const FRESH: Duration = Duration::from_millis(100);
/// Ports that are remembered: apps that listen on more ports than this share one series for the
/// rest.
const MAX_PORTS: usize = 1_024;

/// What one worker has found out.
#[derive(Default)]
pub struct Listening {
    /// Ports once found stay: what is counted for them goes on when the app restarts.
    known: RefCell<HashSet<u16>>,
    looked: Cell<Option<Instant>>,
}

impl Listening {
    /// Whether something listens on `port`, or did.
    pub fn is(&self, port: u16) -> bool {
        if self.known.borrow().contains(&port) {
            return true;
        }
        if self.looked.get().is_some_and(|at| at.elapsed() < FRESH) {
            return false;
        }
        self.looked.set(Some(Instant::now()));
        let found = TABLES.into_iter().filter_map(|path| File::open(path).ok());
        let found = found.flat_map(|table| listening(BufReader::new(table)));
        let mut known = self.known.borrow_mut();
        for port in found {
            if known.len() >= MAX_PORTS {
                break;
            }
            known.insert(port);
        }
        known.contains(&port)
    }
}

/// The ports at the head of one of the kernel's tables.
fn listening(table: impl BufRead) -> impl Iterator<Item = u16> {
    let lines = table.lines().map_while(Result::ok).skip(1);
    lines.map_while(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, _remote, state) = (words.next()?, words.next()?, words.next()?);
        let port = local.rsplit(':').next()?;
        (state == LISTEN).then(|| u16::from_str_radix(port, 16).ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_port_is_known_from_when_something_listens_on_it() {
        let listening = Listening::default();
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(listening.is(port));
        drop(socket);
        assert!(listening.is(port));
        assert!(!listening.is(1));
    }

    #[test]
    fn an_ipv6_port_is_found_where_there_is_ipv6() {
        let Ok(socket) = TcpListener::bind("[::1]:0") else {
            // The table of a machine without IPv6 has no such line.
            return assert_eq!(super::listening(&b""[..]).count(), 0);
        };
        assert!(Listening::default().is(socket.local_addr().unwrap().port()));
    }

    #[test]
    fn reading_ends_with_the_first_socket_that_does_not_listen() {
        let table = b"  sl  local_address rem_address   st\n\
            0: 00000000:1F90 00000000:0000 0A 0\n\
            1: 0100007F:0050 00000000:0000 0A 0\n\
            2: 0100007F:1F91 0100007F:0050 01 0\n\
            3: 0100007F:1F92 00000000:0000 0A 0\n";
        assert_eq!(super::listening(&table[..]).collect::<Vec<_>>(), [8080, 80]);
        assert_eq!(super::listening(&b"sl\nodd\n"[..]).count(), 0);
    }
}
