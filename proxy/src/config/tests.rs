//! Parsing of flags.

use super::*;
use clap::Parser;
use proptest::prelude::*;

#[derive(Parser)]
pub(super) struct Command {
    #[command(flatten)]
    pub(super) run: RunArgs,
}

pub(super) const NEEDED: [&str; 13] = [
    "naru-proxy",
    "--controller",
    "controller:15010",
    "--controller-identity",
    "spiffe://cluster.local/ns/naru-system/sa/naru-controller",
    "--trust-anchors",
    "anchors.pem",
    "--token",
    "token",
    "--namespace",
    "shop",
    "--pod",
    "web-1",
];

fn parse(more: &[&str]) -> Result<Config, String> {
    Command::try_parse_from(NEEDED.iter().chain(more))
        .map(|command| command.run.into())
        .map_err(|error| error.to_string())
}

#[test]
fn flags_default_to_the_limits_defaults() {
    let config = parse(&[]).unwrap();
    assert_eq!(
        format!("{:?}", config.limits),
        format!("{:?}", Limits::default())
    );
    assert_eq!(config.outbound_port, NonZeroU16::new(15001));
    assert_eq!(config.admin, "[::]:15020".parse().unwrap());
}

#[test]
fn fewer_connections_lower_the_bound_for_one_address() {
    let lowered = |all| {
        let mut limits = Limits::default();
        limits.lower_connections(all);
        (limits.max_connections, limits.max_connections_per_source)
    };
    assert_eq!(lowered(10_000), (10_000, 5_000));
    assert_eq!(lowered(960), (960, 480));
    assert_eq!(lowered(1), (1, 1));
}

#[test]
fn mapped_listeners_may_be_repeated() {
    let config = parse(&[
        "--map-outbound",
        "127.0.0.1:8001=10.96.0.1:80",
        "--map-outbound",
        "[::1]:8002=[fd00::1]:443",
    ])
    .unwrap();
    assert_eq!(config.map_outbound.len(), 2);
    assert_eq!(
        config.map_outbound[1].destination,
        "[fd00::1]:443".parse().unwrap()
    );
}

#[test]
fn an_error_names_the_flag_and_the_remedy() {
    for (flag, value, hint) in [
        ("--map-inbound", "8001=80", "LISTEN=DESTINATION"),
        ("--controller-identity", "naru-controller", "spiffe://"),
        ("--controller", "controller", "HOST:PORT"),
        ("--controller", "::1:15010", "HOST:PORT"),
        ("--connect-timeout", "5", "500ms"),
        ("--connect-timeout", "0s", "at least 1ms"),
        ("--max-header-bytes", "10", "at least 1024"),
        ("--memory-budget", "100000", "at least 4194304"),
        ("--workers", "0", "1..=64"),
        ("--log", "naru=loud", "naru=loud"),
        ("--namespace", "$(NAMESPACE)", "lower-case"),
    ] {
        let mut arguments: Vec<&str> = NEEDED.to_vec();
        match arguments.iter().position(|argument| *argument == flag) {
            Some(at) => arguments[at + 1] = value,
            None => arguments.extend([flag, value]),
        }
        let error = match Command::try_parse_from(arguments) {
            Ok(_) => panic!("{flag} {value} was taken"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(flag) && error.contains(hint), "{error}");
    }
}

proptest! {
    #[test]
    fn a_duration_survives_its_text_form(millis in 0_u64..100_000_000) {
        let span = Span::from(Duration::from_millis(millis));
        prop_assert_eq!(span.to_string().parse(), Ok(span));
    }

    #[test]
    fn any_text_is_a_duration_or_an_error(text in ".{0,20}") {
        let _ = text.parse::<Span>();
    }
}
