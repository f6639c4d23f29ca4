//! How the sidecar is linked where it is linked in whole.
//!
//! Every start of it reads every relocation: 580 KiB of the memory of each sidecar, or 20 where
//! they are packed. What is linked in has to know how to unpack them: glibc does since 2.36.

use std::env;
use std::process::Command;

const UNPACKS_SINCE: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is_static = variable("CARGO_CFG_TARGET_FEATURE")
        .split(',')
        .any(|feature| feature == "crt-static");
    let is_ours =
        variable("CARGO_CFG_TARGET_ENV") == "gnu" && variable("HOST") == variable("TARGET");
    if is_static && is_ours && glibc().is_some_and(|version| version >= UNPACKS_SINCE) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

/// The version of this machine's, as `glibc 2.36` says it.
fn glibc() -> Option<(u32, u32)> {
    let answer = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .output()
        .ok()?;
    let answer = String::from_utf8(answer.stdout).ok()?;
    let (major, minor) = answer.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
