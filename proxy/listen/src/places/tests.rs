use super::*;

const BOUNDS: Bounds = Bounds {
    waiting: 4,
    waiting_of_source: 3,
    taken: 4,
    taken_of_source: 3,
    spare: 0,
    all: 5,
    of_source: 3,
};

fn source(last: u8) -> IpAddr {
    [10, 0, 0, last].into()
}

fn is_evicted(place: &Place) -> bool {
    place.entry.standing() == Standing::Evicted
}

fn enter(places: &Places, of: u8, count: usize) -> Vec<Place> {
    (0..count).map(|_| places.enter(source(of))).collect()
}

#[test]
fn the_oldest_waiting_connection_of_the_largest_source_is_evicted() {
    let places = Places::new(BOUNDS);
    let many = enter(&places, 1, 3);
    let few = enter(&places, 2, 1);
    let newcomer = places.enter(source(3));
    assert!(is_evicted(&many[0]));
    for other in [&many[1], &many[2], &few[0], &newcomer] {
        assert!(!is_evicted(other));
    }
    assert_eq!(places.refused(Limit::Waiting), 1);
}

#[test]
fn a_source_at_its_bound_evicts_its_own_connection() {
    let places = Places::new(BOUNDS);
    let many = enter(&places, 1, 4);
    assert!(is_evicted(&many[0]) && !is_evicted(&many[3]));
}

#[test]
fn a_served_connection_is_evicted_only_once_it_waits_again() {
    let places = Places::new(BOUNDS);
    let served = places.enter(source(1));
    served.take().unwrap();
    let mut others = enter(&places, 1, 10);
    assert!(!is_evicted(&served));
    served.wait();
    others.extend(enter(&places, 1, 2));
    assert!(!is_evicted(&served));
    others.extend(enter(&places, 1, 1));
    assert!(is_evicted(&served));
    assert_eq!(served.take(), Err(Limit::Waiting));
}

#[test]
fn a_source_has_a_share_of_the_served_connections() {
    let places = Places::new(BOUNDS);
    let served = enter(&places, 1, 3);
    for place in &served {
        place.take().unwrap();
    }
    assert_eq!(places.enter(source(1)).take(), Err(Limit::Source));
    assert_eq!(places.enter(source(1)).prove(), Err(Limit::Source));
    // A served connection becomes proven in its own place.
    served[0].prove().unwrap();
    places.enter(source(2)).take().unwrap();
    assert_eq!(places.refused(Limit::Source), 2);
}

#[test]
fn a_source_has_a_smaller_share_without_an_identity() {
    let places = Places::new(Bounds {
        taken_of_source: 1,
        ..BOUNDS
    });
    let open = enter(&places, 1, 3);
    open[0].take().unwrap();
    assert_eq!(open[1].take(), Err(Limit::Source));
    open[2].prove().unwrap();
}

#[test]
fn the_last_places_are_reserved_for_proven_identities() {
    let places = Places::new(BOUNDS);
    let strangers: Vec<_> = (1..=4).map(|of| places.enter(source(of))).collect();
    for place in &strangers {
        place.take().unwrap();
    }
    assert_eq!(places.enter(source(5)).take(), Err(Limit::Unproven));
    assert!(!places.is_full());
    let peer = places.enter(source(6));
    peer.prove().unwrap();
    assert!(places.is_full());
    assert_eq!(places.enter(source(7)).prove(), Err(Limit::All));
    drop(peer);
    places.enter(source(7)).prove().unwrap();
}

#[test]
fn the_first_connection_of_a_source_has_a_spare_place() {
    let bounds = Bounds {
        spare: 1,
        all: 4,
        ..BOUNDS
    };
    let places = Places::new(bounds);
    let busy: Vec<_> = [1, 1, 2, 2].map(|of| places.enter(source(of))).into();
    for place in &busy {
        place.take().unwrap();
    }
    assert!(places.enter(source(1)).take().is_err());
    places.enter(source(3)).take().unwrap();
}

#[test]
fn places_are_released_and_sources_removed() {
    let places = Places::new(BOUNDS);
    let mut open = enter(&places, 1, 5);
    open[4].take().unwrap();
    open[3].prove().unwrap();
    open.push(places.enter(source(2)));
    places.exhausted();
    drop(open);
    let table = places.inner.table();
    assert!(table.sources.is_empty());
    assert_eq!((table.waiting, table.taken, table.proven), (0, 0, 0));
}

#[tokio::test]
async fn an_evicted_connection_is_notified() {
    let places = Places::new(BOUNDS);
    let place = places.enter(source(1));
    places.exhausted();
    place.evicted().await;
}

#[tokio::test]
async fn the_task_of_an_evicted_connection_is_aborted_whenever_it_is_set() {
    let places = Places::new(BOUNDS);
    for named_before in [true, false] {
        let place = places.enter(source(1));
        let eviction = place.eviction();
        let task = tokio::spawn(std::future::pending::<()>());
        if named_before {
            eviction.ends(task.abort_handle());
            places.exhausted();
        } else {
            places.exhausted();
            eviction.ends(task.abort_handle());
        }
        assert!(task.await.unwrap_err().is_cancelled());
    }
}

#[test]
fn a_machine_without_descriptors_is_full() {
    let places = Places::new(BOUNDS);
    assert!(!places.is_full());
    places.exhausted();
    assert!(places.is_full());
}
