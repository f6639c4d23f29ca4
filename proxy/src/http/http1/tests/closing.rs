//! Apps that close connections without announcement, and apps with a single thread.

use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::sleep;

use super::fixture::*;
use crate::balance::Peer;
use crate::table::Destination;

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
const POST: &str = "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 2\r\n\r\nhi";

/// A Service with the app in this pod as its endpoint.
fn own_app(app: &App) -> Mesh {
    let mut setup = Setup::new(&[]);
    setup.endpoints = vec![(app.address, Peer::App)];
    setup.start()
}

/// Records of all endpoints, including mirrors, that they keep idle connections for a while.
pub fn seen_open(mesh: &Mesh) {
    let destination = mesh.cell.load();
    let Destination::Logical(logical) = &**destination else {
        panic!("a Service");
    };
    let rule = &logical.default_rule;
    let mirrors = rule.mirrors.iter().map(|mirror| mirror.backend.clone());
    for backend in rule.target(0).into_iter().chain(mirrors) {
        for endpoint in &backend.endpoints().endpoints {
            endpoint.load.habits.saw_open(Duration::from_secs(30));
        }
    }
}

fn events(mesh: &Mesh, event: &str) -> f64 {
    let event = format!("event=\"{event}\"");
    mesh.metric(&["naru_app_connection_events_total{", &event])
}

/// Sends `request`, which must succeed.
async fn ask_well(client: &mut Downstream, request: &str) {
    client.talk.send(request).await;
    assert_eq!(client.talk.head().await.expect("a head"), OK);
}

#[test]
fn an_app_that_closes_after_each_response_loses_no_request() {
    run(async {
        let app = app(|_, mut talk| async move {
            talk.until("hi").await;
            talk.send(OK).await;
        })
        .await;
        for mesh in [own_app(&app), Setup::new(&[app.address]).start()] {
            let mut client = client(&mesh);
            app.connections.set(0);
            for _ in 0..50 {
                ask_well(&mut client, POST).await;
            }
            assert_eq!(app.connections.get(), 50);
            // The last event may not have been counted yet.
            until(|| events(&mesh, "closed-idle") >= 40.0).await;
        }
    });
}

#[test]
fn a_non_repeatable_request_uses_only_connections_proven_to_stay_open() {
    run(async {
        let app = answering(OK).await;
        let mesh = own_app(&app);
        let mut client = client(&mesh);
        let post = "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n";
        // Nothing is known yet: each request gets a new connection.
        ask_well(&mut client, post).await;
        ask_well(&mut client, post).await;
        assert_eq!(app.connections.get(), 2);
        seen_open(&mesh);
        for _ in 0..10 {
            ask_well(&mut client, post).await;
        }
        assert_eq!(app.connections.get(), 2);
        assert_eq!(events(&mesh, "closed-idle"), 0.0);
    });
}

#[test]
fn the_oldest_idle_connection_shows_how_long_apps_keep_them() {
    run(async {
        let app = answering(OK).await;
        let mesh = own_app(&app);
        let mut client = client(&mesh);
        let post = "POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 0\r\n\r\n";
        ask_well(&mut client, post).await;
        sleep(Duration::from_millis(150)).await;
        for _ in 0..10 {
            ask_well(&mut client, post).await;
        }
        assert_eq!(app.connections.get(), 2);
    });
}

#[test]
fn a_body_too_large_to_repeat_uses_no_idle_connection() {
    run(async {
        let app = app(|_, mut talk| async move {
            while talk.until("end.").await.is_some() {
                talk.send(OK).await;
            }
        })
        .await;
        let mut setup = Setup::new(&[]);
        setup.endpoints = vec![(app.address, Peer::App)];
        setup.limits.max_replay_bytes = 8;
        let mesh = setup.start();
        let mut client = client(&mesh);
        let put = |body: &str| {
            let length = body.len();
            format!("PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: {length}\r\n\r\n{body}")
        };
        for (body, connections) in [("end.", 1), ("end.", 1), ("too large, end.", 2)] {
            ask_well(&mut client, &put(body)).await;
            assert_eq!(app.connections.get(), connections, "{body}");
        }
    });
}

#[test]
fn an_idle_connection_gives_way_to_one_waiting_for_the_only_thread() {
    run(async {
        let listener = crate::testing::sockets::listener().await;
        let mut setup = Setup::new(&[]);
        setup.endpoints = vec![(listener.local_addr().expect("an address"), Peer::App)];
        let mesh = setup.start();
        let answer = std::rc::Rc::new(Notify::new());
        let may_answer = answer.clone();
        spawn_local(async move {
            let mut is_first = true;
            while let Ok((socket, _)) = listener.accept().await {
                let mut talk = Talk::new(socket);
                while talk.head().await.is_some() {
                    if std::mem::take(&mut is_first) {
                        may_answer.notified().await;
                    }
                    talk.send(OK).await;
                }
            }
        });
        let (mut first, mut second) = (client(&mesh), client(&mesh));
        first.talk.send(GET).await;
        second.talk.send(GET).await;
        let connects = ["naru_upstream_connects_total{", "\"ok\""];
        until(|| mesh.metric(&connects) == 2.0).await;
        answer.notify_one();
        assert_eq!(first.talk.head().await.expect("a head"), OK);
        assert_eq!(second.talk.head().await.expect("a head"), OK);
        assert_eq!(events(&mesh, "starved"), 1.0);
    });
}

#[test]
fn a_slow_response_of_a_multithreaded_server_closes_no_idle_connection() {
    run(async {
        let app = app(|number, mut talk| async move {
            while talk.head().await.is_some() {
                if number == 1 {
                    sleep(3 * crate::upstream::pool::STARVED_AFTER).await;
                }
                talk.send(OK).await;
            }
        })
        .await;
        let mesh = own_app(&app);
        let (mut slow, mut fast) = (client(&mesh), client(&mesh));
        slow.talk.send(GET).await;
        until(|| app.connections.get() == 1).await;
        ask_well(&mut fast, GET).await;
        assert_eq!(slow.talk.head().await.expect("a head"), OK);
        ask_well(&mut fast, GET).await;
        assert_eq!(app.connections.get(), 2);
        assert_eq!(events(&mesh, "starved"), 0.0);
    });
}
