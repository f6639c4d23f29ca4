//! Every target over its corpus, and over a bounded number of mutations of it. The mutations are
//! the same in each run; `run` in the folder above finds new ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use naru_fuzz::Target;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Executions of one target, and fewer of those that derive keys or shake hands.
const EXECUTIONS: usize = 20_000;
const FEWER: [(&str, usize); 3] = [("records", 5_000), ("tls", 300), ("tls_hostile", 600)];
/// Changes to one input, and its length in bytes.
const MAX_CHANGES: usize = 8;
const MAX_LENGTH: usize = 4096;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// The inputs of a target's corpus, in the order of their names.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let files = fs::read_dir(folder().join("corpus").join(name)).expect("a corpus");
    let mut files: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    files
        .iter()
        .map(|file| fs::read(file).expect("a file"))
        .collect()
}

/// A part of an input.
fn part(random: &mut SmallRng, bytes: &[u8]) -> std::ops::Range<usize> {
    let start = random.random_range(0..=bytes.len());
    let end = random.random_range(start..=bytes.len().min(start + 64));
    start..end
}

/// One small change of `bytes`; `other`: another input of the corpus.
fn change(random: &mut SmallRng, bytes: &mut Vec<u8>, other: &[u8]) {
    let cut = part(random, bytes);
    match random.random_range(0..8) {
        0 => drop(bytes.drain(cut)),
        1 => {
            let copy = bytes[cut].to_vec();
            let at = random.random_range(0..=bytes.len());
            bytes.splice(at..at, copy);
        }
        2 => drop(bytes.splice(cut, other[part(random, other)].iter().copied())),
        3 => bytes.insert(cut.start, random.random()),
        4 => bytes.truncate(cut.end),
        _ if bytes.is_empty() => bytes.push(random.random()),
        kind => {
            let at = random.random_range(0..bytes.len());
            bytes[at] = match kind {
                5 => bytes[at] ^ 1 << random.random_range(0..8),
                6 => bytes[at]
                    .wrapping_add(random.random_range(0..32))
                    .wrapping_sub(16),
                _ => *[0, 1, 127, 128, 255]
                    .get(random.random_range(0..5))
                    .unwrap_or(&0),
            };
        }
    }
}

/// An input that is kept in a file if its execution fails.
struct Execution<'a> {
    name: &'a str,
    bytes: &'a [u8],
}

impl Drop for Execution<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let artifacts = folder().join("artifacts");
            let file = artifacts.join(format!("{}-failed", self.name));
            let kept = fs::create_dir_all(&artifacts).and_then(|()| fs::write(&file, self.bytes));
            eprintln!("the input is in {}: {kept:?}", file.display());
        }
    }
}

fn execute(name: &str, one: Target, bytes: &[u8]) {
    let _execution = Execution { name, bytes };
    one(bytes);
}

fn fuzz(name: &str) {
    let one = naru_fuzz::target(name).expect("a target");
    let corpus = corpus(name);
    assert!(!corpus.is_empty(), "{name} has no corpus");
    for bytes in &corpus {
        execute(name, one, bytes);
    }
    let mut random = SmallRng::seed_from_u64(1);
    let fewer = FEWER.iter().find(|(target, _)| *target == name);
    let executions = fewer.map_or(EXECUTIONS, |(_, executions)| *executions);
    let started = Instant::now();
    for _ in 0..executions {
        let mut pick = || &corpus[random.random_range(0..corpus.len())];
        let (mut bytes, other) = (pick().clone(), pick());
        for _ in 0..random.random_range(1..=MAX_CHANGES) {
            change(&mut random, &mut bytes, other);
        }
        bytes.truncate(MAX_LENGTH);
        execute(name, one, &bytes);
    }
    println!("{name}: {executions} executions in {:?}", started.elapsed());
}

/// A test for each target, so that they run side by side.
macro_rules! targets {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                fuzz(stringify!($name));
            }
        )*

        #[test]
        fn every_target_has_a_test_and_every_corpus_a_target() {
            let tested = [$(stringify!($name)),*];
            let targets = naru_fuzz::TARGETS.iter().map(|(name, _)| *name);
            assert!(targets.eq(tested));
            let corpora = fs::read_dir(folder().join("corpus")).expect("the corpora");
            let corpora = corpora.map(|folder| folder.expect("a folder").file_name());
            assert_eq!(corpora.filter(|name| !tested.iter().any(|t| *t == *name)).count(), 0);
        }
    };
}

targets! {
    client_hello detect filters frames http1 mux mux_hostile records route table tls tls_hostile
}
