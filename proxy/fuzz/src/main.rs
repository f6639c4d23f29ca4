//! A program that libFuzzer drives: the target is the one that `NARU_FUZZ_TARGET` names.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<naru_fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("NARU_FUZZ_TARGET").unwrap_or_default();
    naru_fuzz::target(&name).expect("NARU_FUZZ_TARGET is the name of a target")
});

fuzz_target!(|bytes: &[u8]| TARGET(bytes));
