//! Workers as threads, with listeners that accept connections directly instead of by redirect
//! rules.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;
use crate::config::Config;
use crate::drain::{DrainSignal, drain};
use crate::identity::testing::Authority;
use crate::memory::Budget;
use crate::observe::access_log::AccessLog;
use crate::observe::metrics::Metrics;
use crate::route::Protocol;
use crate::table::{Destination, DestinationCell, Inbound, Misses, tables};
use crate::testing::sockets::{accept, greet, is_reset, listener};

/// Longer than any step takes that succeeds.
const PATIENCE: Duration = Duration::from_secs(10);
/// Long enough for everything in progress to happen.
const MOMENT: Duration = Duration::from_millis(100);

/// A proxy without a main thread.
struct Proxy {
    workers: Workers,
    signal: DrainSignal,
    /// Of the mapped listeners, in order: outbound first.
    addresses: Vec<SocketAddr>,
    live: Drain,
}

fn config(app: SocketAddr, inbound: usize) -> Config {
    let mut config = Config::for_tests();
    (config.outbound_port, config.inbound_port) = (None, None);
    let map: crate::socket::MappedListener = format!("127.0.0.1:0={app}").parse().unwrap();
    config.map_outbound = vec![map];
    config.map_inbound = vec![map; inbound];
    config
}

fn start_with(config: Config) -> Proxy {
    let listeners = Listeners::bind(&config.ports()).unwrap();
    let address = |listener: &Listener| listener.socket.local_addr().unwrap();
    let addresses = listeners.listeners.iter().map(address).collect();
    let (shared, misses, signal) = shared(config);
    answer(misses);
    let live = shared.drain.clone();
    Proxy {
        workers: start(shared, listeners).unwrap(),
        signal,
        addresses,
        live,
    }
}

/// The workers' shared state, with a policy that accepts every client.
fn shared(config: Config) -> (Shared, Misses, DrainSignal) {
    let metrics = Metrics::default();
    let (tables, misses) = tables("shop", metrics.clone(), PATIENCE);
    tables.set_inbound(Inbound {
        workload: "web".into(),
        strict: false,
        ports: config
            .map_inbound
            .iter()
            .map(|map| (map.destination.port(), Protocol::Tcp))
            .collect::<HashMap<_, _>>(),
    });
    let (signal, drain) = drain();
    let identity = Authority::new("any").identity("spiffe://cluster.local/ns/shop/sa/web");
    let inbound = places(&config.limits);
    let shared = Shared {
        inbound,
        config: Arc::new(config),
        tables,
        identity,
        metrics,
        access_log: AccessLog::off(),
        drain,
        memory: Budget::new(64 << 20),
        client_addresses: Default::default(),
    };
    (shared, misses, signal)
}

/// Answers for every address that it is outside the mesh.
fn answer(mut misses: Misses) {
    tokio::spawn(async move {
        while let Some(miss) = misses.recv().await {
            let cell = DestinationCell::new(miss.address, Destination::Passthrough);
            let _ = miss.reply.send(Arc::new(cell));
        }
    });
}

async fn connect(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

/// A connection that reaches the app.
async fn through(address: SocketAddr, app: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = connect(address).await;
    let mut accepted = timeout(PATIENCE, accept(app)).await.unwrap();
    greet(&mut client, &mut accepted).await;
    (client, accepted)
}

#[tokio::test]
async fn connections_of_both_directions_reach_their_destination_by_every_worker() {
    let app = listener().await;
    let mut config = config(app.local_addr().unwrap(), 1);
    config.workers = 3;
    let proxy = start_with(config);
    let mut open = Vec::new();
    // More than there are workers: each gets some.
    for number in 0..12 {
        let address = proxy.addresses[number % 2];
        let (mut client, mut accepted) = through(address, &app).await;
        accepted.write_all(b"back").await.unwrap();
        let mut back = [0; 4];
        client.read_exact(&mut back).await.unwrap();
        assert_eq!(&back, b"back");
        open.push((client, accepted));
    }
    assert!(timeout(MOMENT, proxy.workers.lost()).await.is_err());
}

#[tokio::test]
async fn beyond_the_limit_the_app_waits_and_an_inbound_client_is_refused() {
    let app = listener().await;
    let mut config = config(app.local_addr().unwrap(), 2);
    config.limits.max_connections = 1;
    let proxy = start_with(config);
    let [outbound, first, second] = proxy.addresses[..] else {
        panic!("{:?}", proxy.addresses);
    };
    let own = through(outbound, &app).await;
    let mut waiting = connect(outbound).await;
    waiting.write_all(b"?").await.unwrap();
    assert!(timeout(MOMENT, accept(&app)).await.is_err());
    // The other direction has its own limit, which its listeners share.
    let held = through(first, &app).await;
    let mut refused = connect(second).await;
    refused.write_all(b"?").await.unwrap();
    assert!(is_reset(&mut refused).await);
    drop(own);
    let mut accepted = timeout(PATIENCE, accept(&app)).await.unwrap();
    accepted.read_exact(&mut [0]).await.unwrap();
    // A connection that has ended leaves its place to the next one.
    drop(held);
    loop {
        let mut next = connect(second).await;
        next.write_all(b"?").await.unwrap();
        tokio::select! {
            _ = accept(&app) => break,
            reset = is_reset(&mut next) => assert!(reset),
        }
    }
}

#[test]
fn a_fifth_of_the_places_is_for_clients_with_an_identity() {
    for (all, strangers) in [(1, 1), (5, 4), (10_000, 8_000)] {
        let limits = Limits {
            max_connections: all,
            max_connections_per_source: all,
            ..Limits::default()
        };
        let places = places(&limits);
        let enter = || {
            let place = places.enter([10, 0, 0, 1].into());
            let taken = place.take().is_ok();
            (place, taken)
        };
        let open: Vec<_> = (0..=strangers).map(|_| enter()).collect();
        let taken = open.iter().filter(|(_, taken)| *taken).count();
        assert_eq!(taken, strangers);
    }
}

#[tokio::test]
async fn a_shutdown_accepts_late_inbound_connections_for_a_while_and_outbound_ones_to_the_end() {
    let app = listener().await;
    let proxy = start_with(config(app.local_addr().unwrap(), 1));
    let [outbound, inbound] = proxy.addresses[..] else {
        panic!("{:?}", proxy.addresses);
    };
    let early = through(inbound, &app).await;
    proxy.signal.start();
    assert!(proxy.live.is_draining());
    let late = through(inbound, &app).await;
    tokio::time::sleep(LATE_ARRIVALS + MOMENT).await;
    assert!(TcpStream::connect(inbound).await.is_err());
    drop(through(outbound, &app).await);
    // Two inbound connections are left.
    assert!(timeout(MOMENT, proxy.signal.finished()).await.is_err());
    drop((early, late));
    timeout(PATIENCE, proxy.signal.finished()).await.unwrap();
}

#[tokio::test]
async fn a_worker_that_panics_is_reported() {
    let (sender, alive) = watch::channel(());
    let workers = Workers { alive };
    let (shared, _misses, _signal) = shared(config(([127, 0, 0, 1], 1).into(), 1));
    let sender = Arc::new(sender);
    // A second worker, which goes on.
    let kept = Alive(sender.clone());
    let _kept = kept;
    spawn(1, shared, Alive(sender), |_| async {
        panic!("as this test wants")
    })
    .unwrap();
    timeout(PATIENCE, workers.lost()).await.unwrap();
}

#[test]
fn only_inbound_connections_to_the_proxy_itself_count_as_its_own() {
    let mut config = Config::for_tests();
    config.admin = ([0, 0, 0, 0], 15020).into();
    let at = |port: u16| SocketAddr::from(([10, 0, 0, 1], port));
    let redirected = [config.inbound_port, config.outbound_port];
    let redirected = redirected.map(|port| port.expect("a listener").get());
    for port in [redirected[0], redirected[1], 15020] {
        assert!(is_own(&config, Direction::Inbound, at(port)));
        // The app may access the metrics of another pod's proxy.
        assert!(!is_own(&config, Direction::Outbound, at(port)));
    }
    assert!(!is_own(&config, Direction::Inbound, at(8080)));
}

fn size_of_future<A, B, C, F: Future>(_: impl FnOnce(A, B, C) -> F) -> usize {
    size_of::<F>()
}

/// The memory of an idle connection in addition to its socket, and the bytes moved to start one.
#[test]
fn the_tasks_of_connections_are_small() {
    let outbound = size_of_future(outbound::serve);
    assert!(outbound <= 4_864, "{outbound}");
    let inbound = size_of_future(|worker, stream, (destination, place)| {
        inbound::serve(worker, stream, destination, place)
    });
    assert!(inbound <= 2_048, "{inbound}");
    let stream = size_of_future(|session, stream, ()| {
        crate::http::http1::serve::<crate::upstream::mux::Stream>(session, stream)
    });
    assert!(stream <= 3_328, "{stream}");
}
