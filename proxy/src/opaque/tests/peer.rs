//! How a peer's behaviour affects its connection: the tests write the peer's frames by hand.

use std::future::poll_fn;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{MOMENT, client, closed};
use crate::balance::Peer;
use crate::identity::Identity;
use crate::identity::testing::{Authority, spiffe_id};
use crate::opaque::frame::testing::{data, receive, send, send_data};
use crate::opaque::frame::{HEADER, Kind};
use crate::opaque::framed::{Framed, MAX_REPLAY};
use crate::opaque::{Link, Pooled, default_backend, open};
use crate::route::Protocol;
use crate::socket;
use crate::table::Destination;
use crate::testing::mesh::{CLIENT, Mesh, Setup, run, until};
use crate::testing::sockets::{is_reset, listener, received_text};
use crate::upstream::client_address::SourceAddress;
use crate::upstream::pool;
use crate::wire::buffered::Buffered;

const APP: &str = "spiffe://cluster.local/ns/shop/sa/app";

/// A pod whose sidecar is played by the test.
struct Pod {
    mesh: Mesh,
    listener: TcpListener,
    identity: Identity,
}

impl Pod {
    async fn new(protocol: Protocol) -> Self {
        let listener = listener().await;
        let authority = Authority::new("mesh");
        let mut setup = Setup::new(&[]);
        setup.protocol = protocol;
        setup.identity = authority.identity(CLIENT);
        setup.endpoints = vec![(listener.local_addr().unwrap(), Peer::Mesh(spiffe_id(APP)))];
        Self {
            mesh: setup.start(),
            listener,
            identity: authority.identity(APP),
        }
    }

    /// The next connection from the client's sidecar.
    async fn accept(&self) -> TlsStream<TcpStream> {
        let (accepted, _) = self.listener.accept().await.unwrap();
        let acceptor = TlsAcceptor::from(self.identity.server_config().unwrap());
        acceptor.accept(accepted).await.unwrap()
    }

    /// A connection that is in the client's pool.
    async fn pooled(&self) -> TlsStream<TcpStream> {
        let (client, mut peer) = tokio::join!(client(&self.mesh), self.accept());
        drop(client);
        assert_eq!(receive(&mut peer).await.0, Kind::Open);
        assert_eq!(receive(&mut peer).await.0, Kind::End);
        send(&mut peer, Kind::End, b"").await;
        until(|| self.pool("\"idle\"") == 1.0).await;
        peer
    }

    fn pool(&self, state: &str) -> f64 {
        let labels = ["naru_pool_connections{", "\"tcp\"", state];
        self.mesh.metric(&labels)
    }

    fn connects(&self) -> f64 {
        self.mesh
            .metric(&["naru_upstream_connects_total{", "\"ok\""])
    }

    fn sent(&self) -> f64 {
        let labels = ["naru_tcp_bytes_total{", "service=\"web\"", "\"sent\""];
        self.mesh.metric(&labels)
    }
}

#[test]
fn a_clients_first_bytes_share_a_record_with_the_open() {
    run(async {
        let pod = Pod::new(Protocol::Detect).await;
        let mut client = client(&pod.mesh).await;
        client.write_all(b"*1\r\n").await.unwrap();
        let mut peer = pod.accept().await;
        // One read returns at most one record.
        let mut record = [0; 100];
        let length = peer.read(&mut record).await.unwrap();
        let header = Kind::Data { length: 4 }.header();
        let expected = [&Kind::Open.header()[..], &header, b"*1\r\n"].concat();
        assert_eq!(&record[..length], expected);
    });
}

#[test]
fn a_closed_pooled_connection_is_replaced_by_a_new_one() {
    run(async {
        let pod = Pod::new(Protocol::Tcp).await;
        let mut over = pod.pooled().await;
        let mut client = client(&pod.mesh).await;
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        // Closed while the OPEN was in flight.
        assert_eq!(receive(&mut over).await.0, Kind::Open);
        assert_eq!(receive(&mut over).await, data(b"question"));
        over.shutdown().await.unwrap();
        let mut peer = pod.accept().await;
        assert_eq!(receive(&mut peer).await.0, Kind::Open);
        assert_eq!(receive(&mut peer).await, data(b"question"));
        assert_eq!(receive(&mut peer).await.0, Kind::End);
        send_data(&mut peer, b"answer").await;
        send(&mut peer, Kind::End, b"").await;
        assert_eq!(received_text(&mut client).await, "answer");
        until(|| pod.pool("\"idle\"") == 1.0).await;
        assert_eq!((pod.connects(), pod.sent()), (2.0, 8.0));
        assert_eq!(closed(&pod.mesh, ""), 2.0);
    });
}

#[test]
fn a_new_connection_that_closes_is_a_reset() {
    run(async {
        let pod = Pod::new(Protocol::Tcp).await;
        let mut over = pod.pooled().await;
        let mut client = client(&pod.mesh).await;
        assert_eq!(receive(&mut over).await.0, Kind::Open);
        over.shutdown().await.unwrap();
        let mut peer = pod.accept().await;
        assert_eq!(receive(&mut peer).await.0, Kind::Open);
        peer.shutdown().await.unwrap();
        assert!(is_reset(&mut client).await);
        assert_eq!(
            (pod.connects(), closed(&pod.mesh, "upstream-reset")),
            (2.0, 1.0)
        );
    });
}

#[test]
fn nothing_is_sent_again_beyond_the_bound() {
    run(async {
        for (length, connects) in [(MAX_REPLAY, 2.0), (MAX_REPLAY + 1, 1.0)] {
            let pod = Pod::new(Protocol::Tcp).await;
            let mut over = pod.pooled().await;
            let mut client = client(&pod.mesh).await;
            let sent = vec![7; length];
            client.write_all(&sent).await.unwrap();
            assert_eq!(receive(&mut over).await.0, Kind::Open);
            let mut received = Vec::new();
            while received.len() < length {
                received.extend_from_slice(&receive(&mut over).await.1);
            }
            over.shutdown().await.unwrap();
            if connects > 1.0 {
                let mut peer = pod.accept().await;
                assert_eq!(receive(&mut peer).await.0, Kind::Open);
                assert_eq!(receive(&mut peer).await.1, sent);
            } else {
                assert!(is_reset(&mut client).await);
            }
            assert_eq!(pod.connects(), connects);
        }
    });
}

#[test]
fn nothing_is_sent_again_after_a_reset_or_the_peers_first_bytes() {
    run(async {
        let pod = Pod::new(Protocol::Tcp).await;
        let mut broken = pod.pooled().await;
        let mut first = client(&pod.mesh).await;
        assert_eq!(receive(&mut broken).await.0, Kind::Open);
        socket::reset(broken.get_ref().0);
        drop(broken);
        assert!(is_reset(&mut first).await);

        let mut answered = pod.pooled().await;
        let mut second = client(&pod.mesh).await;
        assert_eq!(receive(&mut answered).await.0, Kind::Open);
        send_data(&mut answered, b"half").await;
        answered.shutdown().await.unwrap();
        assert!(is_reset(&mut second).await);
        assert_eq!(
            (pod.connects(), closed(&pod.mesh, "upstream-reset")),
            (2.0, 2.0)
        );
    });
}

#[test]
fn a_server_may_send_first_although_the_pooled_connection_was_closed() {
    run(async {
        let pod = Pod::new(Protocol::Detect).await;
        let mut over = pod.pooled().await;
        let mut client = client(&pod.mesh).await;
        assert_eq!(receive(&mut over).await.0, Kind::Open);
        over.shutdown().await.unwrap();
        let mut peer = pod.accept().await;
        assert_eq!(receive(&mut peer).await.0, Kind::Open);
        send_data(&mut peer, b"ready").await;
        send(&mut peer, Kind::End, b"").await;
        assert_eq!(received_text(&mut client).await, "ready");
        drop(client);
        assert_eq!(receive(&mut peer).await.0, Kind::End);
        assert_eq!(pod.connects(), 2.0);
    });
}

#[test]
fn acknowledgement_is_expected_of_a_pooled_connection_until_its_first_bytes() {
    run(async {
        let pod = Pod::new(Protocol::Tcp).await;
        let mut peer = pod.pooled().await;
        let worker = &pod.mesh.worker;
        let Destination::Logical(logical) = &**pod.mesh.cell.load() else {
            panic!("a Service");
        };
        let backend = default_backend(logical).unwrap();
        let endpoint = backend.endpoints().endpoints[0].clone();
        let pooled =
            async || match open(worker, &endpoint, SourceAddress::default(), Pooled::Yes).await {
                Ok(Link::Framed(upstream, framed)) => (upstream, framed.is_unproven()),
                _ => panic!("a sidecar"),
            };
        let bound = |upstream: &pool::Upstream| {
            let socket = SockRef::from(upstream.connection.io.tcp().unwrap());
            socket.tcp_user_timeout().unwrap()
        };
        let (upstream, is_unproven) = pooled().await;
        assert!(upstream.reused && is_unproven);
        let patience = worker.config.limits.peer_timeout;
        assert_eq!(bound(&upstream), Some(patience));
        worker.tcp_pool.put(&endpoint, upstream);

        let mut client = client(&pod.mesh).await;
        assert_eq!(receive(&mut peer).await.0, Kind::Open);
        send(&mut peer, Kind::End, b"").await;
        assert_eq!(received_text(&mut client).await, "");
        drop(client);
        until(|| pod.pool("\"idle\"") == 1.0).await;
        let taken = worker
            .tcp_pool
            .take(&endpoint, &Default::default(), true)
            .unwrap();
        assert_eq!(bound(&taken), None);
    });
}

#[test]
fn frames_that_are_out_of_place_break_the_connection() {
    run(async {
        let cases: [&[u8]; 4] = [
            &Kind::Open.header(),
            &[77, 0, 0, 0],
            &[2, 255, 255, 255],
            // The connection ends where the payload should follow.
            &Kind::Data { length: 1 }.header(),
        ];
        for bytes in cases {
            let pod = Pod::new(Protocol::Tcp).await;
            let mut client = client(&pod.mesh).await;
            let mut peer = pod.accept().await;
            assert_eq!(receive(&mut peer).await.0, Kind::Open);
            peer.write_all(bytes).await.unwrap();
            peer.shutdown().await.unwrap();
            assert!(is_reset(&mut client).await);
            assert_eq!(closed(&pod.mesh, "upstream-reset"), 1.0);
        }
    });
}

#[test]
fn tls_without_close_notify_is_a_reset() {
    run(async {
        let pod = Pod::new(Protocol::Tcp).await;
        let mut peer = pod.pooled().await;
        let mut client = client(&pod.mesh).await;
        assert_eq!(receive(&mut peer).await.0, Kind::Open);
        let (mut tcp, _) = peer.into_inner();
        tcp.shutdown().await.unwrap();
        assert!(is_reset(&mut client).await);
        assert_eq!(pod.connects(), 1.0);
    });
}

#[test]
fn bytes_after_the_end_keep_the_connection_out_of_the_pool() {
    run(async {
        let pod = Pod::new(Protocol::Tcp).await;
        let mut client = client(&pod.mesh).await;
        let mut peer = pod.accept().await;
        assert_eq!(receive(&mut peer).await.0, Kind::Open);
        let frames = [Kind::End.header(), Kind::End.header()].concat();
        peer.write_all(&frames).await.unwrap();
        assert_eq!(received_text(&mut client).await, "");
        drop(client);
        until(|| closed(&pod.mesh, "") == 1.0).await;
        assert_eq!((pod.pool("\"idle\""), pod.pool("\"active\"")), (0.0, 0.0));
    });
}

#[test]
fn unread_frames_bound_what_is_read_ahead() {
    const WINDOW: usize = 1024;
    /// Writes until the other end stops reading.
    async fn fill(mut to: tokio::io::DuplexStream, bytes: &[u8]) -> usize {
        let mut sent = 0;
        loop {
            match tokio::time::timeout(MOMENT, to.write(bytes)).await {
                Ok(written) => sent += written.unwrap(),
                Err(_) => return sent,
            }
        }
    }
    run(async {
        for towards_app in [true, false] {
            let (app, app_end) = duplex(WINDOW);
            let (peer, peer_end) = duplex(WINDOW);
            let (mut app, mut peer) = (Buffered::new(app), Buffered::new(peer));
            let mut framed = Framed::opening(false);
            let carrying = poll_fn(|cx| framed.poll(cx, &mut app, &mut peer));
            let (_unread, sent) = match towards_app {
                true => {
                    let length = WINDOW - HEADER;
                    let mut frame = Kind::Data { length }.header().to_vec();
                    frame.resize(WINDOW, 0);
                    // Complete frames, so that the peer can parse them.
                    let sent = async move { fill(peer_end, &frame).await };
                    (
                        app_end,
                        tokio::select! { _ = carrying => unreachable!(), sent = sent => sent },
                    )
                }
                false => {
                    let sent = async move { fill(app_end, &[0; WINDOW]).await };
                    (
                        peer_end,
                        tokio::select! { _ = carrying => unreachable!(), sent = sent => sent },
                    )
                }
            };
            // One window on each side, and one read between them.
            assert!(sent <= 3 * WINDOW, "{sent} bytes were taken");
            assert!(app.unsent.len() + peer.unsent.len() <= WINDOW + 2 * HEADER);
        }
    });
}
