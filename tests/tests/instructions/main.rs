//! The instructions layer: how many instructions, allocations and system calls a request costs a sidecar, held to committed numbers.
//!
//! Two sidecars run under callgrind, with a real controller, on loopback. A client sends one request after the other; what the
//! sidecars' data workers execute meanwhile is divided by the number of requests. No clock is involved, so the numbers say the same
//! on a busy machine, and a request path that became dearer is seen before anybody could measure it.
//!
//! ```text
//! tests/run instructions                              compares with baseline/ARCHITECTURE.json, fails where more is executed
//! NARU_ACCEPT_INSTRUCTIONS=1 tests/run instructions   writes what was counted there: commit it with the change that it is due to
//! callgrind_annotate target/instructions/NAME         where the instructions of a row went (--inclusive=yes, --tree=caller)
//! ```

mod baseline;
mod callgrind;
mod rows;

use std::path::Path;

use naru_tests::{image_programs, repository};

use crate::baseline::Baseline;
use crate::rows::Row;

#[tokio::test]
async fn no_request_costs_more_than_it_did() {
    let profiles = repository().join("target/instructions");
    let programs = image_programs();
    let mut counted = Baseline::of_this_machine();
    for row in Row::ALL {
        let sides = rows::count(row, &programs, &profiles).await;
        counted.rows.insert(row.name().to_owned(), sides);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!(
        "tests/instructions/baseline/{}.json",
        std::env::consts::ARCH
    ));
    if std::env::var_os("NARU_ACCEPT_INSTRUCTIONS").is_some_and(|value| value == "1") {
        counted.write(&path);
        println!("accepted: {}", path.display());
        return;
    }
    let verdict = Baseline::read(&path).compare(&counted);
    println!("{verdict}");
    assert!(
        verdict.dearer.is_empty(),
        "a request costs more instructions than {} says; where they go is in {}. If it must: NARU_ACCEPT_INSTRUCTIONS=1 tests/run \
         instructions\n{}",
        path.display(),
        profiles.display(),
        verdict.dearer.join("\n")
    );
}
