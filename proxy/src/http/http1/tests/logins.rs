//! Logins for a connection: NTLM and Negotiate.

use super::fixture::*;

/// Answers as NTLM does: three messages authenticate the connection as a user.
async fn ntlm() -> App {
    app(|_, mut talk| async move {
        let mut user: Option<String> = None;
        while let Some(head) = talk.head().await {
            let login = head
                .lines()
                .find_map(|line| line.strip_prefix("Authorization: NTLM "));
            if let Some(name) = login.and_then(|login| login.strip_prefix("3-")) {
                user = Some(name.to_owned());
            }
            let answer = match (&user, login) {
                (Some(user), _) => ok(user),
                (None, Some(_)) => challenge("NTLM 2"),
                (None, None) if head.starts_with("GET /open") => ok("anonymous"),
                (None, None) => challenge("Basic realm=\"x\", NTLM"),
            };
            talk.send(&answer).await;
        }
    })
    .await
}

fn ok(user: &str) -> String {
    let length = user.len();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{user}")
}

fn challenge(challenge: &str) -> String {
    format!(
        "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: {challenge}\r\nContent-Length: 0\r\n\r\n"
    )
}

/// The user as which the app authenticates the client.
async fn who(client: &mut Downstream, path: &str, credentials: Option<&str>) -> String {
    let credentials = match credentials {
        Some(credentials) => format!("Authorization: NTLM {credentials}\r\n"),
        None => String::new(),
    };
    let request = format!("GET {path} HTTP/1.1\r\nHost: web\r\n{credentials}\r\n");
    client.talk.send(&request).await;
    let head = client.talk.head().await.expect("a response");
    if head.starts_with("HTTP/1.1 401") {
        return "?".to_owned();
    }
    let length = head.split("Content-Length: ").nth(1).expect("a length");
    let length = length.trim().parse().expect("a number");
    let body = client.talk.exactly(length).await.expect("a body");
    String::from_utf8(body).expect("text")
}

#[test]
fn a_login_applies_only_to_its_clients_connection() {
    run(async {
        let apps = [ntlm().await, ntlm().await, ntlm().await];
        let mesh = Setup::new(&apps.each_ref().map(|app| app.address)).start();
        let mut alice = client(&mesh);
        let mut bob = client(&mesh);
        assert_eq!(who(&mut alice, "/", Some("1")).await, "?");
        assert_eq!(who(&mut bob, "/", Some("1")).await, "?");
        assert_eq!(who(&mut alice, "/", Some("3-alice")).await, "alice");
        assert_eq!(who(&mut bob, "/", Some("3-bob")).await, "bob");
        for _ in 0..10 {
            let mut other = client(&mesh);
            assert_eq!(who(&mut other, "/", None).await, "?");
            assert_eq!(who(&mut alice, "/", None).await, "alice");
            assert_eq!(who(&mut bob, "/", None).await, "bob");
        }
    });
}

#[test]
fn the_inbound_side_binds_the_login_of_a_peers_client() {
    run(async {
        let app = ntlm().await;
        let mesh = Setup::new(&[app.address]).start();
        let mut alice = inbound_client(&mesh, "spiffe://cluster.local/ns/a/sa/alice");
        assert_eq!(who(&mut alice, "/", Some("1")).await, "?");
        assert_eq!(who(&mut alice, "/", Some("3-alice")).await, "alice");
        let mut other = inbound_client(&mesh, "spiffe://cluster.local/ns/a/sa/other");
        assert_eq!(who(&mut other, "/open", None).await, "anonymous");
        assert_eq!(who(&mut alice, "/", None).await, "alice");
    });
}

#[test]
fn connections_without_a_login_are_shared_as_before() {
    run(async {
        let app = ntlm().await;
        let mesh = Setup::new(&[app.address]).start();
        for _ in 0..3 {
            let mut other = client(&mesh);
            assert_eq!(who(&mut other, "/open", None).await, "anonymous");
        }
        assert_eq!(app.connections.get(), 1);
    });
}

#[test]
fn a_client_is_disconnected_when_the_connection_of_its_login_ends() {
    run(async {
        let app = app(|_, mut talk| async move {
            talk.head().await.expect("a request");
            talk.send(&challenge("Negotiate")).await;
            // The app closes while the client is idle.
            a_moment().await;
        })
        .await;
        let mesh = Setup::new(&[app.address]).start();
        let mut client = client(&mesh);
        assert_eq!(who(&mut client, "/", None).await, "?");
        assert_eq!(client.talk.rest().await, "");
        assert!(!client.served.await.expect("no panic"), "it ends in order");
    });
}

#[test]
fn a_login_is_not_copied_to_a_mirror() {
    run(async {
        let app = ntlm().await;
        let mirror = ntlm().await;
        let mesh = Setup::new(&[app.address])
            .mirror(&[mirror.address], 100)
            .start();
        let mut alice = client(&mesh);
        assert_eq!(who(&mut alice, "/", Some("1")).await, "?");
        assert_eq!(who(&mut alice, "/", Some("3-alice")).await, "alice");
        assert_eq!(mirror.connections.get(), 0);
    });
}
