//! How evenly requests are distributed over endpoints that are equally fast.

use super::*;

/// Random latencies: some milliseconds, with one outlier in twenty of ten times that, as on a busy
/// machine.
fn latency(random: &mut SmallRng) -> u64 {
    let usual = random.random_range(500_000..4 * MS);
    match random.random_range(0..20) {
        0 => usual * 10,
        _ => usual,
    }
}

/// Sends `requests`, `apart` nanoseconds from each other, with up to `at_once` in flight, and
/// returns the endpoint of each.
fn picks(endpoints: u64, requests: u64, apart: u64, at_once: usize, seed: u64) -> Vec<u64> {
    let set = set_of(endpoints);
    let mut random = SmallRng::seed_from_u64(seed);
    let mut in_flight = std::collections::VecDeque::new();
    let mut picks = Vec::new();
    let mut now = SECOND;
    for _ in 0..requests {
        now += apart;
        while in_flight.len() >= at_once {
            let (picked, began): (InFlight, u64) = in_flight.pop_front().expect("a request");
            let taken = latency(&mut random);
            now = now.max(began + taken);
            picked.end(ok(), taken, now);
        }
        let picked = pick_at(&set, &[], &mut random, Nanos(now)).expect("an endpoint");
        picks.push(picked.endpoint.id);
        in_flight.push_back((picked, now));
    }
    picks
}

/// The least and the most requests that an endpoint gets in any `window` consecutive requests, as a
/// fraction of its fair share.
fn extremes(picks: &[u64], endpoints: u64, window: usize) -> (f64, f64) {
    let (mut least, mut most) = (f64::MAX, 0.0_f64);
    for window in picks.chunks_exact(window) {
        let fair = window.len() as f64 / endpoints as f64;
        for id in 0..endpoints {
            let share = window.iter().filter(|pick| **pick == id).count() as f64 / fair;
            (least, most) = (least.min(share), most.max(share));
        }
    }
    (least, most)
}

/// The bound that proxy/README.md documents for consecutive requests, fifteen for each endpoint and
/// thirty at least.
const LEAST: f64 = 0.4;
const MOST: f64 = 1.6;

#[test]
fn equal_endpoints_share_within_the_documented_bounds_at_any_rate() {
    // One call at a time, back to back and one a second; and fifty at once.
    for (apart, at_once) in [(MS / 10, 1), (SECOND, 1), (MS / 10, 50)] {
        for endpoints in [2, 3, 10] {
            for seed in 0..10 {
                let picks = picks(endpoints, 3_000, apart, at_once, seed);
                let window = 30.max(15 * endpoints as usize);
                let (least, most) = extremes(&picks, endpoints, window);
                assert!(
                    least >= LEAST && most <= MOST,
                    "{endpoints} endpoints, {at_once} at once, {apart} ns apart, seed {seed}: \
                     between {least} and {most} of a fair share"
                );
            }
        }
    }
}

#[test]
fn two_endpoints_take_turns_while_nothing_is_in_flight() {
    let picks = picks(2, 100, SECOND, 1, 1);
    let same = picks.windows(2).filter(|pair| pair[0] == pair[1]).count();
    assert!(same <= 5, "{same} of 99: {picks:?}");
}
