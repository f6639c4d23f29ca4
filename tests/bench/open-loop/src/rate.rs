//! Requests at a fixed rate. The schedule is made before the first one is sent. A latency counts
//! from the time a request was due, so that requests behind a slow one count as slow as well (no
//! coordinated omission).

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Wanted;
use crate::exchange::{Kept, request};

/// The timer slack of a sleep. The default of 50 µs would distort the measurement.
const TIMER_SLACK_NS: &str = "1000";
/// Kinds of failures that the report names.
const NAMED_FAILURES: usize = 3;

#[derive(Default)]
struct Done {
    latencies: Vec<u32>,
    failures: Vec<String>,
    failed: u64,
    reconnects: u64,
}

/// Runs to the end, and writes the results as one line of JSON.
pub fn run(wanted: &Wanted) -> Result<(), String> {
    // Threads inherit it from their creator. Without this file in the kernel, latencies are
    // slightly longer for all variants.
    let _longer = fs::write("/proc/self/timerslack_ns", TIMER_SLACK_NS);
    let total = wanted.rate * wanted.seconds;
    // All connections are open before the first request is due.
    let kept: Result<Vec<Kept>, _> = (0..wanted.connections)
        .map(|_| Kept::open(wanted.target))
        .collect();
    let kept = kept.map_err(|error| format!("{}: {error}", wanted.target))?;
    let next = AtomicU64::new(0);
    let start = Instant::now() + Duration::from_millis(10);
    let done: Vec<Done> = std::thread::scope(|scope| {
        let threads: Vec<_> = kept
            .into_iter()
            .map(|kept| scope.spawn(|| carry(wanted, kept, &next, total, start)))
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined.collect::<Result<_, _>>()
    })
    .map_err(|_| "a thread panicked".to_owned())?;
    let seconds = start.elapsed().as_secs_f64();

    let mut latencies: Vec<u32> = done
        .iter()
        .flat_map(|done| done.latencies.iter().copied())
        .collect();
    latencies.sort_unstable();
    let failed: u64 = done.iter().map(|done| done.failed).sum();
    let reconnects: u64 = done.iter().map(|done| done.reconnects).sum();
    let failures = done.iter().flat_map(|done| &done.failures);
    for failure in failures.take(NAMED_FAILURES) {
        eprintln!("open-loop: {failure}");
    }
    println!(
        "{{\"requests\": {total}, \"ok\": {}, \"failed\": {failed}, \"reconnects\": {reconnects}, \
         \"seconds\": {seconds:.3}, \"p50_us\": {}, \"p99_us\": {}, \"p999_us\": {}, \"max_us\": \
         {}}}",
        latencies.len(),
        quantile(&latencies, 500),
        quantile(&latencies, 990),
        quantile(&latencies, 999),
        quantile(&latencies, 1000),
    );
    Ok(())
}

/// One connection's thread: takes the next request from the schedule, waits until it is due, sends
/// it.
fn carry(wanted: &Wanted, kept: Kept, next: &AtomicU64, total: u64, start: Instant) -> Done {
    let request = request(wanted.target);
    let mut done = Done::default();
    let mut kept = Some(kept);
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= total {
            return done;
        }
        let due = start + Duration::from_nanos(number * 1_000_000_000 / wanted.rate);
        #[expect(clippy::disallowed_methods, reason = "a thread for each connection")]
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut connection = match kept.take() {
            Some(connection) => Ok(connection),
            None => {
                done.reconnects += 1;
                Kept::open(wanted.target)
            }
        };
        let outcome = match &mut connection {
            Ok(connection) => connection.ask(&request),
            Err(error) => Err(std::io::Error::other(error.to_string())),
        };
        match outcome {
            Ok(()) => {
                let latency = due.elapsed().as_micros();
                done.latencies
                    .push(u32::try_from(latency).unwrap_or(u32::MAX));
                kept = connection.ok();
            }
            Err(error) => {
                done.failed += 1;
                if done.failures.len() < NAMED_FAILURES {
                    done.failures.push(error.to_string());
                }
            }
        }
    }
}

/// The smallest latency that so many of a thousand do not exceed; 0 without latencies.
fn quantile(sorted: &[u32], of_thousand: usize) -> u32 {
    let rank = (sorted.len() * of_thousand).div_ceil(1000);
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_observed_latencies() {
        let sorted: Vec<u32> = (1..=1000).collect();
        assert_eq!(quantile(&sorted, 500), 500);
        assert_eq!(quantile(&sorted, 999), 999);
        assert_eq!(quantile(&sorted, 1000), 1000);
        assert_eq!(quantile(&[7], 500), 7);
        assert_eq!(quantile(&[], 500), 0);
    }
}
