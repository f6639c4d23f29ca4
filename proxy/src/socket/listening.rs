//! The ports of this pod that have a listener. A port invented by a client gets no series of its
//! own.
//!
//! In: a port that clients call. Out: whether it gets a series. The kernel's tables are read at
//! most ten times a second.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

/// The kernel's tables of sockets, which list listening ones first.
const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];
/// The state of a listening socket in these tables.
const LISTEN: &str = "0A";
/// How long the tables are not read again for unknown ports.
const FRESH: Duration = Duration::from_millis(100);
/// Bound on the known ports: apps that listen on more share one series for the rest.
const MAX_PORTS: usize = 1_024;

/// The ports known to one worker.
#[derive(Default)]
pub struct Listening {
    /// Ports stay known: their counters continue when the app restarts.
    known: RefCell<HashSet<u16>>,
    looked: Cell<Option<Instant>>,
}

impl Listening {
    /// Whether `port` has or had a listener.
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

/// The listening ports, from the beginning of one of the kernel's tables.
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
    fn a_port_is_known_once_it_has_a_listener() {
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
    fn parsing_ends_with_the_first_socket_that_does_not_listen() {
        let table = b"  sl  local_address rem_address   st\n\
            0: 00000000:1F90 00000000:0000 0A 0\n\
            1: 0100007F:0050 00000000:0000 0A 0\n\
            2: 0100007F:1F91 0100007F:0050 01 0\n\
            3: 0100007F:1F92 00000000:0000 0A 0\n";
        assert_eq!(super::listening(&table[..]).collect::<Vec<_>>(), [8080, 80]);
        assert_eq!(super::listening(&b"sl\nodd\n"[..]).count(), 0);
    }
}
