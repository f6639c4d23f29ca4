mod evenness;

use rand::SeedableRng;

use super::*;
use crate::balance::Peer;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MS;

fn set_of(number: u64) -> EndpointSet {
    EndpointSet::new((0..number).map(endpoint).collect())
}

fn endpoint(id: u64) -> Arc<Endpoint> {
    Arc::new(Endpoint {
        id,
        address: ([127, 0, 0, 1], 80).into(),
        peer: Peer::Plain,
        pod: "".into(),
        workload: "".into(),
        zone: "".into(),
        load: Load::new(Arc::default()),
    })
}

fn random() -> SmallRng {
    SmallRng::seed_from_u64(7)
}

fn ok() -> AttemptOutcome {
    AttemptOutcome::Response { status: 200 }
}

impl InFlight {
    fn end(mut self, outcome: AttemptOutcome, latency: u64, now: u64) {
        self.answered_at(outcome, Duration::from_nanos(latency), Nanos(now));
    }
}

/// Fails all requests to the endpoint `id` at `now` until it is ejected.
fn eject(set: &EndpointSet, id: u64, now: u64) {
    let endpoint = &set.endpoints[id as usize];
    for _ in 0..5 {
        InFlight::new(endpoint, Admission::Regular, Nanos(now)).end(AttemptOutcome::Reset, MS, now);
    }
    assert!(endpoint.load.is_unwell());
}

/// How many of `requests` each endpoint gets, sent one after the other, with a latency of its own.
fn shares(set: &EndpointSet, requests: u64, latency: impl Fn(u64) -> u64) -> Vec<u64> {
    let mut random = random();
    let mut shares = vec![0; set.endpoints.len()];
    for number in 0..requests {
        let now = Nanos(number * MS);
        let picked = pick_at(set, &[], &mut random, now).expect("an endpoint");
        let id = picked.endpoint.id;
        shares[id as usize] += 1;
        picked.end(ok(), latency(id), now.0);
    }
    shares
}

#[test]
fn equal_endpoints_share_equally() {
    for number in [2, 3, 10] {
        let fair = 10_000 / number;
        for share in shares(&set_of(number), 10_000, |_| 3 * MS) {
            assert!(share.abs_diff(fair) < fair / 10, "{share} of {fair}");
        }
    }
}

#[test]
fn small_differences_in_latency_do_not_unbalance() {
    for share in shares(&set_of(3), 9_000, |id| (3 + id) * MS) {
        assert!(share.abs_diff(3_000) < 300, "{share}");
    }
}

#[test]
fn a_slow_endpoint_gets_little() {
    let shares = shares(
        &set_of(3),
        30_000,
        |id| if id == 0 { 500 * MS } else { 5 * MS },
    );
    assert!(shares[0] > 0 && shares[0] < 300, "{shares:?}");
    assert!(shares[1].abs_diff(shares[2]) < 1_500, "{shares:?}");
}

#[test]
fn an_endpoint_that_is_busy_gets_less() {
    let set = set_of(2);
    let mut random = random();
    let held: Vec<_> = (0..100)
        .map(|_| pick_at(&set, &[], &mut random, Nanos(1)).expect("an endpoint"))
        .collect();
    let first = held.iter().filter(|h| h.endpoint.id == 0).count();
    assert_eq!(first, 50);
    drop(held);
    assert_eq!(set.endpoints[0].load.in_flight(), 0);
    assert_eq!(set.endpoints[1].load.in_flight(), 0);
}

#[test]
fn a_new_endpoint_gets_its_share_without_a_stampede() {
    let mut set = set_of(4);
    shares(&set, 1_000, |_| 20 * MS);
    set.endpoints.push(endpoint(4));
    let mut random = random();
    let held: Vec<_> = (0..100)
        .map(|_| pick_at(&set, &[], &mut random, Nanos(SECOND)).expect("an endpoint"))
        .collect();
    let new = held.iter().filter(|h| h.endpoint.id == 4).count();
    assert!((15..=25).contains(&new), "{new}");
}

#[test]
fn one_outlier_does_not_exclude_an_endpoint() {
    let set = set_of(2);
    shares(&set, 1_000, |_| 5 * MS);
    let end = |id: usize, latency, now| {
        InFlight::new(&set.endpoints[id], Admission::Regular, Nanos(now)).end(ok(), latency, now);
    };
    end(0, 30 * SECOND, SECOND);
    end(1, 5 * MS, 6 * SECOND);
    let mut random = random();
    let later = Nanos(6 * SECOND);
    let hits = (0..100)
        .filter(|_| {
            let picked = pick_at(&set, &[], &mut random, later).expect("an endpoint");
            picked.endpoint.id == 0
        })
        .count();
    assert!((30..70).contains(&hits), "{hits}");
}

#[test]
fn the_first_requests_to_an_endpoint_may_be_slow() {
    let set = set_of(2);
    shares(&set, 1_000, |_| 5 * MS);
    let mut fresh = set.clone();
    fresh.endpoints[0] = endpoint(0);
    let mut random = random();
    let mut hits = 0;
    for number in 0..200 {
        let now = Nanos(SECOND + number * MS);
        let picked = pick_at(&fresh, &[], &mut random, now).expect("an endpoint");
        let cold = picked.endpoint.id == 0 && hits < 2;
        hits += u64::from(picked.endpoint.id == 0);
        picked.end(ok(), if cold { SECOND } else { 5 * MS }, now.0);
    }
    assert!((70..130).contains(&hits), "{hits}");
}

#[test]
fn tried_endpoints_are_avoided_while_there_are_others() {
    let set = set_of(3);
    let mut random = random();
    for _ in 0..100 {
        let picked = pick_at(&set, &[0, 2], &mut random, Nanos(1)).expect("an endpoint");
        assert_eq!(picked.endpoint.id, 1);
    }
    assert!(pick_at(&set, &[0, 1, 2], &mut random, Nanos(1)).is_some());
    assert!(pick_at(&set_of(1), &[0], &mut random, Nanos(1)).is_some());
    assert!(pick_at(&set_of(0), &[], &mut random, Nanos(1)).is_none());
}

#[test]
fn consecutive_failures_eject_and_one_probe_restores() {
    let set = set_of(3);
    let mut random = random();
    eject(&set, 1, SECOND);
    for _ in 0..200 {
        let picked = pick_at(&set, &[], &mut random, Nanos(2 * SECOND)).expect("an endpoint");
        assert_ne!(picked.endpoint.id, 1);
    }
    // The ejection is over: exactly one request goes there until it is answered.
    let over = 12 * SECOND;
    let held: Vec<_> = (0..200)
        .map(|_| pick_at(&set, &[], &mut random, Nanos(over)).expect("an endpoint"))
        .collect();
    let (probes, others): (Vec<_>, Vec<_>) = held.into_iter().partition(|h| h.endpoint.id == 1);
    assert_eq!(probes.len(), 1);
    drop(others);
    for probe in probes {
        probe.end(ok(), MS, over);
    }
    let hits = (0..300)
        .filter(|_| {
            let picked = pick_at(&set, &[], &mut random, Nanos(over)).expect("an endpoint");
            picked.endpoint.id == 1
        })
        .count();
    assert!(hits > 50, "{hits}");
}

#[test]
fn a_failed_probe_ejects_for_twice_as_long_up_to_a_bound() {
    let load_of = set_of(3);
    let endpoint = &load_of.endpoints[1];
    let mut now = SECOND;
    eject(&load_of, 1, now);
    for length in [10, 20, 40, 80, 160, 300, 300] {
        assert!(!endpoint.load.take_probe(Nanos(now + length * SECOND - 1)));
        now += length * SECOND;
        assert!(endpoint.load.take_probe(Nanos(now)), "after {length}");
        assert!(!endpoint.load.take_probe(Nanos(now)));
        InFlight::new(endpoint, Admission::Probe, Nanos(now)).end(
            AttemptOutcome::ConnectFailed,
            MS,
            now,
        );
    }
    let counter = &endpoint.load;
    assert!(counter.is_ejected());
}

#[test]
fn a_cancelled_probe_may_be_repeated() {
    let set = set_of(3);
    eject(&set, 1, SECOND);
    let over = Nanos(12 * SECOND);
    assert!(set.endpoints[1].load.take_probe(over));
    drop(InFlight::new(&set.endpoints[1], Admission::Probe, over));
    assert!(set.endpoints[1].load.take_probe(over));
}

#[test]
fn long_good_standing_resets_the_ejection_time() {
    let set = set_of(3);
    let endpoint = &set.endpoints[1];
    let mut now = SECOND;
    for _ in 0..3 {
        eject(&set, 1, now);
        now += 1_000 * SECOND;
        assert!(endpoint.load.take_probe(Nanos(now)));
        InFlight::new(endpoint, Admission::Probe, Nanos(now)).end(ok(), MS, now);
    }
    eject(&set, 1, now);
    assert!(endpoint.load.take_probe(Nanos(now + 10 * SECOND)));
}

#[test]
fn a_success_in_between_resets_the_count_of_failures() {
    let set = set_of(2);
    let endpoint = &set.endpoints[0];
    for number in 0..100 {
        let outcome = match number % 5 {
            4 => ok(),
            _ => AttemptOutcome::Response { status: 503 },
        };
        InFlight::new(endpoint, Admission::Regular, Nanos(1)).end(outcome, MS, 1);
    }
    assert!(!endpoint.load.is_ejected());
    for _ in 0..100 {
        let outcome = AttemptOutcome::Response { status: 500 };
        InFlight::new(endpoint, Admission::Regular, Nanos(1)).end(outcome, MS, 1);
    }
    assert!(!endpoint.load.is_ejected());
}

#[test]
fn with_more_than_half_ejected_ejection_is_ignored() {
    let set = set_of(3);
    let mut random = random();
    eject(&set, 0, SECOND);
    eject(&set, 1, SECOND);
    let now = Nanos(2 * SECOND);
    // The one in good standing comes first, but a retry may go to an ejected one.
    let picked = pick_at(&set, &[2], &mut random, now).expect("an endpoint");
    assert_ne!(picked.endpoint.id, 2);
    drop(picked);
    eject(&set, 2, SECOND);
    let mut seen = [false; 3];
    for _ in 0..100 {
        let picked = pick_at(&set, &[], &mut random, now).expect("an endpoint");
        seen[picked.endpoint.id as usize] = true;
    }
    assert_eq!(seen, [true; 3]);
    // An endpoint that answers is restored.
    let picked = pick_at(&set, &[], &mut random, now).expect("an endpoint");
    let id = picked.endpoint.id;
    picked.end(ok(), MS, now.0);
    assert!(!set.endpoints[id as usize].load.is_ejected());
}

#[test]
fn the_only_endpoint_is_used_however_often_it_fails() {
    let set = set_of(1);
    eject(&set, 0, SECOND);
    assert!(pick_at(&set, &[], &mut random(), Nanos(2 * SECOND)).is_some());
}

#[test]
fn an_endpoint_that_did_not_accept_a_connection_is_avoided() {
    let set = set_of(2);
    let mut random = random();
    let now = Nanos(SECOND);
    InFlight::new(&set.endpoints[0], Admission::Regular, now).end(
        AttemptOutcome::ConnectFailed,
        MS,
        now.0,
    );
    for _ in 0..100 {
        let picked = pick_at(&set, &[], &mut random, now).expect("an endpoint");
        assert_eq!(picked.endpoint.id, 1);
    }
    let picked = pick_at(&set, &[1], &mut random, now).expect("an endpoint");
    assert_eq!(picked.endpoint.id, 0);
}

#[test]
fn an_endpoint_with_another_identity_is_refused_even_as_the_last_one() {
    for number in [1, 2] {
        let set = set_of(number);
        let mut random = random();
        for endpoint in &set.endpoints {
            let now = Nanos(SECOND);
            InFlight::new(endpoint, Admission::Regular, now).end(
                AttemptOutcome::IdentityMismatch,
                MS,
                now.0,
            );
        }
        assert!(pick_at(&set, &[], &mut random, Nanos(2 * SECOND)).is_none());
        let over = Nanos(11 * SECOND);
        let probe = pick_at(&set, &[], &mut random, over).expect("a probe");
        if number == 1 {
            assert!(pick_at(&set, &[], &mut random, over).is_none());
        }
        let id = probe.endpoint.id as usize;
        probe.end(AttemptOutcome::ConnectFailed, MS, over.0);
        let endpoint = &set.endpoints[id];
        assert_eq!(
            endpoint.load.standing(Nanos(over.0 + 2 * SECOND)),
            Standing::Refused
        );
        assert!(endpoint.load.take_probe(Nanos(over.0 + 20 * SECOND)));
    }
}

#[test]
fn the_latency_of_a_cancelled_request_is_a_lower_bound() {
    let set = set_of(2);
    let endpoint = &set.endpoints[0];
    let start = |now| InFlight::new(endpoint, Admission::Regular, Nanos(now));
    for _ in 0..3 {
        start(0).end(ok(), 100 * MS, 0);
    }
    start(0).end(AttemptOutcome::Cancelled, MS, 0);
    start(0).end(AttemptOutcome::Response { status: 503 }, MS, 0);
    let known = endpoint.load.latency(Nanos(0)).expect("an estimate");
    assert!((known - 100e6).abs() < 1e6);
    start(0).end(AttemptOutcome::TimedOut, 120 * MS, 0);
    let known = endpoint.load.latency(Nanos(0)).expect("an estimate");
    assert!((known - 120e6).abs() < 1e6);
}

/// The endpoints 0 and 1, preferred to 2 and 3.
fn near_and_far() -> EndpointSet {
    EndpointSet::preferring(
        (0..2).map(endpoint).collect(),
        (2..4).map(endpoint).collect(),
    )
}

/// The endpoints that get `requests`, all at `now` and answered successfully.
fn used(set: &EndpointSet, tried: &[u64], requests: u64, now: u64) -> Vec<u64> {
    let mut random = random();
    let ids = (0..requests).map(|_| {
        let picked = pick_at(set, tried, &mut random, Nanos(now)).expect("an endpoint");
        let id = picked.endpoint.id;
        picked.end(ok(), MS, now);
        id
    });
    let mut ids: Vec<u64> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[test]
fn preferred_endpoints_share_all_requests() {
    let set = near_and_far();
    let shares = shares(&set, 1_000, |_| MS);
    assert_eq!(shares[2..], [0, 0]);
    assert!(shares[0].abs_diff(500) < 100, "{shares:?}");
    eject(&set, 0, SECOND);
    assert_eq!(used(&set, &[], 100, SECOND), [1]);
}

#[test]
fn others_are_used_only_while_no_preferred_endpoint_is_available() {
    let set = near_and_far();
    eject(&set, 0, SECOND);
    eject(&set, 1, SECOND);
    assert_eq!(used(&set, &[], 100, SECOND), [2, 3]);
    // The ejection is over: one request probes each, and they recover.
    assert_eq!(used(&set, &[], 2, 60 * SECOND), [0, 1]);
    assert_eq!(used(&set, &[], 100, 60 * SECOND), [0, 1]);
}

#[test]
fn the_only_preferred_endpoint_is_skipped_while_it_is_ejected() {
    let set = EndpointSet::preferring(vec![endpoint(0)], vec![endpoint(1), endpoint(2)]);
    assert_eq!(used(&set, &[], 100, SECOND), [0]);
    let refused = InFlight::new(&set.endpoints[0], Admission::Regular, Nanos(SECOND));
    refused.end(AttemptOutcome::ConnectFailed, MS, SECOND);
    assert_eq!(used(&set, &[], 100, SECOND), [1, 2]);
    assert_eq!(used(&set, &[], 100, 10 * SECOND), [0]);
    eject(&set, 0, 20 * SECOND);
    assert_eq!(used(&set, &[], 100, 20 * SECOND), [1, 2]);
    for id in 0..3 {
        eject(&set, id, 20 * SECOND);
    }
    // Too many are ejected: ejection is ignored rather than failing requests.
    assert_eq!(used(&set, &[], 1, 20 * SECOND).len(), 1);
}

#[test]
fn a_request_that_has_tried_the_preferred_endpoints_uses_another() {
    let set = near_and_far();
    assert_eq!(used(&set, &[0], 100, SECOND), [1]);
    assert_eq!(used(&set, &[0, 1], 100, SECOND), [2, 3]);
    assert_eq!(used(&set, &[0, 1, 2], 100, SECOND), [3]);
}
