//! What the kernel reports about requests that an app may or may not have received.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::balance::{Load, next_endpoint_id};
use crate::socket;
use crate::testing::mesh::run;
use crate::testing::sockets::{accept, listener};

/// A connection that has carried one exchange, and on which the next request is about to be sent.
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
    // The result does not matter.
    let _ = upstream.connection.io.write_all(b"second").await;
}

#[test]
fn bytes_after_the_own_app_closed_were_not_received() {
    run(async {
        let (mut upstream, app, _) = entrusted(Peer::App).await;
        drop(app);
        send(&mut upstream).await;
        assert!(upstream.took_nothing().await);
    });
}

#[test]
fn bytes_that_the_app_has_read_or_may_read_count_as_received() {
    run(async {
        // The app reads, and closes without a response.
        let (mut upstream, mut app, _) = entrusted(Peer::App).await;
        send(&mut upstream).await;
        app.read_exact(&mut [0; 6]).await.expect("open");
        drop(app);
        assert!(!upstream.took_nothing().await);
        // The app has ended its half, and may still read.
        let (mut upstream, mut app, _) = entrusted(Peer::App).await;
        app.shutdown().await.expect("open");
        send(&mut upstream).await;
        assert!(!upstream.took_nothing().await);
    });
}

#[test]
fn bytes_over_a_network_may_always_have_been_received() {
    run(async {
        let (mut upstream, app, _) = entrusted(Peer::Plain).await;
        drop(app);
        send(&mut upstream).await;
        assert!(!upstream.took_nothing().await);
    });
}

#[test]
fn a_connection_that_the_app_has_closed_is_not_used() {
    run(async {
        let (mut upstream, app, endpoint) = entrusted(Peer::App).await;
        drop(app);
        // The check asks the kernel, since the runtime may not have been notified.
        assert!(!upstream.entrust(&endpoint));
    });
}
