use super::fixture::*;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";

#[test]
fn inbound_connections_get_connection_close_and_outbound_ones_do_not() {
    run(async {
        let app = answering(OK).await;
        let mesh = Setup::new(&[app.address]).start();
        let mut inbound = stranger(&mesh);
        let mut outbound = client(&mesh);
        for client in [&mut inbound, &mut outbound] {
            client.talk.send(GET).await;
            assert_eq!(client.talk.head().await.expect("a head"), OK);
        }
        mesh.signal.as_ref().expect("a signal").start();
        for client in [&mut inbound, &mut outbound] {
            client.talk.send(GET).await;
        }
        let head = inbound.talk.head().await.expect("a head");
        assert!(head.contains("Connection: close\r\n"), "{head}");
        assert_eq!(inbound.talk.rest().await, "");
        for _ in 0..2 {
            assert_eq!(outbound.talk.head().await.expect("a head"), OK);
            outbound.talk.send(GET).await;
        }
    });
}

#[test]
fn idle_connections_of_peers_end_at_once() {
    run(async {
        let app = answering(OK).await;
        let mesh = Setup::new(&[app.address]).start();
        let mut inbound = inbound_client(&mesh, "spiffe://cluster.local/ns/shop/sa/web");
        inbound.talk.send(GET).await;
        assert_eq!(inbound.talk.head().await.expect("a head"), OK);
        mesh.signal.as_ref().expect("a signal").start();
        assert_eq!(inbound.talk.rest().await, "");
        drop(inbound.talk);
        assert!(!inbound.served.await.expect("no panic"));
    });
}
