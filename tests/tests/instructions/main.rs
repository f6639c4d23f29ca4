//! The instructions layer: a sidecar's cost of a request in instructions, allocations, system calls
//! and clock readings, compared with committed numbers.
//!
//! Two sidecars run under callgrind, with a real controller, on loopback. A client sends one
//! request after the other; the counts of the data workers are divided by the number of requests.
//! Time is not measured, so the numbers are the same on a busy machine. A regression of the request
//! path shows up long before a benchmark could distinguish it from noise.
//!
//! ```text
//! tests/run instructions                             compares with baseline/ARCHITECTURE.json
//! NARU_ACCEPT_INSTRUCTIONS=1 tests/run instructions  rewrites the baseline
//! callgrind_annotate target/instructions/ROW-SIDE    shows where instructions are spent
//! ```
//!
//! The comparison fails where a count has grown. A new baseline is committed with the change that
//! caused it. Useful options of callgrind_annotate are `--inclusive=yes` and `--tree=caller`.
//!
//! The counts are those of valgrind's emulated processor, independent of the real one: with AVX2 if
//! the machine has it, but without AVX-512 and SHA instructions, so that a handshake appears more
//! expensive than it is. A large `memcpy` counts in proportion to its size. Work of the kernel in
//! system calls is not counted. The benchmark (`tests/bench`) measures the absolute speed; this
//! layer only detects changes.

mod baseline;
mod callgrind;
mod rows;

use std::io::Write;
use std::path::Path;

use naru_tests::{image_programs, repository};

use crate::baseline::{ACCEPT, Baseline};
use crate::rows::Row;

#[tokio::test]
async fn no_request_costs_more_than_the_baseline() {
    let file = format!(
        "tests/instructions/baseline/{}.json",
        std::env::consts::ARCH
    );
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let accept = std::env::var_os("NARU_ACCEPT_INSTRUCTIONS").is_some_and(|value| value == "1");
    let baseline = match accept {
        true => None,
        false => Some(Baseline::read(&file)),
    };
    let profiles = repository().join("target/instructions");
    let programs = image_programs();
    callgrind::stay_on_one_processor();
    let mut counted = Baseline::of_this_machine();
    for row in Row::ALL {
        let sides = rows::count(row, &programs, &profiles).await;
        counted.rows.insert(row.name().to_owned(), sides);
    }
    let Some(baseline) = baseline else {
        counted.write(&file);
        return say(&format!("accepted: {}", file.display()));
    };
    let verdict = baseline.compare(&counted);
    say(&verdict.to_string());
    assert!(
        verdict.dearer.is_empty(),
        "a request is dearer than {} says:\n{}\n\
         profiles of where it goes are in {}; if it has to be so: {ACCEPT}",
        file.display(),
        verdict.dearer.join("\n"),
        profiles.display(),
    );
}

/// Prints even if the test passes.
fn say(words: &str) {
    let _nobody_listens = writeln!(std::io::stderr(), "\n{words}");
}
