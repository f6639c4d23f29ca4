//! The program's own log, on standard error, with a filter that can be changed while it runs.

use std::sync::{Arc, Mutex, PoisonError};

use clap::ValueEnum;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// The form of the program's own log, on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// Changes what is logged. Cheap to clone.
#[derive(Clone)]
pub struct LogFilter {
    handle: reload::Handle<Targets, Registry>,
    current: Arc<Mutex<String>>,
}

/// Why a filter is rejected.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    #[error("{0}: expected error, warn, info, debug, trace, off, or MODULE=LEVEL,…")]
    Parse(ParseError),
    #[error(transparent)]
    Reload(#[from] reload::Error),
}

/// Starts logging the events that match `filter`.
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

/// Parses a filter: a level, or `MODULE=LEVEL`, or a comma-separated list of them. An empty filter
/// is `error`.
pub fn parse(filter: &str) -> Result<Targets, ParseError> {
    // An empty item between two commas would be `error` too.
    let directives: Vec<_> = filter.split(',').filter(|one| !one.is_empty()).collect();
    directives.join(",").parse()
}

fn layer(filter: &str) -> Result<(reload::Layer<Targets, Registry>, LogFilter), FilterError> {
    let (layer, handle) = reload::Layer::new(parse(filter).map_err(FilterError::Parse)?);
    let log = LogFilter {
        handle,
        current: Arc::new(Mutex::new(filter.to_owned())),
    };
    Ok((layer, log))
}

impl LogFilter {
    /// The filter in force.
    pub fn current(&self) -> String {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Replaces the filter in force.
    pub fn set(&self, filter: &str) -> Result<(), FilterError> {
        self.handle
            .reload(parse(filter).map_err(FilterError::Parse)?)?;
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = filter.to_owned();
        Ok(())
    }

    /// A filter that is not connected to any log.
    #[cfg(test)]
    pub(crate) fn for_tests() -> (reload::Layer<Targets, Registry>, Self) {
        layer("info").expect("a filter")
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_filter_is_a_level_or_levels_of_modules() {
        let passes =
            |filter: &str, module, level| parse(filter).unwrap().would_enable(module, &level);
        for info in [
            "info",
            "info,",
            ",info",
            "naru_proxy=info",
            "off,naru_proxy=info,",
        ] {
            assert!(passes(info, "naru_proxy::tcp", Level::INFO), "{info}");
            assert!(!passes(info, "naru_proxy::tcp", Level::DEBUG), "{info}");
        }
        assert!(!passes("off", "naru_proxy", Level::ERROR));
        assert!(passes("", "naru_proxy", Level::ERROR) && !passes("", "naru_proxy", Level::WARN));
        assert!(parse("naru_proxy=loud").is_err() && parse("a=b=c").is_err());
    }
}
