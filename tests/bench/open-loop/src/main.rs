//! A client for the benchmark: HTTP/1.1 requests at a fixed rate, independent of earlier ones, or
//! many idle persistent connections. It uses plain threads, one for each busy connection: the
//! benchmark measures the proxies on the same cores, so this client does as little as possible.
//!
//! ```text
//! open-loop rate ADDRESS:PORT --rate N --seconds N --connections N
//! open-loop idle ADDRESS:PORT --connections N
//! ```
//!
//! `rate` ends after its time, and writes one line of JSON. `idle` writes `open`, waits for the end
//! of its standard input, sends one more request on each connection, and writes a line.

mod exchange;
mod idle;
mod rate;

use std::net::SocketAddr;
use std::process::ExitCode;

/// Maximum requests in one run, because each one's latency is stored.
const MAX_REQUESTS: u64 = 10_000_000;
const MAX_CONNECTIONS: usize = 20_000;

/// The parsed options; options of the other mode are ignored.
struct Wanted {
    target: SocketAddr,
    connections: usize,
    /// Requests per second on all connections together.
    rate: u64,
    seconds: u64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((mode, rest)) if mode == "rate" => wanted(rest).and_then(|wanted| rate::run(&wanted)),
        Some((mode, rest)) if mode == "idle" => wanted(rest).and_then(|wanted| idle::run(&wanted)),
        _ => Err("open-loop rate|idle ADDRESS:PORT --connections N [--rate N --seconds N]".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("open-loop: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn wanted(arguments: &[String]) -> Result<Wanted, String> {
    let (target, options) = arguments.split_first().ok_or("ADDRESS:PORT is missing")?;
    let mut wanted = Wanted {
        target: target
            .parse()
            .map_err(|error| format!("{target}: {error}"))?,
        connections: 64,
        rate: 1,
        seconds: 1,
    };
    for option in options.chunks(2) {
        let [name, value] = option else {
            return Err(format!("{} needs a value", option[0]));
        };
        let number: u64 = value.parse().map_err(|error| format!("{name}: {error}"))?;
        match name.as_str() {
            "--connections" => wanted.connections = usize::try_from(number).unwrap_or(usize::MAX),
            "--rate" => wanted.rate = number,
            "--seconds" => wanted.seconds = number,
            _ => return Err(format!("there is no {name}")),
        }
    }
    let requests = wanted.rate.saturating_mul(wanted.seconds);
    if requests == 0 || requests > MAX_REQUESTS {
        return Err(format!("1 to {MAX_REQUESTS} requests are possible"));
    }
    if wanted.connections == 0 || wanted.connections > MAX_CONNECTIONS {
        return Err(format!("1 to {MAX_CONNECTIONS} connections are possible"));
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Wanted, String> {
        let arguments: Vec<String> = text.split(' ').map(str::to_owned).collect();
        wanted(&arguments)
    }

    #[test]
    fn options_are_read_and_bounded() {
        let wanted =
            parsed("10.0.0.1:80 --rate 2000 --seconds 10 --connections 8").expect("good options");
        assert_eq!(wanted.target, "10.0.0.1:80".parse().expect("an address"));
        assert_eq!(
            (wanted.rate, wanted.seconds, wanted.connections),
            (2000, 10, 8)
        );
        for wrong in [
            "nowhere",
            "10.0.0.1:80 --rate",
            "10.0.0.1:80 --rate 0",
            "10.0.0.1:80 --rate 1000000 --seconds 1000000",
            "10.0.0.1:80 --connections 1000000",
            "10.0.0.1:80 --speed 3",
        ] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
