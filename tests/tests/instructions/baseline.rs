//! The committed counts, and the comparison with new ones.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::callgrind::{Counts, may_run_in_real_time};
use crate::rows::Sides;

/// How far a count may exceed the baseline's, in per cent. With real-time scheduling the counts
/// vary by less than two, however busy the machine is. One more call is detected in all counts
/// below thirty.
const TOLERANCE: f64 = 3.0;
/// The tolerance for counts that depend on more than the code. Instructions depend on the compiler
/// that built the programs, and on the valgrind and the processor that ran them. Without real-time
/// scheduling everything varies, because two writes arrive in one read or in two. Only differences
/// beyond these effects fail.
const WIDE_TOLERANCE: f64 = 25.0;

/// The command that writes the counts as the new baseline.
pub const ACCEPT: &str = "NARU_ACCEPT_INSTRUCTIONS=1 tests/run instructions";

const INSTRUCTIONS: &str = "instructions";

/// The processor features that valgrind passes through if the machine has them. It hides all
/// others, so cryptography and libc choose by these alone.
const FEATURES: [&str; 5] = ["avx", "avx2", "f16c", "rdrand", "rdseed"];

/// Counts, and their dependencies other than the code.
#[derive(Debug, Serialize, Deserialize)]
pub struct Baseline {
    #[serde(rename = "counted with")]
    with: With,
    pub rows: BTreeMap<String, Sides>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct With {
    rustc: String,
    /// The compiler of the cryptography, which comes with the libc.
    cc: String,
    valgrind: String,
    processor: Vec<String>,
    #[serde(rename = "real time")]
    real_time: bool,
}

/// The result of a comparison.
pub struct Verdict {
    table: String,
    /// A line for each count above its tolerance.
    pub dearer: Vec<String>,
}

impl Baseline {
    /// An empty baseline.
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
            cc: version("cc"),
            valgrind: version("valgrind"),
            processor: has.map(|feature| (*feature).to_owned()).collect(),
            real_time: may_run_in_real_time(),
        };
        Self {
            with,
            rows: BTreeMap::new(),
        }
    }

    pub fn read(path: &Path) -> Self {
        let file = std::fs::read(path).unwrap_or_else(|error| {
            panic!(
                "{}: {error}; what is counted on this architecture is written there by {ACCEPT}",
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

    /// Compares `counted` with this baseline.
    pub fn compare(&self, counted: &Self) -> Verdict {
        let real_time = self.with.real_time && counted.with.real_time;
        let same = self.with == counted.with && real_time;
        let mut verdict = Verdict {
            table: format!(
                "{:<10} {:<9} {:<14} {:>11} {:>11}\n",
                "row", "side", "a request's", "baseline", "now"
            ),
            dearer: Vec::new(),
        };
        let mut cheaper = false;
        for (row, sides) in &counted.rows {
            for (side, counts) in sides {
                // A missing count in the baseline counts as exceeded.
                let before = self.rows.get(row).and_then(|sides| sides.get(side));
                let before = before.copied().unwrap_or_default().named();
                for ((count, before), (_, now)) in before.into_iter().zip(counts.named()) {
                    let percent = (now / before - 1.0) * 100.0;
                    let line = format!(
                        "{row:<10} {side:<9} {count:<14} {before:>11.1} {now:>11.1} \
                         {percent:>+7.1} %"
                    );
                    verdict.table.push_str(&line);
                    verdict.table.push('\n');
                    let tolerance = match count {
                        INSTRUCTIONS if same => TOLERANCE,
                        INSTRUCTIONS => WIDE_TOLERANCE,
                        _ if real_time => TOLERANCE,
                        _ => WIDE_TOLERANCE,
                    };
                    if percent > tolerance {
                        verdict.dearer.push(line);
                    }
                    cheaper |= percent < -tolerance;
                }
            }
        }
        if !same {
            verdict.table += &format!(
                "The baseline was counted with something else, or one of both without real time: \
                 up to {WIDE_TOLERANCE} % more passes.\n\
                 its: {:?}\nnow: {:?}\n",
                self.with, counted.with
            );
        }
        if cheaper {
            verdict.table +=
                &format!("Some of it is cheaper than the baseline: {ACCEPT} holds it there.\n");
        }
        verdict
    }
}

impl Counts {
    fn named(self) -> [(&'static str, f64); 4] {
        [
            (INSTRUCTIONS, self.instructions),
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
    let said = String::from_utf8_lossy(&said.stdout);
    said.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn a_count_above_its_tolerance_is_dearer_and_one_below_is_reported_as_cheaper() {
    let counted = |rustc: &str, instructions, allocations| {
        let counts = Counts {
            instructions,
            allocations,
            system_calls: 6.0,
            clock_readings: 19.0,
        };
        let mut counted = Baseline::of_this_machine();
        counted.with.rustc = rustc.to_owned();
        counted.with.real_time = true;
        let sides = Sides::from([("inbound".to_owned(), counts)]);
        counted.rows.insert("http1".to_owned(), sides);
        counted
    };
    let baseline = counted("1.95", 30_000.0, 7.0);
    let compare = |rustc, instructions, allocations| {
        let verdict = baseline.compare(&counted(rustc, instructions, allocations));
        (verdict.dearer.len(), verdict.table.contains("cheaper"))
    };
    assert_eq!(compare("1.95", 30_800.0, 7.0), (0, false));
    assert_eq!(compare("1.95", 31_000.0, 7.0), (1, false));
    assert_eq!(compare("1.95", 31_000.0, 8.0), (2, false));
    assert_eq!(compare("1.95", 29_000.0, 8.0), (1, true));
    assert_eq!(compare("1.96", 31_000.0, 7.0), (0, false));
    assert_eq!(compare("1.96", 38_000.0, 8.0), (2, false));
    let mut cut_up = counted("1.95", 31_000.0, 8.0);
    cut_up.with.real_time = false;
    assert_eq!(baseline.compare(&cut_up).dearer.len(), 0);
    let nothing = Baseline::of_this_machine();
    assert_eq!(nothing.compare(&baseline).dearer.len(), 4);
}
