//! Apps that listen but accept late: paused, or busy.

use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;

use super::{client, closed, opaque};
use crate::balance::Peer;
use crate::route::Protocol;
use crate::socket;
use crate::testing::mesh::{Setup, run, until};
use crate::testing::sockets::received_text;

/// A listener whose backlog is full.
fn paused() -> (TcpListener, SocketAddr, Vec<TcpStream>) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    socket.bind(&any.into()).expect("an address");
    socket.listen(0).expect("a listener");
    socket.set_nonblocking(true).expect("a socket");
    let listener = TcpListener::from_std(socket.into()).expect("a listener");
    let address = listener.local_addr().expect("an address");
    let filling = (0..3).map(|_| {
        let filler = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        filler.set_nonblocking(true).expect("a socket");
        // It is connecting, or waits for room in the backlog.
        let _ = filler.connect(&address.into());
        TcpStream::from_std(filler.into()).expect("a socket")
    });
    let filling = filling.collect();
    (listener, address, filling)
}

/// Accepts from now on, and answers each request.
fn resume(listener: TcpListener, answer: &'static [u8]) {
    spawn_local(async move {
        while let Ok((mut accepted, _)) = listener.accept().await {
            spawn_local(async move {
                let mut asked = [0; 1024];
                if accepted
                    .read(&mut asked)
                    .await
                    .is_ok_and(|length| length > 0)
                {
                    let _ = accepted.write_all(answer).await;
                }
            });
        }
    });
}

#[test]
fn the_only_endpoint_is_tried_until_it_accepts() {
    run(async {
        let (listener, address, filling) = paused();
        let mut setup = opaque(&[address]);
        setup.limits.connect_timeout = Duration::from_millis(50);
        let mesh = setup.start();
        let mut client = client(&mesh).await;
        client.write_all(b"question").await.unwrap();
        let timed_out = ["naru_upstream_connects_total{", "\"connect-timeout\""];
        until(|| mesh.metric(&timed_out) >= 4.0).await;
        drop(filling);
        resume(listener, b"answer");
        assert_eq!(received_text(&mut client).await, "answer");
        assert_eq!(
            mesh.metric(&["naru_tcp_connections_total{", "service=\"web\""]),
            1.0
        );
    });
}

#[test]
fn a_client_that_leaves_ends_the_attempt() {
    run(async {
        let (_listener, address, _filling) = paused();
        let mut setup = opaque(&[address]);
        setup.limits.connect_timeout = Duration::from_millis(50);
        let mesh = setup.start();
        let client = client(&mesh).await;
        let timed_out = ["naru_upstream_connects_total{", "\"connect-timeout\""];
        until(|| mesh.metric(&timed_out) >= 2.0).await;
        socket::reset(&client);
        drop(client);
        until(|| closed(&mesh, "client-gone") == 1.0).await;
    });
}

#[test]
fn the_own_app_may_accept_late() {
    run(async {
        for protocol in [Protocol::Tcp, Protocol::Http] {
            let (listener, address, filling) = paused();
            let mut setup = Setup::new(&[]);
            setup.protocol = protocol;
            setup.endpoints = vec![(address, Peer::App)];
            setup.limits.connect_timeout = Duration::from_millis(50);
            let mesh = setup.start();
            let mut client = client(&mesh).await;
            let request = b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n";
            client.write_all(request).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
            drop(filling);
            resume(listener, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            assert!(received_text(&mut client).await.ends_with("\r\n\r\nok"));
            let failed = ["naru_upstream_connects_total{", "\"connect-timeout\""];
            assert_eq!(mesh.metric(&failed), 0.0);
        }
    });
}
