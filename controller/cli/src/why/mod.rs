//! `naru why`: which rule would match a request, or which route a connection, and why the others
//! would not.
//!
//! ```text
//! URL ─▶ the Service of that name ─▶ its address ─▶ a sidecar, from its tables in force ─▶ words
//! ```
//!
//! # Floors
//!
//! ```text
//! text                the answer as text
//! report              the result of the command
//! request             the request of the question
//! ```

mod report;
mod request;
#[cfg(test)]
mod tests;
mod text;

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, bail};
use kube::Client;

use crate::destination::{Leads, ServiceName, resolve};
use crate::report::{Output, find_out};
use crate::sidecar::{Flags, Question, Sidecar};
use report::Report;
use request::{DEFAULT_METHOD, Header, Scheme, Url};

/// Exit code without a result: the arguments are invalid, or the sidecar can't be queried.
pub const NO_ANSWER: u8 = 2;

/// Flags of `naru why`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    flags: Flags,
    /// The request's method.
    #[arg(long, short = 'X', value_name = "METHOD", default_value = DEFAULT_METHOD)]
    request: String,
    /// A field of the request's head, as 'x-version: 2' (repeatable).
    #[arg(long, short = 'H', value_name = "NAME: VALUE")]
    header: Vec<Header>,
    /// Server name (SNI) of a TLS client. Without: the URL's host, unless it is an address.
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// Format of the answer.
    #[arg(long, short, value_name = "FORM", value_enum, default_value_t = Output::Text)]
    output: Output,
    /// The URL that the client calls: http://catalog/products/1, https://NAME, tls://NAME:PORT,
    /// tcp://NAME:PORT
    #[arg(value_name = "URL")]
    url: Url,
}

/// Queries the sidecar and writes its answer.
pub fn run(args: Args) -> ExitCode {
    let written = find_out(report(&args)).and_then(|report| {
        let mut out = std::io::stdout().lock();
        args.output.write(&report, &mut out, text::write)?;
        Ok(report.is_forwarded())
    });
    match written {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("naru why: {error:#}");
            ExitCode::from(NO_ANSWER)
        }
    }
}

async fn report(args: &Args) -> anyhow::Result<Report> {
    let scheme = args.url.scheme;
    let server_name = match &args.server_name {
        Some(_) if !scheme.is_tls() => bail!("--server-name: only https:// and tls:// have one"),
        given if scheme.is_tls() => args.url.server_name(given.as_deref()),
        _ => None,
    };
    let client = args.flags.client().await?;
    let namespace = args.flags.namespace(client.as_ref());
    let sidecar = Sidecar::find(client.as_ref(), &args.flags, &namespace).await?;
    let mut notes = Vec::new();
    let own = sidecar.namespace().unwrap_or(&namespace);
    let destination = destination(client.as_ref(), own, &args.url, &mut notes).await?;
    notes.extend(
        (sidecar.skips().iter())
            .map(|skip| format!("some of the pod's traffic passes its sidecar by ({skip})")),
    );
    if args.url.hides(&args.request, &args.header) {
        notes.push(
            "method, path and headers are inside of the connection, where the sidecar does not look"
                .to_owned(),
        );
    }
    let sample = (args.url).sample(&args.request, &args.header, server_name.as_deref());
    let question = Question {
        destination: destination.clone(),
        sample: Some(sample),
    };
    Ok(Report {
        from: sidecar.name(),
        method: (scheme == Scheme::Http).then(|| args.request.clone()),
        url: args.url.to_string(),
        server_name,
        scheme,
        destination,
        notes,
        answer: sidecar.why(&question).await?,
    })
}

/// Resolves the URL's host, for a pod in the namespace `own`.
async fn destination(
    client: Option<&Client>,
    own: &str,
    url: &Url,
    notes: &mut Vec<String>,
) -> anyhow::Result<String> {
    let port = url.port;
    if let Some(ip) = url.ip() {
        return Ok(SocketAddr::new(ip, port).to_string());
    }
    let Some(service) = ServiceName::of(&url.host, own) else {
        bail!(
            "{} is not the name of a Service: if it is one of the world outside, its connections \
             are not in the mesh and pass through unchanged",
            url.host
        );
    };
    let Some(client) = client else {
        // The sidecar resolves names of Services that its app has called.
        return Ok(service.with_port(port));
    };
    let (object, leads) = resolve(client, &service)
        .await
        .with_context(|| format!("{} for a pod in namespace {own}", url.host))?;
    let service = ServiceName::of_object(&object);
    let ip = match leads {
        Leads::ClusterIp(ip) => {
            let spec = object.spec.iter();
            let ports = spec.flat_map(|spec| spec.ports.iter().flatten());
            let ports: Vec<String> = ports.map(|port| port.port.to_string()).collect();
            if !ports.contains(&port.to_string()) {
                let there = ports.join(", ");
                notes.push(format!(
                    "Service {service} has no port {port}, only {there}"
                ));
            }
            ip
        }
        Leads::Pod(ip) => {
            notes.push(format!(
                "Service {service} is headless: its name stands for its pods' own addresses, and \
                 no route has a part in calls to them"
            ));
            ip
        }
    };
    Ok(SocketAddr::new(ip, port).to_string())
}
