//! `naru routes`: the routes of a Service that a client's sidecar has in force, in order of
//! precedence, and those that are not.

#[cfg(test)]
mod tests;
mod unused;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::bail;
use kube::Client;
use serde::Serialize;

use crate::destination::{Leads, ServiceName, resolve};
use crate::report::{Output, find_out};
use crate::sidecar::{Answer, Flags, Match, Question, Rule, Sidecar};
use crate::why::NO_ANSWER;
use unused::Unused;

/// The port to query when the Service's ports are unknown.
const DEFAULT_PORT: u16 = 80;

/// Flags of `naru routes`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
    /// Format of the output.
    #[arg(long, short, value_name = "FORM", value_enum, default_value_t = Output::Text)]
    output: Output,
    /// The Service: NAME or NAME.NAMESPACE, either with :PORT. Without a port: every port of the
    /// Service.
    #[arg(value_name = "SERVICE")]
    service: ServiceArgument,
}

/// The SERVICE argument.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ServiceArgument {
    host: String,
    port: Option<u16>,
}

impl FromStr for ServiceArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => {
                let port = port
                    .parse()
                    .map_err(|_| format!("{port:?} is not a port"))?;
                (host, Some(port))
            }
            None => (text, None),
        };
        let named = ServiceName::of(host, "").map(|_| Self {
            host: host.to_owned(),
            port,
        });
        named.ok_or_else(|| format!("{host:?} is not the name of a Service"))
    }
}

/// The result of the command.
#[derive(Serialize)]
struct Report {
    /// The sidecar that answered.
    from: String,
    /// `NAMESPACE/NAME`
    service: String,
    ports: Vec<Port>,
    /// Routes that have the Service as a parent but are in force on none of these ports.
    not_in_force: Vec<Unused>,
    /// Further remarks.
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Port {
    port: u16,
    answer: Answer,
}

/// Queries the sidecar and writes its answer.
pub fn run(args: Args) -> ExitCode {
    let written = find_out(report(&args))
        .and_then(|report| Ok(args.output.write(&report, &mut io::stdout().lock(), text)?));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("naru routes: {error:#}");
            ExitCode::from(NO_ANSWER)
        }
    }
}

async fn report(args: &Args) -> anyhow::Result<Report> {
    let client = args.flags.client().await?;
    let namespace = args.flags.namespace(client.as_ref());
    let Some(service) = ServiceName::of(&args.service.host, &namespace) else {
        bail!("{} is not the name of a Service", args.service.host);
    };
    match client {
        Some(client) => by_api(args, &client, &namespace, &service).await,
        None => by_address(args, &service).await,
    }
}

async fn by_api(
    args: &Args,
    client: &Client,
    namespace: &str,
    service: &ServiceName,
) -> anyhow::Result<Report> {
    let (object, leads) = resolve(client, service).await?;
    let service = &ServiceName::of_object(&object);
    let ip = match leads {
        Leads::ClusterIp(ip) => ip,
        Leads::Pod(_) => bail!(
            "Service {service} is headless: its name stands for its pods' own addresses, and no \
             route has a part in calls to them"
        ),
    };
    // Without --from, the client is in the Service's own namespace, which exists.
    let clients = match args.flags.from {
        Some(_) => namespace,
        None => &service.namespace,
    };
    let sidecar = Sidecar::find(Some(client), &args.flags, clients).await?;
    let spec = object.spec.iter();
    let ports = spec.flat_map(|spec| spec.ports.iter().flatten());
    let tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    let mut ports: Vec<u16> = tcp.filter_map(|port| port.port.try_into().ok()).collect();
    if let Some(only) = args.service.port {
        ports.retain(|port| *port == only);
        if ports.is_empty() {
            bail!("Service {service} has no TCP port {only}");
        }
    }
    let mut report = Report {
        from: sidecar.name(),
        service: service.to_string(),
        ports: Vec::new(),
        not_in_force: Vec::new(),
        notes: Vec::new(),
    };
    for port in ports {
        let address = SocketAddr::new(ip, port).to_string();
        report.ask(&sidecar, port, address).await?;
    }
    let clients = sidecar.namespace().unwrap_or_default();
    let answers: Vec<&Answer> = report.ports.iter().map(|port| &port.answer).collect();
    let (unused, notes) = unused::find(client, service, clients, &answers).await;
    report.not_in_force = unused;
    report.notes.extend(notes);
    Ok(report)
}

/// Without an API server: one port, because the sidecar does not know the others.
async fn by_address(args: &Args, service: &ServiceName) -> anyhow::Result<Report> {
    let sidecar = Sidecar::find(None, &args.flags, "").await?;
    let port = args.service.port.unwrap_or(DEFAULT_PORT);
    let mut report = Report {
        from: sidecar.name(),
        service: service.to_string(),
        ports: Vec::new(),
        not_in_force: Vec::new(),
        notes: vec![
            "the sidecar was asked directly: other ports, and routes that are not in force, are \
             not known to it"
                .to_owned(),
        ],
    };
    report.ask(&sidecar, port, service.with_port(port)).await?;
    let found = report.ports.first();
    if let Some(found) = found.and_then(|port| port.answer.service.as_ref()) {
        report.service = format!("{}/{}", found.namespace, found.name);
    }
    Ok(report)
}

impl Report {
    async fn ask(
        &mut self,
        sidecar: &Sidecar,
        port: u16,
        destination: String,
    ) -> anyhow::Result<()> {
        let question = Question {
            destination,
            sample: None,
        };
        let answer = sidecar.why(&question).await?;
        self.notes.extend(answer.rejected.iter().map(|rejected| {
            format!(
                "the sidecar has rejected {}, and keeps its last good version if it has one: {}",
                rejected.name, rejected.reason
            )
        }));
        self.ports.push(Port { port, answer });
        Ok(())
    }
}

fn text(report: &Report, to: &mut impl Write) -> io::Result<()> {
    let clients = report.ports.first();
    let clients = clients.map_or("", |port| &port.answer.client_namespace);
    writeln!(
        to,
        "Service {} for clients in namespace {clients}, as the sidecar of {} has it",
        report.service, report.from
    )?;
    for Port { port, answer } in &report.ports {
        let protocol = answer.service.as_ref().map(|service| &*service.protocol);
        let stream_kind = answer.stream_kind();
        match (&*answer.target, protocol) {
            ("service", _) if stream_kind.is_some() => writeln!(
                to,
                "\nport {port} (bytes, which go where {}s say)",
                stream_kind.unwrap_or_default()
            )?,
            ("service", Some("tcp")) => writeln!(
                to,
                "\nport {port} (declared as bytes: no HTTP route has a part)"
            )?,
            ("service", Some("detect")) => writeln!(
                to,
                "\nport {port} (its protocol is told by the first bytes)"
            )?,
            ("service", protocol) => {
                writeln!(to, "\nport {port} ({})", protocol.unwrap_or_default())?
            }
            ("passthrough", _) => writeln!(to, "\nport {port}: not in the mesh")?,
            _ => writeln!(
                to,
                "\nport {port}: the controller has said nothing about it yet"
            )?,
        }
        let rows: Vec<_> = answer
            .matches
            .iter()
            .flat_map(|one| rows(answer, one))
            .collect();
        if !rows.is_empty() && stream_kind.is_some() {
            // TLSRoutes and TCPRoutes have neither named rules nor filters.
            let rows: Vec<_> = (rows.into_iter())
                .map(|[route, _, matches, _, backends]| [route, matches, backends])
                .collect();
            crate::table::write(&["ROUTE", "TAKES", "BACKENDS"], &rows, to)?;
        } else if !rows.is_empty() {
            let head = ["ROUTE", "RULE", "MATCHES", "FILTERS", "BACKENDS"];
            crate::table::write(&head, &rows, to)?;
        }
        if answer.matches_left_out > 0 {
            writeln!(to, "and {} matches more", answer.matches_left_out)?;
        }
    }
    if !report.not_in_force.is_empty() {
        writeln!(to, "\nnot in force")?;
        let row = |unused: &Unused| {
            [
                format!("{} {}", unused.kind, unused.name),
                unused.why.clone(),
            ]
        };
        let rows: Vec<_> = report.not_in_force.iter().map(row).collect();
        crate::table::write(&["ROUTE", "WHY"], &rows, to)?;
    }
    if !report.notes.is_empty() {
        writeln!(to)?;
    }
    (report.notes.iter()).try_for_each(|note| writeln!(to, "note: {note}"))
}

/// One line for a match, and one more for each further filter or backend of its rule.
fn rows(answer: &Answer, one: &Match) -> Vec<[String; 5]> {
    let Some(rule) = answer.rule(one) else {
        return Vec::new();
    };
    let (filters, backends) = (filters(rule), backends(rule));
    let cell = |cells: &[String], line: usize| cells.get(line).cloned().unwrap_or_default();
    let lines = filters.len().max(backends.len()).max(1);
    (0..lines)
        .map(|line| {
            let first = |text: String| if line == 0 { text } else { String::new() };
            let route = match rule.route.is_empty() {
                true => "(none)".to_owned(),
                false => format!("{} {}", rule.kind, rule.route),
            };
            [
                first(route),
                first(rule.rule.clone()),
                first(one.matches.clone()),
                cell(&filters, line),
                cell(&backends, line),
            ]
        })
        .collect()
}

/// The filters and timeouts of a rule.
fn filters(rule: &Rule) -> Vec<String> {
    let mut words = rule.filters.clone();
    let limits = [
        ("", rule.request_timeout_ms),
        (" an attempt", rule.backend_request_timeout_ms),
    ];
    for (what, limit) in limits {
        words.extend(limit.map(|limit| format!("at most {limit} ms{what}")));
    }
    if rule.retries > 0 {
        words.push(format!("retries: {}", rule.retries));
    }
    words
}

fn backends(rule: &Rule) -> Vec<String> {
    let backends = rule.backends.iter().map(|backend| {
        let filters = match backend.filters.is_empty() {
            true => String::new(),
            false => format!(" ({})", backend.filters.join("; ")),
        };
        format!("weight {}: {}{filters}", backend.weight, backend.words())
    });
    backends.collect()
}
