//! Code that the tests of several layers share.

pub mod apps;
pub mod mesh;
pub mod process;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// The features of all layers.
const FEATURES: &str = "naru-tests/namespaces,naru-tests/cluster,naru-tests/instructions";

/// The directory with the project's programs, built once per run.
pub fn programs() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let optimized = std::env::var_os("NARU_TEST_OPTIMIZED")
            .is_some_and(|value| !value.is_empty() && value != "0");
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["build", "--quiet", "--message-format=json"])
            // The same selection as everywhere in `tests/run`: another one would compile every
            // dependency again.
            .args(match optimized {
                true => &["--profile", "sandbox", "--workspace", "--bins"][..],
                false => &["--workspace", "--all-targets", "--features", FEATURES],
            })
            .current_dir(repository())
            .stderr(Stdio::inherit());
        let built = build.output().expect("cargo");
        assert!(built.status.success(), "building the programs failed");
        let naru = String::from_utf8_lossy(&built.stdout)
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter_map(|message| Some(PathBuf::from(message["executable"].as_str()?)))
            .find(|program| program.ends_with("naru"))
            .expect("cargo names the program it built");
        naru.parent().expect("a directory").to_owned()
    })
}

/// The directory with the programs of the images, as in the test clusters: optimised and static.
pub fn image_programs() -> PathBuf {
    let built = Command::new(repository().join("deploy/images/build"))
        .args(["--profile", "sandbox", "--programs"])
        .current_dir(repository())
        .stderr(Stdio::inherit())
        .output()
        .expect("deploy/images/build");
    assert!(built.status.success(), "building the programs failed");
    PathBuf::from(String::from_utf8_lossy(&built.stdout).trim())
}

/// The repository's top folder.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
