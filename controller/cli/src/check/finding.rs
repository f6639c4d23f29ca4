//! The findings of a check, and its time limit.

use std::time::Duration;

use kube::Error;
use serde::Serialize;

pub use crate::kubernetes::problem;

/// How long one check may take: longer than the API server waits for an admission webhook (10 s by
/// default, 30 s at most).
const LIMIT: Duration = Duration::from_secs(35);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// No action is needed.
    Info,
    /// The mesh works, but differs from what a user may expect.
    Warning,
    /// The installation does not work, or will stop working.
    Failure,
}

impl Level {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Failure => "FAILURE",
        }
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The name of the check, constant across runs.
    pub check: &'static str,
    pub level: Level,
    pub text: String,
    /// How to fix it. Every warning and failure has a fix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// The check was not possible, so its result is unknown.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unchecked: bool,
}

/// One result of a check, without the check's name.
pub struct Found {
    level: Level,
    text: String,
    fix: Option<String>,
    unchecked: bool,
}

impl Found {
    fn new(level: Level, text: impl Into<String>, fix: Option<String>) -> Self {
        Self {
            level,
            text: text.into(),
            fix,
            unchecked: false,
        }
    }

    pub fn level(&self) -> Level {
        self.level
    }

    #[cfg(test)]
    pub fn text(&self) -> &str {
        &self.text
    }
}

pub fn ok(text: impl Into<String>) -> Found {
    Found::new(Level::Ok, text, None)
}

pub fn info(text: impl Into<String>) -> Found {
    Found::new(Level::Info, text, None)
}

pub fn warning(text: impl Into<String>, fix: impl Into<String>) -> Found {
    Found::new(Level::Warning, text, Some(fix.into()))
}

/// The result is unknown because a permission is missing.
pub fn unchecked(text: impl Into<String>, fix: impl Into<String>) -> Found {
    Found {
        unchecked: true,
        ..warning(text, fix)
    }
}

/// Like [`unchecked`], for a check that all else depends on: Naru may not work at all.
pub fn unknown(text: impl Into<String>, fix: impl Into<String>) -> Found {
    Found {
        unchecked: true,
        ..failure(text, fix)
    }
}

pub fn failure(text: impl Into<String>, fix: impl Into<String>) -> Found {
    Found::new(Level::Failure, text, Some(fix.into()))
}

/// Findings of one group.
#[derive(Serialize)]
pub struct Group {
    pub group: &'static str,
    pub findings: Vec<Finding>,
}

impl Group {
    pub fn new(group: &'static str) -> Self {
        Self {
            group,
            findings: Vec::new(),
        }
    }

    /// Runs a check within its time limit. Returns whether it found no failure.
    pub async fn check(
        &mut self,
        check: &'static str,
        found: impl Future<Output = Result<Vec<Found>, Error>>,
    ) -> bool {
        let found = match tokio::time::timeout(LIMIT, found).await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => vec![not_checked(&error)],
            Err(_) => vec![failure(
                format!("no answer within {} s", LIMIT.as_secs()),
                "see whether the API server is overloaded: kubectl get --raw /readyz?verbose",
            )],
        };
        let good = found.iter().all(|found| found.level < Level::Failure);
        let named = found.into_iter().map(|found| Finding {
            check,
            level: found.level,
            text: found.text,
            fix: found.fix,
            unchecked: found.unchecked,
        });
        self.findings.extend(named);
        good
    }
}

fn not_checked(error: &Error) -> Found {
    let text = format!("this can't be checked: {}", problem(error));
    match error {
        Error::Api(status) if status.code == 403 => unchecked(
            text,
            "run naru check as a user who may, or have it permitted to you",
        ),
        _ => failure(
            text,
            "see whether the API server is well: kubectl get --raw /readyz?verbose",
        ),
    }
}
