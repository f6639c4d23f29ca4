//! The cache of `tests/cache.sh`, where the layers keep what they build from other projects'
//! sources.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use naru_tests::repository;

/// A folder of a test's own, which is deleted on drop.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let name = format!("naru-cache-test-{}-{test}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("a scratch folder");
        Self(folder)
    }

    /// Starts a script that asks for the entry `thing-1`, which this recipe makes in `$1`.
    fn start(&self, recipe: &str) -> Child {
        let script = format!(
            "set -euo pipefail
             source \"$0\"
             make() {{
               echo made >> \"$XDG_CACHE_HOME/log\"
               {recipe}
             }}
             provide thing \"$cache/thing-1\" make 'for a test'"
        );
        Command::new("bash")
            .args(["-c", &script])
            .arg(repository().join("tests/cache.sh"))
            .env("XDG_CACHE_HOME", &self.0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("bash")
    }

    /// Has the entry with the usual files; returns what the script says.
    fn provide(&self) -> String {
        said(self.start(USUAL).wait_with_output())
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.join("naru").join(file)
    }

    /// How often the recipe was run.
    fn made(&self) -> usize {
        let log = std::fs::read_to_string(self.0.join("log"));
        log.map_or(0, |log| log.lines().count())
    }

    fn assert_usual(&self) {
        let content = std::fs::read_to_string(self.path("thing-1/link")).expect("the entry");
        assert_eq!(content, "one\n");
        assert!(
            !self.path(".thing.new").exists(),
            "the build left its folder"
        );
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _only_litter = std::fs::remove_dir_all(&self.0);
    }
}

/// Two files, one of them a link.
const USUAL: &str = "mkdir \"$1/sub\"; echo one > \"$1/sub/file\"; ln -s sub/file \"$1/link\"";

fn said(output: std::io::Result<Output>) -> String {
    let output = output.expect("bash");
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).expect("text");
    assert!(output.status.success(), "{text}");
    text
}

#[test]
fn an_entry_is_built_once() {
    let folder = Folder::new("once");
    let built = folder.provide();
    assert!(built.contains("building thing: for a test"), "{built}");
    folder.assert_usual();
    assert_eq!(folder.provide(), "");
    assert_eq!(folder.made(), 1);
}

#[test]
fn a_damaged_entry_is_built_again() {
    let folder = Folder::new("damaged");
    folder.provide();
    for (round, damage) in [
        "echo two > sub/file",
        "rm sub/file",
        "echo more > sub/more",
        "ln -sf nowhere link",
        "rm manifest",
        "truncate -s 10 manifest",
    ]
    .into_iter()
    .enumerate()
    {
        let mut shell = Command::new("bash");
        shell
            .args(["-c", damage])
            .current_dir(folder.path("thing-1"));
        said(shell.output());
        let built = folder.provide();
        assert!(
            built.contains("thing-1 is damaged and is built again"),
            "{damage}: {built}"
        );
        folder.assert_usual();
        assert_eq!(folder.provide(), "", "{damage}");
        assert_eq!(folder.made(), round + 2, "{damage}");
    }
}

#[test]
fn a_build_that_fails_or_is_killed_leaves_no_entry() {
    let folder = Folder::new("fails");
    for end in ["false; echo continued", "kill -9 $$"] {
        let failing = folder.start(&format!("echo half > \"$1/file\"; {end}"));
        let output = failing.wait_with_output().expect("bash");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            !output.status.success() && !text.contains("continued"),
            "{text}"
        );
        assert!(!folder.path("thing-1").exists(), "{end}");
    }
    folder.provide();
    folder.assert_usual();
    assert!(!folder.path("thing-1/file").exists());
}

#[test]
fn scripts_that_need_the_same_at_once_build_it_once() {
    let folder = Folder::new("at-once");
    // A process that the recipe leaves behind does not keep the others waiting.
    let slow = format!(
        "sleep 60 > /dev/null 2>&1 & echo $! >> \"$XDG_CACHE_HOME/left\"; sleep 0.5; {USUAL}"
    );
    let scripts: Vec<Child> = (0..3).map(|_| folder.start(&slow)).collect();
    for script in scripts {
        said(script.wait_with_output());
    }
    assert_eq!(folder.made(), 1);
    folder.assert_usual();
    let mut kill = Command::new("bash");
    said(
        kill.args(["-c", "kill $(cat left)"])
            .current_dir(&folder.0)
            .output(),
    );
}

#[test]
fn entries_that_are_not_used_for_long_are_deleted() {
    let folder = Folder::new("old");
    for (name, age) in [
        ("thing-old", "90 days ago"),
        ("thing-young", "9 days ago"),
        ("other-old", "90 days ago"),
    ] {
        std::fs::create_dir_all(folder.path(name)).expect("an entry");
        let mut touch = Command::new("touch");
        said(touch.args(["-d", age]).arg(folder.path(name)).output());
    }
    folder.provide();
    assert!(!folder.path("thing-old").exists());
    assert!(folder.path("thing-young").exists());
    assert!(
        folder.path("other-old").exists(),
        "another name's, whose scripts see to it"
    );
}
