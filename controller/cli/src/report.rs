//! Reports of commands: computed on a runtime of its own, and written as text or JSON.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

/// Runs the future that computes a report.
pub fn find_out<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(work)
}

impl Output {
    /// Writes a report. `text`: the text form.
    pub fn write<R: Serialize, W: Write>(
        self,
        report: &R,
        to: &mut W,
        text: impl FnOnce(&R, &mut W) -> io::Result<()>,
    ) -> io::Result<()> {
        match self {
            Self::Json => {
                serde_json::to_writer_pretty(&mut *to, report)?;
                writeln!(to)?;
            }
            Self::Text => text(report, to)?,
        }
        to.flush()
    }
}
