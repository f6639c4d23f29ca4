//! The shutdown of a proxy.

use std::sync::Arc;

use http::StatusCode;
use nix::sys::signal::Signal;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::apps::{self, App};
use crate::mesh::Mesh;
use crate::process::eventually;

#[tokio::test]
async fn requests_in_flight_are_finished_on_both_sides() {
    let mesh = Mesh::start().await;
    mesh.service("web", Some("http"), &[1]);
    // Responds when the semaphore is released.
    let go = Arc::new(Semaphore::new(0));
    let waits = go.clone();
    let app = App::start(mesh.app(1), move |_| {
        let waits = waits.clone();
        async move {
            waits.acquire().await.expect("open").forget();
            (StatusCode::OK, "finished".to_owned())
        }
    })
    .await;
    let mut web = mesh.sidecar("web", 1, &[]).await;
    let mut client = mesh.sidecar("client", 2, &["web"]).await;

    let calls = client.calls("web");
    let in_flight = tokio::spawn(async move { apps::get(calls, "/").await });
    eventually("the request has reached the app", async || {
        app.requests() == 1
    })
    .await;
    for sidecar in [&web, &client] {
        sidecar.process.signal(Signal::SIGTERM);
        eventually("it is not ready any more", async || {
            apps::get(sidecar.admin, "/ready").await.status == 503
        })
        .await;
        let ready = apps::get(sidecar.admin, "/ready").await;
        assert!(ready.body.contains("shutting down"), "{ready:?}");
    }
    assert_eq!(web.process.ended(), None);
    assert_eq!(client.process.ended(), None);

    go.add_permits(1);
    let answer = in_flight.await.expect("an answer");
    assert_eq!((answer.status, &*answer.body), (200, "finished"));
    for sidecar in [&mut client, &mut web] {
        let status = sidecar.process.end().await;
        assert!(status.success(), "{status}");
    }
}

#[tokio::test]
async fn endless_requests_are_aborted_at_the_limit_or_by_a_second_signal() {
    let mesh = Mesh::start().await;
    mesh.service("web", Some("http"), &[1, 2]);
    let mut apps = Vec::new();
    for number in [1, 2] {
        let app = App::start(mesh.app(number), |_| async {
            std::future::pending::<()>().await;
            (StatusCode::OK, String::new())
        });
        apps.push(app.await);
        mesh.put_pod("web", number, serde_json::json!({}));
    }
    let mut limited = mesh.proxy("web", 1, &[], &["--drain-timeout=100ms"]).await;
    let mut told_twice = mesh.proxy("web", 2, &[], &["--drain-timeout=1h"]).await;
    for (sidecar, number) in [(&mut limited, 1), (&mut told_twice, 2)] {
        let pod = mesh.pod(number);
        let request = tokio::spawn(async move { apps::try_get(pod, "/").await });
        let app = &apps[usize::from(number) - 1];
        eventually("the request has reached the app", async || {
            app.requests() == 1
        })
        .await;
        sidecar.process.signal(Signal::SIGTERM);
        if number == 2 {
            eventually("the first signal is heard", async || {
                apps::get(sidecar.admin, "/ready").await.status == 503
            })
            .await;
            sidecar.process.signal(Signal::SIGTERM);
        }
        let status = sidecar.process.end().await;
        assert!(status.success(), "{status}");
        let broken = request.await.expect("no panic");
        assert!(broken.is_err(), "{broken:?}");
    }
}

#[tokio::test]
async fn a_controller_ends_on_sigterm_and_the_mesh_goes_on() {
    let mut mesh = Mesh::start().await;
    mesh.service("web", Some("http"), &[1]);
    let _app = App::named(mesh.app(1), "web").await;
    let _web = mesh.sidecar("web", 1, &[]).await;
    let client = mesh.sidecar("client", 2, &["web"]).await;
    assert_eq!(client.get("web").await.body, "web");
    mesh.controller.signal(Signal::SIGTERM);
    let status = mesh.controller.end().await;
    assert!(status.success(), "{status}");
    assert_eq!(client.get("web").await.body, "web");
}

#[tokio::test]
async fn a_silent_connection_does_not_delay_the_shutdown() {
    let mesh = Mesh::start().await;
    mesh.service("web", Some("http"), &[1]);
    let _app = App::named(mesh.app(1), "web").await;
    mesh.put_pod("web", 1, serde_json::json!({}));
    let mut web = mesh.proxy("web", 1, &[], &["--drain-timeout=1h"]).await;
    mesh.put_pod("client", 2, serde_json::json!({}));
    let mut client = mesh
        .proxy("client", 2, &["web"], &["--drain-timeout=1h"])
        .await;
    let _from_a_stranger = TcpStream::connect(mesh.pod(1)).await.expect("connect");
    let _from_the_app = TcpStream::connect(client.calls("web"))
        .await
        .expect("connect");
    // Both proxies have accepted the earlier connections.
    assert_eq!(client.get("web").await.body, "web");
    for sidecar in [&mut web, &mut client] {
        sidecar.process.signal(Signal::SIGTERM);
        let status = sidecar.process.end().await;
        assert!(status.success(), "{status}");
    }
}
