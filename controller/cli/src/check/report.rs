//! The report, for people and for programs.

use std::io::{self, Write};

use serde::Serialize;

use super::finding::{Finding, Group, Level};
use crate::report::Output;

/// Whether the check runs before or after the installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    Before,
    After,
}

#[derive(Serialize)]
pub struct Report {
    /// `before` or `after` the installation.
    pub stage: Stage,
    /// Whether there is no failure.
    pub ok: bool,
    pub groups: Vec<Group>,
}

impl Report {
    pub fn new(stage: Stage, groups: Vec<Group>) -> Self {
        let findings = groups.iter().flat_map(|group| &group.findings);
        let ok = findings.map(|finding| finding.level).max() < Some(Level::Failure);
        Self { stage, ok, groups }
    }

    pub fn write(&self, output: Output, to: &mut impl Write) -> io::Result<()> {
        output.write(self, to, |report, to| report.text(to))
    }

    fn text(&self, to: &mut impl Write) -> io::Result<()> {
        for group in &self.groups {
            writeln!(to, "{}", group.group)?;
            for Finding {
                level, text, fix, ..
            } in &group.findings
            {
                writeln!(to, "  {:<8} {text}", level.as_str())?;
                if let Some(fix) = fix {
                    writeln!(to, "  {:<8} → {fix}", "")?;
                }
            }
            writeln!(to)?;
        }
        let count = |level| {
            let findings = self.groups.iter().flat_map(|group| &group.findings);
            findings.filter(|finding| finding.level == level).count()
        };
        let (failures, warnings) = (count(Level::Failure), count(Level::Warning));
        let findings = self.groups.iter().flat_map(|group| &group.findings);
        let unchecked = findings.filter(|finding| finding.unchecked).count();
        match (self.ok, self.stage) {
            (false, _) if unchecked > 0 => writeln!(
                to,
                "{failures} failures, {warnings} warnings; {unchecked} checks could not be made"
            ),
            (false, _) => writeln!(to, "{failures} failures, {warnings} warnings"),
            (true, stage) if unchecked > 0 => {
                let unknown = match stage {
                    Stage::Before => "can be installed",
                    Stage::After => "works",
                };
                writeln!(
                    to,
                    "{warnings} warnings; whether Naru {unknown} is not known: {unchecked} checks \
                     could not be made"
                )
            }
            (true, Stage::Before) => {
                writeln!(to, "{warnings} warnings; Naru can be installed")
            }
            (true, Stage::After) => writeln!(to, "{warnings} warnings; Naru works"),
        }
    }
}
