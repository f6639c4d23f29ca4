//! Opaque connections between a client and an app, over real sockets on both sides.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use super::{CopyError, copy};
use crate::memory::{Budget, Use};
use crate::route::Protocol;
use crate::session::Session;
use crate::testing::mesh::{Mesh, Setup, run, until, unused_address};
use crate::testing::sockets::{accept, greet, is_reset, listener, pair, received_text};
use crate::wire::buffered::Buffered;
use crate::{connection, socket};

mod between_sidecars;
mod patience;
mod peer;

/// Long enough for everything in progress to happen.
const MOMENT: Duration = Duration::from_millis(50);

/// An opaque Service with these endpoints.
fn opaque(endpoints: &[std::net::SocketAddr]) -> Setup {
    let mut setup = Setup::new(endpoints);
    setup.protocol = Protocol::Tcp;
    setup
}

/// A connection of the app, which the worker carries.
async fn client(mesh: &Mesh) -> TcpStream {
    let (client, accepted) = pair().await;
    let session = Session::outbound(mesh.worker.clone(), mesh.cell.clone());
    spawn_local(connection::serve(session, Buffered::new(accepted)));
    client
}

fn closed(mesh: &Mesh, reason: &str) -> f64 {
    let reason = format!("reason=\"{reason}\"");
    mesh.metric(&["naru_tcp_closed_total{", "service=\"web\"", &reason])
}

#[test]
fn each_direction_ends_separately() {
    run(async {
        let listener = listener().await;
        let mesh = opaque(&[listener.local_addr().unwrap()]).start();

        let mut client_first = client(&mesh).await;
        let mut app = accept(&listener).await;
        client_first.write_all(b"question").await.unwrap();
        client_first.shutdown().await.unwrap();
        assert_eq!(received_text(&mut app).await, "question");
        app.write_all(b"late answer").await.unwrap();
        drop(app);
        assert_eq!(received_text(&mut client_first).await, "late answer");

        let mut app_first = client(&mesh).await;
        let mut app = accept(&listener).await;
        app.write_all(b"greeting").await.unwrap();
        app.shutdown().await.unwrap();
        assert_eq!(received_text(&mut app_first).await, "greeting");
        app_first.write_all(b"late word").await.unwrap();
        drop(app_first);
        assert_eq!(received_text(&mut app).await, "late word");
        drop(app);

        until(|| closed(&mesh, "") == 2.0).await;
        let counted = |name: &str, more: &str| mesh.metric(&[name, "service=\"web\"", more]);
        assert_eq!(counted("naru_tcp_connections_total{", ""), 2.0);
        assert_eq!(counted("naru_tcp_connections_open{", ""), 0.0);
        assert_eq!(counted("naru_tcp_bytes_total{", "way=\"sent\""), 17.0);
        assert_eq!(counted("naru_tcp_bytes_total{", "way=\"received\""), 19.0);
    });
}

#[test]
fn a_reset_is_passed_on_as_a_reset() {
    run(async {
        let listener = listener().await;
        let mesh = opaque(&[listener.local_addr().unwrap()]).start();

        let mut kept = client(&mesh).await;
        let mut app = accept(&listener).await;
        greet(&mut kept, &mut app).await;
        socket::reset(&app);
        drop(app);
        assert!(is_reset(&mut kept).await);
        until(|| closed(&mesh, "upstream-reset") == 1.0).await;

        let mut broken = client(&mesh).await;
        let mut app = accept(&listener).await;
        greet(&mut broken, &mut app).await;
        socket::reset(&broken);
        drop(broken);
        assert!(is_reset(&mut app).await);
        until(|| closed(&mesh, "client-gone") == 1.0).await;
    });
}

#[test]
fn an_endpoint_that_refuses_is_skipped() {
    run(async {
        let listener = listener().await;
        let refusing = unused_address().await;
        let mesh = opaque(&[refusing, listener.local_addr().unwrap()]).start();
        for _ in 0..4 {
            let mut client = client(&mesh).await;
            let mut app = accept(&listener).await;
            app.write_all(b"here").await.unwrap();
            drop(app);
            assert_eq!(received_text(&mut client).await, "here");
        }
    });
}

#[test]
fn without_an_endpoint_the_client_is_refused_and_the_reason_counted() {
    run(async {
        let mesh = opaque(&[unused_address().await, unused_address().await]).start();
        assert!(is_reset(&mut client(&mesh).await).await);
        assert_eq!(closed(&mesh, "connect-failed"), 1.0);
        let mesh = opaque(&[]).start();
        assert!(is_reset(&mut client(&mesh).await).await);
        assert_eq!(closed(&mesh, "no-endpoint"), 1.0);
    });
}

#[test]
fn large_transfers_in_both_directions_at_once_arrive_unchanged() {
    const LENGTH: usize = 4 * 1024 * 1024;
    run(async {
        let listener = listener().await;
        let mesh = opaque(&[listener.local_addr().unwrap()]).start();
        let (mut from, mut to) = client(&mesh).await.into_split();
        let app = accept(&listener).await;
        spawn_local(async move {
            let (mut from, mut to) = app.into_split();
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
        let sent: Vec<u8> = (0..LENGTH).map(|index| (index % 251) as u8).collect();
        let again = sent.clone();
        spawn_local(async move {
            to.write_all(&again).await.unwrap();
        });
        let mut received = Vec::new();
        from.read_to_end(&mut received).await.unwrap();
        assert!(received == sent, "{} bytes came back", received.len());
    });
}

#[test]
fn unread_data_bounds_what_is_read_ahead() {
    const WINDOW: usize = 1024;
    run(async {
        let (mut sender, upstream) = duplex(WINDOW);
        let (client, _unread) = duplex(WINDOW);
        let sending = spawn_local(async move {
            let mut sent = 0;
            loop {
                let write = sender.write(&[0; WINDOW]);
                match tokio::time::timeout(MOMENT, write).await {
                    Ok(written) => sent += written.unwrap(),
                    Err(_) => return sent,
                }
            }
        });
        spawn_local(async move {
            let (mut client, mut upstream) = (Buffered::new(client), Buffered::new(upstream));
            copy(&mut client, &mut upstream, None, &Budget::new(1 << 20)).await
        });
        // One window on each side, and one read between them.
        assert!(sending.await.unwrap() <= 3 * WINDOW);
    });
}

#[test]
fn without_memory_for_unread_data_the_connection_is_closed() {
    run(async {
        let (mut sender, client) = duplex(1 << 20);
        let (upstream, _stopped) = duplex(64);
        let (mut client, mut upstream) = (Buffered::new(client), Buffered::new(upstream));
        let memory = Budget::new(1 << 20);
        let others = memory.charge(Use::Connection, memory.size() / 8 * 5);
        sender.write_all(&[7; 100_000]).await.unwrap();
        let broken = copy(&mut client, &mut upstream, None, &memory).await;
        assert_eq!(broken, Err(CopyError::NoMemory));
        assert_eq!(memory.refused(Use::Body), 1);
        drop(others);
    });
}

#[test]
fn an_idle_connection_holds_no_buffer() {
    run(async {
        let (mut sender, upstream) = duplex(64);
        let (client, mut receiver) = duplex(64);
        let (mut client, mut upstream) = (Buffered::new(client), Buffered::new(upstream));
        let memory = Budget::new(1 << 20);
        let copying = copy(&mut client, &mut upstream, None, &memory);
        let talking = async {
            let mut heard = [0; 1000];
            let (sent, received) = tokio::join!(
                sender.write_all(&[7; 1000]),
                receiver.read_exact(&mut heard)
            );
            sent.unwrap();
            received.unwrap();
            tokio::time::sleep(MOMENT).await;
        };
        tokio::select! {
            broken = copying => panic!("{broken:?}"),
            () = talking => {}
        }
        for buffered in [
            &client.read,
            &client.unsent,
            &upstream.read,
            &upstream.unsent,
        ] {
            assert_eq!(buffered.capacity(), 0);
        }
    });
}
