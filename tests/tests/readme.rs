//! Compares the documents with the programs and with each other: their tables list exactly the
//! existing reasons, metrics and flags, links and file names resolve, and README.md stays short.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use naru_contract::ResourceName;
use naru_controller::issuer::{Ca, InForce};
use naru_controller::metrics::AuthorityState;
use naru_proxy::balance::{
    self, AttemptOutcome, Endpoint, EndpointSet, Load, Peer, RetryBudget, next_endpoint_id,
};
use naru_proxy::observe::metrics::{
    HttpVersion, MirrorLabels, MirrorOutcome, PoolProtocol, PoolState, PushOutcome, RenewalOutcome,
    RequestLabels, RetryOutcome, ServiceLabels, Shown, TcpLabels,
};
use naru_proxy::observe::reason::Reason;
use naru_proxy::socket::Direction;
use naru_tests::{programs, repository};
use rand::SeedableRng;
use rand::rngs::SmallRng;

const PROXY: &str = "proxy/README.md";
const CONTROLLER: &str = "controller/README.md";
const COMMAND: &str = "controller/cli/README.md";

fn read(document: &str) -> String {
    std::fs::read_to_string(repository().join(document)).expect(document)
}

/// The rows of the only table of flags, metrics or reasons under a document's heading, without the
/// table's head.
fn table(document: &str, heading: &str) -> Vec<Vec<String>> {
    let rows: Vec<Vec<String>> = read(document)
        .lines()
        .skip_while(|line| !line.starts_with('#') || line.trim_matches(['#', ' ', '`']) != heading)
        .skip(1)
        .take_while(|line| !line.starts_with('#'))
        .filter(|line| line.starts_with('|'))
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().to_owned()).collect()
        })
        .collect();
    assert!(
        rows.len() > 2,
        "{document} has no table under the heading {heading:?}"
    );
    rows[2..].to_vec()
}

/// The text between backticks.
fn code(cell: &str) -> &str {
    cell.split('`').nth(1).unwrap_or("")
}

#[test]
fn every_reason_is_documented_with_its_status() {
    let written: Vec<(String, Option<u16>)> = table(PROXY, "Reasons")
        .iter()
        .map(|row| (code(&row[0]).to_owned(), row[1].parse().ok()))
        .collect();
    let known: Vec<(String, Option<u16>)> = Reason::ALL
        .iter()
        .map(|reason| (reason.as_str().to_owned(), reason.status()))
        .collect();
    assert_eq!(written, known);
}

/// Name, type and labels of a metric.
type Family = (String, String, BTreeSet<String>);

fn documented_families(document: &str, heading: &str) -> BTreeSet<Family> {
    let family = |row: &Vec<String>| {
        let (name, labels) = code(&row[0]).split_once('{').unwrap_or((code(&row[0]), ""));
        let labels = labels.trim_end_matches('}').split(',');
        let labels = labels.filter(|label| !label.is_empty()).map(str::to_owned);
        (name.to_owned(), row[1].clone(), labels.collect())
    };
    table(document, heading).iter().map(family).collect()
}

/// Our metric families in Prometheus' text format.
fn families_of(exposed: &[u8]) -> BTreeSet<Family> {
    let text = std::str::from_utf8(exposed).expect("text");
    let types = text.lines().filter_map(|line| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        name.starts_with("naru_").then_some((name, kind))
    });
    let family = |(name, kind): (&str, &str)| {
        let series = text
            .lines()
            .find_map(|line| {
                let rest = line.strip_prefix(name)?;
                let rest = rest.strip_prefix("_bucket").unwrap_or(rest);
                rest.starts_with(['{', ' ']).then_some(rest)
            })
            .unwrap_or_else(|| panic!("{name} has no series"));
        let inside = series.split_once('{').and_then(|(_, s)| s.split_once('}'));
        let labels = inside.map_or("", |(labels, _)| labels).split(',');
        let labels = labels.filter_map(|label| Some(label.split_once('=')?.0.to_owned()));
        let labels = labels.filter(|label| label != "le").collect();
        (name.to_owned(), kind.to_owned(), labels)
    };
    types.map(family).collect()
}

#[test]
fn every_metric_of_the_proxy_is_documented_with_its_labels() {
    let metrics = naru_proxy::observe::metrics::Metrics::new("shop", "web-1");
    metrics.watch_memory(naru_proxy::memory::Budget::new(1));
    metrics.app_shown(vec![("ipv4", Shown::Client)]);
    let service = ServiceLabels {
        namespace: "shop".into(),
        service: "web".into(),
        port: 80,
    };
    let request = metrics.request(RequestLabels {
        direction: Direction::Outbound,
        client: "".into(),
        namespace: "shop".into(),
        service: "web".into(),
        port: Some(80),
        route: "".into(),
        rule: "".into(),
        backend: "".into(),
    });
    request.begin(HttpVersion::Http1);
    request.retry(RetryOutcome::Sent);
    request.end(Some(200), None, Duration::ZERO);
    let mirror = metrics.mirror(MirrorLabels {
        namespace: "shop".into(),
        service: "web".into(),
        port: Some(80),
        route: "".into(),
        rule: "".into(),
        mirror: "".into(),
    });
    mirror.ended(MirrorOutcome::Answered);
    let connection = metrics.tcp(TcpLabels {
        direction: Direction::Inbound,
        client: "".into(),
        namespace: "shop".into(),
        service: "".into(),
        port: Some(80),
    });
    connection.opened();
    connection.closed(None);
    let budget = Arc::new(RetryBudget::new(20, Duration::from_secs(10), 10.0));
    metrics.watch_budget(&service, &budget);
    let endpoint = Endpoint {
        id: next_endpoint_id(),
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, 80)),
        peer: Peer::Plain,
        pod: "".into(),
        workload: "".into(),
        zone: "".into(),
        load: Load::new(metrics.ejections(&service)),
    };
    let set = EndpointSet::new(vec![Arc::new(endpoint)]);
    let picked = balance::pick(&set, &[], &mut SmallRng::seed_from_u64(1)).expect("the endpoint");
    picked.finish(
        AttemptOutcome::IdentityMismatch,
        tokio::time::Instant::now(),
    );
    metrics.upstream_connect(None);
    metrics.handshake(Direction::Inbound, None);
    metrics.pool_connections(PoolProtocol::Http2, PoolState::Idle, 1);
    metrics.certificate_renewal(RenewalOutcome::Renewed);
    metrics.certificate(1, Some("0123456789abcdef"));
    metrics.controller_message(Instant::now());
    metrics.push(PushOutcome::Accepted, 1, 1);
    metrics.watch_places("admin", naru_proxy::admin::places());
    let known = families_of(&metrics.render().expect("a rendering"));
    assert_eq!(documented_families(PROXY, "Metrics of a sidecar"), known);
}

#[test]
fn every_metric_of_the_cni_agent_is_documented_with_its_labels() {
    let report = naru_proxy::node::cni::Report::new().expect("metrics");
    let known = families_of(report.render().expect("a rendering").as_bytes());
    assert_eq!(
        documented_families(PROXY, "Metrics of the CNI plugin's agent"),
        known
    );
}

#[test]
fn every_metric_of_the_controller_is_documented_with_its_labels() {
    let metrics = naru_controller::metrics::Metrics::new();
    metrics.pushed_resource(&ResourceName::Inbound, naru_controller::metrics::Form::Full);
    metrics.refused("key");
    metrics.invalid_objects("Service", 1);
    metrics.watch_failed("Service");
    metrics.injection(naru_controller::metrics::InjectionOutcome::Injected);
    metrics.status_written(naru_controller::metrics::StatusOutcome::Written);
    let pair = Ca::make("cluster.local", SystemTime::now()).expect("an authority");
    let (certificates, key) = (pair.certificates.as_bytes(), pair.key.as_bytes());
    let ca = Ca::from_pem(certificates, &[], key, "cluster.local", SystemTime::now());
    let in_force = InForce::new(Arc::new(ca.expect("an authority")), []);
    metrics.authority(AuthorityState::Steady, &in_force, 0);
    metrics.count_objects(|| vec![("Service", 1)]);
    metrics.watch_places("admin", naru_proxy::admin::places());
    metrics.stream_refused("pod");
    let known = families_of(&metrics.render().expect("a rendering"));
    assert_eq!(
        documented_families(CONTROLLER, "Metrics of the controller"),
        known
    );
}

/// Name, environment variable and default of a flag.
type Flag = (String, String, String);

fn flags_of<A: Args>() -> BTreeSet<Flag> {
    let command = A::augment_args(clap::Command::new("program"));
    let flag = |arg: &clap::Arg| {
        let takes_value = arg.get_action().takes_values();
        let default = match arg.is_required_set() {
            true => "required".to_owned(),
            false if !takes_value => String::new(),
            false => {
                let values = arg.get_default_values().iter();
                let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
                values.join(",")
            }
        };
        let env = arg.get_env().map(|env| env.to_string_lossy().into_owned());
        (
            format!("--{}", arg.get_long().expect("a long name")),
            env.unwrap_or_default(),
            default,
        )
    };
    command.get_arguments().map(flag).collect()
}

/// Including its variable, if the table has a column for it.
fn documented_flags(document: &str, heading: &str, with_env: bool) -> BTreeSet<Flag> {
    let flag = |row: &Vec<String>| {
        let name = code(&row[0]).split(' ').next().unwrap_or_default();
        let default = &row[if with_env { 2 } else { 1 }];
        let default = match default.as_str() {
            "required" => "required",
            cell => code(cell),
        };
        let env = if with_env { code(&row[1]) } else { "" };
        (name.to_owned(), env.to_owned(), default.to_owned())
    };
    table(document, heading).iter().map(flag).collect()
}

#[test]
fn every_flag_of_the_proxy_and_the_controller_is_documented() {
    let run = flags_of::<naru_proxy::config::RunArgs>();
    assert_eq!(documented_flags(PROXY, "naru-proxy run", true), run);
    let init = flags_of::<naru_proxy::node::redirect::InitArgs>();
    assert_eq!(documented_flags(PROXY, "naru-proxy init", true), init);
    let wait = flags_of::<naru_proxy::admin::wait::WaitArgs>();
    assert_eq!(documented_flags(PROXY, "naru-proxy wait", false), wait);
    let agent = flags_of::<naru_proxy::node::cni::agent::InstallArgs>();
    assert_eq!(
        documented_flags(PROXY, "naru-proxy cni-install", true),
        agent
    );
    let controller = flags_of::<naru_controller::config::Config>();
    assert_eq!(
        documented_flags(CONTROLLER, "naru-controller run", true),
        controller
    );
    let uninstall = flags_of::<naru_controller::uninstall::UninstallArgs>();
    assert_eq!(
        documented_flags(CONTROLLER, "naru-controller uninstall", true),
        uninstall
    );
}

/// The flags in clap's `--help`: each begins a line, after a short name or at the same indentation.
/// `-h` is always present.
fn flags_of_help(help: &str) -> BTreeSet<Flag> {
    let help = ["-n", "-o", "-X", "-H"]
        .iter()
        .fold(help.to_owned(), |help, short| {
            help.replace(&format!("\n  {short}, --"), "\n      --")
        });
    let flags = help.split("\n      --").skip(1);
    let flag = |text: &str| {
        let name = text.split([' ', '\n']).next().unwrap_or_default();
        let default = text
            .split_once("[default: ")
            .and_then(|(_, rest)| rest.split_once(']'))
            .map_or("", |(default, _)| default);
        let default = default.split_whitespace().collect::<Vec<_>>().join(" ");
        (format!("--{name}"), String::new(), default)
    };
    flags.map(flag).collect()
}

#[test]
fn every_flag_of_the_command_is_documented() {
    for subcommand in ["check", "routes", "why", "sandbox"] {
        let help = Command::new(programs().join("naru"))
            .args([subcommand, "--help"])
            .output()
            .expect("naru");
        let help = String::from_utf8(help.stdout).expect("text");
        let heading = format!("naru {subcommand}");
        assert_eq!(
            documented_flags(COMMAND, &heading, false),
            flags_of_help(&help)
        );
    }
}

/// Maximum number of lines in README.md.
const README_LINES: usize = 200;
/// Maximum columns of a line of prose. Tables and lines with a URL may be longer.
const PROSE_COLUMNS: usize = 100;
/// Top-level folders whose files the documents refer to, as `proxy/src`.
const NAMED: [&str; 5] = ["charts/", "controller/", "deploy/", "proxy/", "tests/"];

/// Every document of the repository, by its path from the top.
fn documents() -> BTreeMap<PathBuf, String> {
    let mut documents = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(repository().join(&folder)).expect("a folder") {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_string().expect("a name in UTF-8");
            let path = folder.join(&name);
            let built = name.starts_with('.') || name == "target";
            if entry.file_type().expect("a type").is_dir() && !built {
                folders.push(path);
            } else if name.ends_with(".md") {
                let text = std::fs::read_to_string(entry.path()).expect("a document");
                documents.insert(path, text);
            }
        }
    }
    documents
}

/// The lines of a document with their numbers, and whether they are inside a fence.
fn lines(document: &str) -> impl Iterator<Item = (usize, &str, bool)> {
    let mut fenced = false;
    document.lines().enumerate().filter_map(move |(at, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fence).then_some((at + 1, line, fenced))
    })
}

/// The anchors that GitHub generates for a document's headings.
fn anchors(document: &str) -> BTreeSet<String> {
    let headings = lines(document).filter(|(_, line, fenced)| !fenced && line.starts_with('#'));
    let anchor = |(_, line, _): (usize, &str, bool)| {
        let words = line.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter_map(|c| match c {
            ' ' => Some('-'),
            '-' | '_' => Some(c),
            c => c.is_alphanumeric().then_some(c),
        });
        kept.collect()
    };
    headings.map(anchor).collect()
}

/// A path with `..` resolved.
fn normal(path: &Path) -> PathBuf {
    path.iter()
        .fold(PathBuf::new(), |mut normal, part| match part.to_str() {
            Some("..") => {
                assert!(normal.pop(), "{} leaves the repository", path.display());
                normal
            }
            _ => normal.join(part),
        })
}

#[test]
fn every_link_between_documents_resolves() {
    let documents = documents();
    let mut broken = Vec::new();
    for (path, text) in &documents {
        let links = lines(text).filter(|(_, _, fenced)| !fenced);
        let links = links.flat_map(|(at, line, _)| {
            let targets = line.split("](").skip(1);
            targets.filter_map(move |rest| Some((at, rest.split_once(')')?.0)))
        });
        for (at, link) in links.filter(|(_, link)| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => normal(&path.with_file_name(file)),
            };
            let known = documents.get(&target).map(|text| anchors(text));
            let resolves = repository().join(&target).exists()
                && (anchor.is_empty() || known.is_some_and(|known| known.contains(anchor)));
            if !resolves {
                broken.push(format!("{}:{at}: {link}", path.display()));
            }
        }
    }
    assert!(
        broken.is_empty(),
        "links lead nowhere:\n{}",
        broken.join("\n")
    );
}

#[test]
fn every_file_that_a_document_names_exists() {
    let mut missing = Vec::new();
    for (path, text) in documents() {
        for (at, line, fenced) in lines(&text) {
            let code: Vec<&str> = match fenced {
                true => vec![line],
                false => line.split('`').skip(1).step_by(2).collect(),
            };
            let words = code.iter().flat_map(|code| code.split_whitespace());
            let named = words.filter(|word| NAMED.iter().any(|folder| word.starts_with(folder)));
            for name in named {
                // `tests/tests/NAME.rs`, `a/{b,c}.rs`: patterns rather than file names.
                let literal = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
                let whole = name.chars().all(literal) && !name.contains("NAME");
                if whole && !repository().join(name).exists() {
                    missing.push(format!("{}:{at}: {name}", path.display()));
                }
            }
        }
    }
    assert!(missing.is_empty(), "no such file:\n{}", missing.join("\n"));
}

#[test]
fn every_metric_that_a_document_names_is_in_a_table() {
    let tables = [
        documented_families(PROXY, "Metrics of a sidecar"),
        documented_families(PROXY, "Metrics of the CNI plugin's agent"),
        documented_families(CONTROLLER, "Metrics of the controller"),
    ];
    let known: BTreeSet<String> = tables
        .into_iter()
        .flatten()
        .map(|family| family.0)
        .collect();
    let mut unknown = Vec::new();
    for (path, text) in documents() {
        for (at, line, _) in lines(&text) {
            let words = line.split(|c: char| !c.is_ascii_alphanumeric() && !"_:".contains(c));
            // `naru_proxy::control` is a module.
            let named = words.filter(|word| word.starts_with("naru_") && !word.contains("::"));
            for name in named {
                if !known.contains(name.strip_suffix("_bucket").unwrap_or(name)) {
                    unknown.push(format!("{}:{at}: {name}", path.display()));
                }
            }
        }
    }
    assert!(
        unknown.is_empty(),
        "no such metric:\n{}",
        unknown.join("\n")
    );
}

#[test]
fn the_readme_is_short_and_lines_of_prose_fit_a_screen() {
    let length = read("README.md").lines().count();
    assert!(
        length <= README_LINES,
        "README.md has {length} lines: move what only some readers need to the document that is \
         theirs"
    );
    let mut wide = Vec::new();
    for (path, text) in documents() {
        for (at, line, fenced) in lines(&text) {
            let free = fenced || line.trim_start().starts_with('|') || line.contains("://");
            if !free && line.chars().count() > PROSE_COLUMNS {
                wide.push(format!("{}:{at}", path.display()));
            }
        }
    }
    assert!(
        wide.is_empty(),
        "lines of more than {PROSE_COLUMNS} columns:\n{}",
        wide.join("\n")
    );
}
