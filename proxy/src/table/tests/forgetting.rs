//! Destinations that are unknown, awaited, unused and removed.

use super::*;

#[tokio::test]
async fn a_port_scan_takes_bounded_memory() {
    let fixture = Fixture::new();
    let kept = fixture.tables.app(address("10.0.0.9:80"));
    for port in 1_000..5_000 {
        fixture
            .tables
            .app(SocketAddr::new([10, 0, 0, 9].into(), port));
    }
    assert!(Arc::ptr_eq(
        &kept,
        &fixture.tables.app(address("10.0.0.9:80"))
    ));
    assert!(fixture.tables.app_count() <= 1_024);
}

#[tokio::test]
async fn an_unused_destination_is_removed_and_can_return() {
    let (mut fixture, cell) = Fixture::with_service();
    fixture.store.outbox().subscribe.clear();
    let idle = Duration::from_secs(601);
    fixture.sweep_after(idle);
    fixture.sweep_after(idle);
    assert!(fixture.store.outbox().is_empty(), "a connection holds it");
    drop(cell);
    fixture.sweep_after(Duration::ZERO);
    assert!(
        fixture.store.outbox().is_empty(),
        "a connection may just have found it"
    );
    fixture.sweep_after(Duration::from_secs(1));
    assert_eq!(fixture.store.outbox().unsubscribe.len(), 1);
    // Called again before the controller was told: nothing changes.
    let cell = fixture.store.subscribe(address(CLUSTER_IP)).unwrap();
    assert!(fixture.store.outbox().is_empty());
    assert_eq!(addresses(&cell), ["10.0.0.1", "10.0.0.2"]);
    drop(cell);
    // Called again afterwards: the held content applies until the controller replaces it.
    fixture.sweep_after(idle);
    fixture.sweep_after(idle);
    fixture.store.outbox().unsubscribe.clear();
    let cell = fixture.store.subscribe(address(CLUSTER_IP)).unwrap();
    assert_eq!(fixture.store.outbox().subscribe.len(), 1);
    assert_eq!(addresses(&cell), ["10.0.0.1", "10.0.0.2"]);
    fixture.push_and_remove([], &["destination/10.96.0.1:80", SERVICE, ENDPOINTS]);
    assert!(cell.is_known());
    fixture.push([
        destination(CLUSTER_IP, SERVICE),
        service(2, &[]),
        endpoints(2, &[("10.0.0.5", WEB)]),
    ]);
    assert_eq!(addresses(&cell), ["10.0.0.5"]);
}

#[tokio::test]
async fn a_worker_that_found_a_destination_just_before_its_removal_keeps_it() {
    let (mut fixture, cell) = Fixture::with_service();
    drop(cell);
    let found = fixture.tables.shared.cell(address(CLUSTER_IP)).unwrap();
    // Withdrawn between lookup and use: as if the sweep had not seen the reader yet.
    let reader = Arc::downgrade(&found);
    drop(found);
    fixture.sweep_after(Duration::from_secs(601));
    let found = reader.upgrade().unwrap();
    fixture.sweep_after(Duration::from_secs(2));
    assert!(fixture.store.outbox().unsubscribe.is_empty());
    let again = fixture.tables.destination(address(CLUSTER_IP)).await;
    assert!(Arc::ptr_eq(&found, &again));
}

#[tokio::test]
async fn too_many_destinations_evict_those_unused_for_longest() {
    let mut fixture = Fixture::new();
    fixture.store.hello();
    let at = |index: usize| {
        let [a, b] = (index as u16).to_be_bytes();
        SocketAddr::new([10, 1, a, b].into(), 80)
    };
    let held = fixture.store.subscribe(at(0)).unwrap();
    let mut subscribed = 1;
    while subscribed < MAX_SUBSCRIPTIONS * 2 {
        match fixture.store.subscribe(at(subscribed)) {
            Some(_) => subscribed += 1,
            // There is no space until the retired ones are removed.
            None => {
                fixture.sweep_after(Duration::from_secs(2));
            }
        }
        assert!(fixture.store.cells.len() <= MAX_SUBSCRIPTIONS);
        fixture.store.outbox().subscribe.clear();
        fixture.store.outbox().unsubscribe.clear();
    }
    let found = fixture.tables.shared.cell(at(0)).unwrap();
    assert!(Arc::ptr_eq(&held, &found));
    assert!(fixture.tables.shared.cell(at(1)).is_none());
}

#[tokio::test]
async fn an_unknown_destination_is_awaited_once() {
    let mut fixture = Fixture::new();
    let misses = &mut fixture.misses;
    let tables = fixture.tables.clone();
    let began = Instant::now();
    let lookups = tokio::spawn(async move {
        let at = address(CLUSTER_IP);
        tokio::join!(tables.destination(at), tables.destination(at))
    });
    for _ in 0..2 {
        let miss = misses.recv().await.unwrap();
        miss.reply
            .send(fixture.store.subscribe(miss.address).unwrap())
            .unwrap();
    }
    let (first, second) = lookups.await.unwrap();
    assert!(began.elapsed() >= PATIENCE);
    assert!(Arc::ptr_eq(&first, &second));
    assert!(!first.is_known());
    // It was awaited once; the next call does not wait.
    let began = Instant::now();
    fixture.tables.destination(address(CLUSTER_IP)).await;
    assert!(began.elapsed() < PATIENCE);
}

#[tokio::test]
async fn a_waiting_caller_is_woken_by_the_answer() {
    let mut fixture = Fixture::new();
    let cell = fixture.store.subscribe(address(CLUSTER_IP)).unwrap();
    let tables = fixture.tables.clone();
    let lookup = tokio::spawn(async move { tables.destination(address(CLUSTER_IP)).await });
    tokio::task::yield_now().await;
    fixture.push([
        destination(CLUSTER_IP, SERVICE),
        service(1, &[]),
        endpoints(1, &[]),
    ]);
    assert!(Arc::ptr_eq(&cell, &lookup.await.unwrap()));
    assert!(cell.is_known());
}
