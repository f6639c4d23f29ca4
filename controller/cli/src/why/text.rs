//! The answer as text: the matching rule, its outcome, and why the other rules do not match.

use std::io::{self, Write};

use super::report::Report;
use super::request::Scheme;
use crate::sidecar::{Answer, Match, Outcome, Rule, Verdict};

pub fn write(report: &Report, to: &mut impl Write) -> io::Result<()> {
    let Report {
        from,
        destination,
        notes,
        answer,
        ..
    } = report;
    let clients = &answer.client_namespace;
    writeln!(to, "{} from {from} (namespace {clients})", subject(report))?;
    writeln!(to, "  {}", target(destination, answer))?;
    for note in notes {
        writeln!(to, "  note: {note}")?;
    }
    for rejected in &answer.rejected {
        writeln!(
            to,
            "  note: the sidecar has rejected {}, and keeps its last good version if it has one: \
             {}",
            rejected.name, rejected.reason
        )?;
    }
    writeln!(to)?;
    let Some(outcome) = &answer.outcome else {
        return Ok(());
    };
    match answer
        .taken()
        .and_then(|taken| Some((taken, answer.rule(taken)?)))
    {
        Some((taken, rule)) => {
            match (rule.route.is_empty(), &*answer.target) {
                (false, _) => writeln!(to, "{} takes it ({})", rule.title(), taken.matches)?,
                (true, "service") if report.method.is_none() && !answer.routes.is_empty() => {
                    writeln!(
                        to,
                        "no route for connections is in force for it: what does not begin with \
                         HTTP goes to its own pods, whatever HTTP routes say"
                    )?;
                }
                (true, "service") => {
                    writeln!(
                        to,
                        "no route is in force for it: everything goes to its own pods"
                    )?;
                }
                (true, _) => writeln!(to, "it goes to the pod")?,
            }
            write_outcome(rule, outcome, to)?;
        }
        None => writeln!(to, "{}", untaken(report, outcome))?,
    }
    others(answer, to)
}

/// The request or connection of the question.
fn subject(report: &Report) -> String {
    let url = &report.url;
    match (report.scheme, &report.server_name) {
        (Scheme::Http, _) => format!("{} {url}", report.method.as_deref().unwrap_or_default()),
        (Scheme::Https | Scheme::Tls, Some(name)) => format!("TLS to {url}, SNI {name},"),
        (Scheme::Https | Scheme::Tls, None) => format!("TLS to {url}, without SNI,"),
        (Scheme::Tcp, _) => format!("a connection to {url}"),
    }
}

/// The destination.
fn target(destination: &str, answer: &Answer) -> String {
    let service = answer.service.as_ref();
    match (&*answer.target, service) {
        ("service", Some(service)) => format!(
            "{destination} is port {} of Service {}/{} ({})",
            service.port,
            service.namespace,
            service.name,
            match answer.stream_kind() {
                Some(kind) => format!("bytes, which go where {kind}s say"),
                None => protocol(&service.protocol).to_owned(),
            }
        ),
        ("pod", Some(service)) => format!(
            "{destination} is a pod of namespace {} ({}), and no route has a part in calls to pods",
            service.namespace,
            protocol(&service.protocol)
        ),
        ("passthrough", _) => format!("{destination} is not in the mesh"),
        _ => format!(
            "{destination} is not known to the sidecar yet: the controller has said nothing about \
             it"
        ),
    }
}

fn protocol(word: &str) -> &str {
    match word {
        "detect" => "its protocol is told by the first bytes",
        "tcp" => "declared as bytes: no HTTP route has a part",
        other => other,
    }
}

/// The text if no rule matches.
fn untaken(report: &Report, outcome: &Outcome) -> String {
    let answer = &report.answer;
    let no_route = match answer.stream_kind() {
        Some(_) => "no route takes it",
        None => "no rule takes it",
    };
    let service = answer.service.as_ref().filter(|_| report.method.is_none());
    let protocol = service.map(|service| &*service.protocol);
    match (&*answer.target, &outcome.reason) {
        ("passthrough", None) => "its connection goes there as it is, as bytes".to_owned(),
        (_, reason) if answer.stream_kind().is_none() && protocol.is_some() => {
            let ended = match reason {
                Some(reason) => proxy_response(reason, outcome.status, outcome.grpc_status),
                None => "the sidecar ends the connection".to_owned(),
            };
            format!(
                "it is not HTTP, which the port is declared to carry: {ended} (ask with http:// \
                 what becomes of requests)"
            )
        }
        (_, Some(reason)) => {
            let proxy_response = proxy_response(reason, outcome.status, outcome.grpc_status);
            format!("{no_route}: {proxy_response}")
        }
        _ => no_route.to_owned(),
    }
}

/// The proxy's own response in place of a backend's.
fn proxy_response(reason: &str, status: Option<u16>, grpc_status: Option<u16>) -> String {
    match (status, grpc_status) {
        (Some(status), Some(grpc)) => {
            format!("the sidecar answers {status} with grpc-status {grpc}, {reason}")
        }
        (Some(status), None) if status > 0 => format!("the sidecar answers {status}, {reason}"),
        _ => format!("the sidecar ends the connection, {reason}"),
    }
}

fn write_outcome(rule: &Rule, outcome: &Outcome, to: &mut impl Write) -> io::Result<()> {
    for filter in &rule.filters {
        writeln!(to, "  filter   {filter}")?;
    }
    let timeouts = [
        ("for all", rule.request_timeout_ms),
        ("for each attempt", rule.backend_request_timeout_ms),
    ];
    for (what, limit) in timeouts {
        if let Some(limit) = limit {
            writeln!(to, "  time     {limit} ms {what}")?;
        }
    }
    if rule.retries > 0 {
        writeln!(to, "  retries  {}", rule.retries)?;
    }
    if let (Some(location), Some(status)) = (&outcome.location, outcome.status) {
        return writeln!(
            to,
            "  answer   the sidecar answers {status}, redirect, to {location}"
        );
    }
    for prospect in &outcome.backends {
        let Some(backend) = rule.backends.get(prospect.backend) else {
            continue;
        };
        let share = format!("{:.0} %", prospect.share * 100.0);
        writeln!(to, "  {share:<8} {}", backend.words())?;
        for filter in &backend.filters {
            writeln!(to, "  {:<8} filter {filter}", "")?;
        }
        match (&prospect.reason, &prospect.request) {
            (Some(reason), _) => writeln!(
                to,
                "  {:<8} → {}",
                "",
                proxy_response(reason, prospect.status, prospect.grpc_status)
            )?,
            (None, Some(seen)) => writeln!(
                to,
                "  {:<8} → as {} for host {}",
                "", seen.path, seen.authority
            )?,
            (None, None) => {}
        }
    }
    match &outcome.reason {
        // The backends have already given this reason.
        Some(reason) if outcome.backends.is_empty() => {
            writeln!(
                to,
                "  answer   {}",
                proxy_response(reason, outcome.status, outcome.grpc_status)
            )
        }
        _ => Ok(()),
    }
}

fn others(answer: &Answer, to: &mut impl Write) -> io::Result<()> {
    let others = answer.matches.iter();
    let others = others.filter(|one| !matches!(one.verdict, Some(Verdict::Takes)));
    let rows: Vec<[String; 3]> = others.filter_map(|one| row(answer, one)).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let what = match answer.taken() {
        Some(_) => "The others, in order of precedence:",
        None => "All there are, in order of precedence:",
    };
    writeln!(to, "\n{what}")?;
    let first = match answer.stream_kind() {
        Some(_) => "ROUTE",
        None => "RULE",
    };
    crate::table::write(&[first, "MATCHES", "WHY NOT"], &rows, to)?;
    match answer.matches_left_out {
        0 => Ok(()),
        more => writeln!(to, "and {more} more"),
    }
}

fn row(answer: &Answer, one: &Match) -> Option<[String; 3]> {
    let title = answer.rule(one)?.title();
    let why = match one.verdict.as_ref()? {
        Verdict::Takes => return None,
        Verdict::Outranked { by } => format!("it would, but the other {}", criterion(by)),
        Verdict::Unmet { part, wanted, has } => {
            let part = part.replace('-', " ");
            match (&*part, has) {
                // The path criterion includes its own name.
                ("path", Some(has)) => format!("the path is {has}"),
                ("client hello", _) => {
                    "the client does not begin with a TLS ClientHello".to_owned()
                }
                ("server name", Some(has)) => format!("the client asks for {has}"),
                ("server name", None) => "the client asks for no name".to_owned(),
                ("method", Some(has)) => format!("the method is {has}, not {wanted}"),
                (_, Some(has)) => format!("{part} {wanted}: it is {has:?}"),
                (_, None) => format!("{part} {wanted}: the request has none"),
            }
        }
    };
    Some([title, one.matches.clone(), why])
}

/// The criterion that gives the matching rule precedence.
fn criterion(word: &str) -> String {
    match word {
        "exact-path" => "has an exact path",
        "regular-expression" => "has a regular expression, which comes before prefixes",
        "exact-name" => "has the exact name",
        "longer-name" => "has a longer name",
        "longer-path" => "has a longer path",
        "method" => "wants a method",
        "more-headers" => "wants more headers",
        "more-query-parameters" => "wants more query parameters",
        "older-route" => "is of an older route, or of one as old and first by name",
        "earlier-rule" => "is of an earlier rule",
        "earlier-match" => "is an earlier match of the same rule",
        other => return format!("comes first ({other})"),
    }
    .to_owned()
}
