//! Processes that bypass the mesh: the redirect rules exempt the proxy's own user, and another
//! process may run as that user, by `setuid` or by the USER of its image.
//!
//! In: the kernel's list of the pod's TCP sockets with their users, and which of them are this
//! process's. Out: the other sockets of this user, as a warning, a metric and in `/config`. They
//! are reported only; prevention is up to the webhook, which sees a `runAsUser` but not the image.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::geteuid;
use tokio::time::sleep;

use crate::admin::Health;
use crate::config::Config;
use crate::observe::metrics::Metrics;

/// Interval between scans of the sockets while apps start …
const AT_FIRST: Duration = Duration::from_secs(5);
/// … for this many scans, …
const LOOKS_AT_FIRST: u32 = 24;
/// … and the interval after that.
const LATER: Duration = Duration::from_secs(60);
/// Bound on the kernel's list per scan, in bytes: some 100,000 sockets.
const MAX_LIST: u64 = 16 * 1024 * 1024;
/// How many sockets are listed by address.
const MAX_NAMED: usize = 8;

/// States of a socket in the kernel's list.
const ESTABLISHED: &str = "01";
const LISTEN: &str = "0A";

/// A socket of another process that runs as the proxy's user.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Foreign {
    inode: u64,
    local: SocketAddr,
    /// `None`: a listening socket.
    remote: Option<SocketAddr>,
}

/// Scans the sockets periodically for as long as the proxy runs. Does nothing where the redirect
/// rules do not identify the proxy by its user.
pub async fn watch(config: Arc<Config>, health: Arc<Health>, metrics: Metrics) {
    let user = geteuid().as_raw();
    let by_user = config.socket_mark.is_none() && config.outbound_port.is_some() && user != 0;
    if !by_user {
        // The control thread treats a task that ends as a failure, so this one stays pending.
        return std::future::pending().await;
    }
    let mut known: HashSet<u64> = HashSet::new();
    let mut warned = false;
    let mut looks = 0;
    loop {
        sleep(if looks < LOOKS_AT_FIRST {
            AT_FIRST
        } else {
            LATER
        })
        .await;
        looks += 1;
        let looked = tokio::task::spawn_blocking(move || look(user)).await;
        let found = match looked {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::debug!(%error, "can't read the list of the pod's sockets");
                continue;
            }
            // The runtime is shutting down.
            Err(_) => return,
        };
        // A socket seen in two scans is not merely in the middle of being opened or closed.
        let lasting: Vec<&Foreign> = found.iter().filter(|f| known.contains(&f.inode)).collect();
        metrics.bypassing(lasting.len());
        let named: Vec<String> = lasting
            .iter()
            .take(MAX_NAMED)
            .map(|f| f.to_string())
            .collect();
        if !lasting.is_empty() && !std::mem::replace(&mut warned, true) {
            tracing::warn!(
                user,
                sockets = lasting.len(),
                examples = named.join(", "),
                "another process of this pod runs as the sidecar's user: what it sends passes the \
                 mesh by, without identity, encryption and policy; give its container another \
                 runAsUser"
            );
        }
        health.set_bypassing(named);
        known = found.into_iter().map(|f| f.inode).collect();
    }
}

/// The sockets of `user` in the pod that are not this process's.
fn look(user: u32) -> io::Result<Vec<Foreign>> {
    let mut own = own_sockets()?;
    let mut found = Vec::new();
    for list in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match File::open(list) {
            Ok(file) => found.extend(listed(file.take(MAX_LIST), user)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    // Includes sockets that were opened during the scan.
    own.extend(own_sockets()?);
    found.retain(|socket| !own.contains(&socket.inode));
    Ok(found)
}

/// Inodes of this process's sockets.
fn own_sockets() -> io::Result<HashSet<u64>> {
    let mut inodes = HashSet::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        // A descriptor that was closed in the meantime no longer resolves.
        if let Ok(target) = fs::read_link(entry?.path())
            && let Some(inode) = target.to_str().and_then(socket_inode)
        {
            inodes.insert(inode);
        }
    }
    Ok(inodes)
}

fn socket_inode(target: &str) -> Option<u64> {
    target
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// Parses a kernel list for open sockets of `user` that belong to a process.
fn listed(list: impl Read, user: u32) -> Vec<Foreign> {
    let lines = BufReader::new(list).lines().map_while(Result::ok);
    lines.filter_map(|line| parse(&line, user)).collect()
}

/// `sl local remote st tx:rx tr:when retrnsmt uid timeout inode …`
fn parse(line: &str, user: u32) -> Option<Foreign> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
    let mut fields = fields.skip(3);
    let owner: u32 = fields.next()?.parse().ok()?;
    let inode: u64 = fields.nth(1)?.parse().ok()?;
    // A socket without an inode belongs to no process: not accepted yet, or already closed.
    if owner != user || inode == 0 {
        return None;
    }
    let remote = match state {
        LISTEN => None,
        ESTABLISHED => Some(address(remote)?),
        _ => return None,
    };
    Some(Foreign {
        inode,
        local: address(local)?,
        remote,
    })
}

/// `0100007F:1F90`, in the machine's byte order.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let word = |at: usize| {
        let word = u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?;
        Some(word.to_ne_bytes())
    };
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let mut bytes = [0; 16];
            for (to, from) in bytes.chunks_exact_mut(4).zip(words) {
                to.copy_from_slice(&from);
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.remote {
            Some(remote) => write!(f, "{} to {remote}", self.local),
            None => write!(f, "{} listens", self.local),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::process::{Child, Command};

    use super::*;

    const LIST: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when \
        retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 4711 1 \
   0000000000000000 100 0 0 10 0
   1: 0100007F:1F91 0200000A:01BB 01 00000000:00000000 00:00000000 00000000  1337        0 4712 1 \
   0000000000000000 20 4 30 10 -1
   2: 00000000:1F92 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 \
   0000000000000000 100 0 0 10 0
   3: 0100007F:1F93 0200000A:01BB 06 00000000:00000000 03:000016D4 00000000  1337        0 0 3 \
   0000000000000000
   4: 0100007F:1F94 0200000A:01BB 01 00000000:00000000 00:00000000 00000000  1337        0 0 1 \
   0000000000000000 20 4 30 10 -1
   5: cut off
";
    const LIST6: &str = "   0: 0000000000000000FFFF00000200000A:1F95 \
        000080FE0000000000000000010000FF:0050 01 00000000:00000000 00:00000000 00000000  \
        1337        0 4714 1 0000000000000000 20 4 30 10 -1
";

    #[test]
    fn sockets_of_the_user_that_belong_to_a_process_are_found() {
        let found = listed(LIST.as_bytes(), 1337);
        let texts: Vec<String> = found.iter().map(Foreign::to_string).collect();
        let expected = ["0.0.0.0:8080 listens", "127.0.0.1:8081 to 10.0.0.2:443"];
        assert_eq!(texts, expected);
        assert_eq!((found[0].inode, found[1].inode), (4711, 4712));
        let found = listed(LIST6.as_bytes(), 1337);
        assert_eq!(found[0].to_string(), "10.0.0.2:8085 to [fe80::ff00:1]:80");
        assert!(listed(LIST.as_bytes(), 1000).is_empty());
    }

    /// The child is killed when this is dropped.
    struct Other(Child);

    impl Drop for Other {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn another_process_of_the_same_user_is_distinguished_from_this_one() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
        let address = listener.local_addr().expect("an address");
        let script = format!("exec 3<>/dev/tcp/127.0.0.1/{}; read <&3", address.port());
        let other = Command::new("bash").args(["-c", &script]).spawn();
        let _other = Other(other.expect("bash"));
        let _accepted = listener.accept().expect("a connection");
        let found = look(geteuid().as_raw()).expect("a list");
        let theirs: Vec<&Foreign> = found
            .iter()
            .filter(|socket| socket.local == address || socket.remote == Some(address))
            .collect();
        // The other end and the listener are this process's.
        assert_eq!(theirs.len(), 1, "{theirs:?}");
        assert_eq!(theirs[0].remote, Some(address));
    }
}
