//! `naru-proxy init`: the rules as printed by `nft`, and their effect on connections.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use clap::Parser;
use naru_proxy::config::ClientAddress;
use naru_proxy::node::redirect::{self, NETWORKS};
use naru_proxy::socket::{APP_SOCKET_PRIORITY, dial_app};
use naru_proxy::upstream::client_address::ClientAddresses;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Uid, setfsuid};
use socket2::{Domain, SockRef, Socket, Type};

use naru_tests::programs;

const PROXY: u32 = 1337;
const APP: u32 = 1000;
const MARK: u32 = 0x6e61;

const POD: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 9, 0, 5)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 5)),
];
const ELSEWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 9, 0, 99)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 0x99)),
];
const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// The flags of `naru-proxy init` without the program.
#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    init: redirect::InitArgs,
}

fn init(flags: &str) -> anyhow::Result<()> {
    let cli = Cli::try_parse_from(["init"].into_iter().chain(flags.split_whitespace()))?;
    redirect::run(cli.init)
}

/// Runs `body` on a thread with a network namespace of its own: a pod with one dual-stack
/// interface.
fn in_pod(body: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect(
            "a network namespace of its own: this layer needs root (CAP_SYS_ADMIN, CAP_NET_ADMIN)",
        );
        run("ip link set lo up");
        run("ip link add eth0 type veth peer name wire");
        run("ip address add 10.9.0.5/24 dev eth0");
        run("ip address add fd00:9::5/64 dev eth0 nodad");
        run("ip link set eth0 up");
        run("ip link set wire up");
        body();
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

/// Runs a program in the thread's network namespace and returns its output.
fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a program");
    let output = Command::new(program)
        .args(words)
        .output()
        .unwrap_or_else(|error| {
            panic!("{program}: {error}: install iproute2 and nftables, as tests/run does")
        });
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// Listens on `port`, dual-stack, and sends every client `name` and the original destination, which
/// it reads from the socket as a proxy does.
fn listen(name: &'static str, port: u16) {
    for family in [Domain::IPV4, Domain::IPV6] {
        let socket = Socket::new(family, Type::STREAM, None).expect("socket");
        let any: IpAddr = if family == Domain::IPV4 {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            socket.set_only_v6(true).expect("v6 only");
            Ipv6Addr::UNSPECIFIED.into()
        };
        socket
            .bind(&SocketAddr::new(any, port).into())
            .expect("bind");
        socket.listen(16).expect("listen");
        let listener = TcpListener::from(socket);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accept");
                let socket = SockRef::from(&stream);
                let destination = if family == Domain::IPV4 {
                    socket.original_dst_v4()
                } else {
                    socket.original_dst_v6()
                };
                let destination = destination
                    .ok()
                    .and_then(|address| address.as_socket())
                    .map_or_else(|| "?".to_owned(), |address| address.to_string());
                let _gone = stream.write_all(format!("{name} {destination}").as_bytes());
            }
        });
    }
}

#[derive(Clone, Copy, Default)]
struct Caller {
    uid: u32,
    mark: Option<u32>,
    priority: Option<u32>,
}

const fn uid(uid: u32) -> Caller {
    Caller {
        uid,
        mark: None,
        priority: None,
    }
}

const APP_BOUND: Caller = Caller {
    uid: PROXY,
    mark: None,
    priority: Some(APP_SOCKET_PRIORITY),
};

/// The listener that answers `caller` at the address, and the original destination that it sees.
fn call(caller: Caller, ip: IpAddr, port: u16) -> String {
    // A socket belongs to the thread's file system user at its creation.
    setfsuid(Uid::from_raw(caller.uid));
    let socket = Socket::new(
        if ip.is_ipv4() {
            Domain::IPV4
        } else {
            Domain::IPV6
        },
        Type::STREAM,
        None,
    );
    setfsuid(Uid::from_raw(0));
    let socket = socket.expect("socket");
    if let Some(mark) = caller.mark {
        socket.set_mark(mark).expect("mark");
    }
    if let Some(priority) = caller.priority {
        socket.set_priority(priority).expect("priority");
    }
    let timeout = Duration::from_millis(500);
    let address = SocketAddr::new(ip, port);
    if let Err(error) = socket.connect_timeout(&address.into(), timeout) {
        return format!("{:?}", error.kind());
    }
    socket.set_read_timeout(Some(timeout)).expect("timeout");
    let mut answer = String::new();
    match (&socket).read_to_string(&mut answer) {
        Ok(_) => answer,
        Err(error) => format!("{:?}", error.kind()),
    }
}

fn listeners() {
    listen("app", 8080);
    listen("app", 9090);
    listen("admin", 15020);
    listen("outbound", 15001);
    listen("inbound", 15006);
}

fn seen(name: &str, ip: IpAddr, port: u16) -> String {
    format!("{name} {}", SocketAddr::new(ip, port))
}

/// The app without any rule: conntrack has no original destination.
fn direct(answer: &str) -> bool {
    answer.starts_with("app ")
}

#[test]
fn the_rules_match_the_golden_file() {
    in_pod(|| {
        init(
            "--skip-inbound-ports 9100,22 --skip-outbound-ports 25 \
             --skip-outbound-cidrs 10.0.0.0/8,169.254.169.254,fd00:ec2::/32,0.0.0.0/0",
        )
        .expect("init");
        let ruleset = run("nft list ruleset");
        let golden = include_str!("redirect.nft");
        assert_eq!(ruleset, golden, "\n--- nft list ruleset says:\n{ruleset}");
    });
}

#[test]
fn rules_by_mark_differ_in_how_they_recognize_the_proxy() {
    in_pod(|| {
        init("--proxy-mark 0x6e61").expect("init");
        let ruleset = run("nft list ruleset");
        assert!(!ruleset.contains("skuid"), "{ruleset}");
        assert_eq!(
            ruleset.matches("meta mark 0x00006e61").count(),
            3 + NETWORKS.len(),
            "{ruleset}"
        );

        listeners();
        let marked = Caller {
            mark: Some(MARK),
            ..uid(0)
        };
        for ip in POD {
            assert_eq!(call(uid(0), ip, 8080), seen("outbound", ip, 8080));
            assert_eq!(call(marked, ip, 8080), seen("inbound", ip, 8080));
            let app_bound = Caller {
                priority: Some(APP_SOCKET_PRIORITY),
                ..marked
            };
            assert!(direct(&call(app_bound, ip, 8080)));
        }
        for ip in ELSEWHERE {
            assert_eq!(call(uid(0), ip, 8080), seen("outbound", ip, 8080));
            assert_ne!(call(marked, ip, 8080), seen("outbound", ip, 8080));
        }
    });
}

/// The result of a start-up check of a proxy with [`MARK`]: the networks whose client addresses the
/// app would see, and the substitute for others.
fn client_addresses() -> serde_json::Value {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let found = runtime.block_on(ClientAddresses::find(Some(MARK)));
    serde_json::to_value(found.view(ClientAddress::Preserve)).expect("JSON")
}

#[test]
fn the_app_sees_its_clients_addresses_while_the_rules_are_set() {
    in_pod(|| {
        run("ip route add default via 10.9.0.1");
        run("ip -6 route add default via fd00:9::1 dev eth0");
        let none = serde_json::json!({ "http": "preserve", "preserved": [], "others": [] });
        assert_eq!(client_addresses(), none);
        init("--proxy-mark 0x6e61").expect("init");
        // A second run changes nothing.
        init("--proxy-mark 0x6e61").expect("init");
        init("--proxy-mark 0x6e61 --check").expect("the rules are those");
        let all = serde_json::json!({
            "http": "preserve",
            "preserved": NETWORKS.map(|network| network.clients.to_string()),
            "others": ["169.254.6.6", "fd6e:6172:7500::6"],
        });
        assert_eq!(client_addresses(), all);
        init("--proxy-mark 0x6e61 --undo").expect("undo");
        assert_eq!(client_addresses(), none);
    });
}

/// The client address that the app sees when a proxy with [`MARK`] connects for a client at
/// `client`.
async fn shown(client: &str) -> String {
    let client: IpAddr = client.parse().expect("an address");
    let found = ClientAddresses::find(Some(MARK)).await;
    let own = POD[usize::from(client.is_ipv6())];
    let app = tokio::net::TcpListener::bind((own, 0)).await.expect("bind");
    let address = app.local_addr().expect("an address");
    let source = found.of(client).address;
    let dialled = dial_app(address, source, None, Some(MARK));
    let (_, accepted) = tokio::try_join!(dialled, app.accept()).expect("a connection");
    accepted.1.ip().to_string()
}

#[test]
fn a_client_outside_the_networks_is_hidden_and_never_the_pod() {
    in_pod(|| {
        run("ip route add default via 10.9.0.1");
        run("ip -6 route add default via fd00:9::1 dev eth0");
        init("--proxy-mark 0x6e61").expect("init");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        for (client, wanted) in [
            ("10.9.0.99", "10.9.0.99"),
            ("fd00:9::99", "fd00:9::99"),
            // The pod itself, and similar addresses.
            ("10.9.0.5", "10.9.0.5"),
            ("93.184.1.9", "169.254.6.6"),
            ("169.254.1.1", "169.254.6.6"),
            ("127.0.0.1", "169.254.6.6"),
            ("241.9.0.5", "169.254.6.6"),
            ("fe80::1", "fd6e:6172:7500::6"),
            ("64:ff9b::1", "fd6e:6172:7500::6"),
            ("9d00:9::5", "fd6e:6172:7500::6"),
        ] {
            assert_eq!(runtime.block_on(shown(client)), wanted, "{client}");
        }
    });
}

#[test]
fn a_pod_in_class_e_does_not_use_it_for_clients() {
    in_pod(|| {
        run("ip address add 240.9.0.5/24 dev eth0");
        run("ip route add default via 240.9.0.1 src 240.9.0.5");
        init("--proxy-mark 0x6e61").expect("init");
        assert!(!run("ip route show table local").contains("241.0.0.0/8"));
        let found = client_addresses();
        // For IPv6, the networks with a route.
        assert_eq!(found["preserved"], serde_json::json!(["fc00::/7"]));
        let stand_ins = serde_json::json!(["169.254.6.6", "fd6e:6172:7500::6"]);
        assert_eq!(found["others"], stand_ins);
    });
}

#[test]
fn a_pod_in_a_range_of_client_addresses_calls_itself_from_its_own_address() {
    in_pod(|| {
        run("ip address add 241.9.0.5/24 dev eth0");
        run("ip route add default via 241.9.0.1 src 241.9.0.5");
        init("--proxy-mark 0x6e61").expect("init");
        init("--proxy-mark 0x6e61 --check").expect("the rules are those");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let seen = runtime.block_on(async {
            let own: IpAddr = Ipv4Addr::new(241, 9, 0, 5).into();
            let app = tokio::net::TcpListener::bind((own, 0)).await.expect("bind");
            let address = app.local_addr().expect("an address");
            let dialled = dial_app(address, None, None, Some(MARK));
            let (_, accepted) = tokio::try_join!(dialled, app.accept()).expect("a connection");
            accepted.1.ip().to_string()
        });
        assert_eq!(seen, "241.9.0.5");
    });
}

#[test]
fn class_e_in_use_by_others_is_left_alone() {
    let local = || run("ip route show table local");
    in_pod(move || {
        run("ip route add default via 10.9.0.1");
        run("ip -6 route add default via fd00:9::1 dev eth0");
        init("--proxy-mark 0x6e61 --class-e-in-use").expect("init");
        init("--proxy-mark 0x6e61 --class-e-in-use --check").expect("the rules are those");
        assert!(!local().contains(" 24"), "{}", local());
        let found = client_addresses();
        assert_eq!(
            found["preserved"],
            serde_json::json!(["fc00::/7", "2000::/3"])
        );
        // Also where an earlier run took it.
        init("--proxy-mark 0x6e61").expect("init");
        assert!(local().contains("241.0.0.0/8"), "{}", local());
        init("--proxy-mark 0x6e61 --class-e-in-use").expect("init");
        assert!(!local().contains(" 24"), "{}", local());
        init("--undo").expect("undo");
        // A range that bypasses the proxy, which affects no other range.
        init("--proxy-mark 0x6e61 --skip-outbound-cidrs 0.0.0.0/0,241.5.0.0/16").expect("init");
        assert!(!local().contains("241.0.0.0/8"), "{}", local());
        assert!(local().contains("242.64.0.0/10"), "{}", local());
        let found = client_addresses();
        let preserved = found["preserved"].as_array().expect("networks");
        assert_eq!(preserved.len(), NETWORKS.len() - 1, "{found}");
    });
}

#[test]
fn a_pod_without_a_default_route_sees_the_clients_that_it_can_reach() {
    in_pod(|| {
        init("--proxy-mark 0x6e61").expect("init");
        let found = client_addresses();
        let reached = serde_json::json!(["10.0.0.0/8", "fc00::/7"]);
        assert_eq!(found["preserved"], reached);
    });
}

#[test]
fn a_call_of_the_app_reaches_the_outbound_listener_with_its_destination() {
    in_pod(|| {
        init("").expect("init");
        listeners();
        for ip in ELSEWHERE.into_iter().chain(POD) {
            assert_eq!(call(uid(APP), ip, 8080), seen("outbound", ip, 8080));
            assert_eq!(call(uid(0), ip, 443), seen("outbound", ip, 443));
        }
    });
}

#[test]
fn a_loopback_call_is_left_alone_from_any_user() {
    in_pod(|| {
        init("").expect("init");
        listeners();
        for ip in LOOPBACK {
            for caller in [uid(APP), uid(PROXY), APP_BOUND] {
                assert!(direct(&call(caller, ip, 8080)));
            }
        }
        let other_loopback = IpAddr::V4(Ipv4Addr::new(127, 3, 2, 1));
        assert!(direct(&call(uid(APP), other_loopback, 8080)));
    });
}

#[test]
fn a_call_of_the_proxy_to_other_hosts_is_exempt() {
    in_pod(|| {
        init("").expect("init");
        listeners();
        for ip in ELSEWHERE {
            let answer = call(uid(PROXY), ip, 8080);
            assert!(
                ["TimedOut", "HostUnreachable"].contains(&answer.as_str()),
                "there is no listener, but {answer}"
            );
        }
    });
}

#[test]
fn a_pod_that_calls_itself_reaches_the_inbound_listener_and_then_the_app() {
    in_pod(|| {
        init("--skip-inbound-ports 9090").expect("init");
        listeners();
        for ip in POD {
            assert_eq!(call(uid(PROXY), ip, 8080), seen("inbound", ip, 8080));
            assert!(direct(&call(APP_BOUND, ip, 8080)));
            // A port on which other clients bypass the proxy, and so does the pod itself.
            assert!(direct(&call(uid(PROXY), ip, 9090)));
            assert!(call(uid(PROXY), ip, 15020).starts_with("admin "));
        }
    });
}

#[test]
fn skipped_ports_and_networks_are_called_directly() {
    in_pod(|| {
        init(
            "--skip-outbound-ports 9090,53 --skip-outbound-cidrs \
            10.9.0.0/30,fd00:9::4/126,10.9.0.4/31",
        )
        .expect("init");
        listeners();
        let [v4, v6] = POD;
        assert!(
            direct(&call(uid(APP), v4, 8080)),
            "10.9.0.4/31 has 10.9.0.5"
        );
        assert!(
            direct(&call(uid(APP), v6, 8080)),
            "fd00:9::4/126 has fd00:9::5"
        );
        for ip in ELSEWHERE {
            assert_eq!(call(uid(APP), ip, 8080), seen("outbound", ip, 8080));
            assert_eq!(call(uid(APP), ip, 5300), seen("outbound", ip, 5300));
            assert!(!call(uid(APP), ip, 9090).starts_with("outbound"));
        }
    });
}

#[test]
fn a_call_from_outside_reaches_the_inbound_listener_unless_its_port_is_skipped() {
    in_pod(|| {
        init("--skip-inbound-ports 9090").expect("init");
        listeners();
        let pod = format!(
            "/proc/{}/task/{}/ns/net",
            std::process::id(),
            nix::unistd::gettid()
        );
        std::thread::spawn(move || {
            // A second namespace with the other end of a veth pair into the pod's.
            unshare(CloneFlags::CLONE_NEWNET).expect("a second network namespace");
            run("ip link set lo up");
            run(&format!(
                "ip link add eth0 type veth peer name eth1 netns {pod}"
            ));
            run("ip address add 10.8.0.2/24 dev eth0");
            run("ip address add fd00:8::2/64 dev eth0 nodad");
            run("ip link set eth0 up");
            run(&format!(
                "nsenter --net={pod} ip address add 10.8.0.1/24 dev eth1"
            ));
            run(&format!(
                "nsenter --net={pod} ip address add fd00:8::1/64 dev eth1 nodad"
            ));
            run(&format!("nsenter --net={pod} ip link set eth1 up"));
            for ip in ["10.8.0.1", "fd00:8::1"] {
                let ip: IpAddr = ip.parse().expect("an address");
                // A new veth pair may take a moment to work.
                let mut first = call(uid(0), ip, 8080);
                for _ in 0..20 {
                    if first != "TimedOut" {
                        break;
                    }
                    first = call(uid(0), ip, 8080);
                }
                assert_eq!(first, seen("inbound", ip, 8080));
                assert_eq!(call(uid(PROXY), ip, 4711), seen("inbound", ip, 4711));
                assert!(direct(&call(uid(0), ip, 9090)));
                assert!(call(uid(0), ip, 15020).starts_with("admin "));
            }
        })
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn a_second_run_replaces_the_rules_and_undo_leaves_nothing() {
    in_pod(|| {
        init("--undo").expect("nothing to undo is no error");
        init("--outbound-port 15101").expect("init");
        init("").expect("init again");
        let once = run("nft list ruleset");
        init("").expect("init once more");
        assert_eq!(run("nft list ruleset"), once);
        assert!(!once.contains("15101"), "{once}");
        init("--undo").expect("undo");
        assert_eq!(run("nft list ruleset"), "");
        listeners();
        assert!(direct(&call(uid(APP), POD[0], 8080)));
        init("--undo").expect("undo twice");
    });
}

#[test]
fn tables_of_others_are_left_alone() {
    in_pod(|| {
        run("nft add table inet theirs");
        run("nft add table ip naru");
        init("").expect("init");
        init("--undo").expect("undo");
        assert_eq!(
            run("nft list ruleset"),
            "table inet theirs {\n}\ntable ip naru {\n}\n"
        );
    });
}

#[test]
fn check_distinguishes_absent_and_different_rules_from_those_in_force() {
    in_pod(|| {
        let absent = format!("{:#}", init("--check").expect_err("no rules yet"));
        assert!(absent.contains("there are no redirect rules"), "{absent}");
        let flags =
            "--skip-outbound-cidrs 0.0.0.0/0,10.0.0.0/8,::/0,fd00::/9 --skip-inbound-ports 22";
        init(flags).expect("init");
        init(&format!("{flags} --check")).expect("they are in force");
        let different = format!("{:#}", init("--check").expect_err("others are in force"));
        assert!(different.contains("tcp dport 22 accept"), "{different}");
        run("nft add rule inet naru output tcp dport 1 accept");
        let more = format!(
            "{:#}",
            init(&format!("{flags} --check")).expect_err("one more rule")
        );
        assert!(
            more.contains("expected `") && more.contains("tcp dport 1 accept"),
            "{more}"
        );
    });
}

#[test]
fn without_the_privilege_the_program_fails_with_a_hint() {
    // Built before the thread enters a network namespace without connectivity.
    let program = programs().join("naru-proxy");
    in_pod(move || {
        let output = Command::new("setpriv")
            .args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"])
            .arg(program)
            .arg("init")
            .output()
            .expect("setpriv: install util-linux");
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("setting the redirect rules"), "{text}");
        assert!(text.contains("capabilities.add: [NET_ADMIN]"), "{text}");
        assert_eq!(run("nft list ruleset"), "");
    });
}

#[test]
fn the_program_reads_its_flags_from_the_environment_too() {
    let program = programs().join("naru-proxy");
    in_pod(move || {
        let output = Command::new(&program)
            .arg("init")
            .env("NARU_PROXY_UID", "4711")
            .env("NARU_SKIP_INBOUND_PORTS", "")
            .env("NARU_SKIP_OUTBOUND_PORTS", "25,587")
            .output()
            .expect("naru-proxy");
        assert!(output.status.success(), "{output:?}");
        let ruleset = run("nft list ruleset");
        for rule in [
            "meta skuid 4711 accept",
            "tcp dport 25 accept",
            "tcp dport 587 accept",
        ] {
            assert!(ruleset.contains(rule), "{ruleset}");
        }
        run(&format!("{} init --undo", program.display()));
        assert_eq!(run("nft list ruleset"), "");
    });
}
