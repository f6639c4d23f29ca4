//! The program's own log, on standard error, with a filter that can be changed while it runs.

use std::sync::{Arc, Mutex, PoisonError};

use clap::ValueEnum;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// Silences the log of the Kubernetes client, which has a line for every failed request: the
/// callers log failures once. Appended to every filter that does not name these crates.
const QUIET: &str = "kube_client=off,kube_runtime=off";

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// A handle that changes the log filter. Cheap to clone.
#[derive(Clone)]
pub struct LogFilter {
    handle: reload::Handle<Targets, Registry>,
    current: Arc<Mutex<String>>,
}

/// Why a filter cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error("{0}: expected error, warn, info, debug, trace, off, or MODULE=LEVEL,…")]
    Parse(ParseError),
    #[error(transparent)]
    Reload(#[from] reload::Error),
}

/// Starts logging with `filter`.
pub fn start(filter: &str, format: LogFormat) -> anyhow::Result<LogFilter> {
    let (layer, log) = layer(filter)?;
    let output = fmt::layer().with_writer(std::io::stderr);
    let output = match format {
        LogFormat::Text => output.boxed(),
        LogFormat::Json => output.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(layer)
        .with(output)
        .try_init()?;
    Ok(log)
}

fn layer(filter: &str) -> Result<(reload::Layer<Targets, Registry>, LogFilter), FilterError> {
    let (layer, handle) = reload::Layer::new(parse(filter)?);
    let log = LogFilter {
        handle,
        current: Arc::new(Mutex::new(filter.to_owned())),
    };
    Ok((layer, log))
}

fn parse(filter: &str) -> Result<Targets, FilterError> {
    let quiet = match filter.is_empty() || filter.contains("kube_") {
        true => "",
        false => QUIET,
    };
    parse_filter(&format!("{filter},{quiet}")).map_err(FilterError::Parse)
}

/// Parses a filter in the sidecars' syntax: a level or `MODULE=LEVEL`, comma-separated. An empty
/// filter is `error`.
pub fn parse_filter(filter: &str) -> Result<Targets, ParseError> {
    // Skip empty directives, which would mean `error` as well.
    let directives: Vec<_> = filter.split(',').filter(|one| !one.is_empty()).collect();
    directives.join(",").parse()
}

impl LogFilter {
    /// The filter in force.
    pub fn current(&self) -> String {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Puts another filter in force.
    pub fn set(&self, filter: &str) -> Result<(), FilterError> {
        self.handle.reload(parse(filter)?)?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = filter.to_owned();
        Ok(())
    }

    /// A handle that is not connected to a subscriber.
    #[cfg(test)]
    pub(crate) fn for_tests() -> (reload::Layer<Targets, Registry>, Self) {
        layer("info").expect("a filter")
    }
}
