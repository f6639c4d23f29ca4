//! The committed counts, and how new ones are held against them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::callgrind::Counts;
use crate::rows::Sides;

/// How much more than the baseline a count may be, in per cent.
const TOLERANCE: f64 = 5.0;
/// The same where another compiler has built the programs, or another valgrind or processor ran them: compilers differ by some per
/// cent, so only what is certainly no accident of theirs fails.
const WIDE_TOLERANCE: f64 = 25.0;

/// The processor features that valgrind passes on to what it runs, where the machine has them. Everything else of a processor it
/// leaves out, so that cryptography and libc choose by these alone.
const FEATURES: [&str; 5] = ["avx", "avx2", "f16c", "rdrand", "rdseed"];

/// Counts, and what they depend on beside the code.
#[derive(Debug, Serialize, Deserialize)]
pub struct Baseline {
    #[serde(rename = "counted with")]
    with: With,
    pub rows: BTreeMap<String, Sides>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct With {
    rustc: String,
    valgrind: String,
    processor: Vec<String>,
}

/// How counts compare.
pub struct Verdict {
    table: String,
    /// A line for each count that is above what it may be.
    pub dearer: Vec<String>,
}

impl Baseline {
    /// Nothing counted yet.
    pub fn of_this_machine() -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").expect("/proc/cpuinfo");
        let flags: Vec<&str> = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("flags"))
            .unwrap_or_default()
            .split_whitespace()
            .collect();
        let has = FEATURES.iter().filter(|feature| flags.contains(feature));
        let with = With {
            rustc: version("rustc"),
            valgrind: version("valgrind"),
            processor: has.map(|feature| (*feature).to_owned()).collect(),
        };
        Self {
            with,
            rows: BTreeMap::new(),
        }
    }

    pub fn read(path: &Path) -> Self {
        let file = std::fs::read(path).unwrap_or_else(|error| {
            panic!(
                "{}: {error}; NARU_ACCEPT_INSTRUCTIONS=1 tests/run instructions writes it",
                path.display()
            )
        });
        serde_json::from_slice(&file).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub fn write(&self, path: &Path) {
        let mut file = serde_json::to_string_pretty(self).expect("JSON");
        file.push('\n');
        std::fs::write(path, file).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    /// Holds `counted` against this.
    pub fn compare(&self, counted: &Self) -> Verdict {
        let same = self.with == counted.with;
        let tolerance = if same { TOLERANCE } else { WIDE_TOLERANCE };
        let mut verdict = Verdict {
            table: format!(
                "{:<10} {:<9} {:<13} {:>10} {:>10}\n",
                "row", "side", "count", "baseline", "now"
            ),
            dearer: Vec::new(),
        };
        let mut cheaper = false;
        for (row, sides) in &counted.rows {
            for (side, counts) in sides {
                let before = self.rows.get(row).and_then(|sides| sides.get(side));
                let before = before.unwrap_or_else(|| {
                    panic!("the baseline has no row {row}, {side}; accept a new one")
                });
                for ((count, before), (_, now)) in before.named().into_iter().zip(counts.named()) {
                    let percent = (now / before - 1.0) * 100.0;
                    let line = format!(
                        "{row:<10} {side:<9} {count:<13} {before:>10.1} {now:>10.1} {percent:>+6.1} %"
                    );
                    verdict.table.push_str(&line);
                    verdict.table.push('\n');
                    if percent > tolerance {
                        verdict.dearer.push(line);
                    }
                    cheaper |= percent < -tolerance;
                }
            }
        }
        if !same {
            verdict.table.push_str(&format!(
                "the baseline was counted with {:?}, and this with {:?}: up to {WIDE_TOLERANCE} % more passes\n",
                self.with, counted.with
            ));
        }
        if cheaper {
            verdict.table.push_str(
                "some of it costs less than the baseline says: NARU_ACCEPT_INSTRUCTIONS=1 tests/run instructions keeps it so\n",
            );
        }
        verdict
    }
}

impl Counts {
    fn named(self) -> [(&'static str, f64); 4] {
        [
            ("instructions", self.instructions),
            ("allocations", self.allocations),
            ("system calls", self.system_calls),
            ("clock readings", self.clock_readings),
        ]
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.table)
    }
}

fn version(program: &str) -> String {
    let said = Command::new(program).arg("--version").output();
    let said = said.unwrap_or_else(|error| panic!("{program}: {error}; tests/run installs it"));
    String::from_utf8_lossy(&said.stdout).trim().to_owned()
}
