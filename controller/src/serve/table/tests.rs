use std::cell::RefCell;

use naru_contract::{Destination, Endpoint, Endpoints, HttpRoute, Inbound, Service, TrustAnchors};
use proptest::prelude::*;

use super::*;

/// The existing resources, and how often each was compiled.
#[derive(Default)]
struct World {
    resources: HashMap<ResourceName, Arc<Compiled>>,
    asked: RefCell<HashMap<ResourceName, usize>>,
}

impl Compile for World {
    fn compile(&self, name: &ResourceName) -> Option<Arc<Compiled>> {
        *self.asked.borrow_mut().entry(name.clone()).or_default() += 1;
        self.resources.get(name).cloned()
    }
}

impl World {
    /// With the resources that every proxy has.
    fn new() -> Self {
        let mut world = Self::default();
        let anchors = Body::TrustAnchors(TrustAnchors::default());
        world.put(ResourceName::TrustAnchors, 1, anchors, &[]);
        world.put(
            ResourceName::Inbound,
            1,
            Body::Inbound(Inbound::default()),
            &[],
        );
        world
    }

    /// `address(last)` is the Service `s<last>` with one route and its endpoints.
    fn service(&mut self, last: u8) {
        let [service, route, endpoints] = [service(last), route(last), endpoints(last)];
        let destination = ResourceName::Destination(address(last));
        let needs = [service.clone()];
        self.put(
            destination,
            1,
            Body::Destination(Destination::default()),
            &needs,
        );
        let needs = [route.clone(), endpoints.clone()];
        self.put(service, 1, Body::Service(Service::default()), &needs);
        let needs = [endpoints.clone()];
        self.put(route, 1, Body::HttpRoute(HttpRoute::default()), &needs);
        self.pods(last, 1, 8);
    }

    /// A new version of the Service's endpoints.
    fn pods(&mut self, last: u8, version: u64, count: u8) {
        let endpoint = |pod| Endpoint {
            ip: vec![10, 0, last, pod].into(),
            port: 8080,
            pod: format!("pod-{pod}"),
            ..Endpoint::default()
        };
        let body = Endpoints {
            endpoints: (0..count).map(endpoint).collect(),
            ..Endpoints::default()
        };
        self.put(endpoints(last), version, Body::Endpoints(body), &[]);
    }

    fn put(&mut self, name: ResourceName, version: u64, body: Body, needs: &[ResourceName]) {
        let compiled = Compiled {
            version,
            body,
            needs: needs.to_vec(),
        };
        self.resources.insert(name, Arc::new(compiled));
    }
}

fn address(last: u8) -> SocketAddr {
    ([10, 96, 0, last], 80).into()
}

fn service(last: u8) -> ResourceName {
    ResourceName::Service {
        client_namespace: "c".to_owned(),
        namespace: "n".to_owned(),
        name: format!("s{last}"),
        port: 80,
    }
}

fn route(last: u8) -> ResourceName {
    ResourceName::HttpRoute {
        namespace: "n".to_owned(),
        name: format!("r{last}"),
    }
}

fn endpoints(last: u8) -> ResourceName {
    ResourceName::Endpoints {
        namespace: "n".to_owned(),
        service: format!("s{last}"),
        port: 80,
    }
}

fn changed(names: &[ResourceName]) -> HashMap<ResourceName, Instant> {
    let now = Instant::now();
    names.iter().map(|name| (name.clone(), now)).collect()
}

/// A table that is subscribed to each of `services`, before the first push.
fn table(world: &World, services: &[u8]) -> Table {
    let mut table = Table::new([]);
    table.subscribe(services.iter().copied().map(address));
    table.resolve_closure(world);
    table
}

/// Sends until no difference is left, and returns what was sent.
fn settle(table: &mut Table) -> Vec<String> {
    let mut sent = Vec::new();
    while let Some(built) = table.next_push() {
        sent.extend(built.push.updates.iter().map(|update| update.name.clone()));
        sent.extend(built.push.removed.iter().map(|name| format!("-{name}")));
        answer(table, built.push.sequence, &[]);
    }
    sent
}

fn answer(table: &mut Table, sequence: u64, rejected: &[&ResourceName]) -> Outcome {
    let rejection = |name: &&ResourceName| Rejection {
        name: name.to_string(),
        reason: "for the test".to_owned(),
    };
    let rejected = rejected.iter().map(rejection).collect();
    table.answer(Answer { sequence, rejected }).unwrap()
}

#[test]
fn referenced_resources_go_first() {
    let mut world = World::new();
    world.service(1);
    let sent = settle(&mut table(&world, &[1]));
    assert_eq!(
        sent,
        [
            "trust-anchors",
            "inbound",
            "endpoints/n/s1/80",
            "http-route/n/r1",
            "service/c/n/s1/80",
            "destination/10.96.0.1:80",
        ]
    );
}

#[test]
fn held_resources_are_not_sent_and_unneeded_ones_are_removed() {
    let mut world = World::new();
    world.service(1);
    let held = [(endpoints(1), 1), (service(1), 7), (endpoints(2), 1)];
    let mut table = Table::new(held);
    table.subscribe([address(1)]);
    table.resolve_closure(&world);
    let sent = settle(&mut table);
    assert!(!sent.contains(&"endpoints/n/s1/80".to_owned()));
    assert!(sent.contains(&"service/c/n/s1/80".to_owned()));
    assert_eq!(sent.last().unwrap(), "-endpoints/n/s2/80");
}

#[test]
fn only_resources_that_may_have_changed_are_compiled_again() {
    let mut world = World::new();
    (1..=3).for_each(|last| world.service(last));
    let mut table = table(&world, &[1, 2, 3]);
    settle(&mut table);
    world.asked.borrow_mut().clear();
    world.pods(2, 2, 9);
    assert_eq!(
        table.refresh(&world, changed(&[endpoints(2)])),
        ClosureChange::default()
    );
    assert_eq!(*world.asked.borrow(), HashMap::from([(endpoints(2), 1)]));
    assert_eq!(settle(&mut table), ["endpoints/n/s2/80"]);
}

#[test]
fn an_unchanged_resource_is_not_sent() {
    let mut world = World::new();
    world.service(1);
    let mut table = table(&world, &[1]);
    settle(&mut table);
    table.refresh(&world, changed(&[endpoints(1), service(1), endpoints(9)]));
    assert_eq!(settle(&mut table), [""; 0]);
}

#[test]
fn new_needs_enter_the_closure_and_old_ones_leave() {
    let mut world = World::new();
    world.service(1);
    world.service(2);
    let mut table = table(&world, &[1]);
    settle(&mut table);
    let needs = [endpoints(2)];
    world.put(service(1), 2, Body::Service(Service::default()), &needs);
    let mut change = table.refresh(&world, changed(&[service(1)]));
    change.left.sort();
    assert_eq!(change.entered, [endpoints(2)]);
    assert_eq!(change.left, [route(1), endpoints(1)]);
    assert_eq!(
        settle(&mut table),
        [
            "endpoints/n/s2/80",
            "service/c/n/s1/80",
            "-http-route/n/r1",
            "-endpoints/n/s1/80",
        ]
    );
}

#[test]
fn a_resource_that_is_gone_is_removed_but_the_proxys_own_inbound_stays() {
    let mut world = World::new();
    world.service(1);
    let mut table = table(&world, &[1]);
    settle(&mut table);
    world.resources.remove(&route(1));
    world.resources.remove(&ResourceName::Inbound);
    table.refresh(&world, changed(&[route(1), ResourceName::Inbound]));
    assert_eq!(settle(&mut table), ["-http-route/n/r1"]);
}

#[test]
fn one_push_is_pending_at_a_time_and_only_its_answer_counts() {
    let mut world = World::new();
    world.service(1);
    let mut table = table(&world, &[1]);
    let first = table.next_push().unwrap();
    world.pods(1, 2, 9);
    table.refresh(&world, changed(&[endpoints(1)]));
    assert!(table.next_push().is_none());
    let wrong = Answer {
        sequence: 2,
        rejected: Vec::new(),
    };
    assert!(table.answer(wrong).is_err());
    assert!(table.is_waiting());
    answer(&mut table, first.push.sequence, &[]);
    let second = table.next_push().unwrap();
    assert_eq!(second.push.sequence, 2);
    assert_eq!(second.forms, [(endpoints(1), Form::Delta)]);
}

#[test]
fn latency_counts_from_the_earliest_change_that_is_in_force() {
    let mut world = World::new();
    world.service(1);
    let mut table = table(&world, &[1]);
    let first = table.next_push().unwrap();
    let outcome = answer(&mut table, first.push.sequence, &[]);
    assert_eq!(outcome.changed_at, None, "nothing changed: it was new");
    let seen = Instant::now();
    for version in 2..5 {
        world.pods(1, version, version as u8);
        let at = seen + std::time::Duration::from_secs(version);
        table.refresh(&world, HashMap::from([(endpoints(1), at)]));
    }
    let push = table.next_push().unwrap().push;
    let outcome = answer(&mut table, push.sequence, &[]);
    assert_eq!(
        outcome.changed_at,
        Some(seen + std::time::Duration::from_secs(2))
    );
}

#[test]
fn a_rejected_delta_is_followed_by_the_whole_resource_once() {
    let mut world = World::new();
    world.service(1);
    let mut table = table(&world, &[1]);
    settle(&mut table);
    world.pods(1, 2, 9);
    table.refresh(&world, changed(&[endpoints(1)]));
    let delta = table.next_push().unwrap();
    assert_eq!(delta.forms, [(endpoints(1), Form::Delta)]);
    let outcome = answer(&mut table, delta.push.sequence, &[&endpoints(1)]);
    assert_eq!(outcome.deltas_rejected, 1);
    let whole = table.next_push().unwrap();
    assert_eq!(whole.forms, [(endpoints(1), Form::Full)]);
    let outcome = answer(&mut table, whole.push.sequence, &[&endpoints(1)]);
    assert_eq!(outcome.rejected.len(), 1);
    assert!(table.next_push().is_none());
}

#[test]
fn a_rejected_resource_is_retried_after_it_or_one_of_its_needs_is_accepted() {
    let mut world = World::new();
    world.service(1);
    let mut table = table(&world, &[1]);
    let first = table.next_push().unwrap();
    answer(&mut table, first.push.sequence, &[&service(1)]);
    table.refresh(&world, changed(&[service(1)]));
    assert!(table.next_push().is_none());
    world.pods(1, 2, 9);
    table.refresh(&world, changed(&[endpoints(1)]));
    assert_eq!(
        settle(&mut table),
        ["endpoints/n/s1/80", "service/c/n/s1/80"]
    );
}

#[test]
fn many_resources_are_sent_in_several_pushes_with_removals_last() {
    let mut world = World::new();
    (1..=9).for_each(|last| world.service(last));
    for last in 1..=9 {
        let body = HttpRoute {
            name: "x".repeat(1024 * 1024),
            ..HttpRoute::default()
        };
        let needs = [endpoints(last)];
        world.put(route(last), 2, Body::HttpRoute(body), &needs);
    }
    let mut table = Table::new([(route(99), 1)]);
    table.subscribe((1..=9).map(address));
    table.resolve_closure(&world);
    let mut pushes = Vec::new();
    while let Some(built) = table.next_push() {
        assert!(built.push.encoded_len() < PUSH_BYTES + 2 * 1024 * 1024);
        answer(&mut table, built.push.sequence, &[]);
        pushes.push(built.push);
    }
    assert!(pushes.len() >= 3);
    let last = pushes.pop().unwrap();
    assert_eq!(last.removed, ["http-route/n/r99"]);
    assert!(pushes.iter().all(|push| push.removed.is_empty()));
}

#[test]
fn a_resource_that_exceeds_a_message_is_named_and_left_out() {
    let mut world = World::new();
    world.service(1);
    let body = HttpRoute {
        name: "x".repeat(naru_contract::MAX_MESSAGE_BYTES),
        ..HttpRoute::default()
    };
    world.put(route(1), 2, Body::HttpRoute(body), &[]);
    let mut table = table(&world, &[1]);
    let built = table.next_push().unwrap();
    assert_eq!(built.too_large.len(), 1);
    assert!(built.push.updates.len() >= 4);
    answer(&mut table, built.push.sequence, &[]);
    assert!(table.next_push().is_none());
}

#[derive(Clone, Debug)]
enum Step {
    Subscribe(u8),
    Unsubscribe(u8),
    Pods(u8, u8),
    Answer { reject: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..5u8).prop_map(Step::Subscribe),
        (1..5u8).prop_map(Step::Unsubscribe),
        (1..5u8, 0..12u8).prop_map(|(last, count)| Step::Pods(last, count)),
        any::<bool>().prop_map(|reject| Step::Answer { reject }),
    ]
}

proptest! {
    /// A proxy that follows the contract ends up with exactly its subscriptions' closure.
    #[test]
    fn whatever_happens_the_proxy_ends_up_with_its_closure(
        steps in proptest::collection::vec(step(), 0..60)
    ) {
        let mut world = World::new();
        (1..5).for_each(|last| world.service(last));
        let mut table = table(&world, &[]);
        let mut proxy: HashMap<String, u64> = HashMap::new();
        let mut under_way: Option<Push> = None;
        let mut version = 1;
        let mut apply = |table: &mut Table, push: Push, reject: bool| {
            let mut rejected = Vec::new();
            for update in push.updates {
                let is_delta = matches!(update.body, Some(Body::EndpointsDelta(_)));
                if let Some(Body::EndpointsDelta(delta)) = &update.body {
                    assert_eq!(proxy.get(&update.name), Some(&delta.base_version));
                }
                // Reject deltas only: a whole resource stays rejected.
                if reject && is_delta {
                    rejected.push(Rejection { name: update.name, reason: String::new() });
                } else {
                    proxy.insert(update.name, update.version);
                }
            }
            for name in push.removed {
                assert!(proxy.remove(&name).is_some());
            }
            table.answer(Answer { sequence: push.sequence, rejected }).unwrap();
        };
        for step in steps {
            match step {
                Step::Subscribe(last) => {
                    table.subscribe([address(last)]);
                    table.resolve_closure(&world);
                }
                Step::Unsubscribe(last) => {
                    table.unsubscribe([address(last)]);
                    table.resolve_closure(&world);
                }
                Step::Pods(last, count) => {
                    version += 1;
                    world.pods(last, version, count);
                    table.refresh(&world, changed(&[endpoints(last)]));
                }
                Step::Answer { reject } => {
                    if let Some(push) = under_way.take() {
                        apply(&mut table, push, reject);
                    }
                }
            }
            if under_way.is_none() {
                under_way = table.next_push().map(|built| built.push);
            }
        }
        while let Some(push) = under_way.take().or_else(|| table.next_push().map(|b| b.push)) {
            apply(&mut table, push, false);
        }
        let expected: HashMap<String, u64> = table
            .closure
            .iter()
            .filter_map(|(name, compiled)| Some((name.to_string(), compiled.as_ref()?.version)))
            .collect();
        prop_assert_eq!(proxy, expected);
    }
}
