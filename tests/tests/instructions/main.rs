//! The instructions layer: what a request costs a sidecar in instructions, allocations, system
//! calls and readings of the clock, held to committed numbers.
//!
//! Two sidecars run under callgrind, with a real controller, on loopback. A client sends one
//! request after the other; what the data workers execute meanwhile is divided by the number of
//! requests. No time is measured, so the numbers say the same on a busy machine, and a request path
//! that became dearer is seen long before a benchmark could tell it from noise.
//!
//! ```text
//! tests/run instructions                             compares with baseline/ARCHITECTURE.json, and fails where something is dearer
//! NARU_ACCEPT_INSTRUCTIONS=1 tests/run instructions  writes it anew: commit it with the change that it is due to
//! callgrind_annotate target/instructions/ROW-SIDE    where the instructions of a run went; --inclusive=yes, --tree=caller
//! ```
//!
//! The counts are those of the processor that valgrind shows to programs, whatever it runs on: with
//! AVX2 if the machine has it, and without AVX-512 and the instructions for SHA, so that a
//! handshake looks dearer than it is. A large `memcpy` counts for each byte of it. What the kernel
//! does for a system call counts nothing. The benchmark (`tests/bench`) is what says how fast it
//! is; this says only whether it is what it was.

mod baseline;
mod callgrind;
mod rows;

use std::io::Write;
use std::path::Path;

use naru_tests::{image_programs, repository};

use crate::baseline::{ACCEPT, Baseline};
use crate::rows::Row;

#[tokio::test]
async fn no_request_costs_more_than_it_did() {
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
        "a request is dearer than {} says:\n{}\nprofiles of where it goes are in {}; if it has to be so: {ACCEPT}",
        file.display(),
        verdict.dearer.join("\n"),
        profiles.display(),
    );
}

/// Says it where the test passes, too.
fn say(words: &str) {
    let _nobody_listens = writeln!(std::io::stderr(), "\n{words}");
}
