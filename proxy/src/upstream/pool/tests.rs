//! What the kernel tells of requests that an app may or may not have taken.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::balance::{Load, next_endpoint_id};
use crate::socket;
use crate::testing::mesh::run;
use crate::testing::sockets::{accept, listener};

/// A connection on which one exchange has been made, and on which the next request is about to be
/// sent.
async fn entrusted(peer: Peer) -> (Upstream, TcpStream, Arc<Endpoint>) {
    let listener = listener().await;
    let address = listener.local_addr().expect("an address");
    let endpoint = Arc::new(Endpoint {
        id: next_endpoint_id(),
        address,
        peer,
        pod: "".into(),
        workload: "".into(),
        zone: "".into(),
        load: Load::default(),
    });
    let dialled = socket::dial(address, None).await;
    let mut app = accept(&listener).await;
    let stream = Stream::Plain(dialled.expect("a connection"));
    let watched = Watched::new(&endpoint, Caller::default(), &Metrics::default());
    let mut upstream = Upstream::new(stream, false, Counted::Nowhere).watched(watched);
    upstream
        .connection
        .io
        .write_all(b"first")
        .await
        .expect("open");
    app.read_exact(&mut [0; 5]).await.expect("open");
    app.write_all(b"answer").await.expect("open");
    upstream
        .connection
        .io
        .read_exact(&mut [0; 6])
        .await
        .expect("open");
    assert!(upstream.entrust(&endpoint));
    (upstream, app, endpoint)
}

async fn send(upstream: &mut Upstream) {
    // Whatever becomes of it.
    let _ = upstream.connection.io.write_all(b"second").await;
}

#[test]
fn what_came_after_the_own_app_had_closed_was_not_taken() {
    run(async {
        let (mut upstream, app, _) = entrusted(Peer::App).await;
        drop(app);
        send(&mut upstream).await;
        assert!(upstream.took_nothing().await);
    });
}

#[test]
fn what_the_app_has_read_or_may_read_was_taken() {
    run(async {
        // It reads, and ends without an answer.
        let (mut upstream, mut app, _) = entrusted(Peer::App).await;
        send(&mut upstream).await;
        app.read_exact(&mut [0; 6]).await.expect("open");
        drop(app);
        assert!(!upstream.took_nothing().await);
        // It will say no more, and may still read.
        let (mut upstream, mut app, _) = entrusted(Peer::App).await;
        app.shutdown().await.expect("open");
        send(&mut upstream).await;
        assert!(!upstream.took_nothing().await);
    });
}

#[test]
fn what_goes_over_a_network_may_have_been_taken_in_any_case() {
    run(async {
        let (mut upstream, app, _) = entrusted(Peer::Plain).await;
        drop(app);
        send(&mut upstream).await;
        assert!(!upstream.took_nothing().await);
    });
}

#[test]
fn nothing_is_entrusted_to_a_connection_that_the_app_has_ended() {
    run(async {
        let (mut upstream, app, endpoint) = entrusted(Peer::App).await;
        drop(app);
        // The kernel is asked, whatever the runtime has been told.
        assert!(!upstream.entrust(&endpoint));
    });
}
