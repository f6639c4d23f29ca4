//! Persistent connections: each makes one request, so that a proxy has served it, and then stays
//! idle.

use std::io::Read;
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Wanted;
use crate::exchange::{Kept, request};

/// Concurrent requests while the connections are opened.
const AT_ONCE: usize = 64;

/// Opens the connections, holds them until standard input ends, and repeats the request on each: a
/// closed connection is an error.
pub fn run(wanted: &Wanted) -> Result<(), String> {
    let opened = together(wanted.connections, |_| {
        let mut kept = Kept::open(wanted.target)?;
        kept.ask(&request(wanted.target))?;
        Ok(kept.idle())
    })?;
    println!("open");
    std::io::stdin()
        .read_to_end(&mut Vec::new())
        .map_err(|error| error.to_string())?;
    let held: Mutex<Vec<TcpStream>> = Mutex::new(opened);
    let again = together(wanted.connections, |_| {
        let stream = held.lock().ok().and_then(|mut held| held.pop());
        let stream = stream.ok_or_else(|| std::io::Error::other("one is missing"))?;
        let mut kept = Kept::again(stream);
        kept.ask(&request(wanted.target))?;
        Ok(kept.idle())
    })?;
    println!(
        "{{\"opened\": {}, \"kept\": {}}}",
        wanted.connections,
        again.len()
    );
    Ok(())
}

/// Calls a function this many times, [`AT_ONCE`] of them concurrently; the first error ends it.
fn together<T: Send>(
    times: usize,
    each: impl Fn(usize) -> std::io::Result<T> + Sync,
) -> Result<Vec<T>, String> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= times {
                return Ok(done);
            }
            let one = each(number).map_err(|error| format!("connection {number}: {error}"))?;
            done.push(one);
        }
    };
    let parts: Vec<Result<Vec<T>, String>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE.min(times)).map(|_| scope.spawn(work)).collect();
        let panicked = |_| Err("a thread panicked".to_owned());
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.map(|part| part.unwrap_or_else(panicked)).collect()
    });
    let parts: Vec<Vec<T>> = parts.into_iter().collect::<Result<_, _>>()?;
    Ok(parts.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_made_once_and_the_first_error_is_returned() {
        let mut all = together(1000, Ok).expect("no error");
        all.sort_unstable();
        assert_eq!(all, (0..1000).collect::<Vec<_>>());
        let odd = together(10, |number| match number {
            7 => Err(std::io::Error::other("odd")),
            _ => Ok(()),
        });
        assert_eq!(odd, Err("connection 7: odd".to_owned()));
    }
}
