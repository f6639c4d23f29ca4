//! Generates traffic for the shop: requests at a fixed rate, independent of earlier ones, and every
//! second a line with the results.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;

use crate::serve::stopped;

/// Kinds of failures that are counted separately; more are counted as "other".
const MAX_KINDS: usize = 32;
/// How much of a failed response's body is shown, in bytes.
const MAX_SHOWN: usize = 200;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// The front of the shop.
    #[arg(long, env = "SHOP_URL", default_value = "http://web")]
    url: String,
    /// Pages that are asked for, in turn.
    #[arg(
        long,
        env = "SHOP_PATHS",
        value_delimiter = ',',
        default_value = "/,/product/1,/product/2,/cart,/cart/add/3,/product/5"
    )]
    paths: Vec<String>,
    /// Requests a second.
    #[arg(
        long,
        env = "SHOP_RATE",
        default_value_t = 20,
        value_parser = clap::value_parser!(u32).range(1..=10_000)
    )]
    rate: u32,
    /// Stop after this many requests.
    #[arg(long, env = "SHOP_REQUESTS")]
    requests: Option<u64>,
    /// Requests under way at most; one that would be more counts as failed.
    #[arg(long, env = "SHOP_CONCURRENCY", default_value_t = 256)]
    concurrency: usize,
    /// Milliseconds after which a request has failed.
    #[arg(
        long,
        env = "SHOP_TIMEOUT",
        default_value_t = 5_000,
        value_name = "MILLISECONDS"
    )]
    timeout: u64,
    /// Write every line as JSON.
    #[arg(long, env = "SHOP_JSON")]
    json: bool,
}

#[derive(Default)]
struct Totals {
    ok: u64,
    failed: u64,
    /// Slowest response since the last line.
    slowest: Duration,
    failures: BTreeMap<String, u64>,
}

/// Runs until SIGTERM, or until the given number of requests is done. Ends with the totals, and
/// with an error if one of a given number of requests failed.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let urls: Vec<Uri> = args
        .paths
        .iter()
        .map(|path| format!("{}{path}", args.url.trim_end_matches('/')).parse())
        .collect::<Result<_, _>>()
        .context("--url and --paths")?;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let totals = Arc::new(Mutex::new(Totals::default()));
    let slots = Arc::new(Semaphore::new(args.concurrency));
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / args.rate);
    // Late ticks are made up for, so that the rate holds over time.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut lines = tokio::time::interval(Duration::from_secs(1));
    let mut stopped = std::pin::pin!(stopped()?);
    let wanted = args.requests.unwrap_or(u64::MAX);
    for url in urls.iter().cycle().zip(0..wanted).map(|(url, _)| url) {
        loop {
            tokio::select! {
                () = &mut stopped => return finish(&args, &slots, &totals).await,
                _ = lines.tick() => report(&args, &totals),
                _ = ticks.tick() => break,
            }
        }
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            count(
                &totals,
                Err("too many under way".to_owned()),
                Duration::ZERO,
            );
            continue;
        };
        let call = call(client.clone(), url.clone());
        let timeout = Duration::from_millis(args.timeout);
        let totals = totals.clone();
        tokio::spawn(async move {
            let start = Instant::now();
            let outcome = tokio::time::timeout(timeout, call).await;
            let outcome = outcome.unwrap_or_else(|_| Err("timeout".to_owned()));
            count(&totals, outcome, start.elapsed());
            drop(slot);
        });
    }
    finish(&args, &slots, &totals).await
}

async fn call(client: Client<HttpConnector, Empty<Bytes>>, url: Uri) -> Result<(), String> {
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = url;
    let response = client.request(request).await;
    let mut response = response.map_err(|error| with_sources(&error))?;
    let mut begin = Vec::new();
    while let Some(frame) = response.frame().await {
        let frame = frame.map_err(|error| with_sources(&error))?;
        let data = frame.data_ref().map_or(&[][..], |data| data);
        begin.extend_from_slice(&data[..data.len().min(MAX_SHOWN - begin.len())]);
    }
    if response.status().is_success() {
        return Ok(());
    }
    let status = response.status().as_u16();
    let reason = response.headers().get("naru-reason");
    Err(match reason.and_then(|reason| reason.to_str().ok()) {
        Some(reason) => format!("{status} {reason}"),
        // An app's own response, which says in its body which of its calls failed.
        None => format!("{status} {}", String::from_utf8_lossy(&begin))
            .trim()
            .to_owned(),
    })
}

/// An error with its sources: "client error (Connect)" alone does not distinguish an unknown name
/// from a closed port.
fn with_sources(error: &dyn std::error::Error) -> String {
    let sources = std::iter::successors(error.source(), |error| error.source());
    sources.fold(error.to_string(), |text, source| {
        format!("{text}: {source}")
    })
}

fn count(totals: &Mutex<Totals>, outcome: Result<(), String>, took: Duration) {
    let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
    totals.slowest = totals.slowest.max(took);
    match outcome {
        Ok(()) => totals.ok += 1,
        Err(kind) => {
            totals.failed += 1;
            let known = totals.failures.contains_key(&kind) || totals.failures.len() < MAX_KINDS;
            let kind = if known { kind } else { "other".to_owned() };
            *totals.failures.entry(kind).or_default() += 1;
        }
    }
}

fn report(args: &Args, totals: &Mutex<Totals>) {
    let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
    let (ok, failed, failures) = (totals.ok, totals.failed, &totals.failures);
    let milliseconds = totals.slowest.as_millis();
    if args.json {
        let line = serde_json::json!({
            "ok": ok, "failed": failed, "slowest_ms": milliseconds, "failures": failures,
        });
        println!("{line}");
    } else {
        let failures = if failed == 0 {
            String::new()
        } else {
            format!(" {failures:?}")
        };
        println!(
            "load: ok {ok}, failed {failed}{failures}, slowest of this second {milliseconds} ms"
        );
    }
    totals.slowest = Duration::ZERO;
}

async fn finish(args: &Args, slots: &Semaphore, totals: &Mutex<Totals>) -> anyhow::Result<()> {
    let all = u32::try_from(args.concurrency).unwrap_or(u32::MAX);
    // Every request has a timeout, so this ends.
    let _under_way = slots.acquire_many(all).await?;
    report(args, totals);
    let failed = totals.lock().unwrap_or_else(PoisonError::into_inner).failed;
    if args.requests.is_some() && failed > 0 {
        anyhow::bail!("{failed} requests failed");
    }
    Ok(())
}
