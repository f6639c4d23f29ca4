use super::*;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

async fn run(probes: &str) -> Result<u16, Failure> {
    let probes: Probes = probes.parse().expect("probes");
    let context = ProbeContext {
        here: HERE,
        user_agent: "kube-probe/1.33",
        source: None,
        socket_mark: None,
    };
    assert!(probes.run("app/other", context).await.is_none());
    probes.run("app/liveness", context).await.expect("a probe")
}

fn http(port: u16, path: &str, more: &str) -> String {
    format!(
        r#"{{"app/liveness":{{"seconds":1,"http":{{
            "port":{port},"path":"{path}","tls":false,"headers":[]{more}}}}}}}"#
    )
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, say: impl Fn(&str) -> String) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let request = String::from_utf8(request).expect("text");
    let _ = stream.write_all(say(&request).as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// An app whose responses `say` computes from requests.
async fn app(say: impl Fn(&str) -> String + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind((HERE, 0)).await.expect("bind");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            answer(&mut stream, &say).await;
        }
    });
    port
}

fn plain(status: u16) -> String {
    format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n")
}

#[tokio::test]
async fn the_apps_status_is_passed_on() {
    for status in [200, 204, 404, 503] {
        let port = app(move |_| plain(status)).await;
        assert_eq!(run(&http(port, "/", "")).await.ok(), Some(status));
    }
    let port = app(|_| format!("HTTP/1.1 103 Early Hints\r\n\r\n{}", plain(201))).await;
    assert_eq!(run(&http(port, "/", "")).await.ok(), Some(201));
}

#[tokio::test]
async fn the_request_is_the_one_that_the_kubelet_would_send() {
    let port = app(|request| {
        let mut lines = request.lines();
        let first = lines.next() == Some("GET /a%20b?x=%C3%A9 HTTP/1.1");
        let headers = [
            "host: web.test",
            "user-agent: kube-probe/1.33",
            "accept: */*",
            "x-a: 1",
        ];
        let all = headers
            .iter()
            .all(|header| request.lines().any(|line| line == *header));
        let one_host = request.to_lowercase().matches("\nhost:").count() == 1;
        plain(if first && all && one_host { 200 } else { 400 })
    })
    .await;
    let probes = format!(
        r#"{{"app/liveness":{{"seconds":1,"http":{{
            "port":{port},"path":"a b?x=é#f","headers":[["Host","web.test"],["X-A","1"]]}}}}}}"#
    );
    assert_eq!(run(&probes).await.ok(), Some(200));
}

#[tokio::test]
async fn redirects_within_the_app_are_followed_and_others_pass() {
    let port = app(|request| match request.split(' ').nth(1) {
        Some("/start") => {
            "HTTP/1.1 302 x\r\nlocation: /end\r\ncontent-length: 0\r\n\r\n".to_owned()
        }
        Some("/end") => plain(500),
        Some("/login") => "HTTP/1.1 302 x\r\nlocation: http://other.test/\r\n\r\n".to_owned(),
        _ => "HTTP/1.1 302 x\r\nlocation: /round\r\n\r\n".to_owned(),
    })
    .await;
    assert_eq!(run(&http(port, "/start", "")).await.ok(), Some(500));
    assert_eq!(run(&http(port, "/login", "")).await.ok(), Some(302));
    assert_eq!(run(&http(port, "/round", "")).await.ok(), Some(302));
}

#[tokio::test]
async fn an_app_that_is_down_or_slow_or_sends_garbage_fails() {
    let closed = {
        let listener = TcpListener::bind((HERE, 0)).await.expect("bind");
        listener.local_addr().expect("an address").port()
    };
    assert!(matches!(
        run(&http(closed, "/", "")).await,
        Err(Failure::Connect(_))
    ));
    let tcp = |port| format!(r#"{{"app/liveness":{{"seconds":1,"tcp":{{"port":{port}}}}}}}"#);
    assert!(matches!(run(&tcp(closed)).await, Err(Failure::Connect(_))));
    let silent = TcpListener::bind((HERE, 0)).await.expect("bind");
    let port = silent.local_addr().expect("an address").port();
    assert!(matches!(
        run(&http(port, "/", "")).await,
        Err(Failure::Slow(1))
    ));
    assert_eq!(run(&tcp(port)).await.ok(), Some(200));
    let port = app(|_| "SSH-2.0-x\r\n".to_owned()).await;
    assert!(matches!(
        run(&http(port, "/", "")).await,
        Err(Failure::Answer(_))
    ));
    let port = app(|_| String::new()).await;
    assert!(matches!(
        run(&http(port, "/", "")).await,
        Err(Failure::Talk(_))
    ));
}

#[tokio::test]
async fn an_invalid_header_is_not_sent() {
    let port = app(|_| plain(200)).await;
    let probes = format!(
        r#"{{"app/liveness":{{"seconds":1,"http":{{
            "port":{port},"path":"/","headers":[["x","a\r\nb: c"]]}}}}}}"#
    );
    assert!(matches!(
        run(&probes).await,
        Err(Failure::Request("header"))
    ));
}

async fn over_tls(version: &'static SupportedProtocolVersion) -> Result<u16, Failure> {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(["other.test".to_owned()]).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[version])
        .expect("a version")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key.into())
        .expect("a certificate");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((HERE, 0)).await.expect("bind");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a probe");
        let mut stream = acceptor.accept(stream).await.expect("TLS");
        answer(&mut stream, |_| plain(204)).await;
    });
    run(&http(port, "/", "").replace("\"tls\":false", "\"tls\":true")).await
}

#[tokio::test]
async fn an_app_with_tls_may_show_any_certificate() {
    assert_eq!(over_tls(&rustls::version::TLS13).await.ok(), Some(204));
    assert_eq!(over_tls(&rustls::version::TLS12).await.ok(), Some(204));
}

/// An app with the health service, which reports `status` for the service `shop` and does not know
/// others.
async fn grpc_app(status: u8) -> u16 {
    let listener = TcpListener::bind((HERE, 0)).await.expect("bind");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a probe");
        let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            tokio::spawn(async move {
                let mut body = request.into_body();
                let context = body.data().await.expect("a message").expect("a message");
                let known = context.as_ref() == b"\0\0\0\0\x06\x0a\x04shop";
                let response =
                    ::http::Response::builder().header("content-type", "application/grpc");
                let mut trailers = ::http::HeaderMap::new();
                let code = if known { "0" } else { "5" };
                trailers.insert("grpc-status", ::http::HeaderValue::from_static(code));
                let response = response.body(()).expect("a response");
                let mut stream = respond.send_response(response, false).expect("send");
                if known {
                    let message = vec![0, 0, 0, 0, 2, 8, status];
                    stream.send_data(message.into(), false).expect("send");
                }
                stream.send_trailers(trailers).expect("send");
            });
        }
    });
    port
}

#[tokio::test]
async fn a_grpc_app_passes_if_it_serves() {
    let probes = |port, service| {
        format!(
            r#"{{"app/liveness":{{"seconds":1,"grpc":{{"port":{port},"service":"{service}"}}}}}}"#
        )
    };
    assert_eq!(
        run(&probes(grpc_app(1).await, "shop")).await.ok(),
        Some(200)
    );
    for (status, service) in [(2, "shop"), (1, "other")] {
        let made = run(&probes(grpc_app(status).await, service)).await;
        assert!(matches!(made, Err(Failure::NotServing(_))), "{made:?}");
    }
    let port = app(|_| plain(200)).await;
    assert!(run(&probes(port, "shop")).await.is_err());
}

#[tokio::test]
async fn an_app_with_only_http2_is_probed_by_http2() {
    let listener = TcpListener::bind((HERE, 0)).await.expect("bind");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("a probe");
        let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let right = request.uri().path() == "/live" && request.method() == "GET";
            let status = if right { 204 } else { 400 };
            let response = ::http::Response::builder().status(status).body(());
            let _ = respond.send_response(response.expect("a response"), true);
        }
    });
    let probes = http(port, "/live", ",\"http2\":true");
    assert_eq!(run(&probes).await.ok(), Some(204));
}

#[test]
fn an_invalid_list_of_probes_is_rejected() {
    assert_eq!("{}".parse(), Ok(Probes::default()));
    for wrong in [
        "",
        "[]",
        r#"{"a":{"seconds":1}}"#,
        r#"{"a":{"tcp":{"port":1}}}"#,
    ] {
        assert!(wrong.parse::<Probes>().is_err(), "{wrong:?}");
    }
}
