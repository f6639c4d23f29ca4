//! Checks that the modules of each crate follow the order of its maps, so that the code can be read
//! from top to bottom without a cycle.
//!
//! A map is in the header of the file that declares a folder's modules (`lib.rs`, `mod.rs`): under
//! the heading `# Floors`, in a block of text. Each line is a floor, from top to bottom, with the
//! names of its modules; two spaces begin a remark.
//!
//! ```text
//! admin               what people ask
//! inbound outbound    where connections begin
//! config              read once, at the start
//! ```
//!
//! A module imports from the floors below its own, and from its own floor unless that creates a
//! cycle. For two modules the map of their lowest common folder applies. The folder's own file has
//! its vocabulary or its entry point. It is on no floor, unless the map lists it as `self`: a
//! module may import from it, or it from the module, but not both; what it only hands on with
//! `pub use` does not count. A glob of a module above (`use super::*`) hides what is imported, and
//! is not allowed. Code under `#[cfg(test)]` may import anything.

mod floors;
mod source;

use std::path::Path;

use floors::{Floors, problems};
use naru_tests::repository;
use source::Crate;

/// In these crates, each folder with two modules or more has a map.
const CRATES: [&str; 6] = [
    "controller/src/lib.rs",
    "controller/contract/src/lib.rs",
    "controller/cli/src/main.rs",
    "proxy/fuzz/src/lib.rs",
    "proxy/listen/src/lib.rs",
    "proxy/src/lib.rs",
];

#[test]
fn modules_import_from_the_floors_below_their_own() {
    let mut found = Vec::new();
    for root in CRATES {
        let read = |file: &Path| std::fs::read_to_string(repository().join(file)).ok();
        let modules = Crate::read(Path::new(root), &read);
        assert!(modules.len() > 1, "{root} declares no modules");
        found.extend(problems(&modules));
    }
    assert!(
        found.is_empty(),
        "{} of the modules' imports do not follow the maps of floors:\n\n{}\n",
        found.len(),
        found.join("\n\n")
    );
}

/// The problems of a crate with these files, of which the first is its root.
fn problems_of(files: &[(&str, &str)]) -> Vec<String> {
    let read = |file: &Path| {
        let found = files.iter().find(|(name, _)| Path::new(name) == file);
        found.map(|(_, text)| (*text).to_owned())
    };
    problems(&Crate::read(Path::new(files[0].0), &read))
}

/// The root of a crate with the modules `a` and `b`.
fn root(floors: &str) -> String {
    format!("//! A crate.\n//!\n//! # Floors\n//!\n//! ```text\n{floors}//! ```\nmod a;\nmod b;\n")
}

const A_OVER_B: &str = "//! a    on top\n//! b\n";

#[test]
fn an_import_from_below_is_allowed_and_one_from_above_is_reported_with_its_line() {
    let root = root(A_OVER_B);
    let right = [
        ("lib.rs", root.as_str()),
        ("a.rs", "use crate::b::B;"),
        ("b.rs", ""),
    ];
    assert_eq!(problems_of(&right), [""; 0]);
    let wrong = [
        ("lib.rs", root.as_str()),
        ("a.rs", ""),
        ("b.rs", "\nuse super::a::{self, A};"),
    ];
    let found = problems_of(&wrong);
    assert!(
        found[0].starts_with("b.rs:2: `b` imports crate::a from a floor above"),
        "{found:?}"
    );
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn paths_in_code_and_in_macros_are_imports_and_comments_are_not() {
    let root = root(A_OVER_B);
    let code = "fn f() -> u8 { println!(\"{}\", crate::a::f()); 1 }";
    let found = problems_of(&[("lib.rs", &root), ("a.rs", ""), ("b.rs", code)]);
    assert!(found[0].starts_with("b.rs:1:"), "{found:?}");
    let said = "/// As [`crate::a::f`] does.\nfn f() { \"crate::a::f\"; /* crate::a */ }";
    assert_eq!(
        problems_of(&[("lib.rs", &root), ("a.rs", ""), ("b.rs", said)]),
        [""; 0]
    );
}

#[test]
fn modules_of_one_floor_may_import_each_other_in_one_direction() {
    let root = root("//! a b\n");
    let one = [
        ("lib.rs", root.as_str()),
        ("a.rs", "use crate::b;"),
        ("b.rs", ""),
    ];
    assert_eq!(problems_of(&one), [""; 0]);
    let both = [
        ("lib.rs", root.as_str()),
        ("a.rs", "use crate::b;"),
        ("b.rs", "use crate::a;"),
    ];
    let found = problems_of(&both);
    assert!(found[0].contains("close a circle: a b"), "{found:?}");
    assert!(
        found[0].contains("a.rs:1: `a` imports crate::b"),
        "{found:?}"
    );
}

#[test]
fn a_reexported_item_belongs_to_the_module_that_defines_it() {
    let handed_on = format!("{}pub use a::A;\npub struct Own;", root(A_OVER_B));
    let wrong = [
        ("lib.rs", handed_on.as_str()),
        ("a.rs", ""),
        ("b.rs", "use crate::{A, Own};"),
    ];
    let found = problems_of(&wrong);
    assert!(found[0].contains("`b` imports crate::a"), "{found:?}");
    assert_eq!(
        found.len(),
        1,
        "the folder's own items are on no floor: {found:?}"
    );
    let globs = handed_on.replace("pub use a::A;", "pub use a::*;");
    let wrong = [
        ("lib.rs", globs.as_str()),
        ("a.rs", "pub struct A;"),
        ("b.rs", "use super::A;"),
    ];
    assert_eq!(problems_of(&wrong).len(), 1);
}

#[test]
fn the_folders_own_file_is_on_a_floor_if_the_map_names_it() {
    let root = root("//! self\n//! a b\n");
    let found = problems_of(&[("lib.rs", &root), ("a.rs", "use crate::Own;"), ("b.rs", "")]);
    assert!(
        found[0].contains("`a` imports crate from a floor above"),
        "{found:?}"
    );
}

#[test]
fn the_folders_own_file_and_a_module_may_import_each_other_in_one_direction() {
    let floors = root("//! a b\n");
    let files = |own: &str, a| {
        let own = format!("{floors}pub struct Own;\n{own}");
        problems_of(&[("lib.rs", &own), ("a.rs", a), ("b.rs", "")])
    };
    assert_eq!(files("fn f() { a::f() }", ""), [""; 0]);
    assert_eq!(files("", "use super::Own;"), [""; 0]);
    assert_eq!(files("pub use a::A;", "use super::Own;"), [""; 0]);
    for own in ["fn f() { a::f() }", "use a::f;", "use crate::a::{self};"] {
        let found = files(own, "use super::Own;");
        assert_eq!(found.len(), 1, "{own}: {found:?}");
        assert!(
            found[0].contains("the folder's own file and its module `a` import each other"),
            "{found:?}"
        );
    }
}

#[test]
fn a_glob_of_a_module_above_is_reported() {
    let root = root(A_OVER_B);
    let files = |b| problems_of(&[("lib.rs", root.as_str()), ("a.rs", ""), ("b.rs", b)]);
    for glob in ["use super::*;", "use crate::*;", "pub use super::{*};"] {
        let found = files(glob);
        assert!(
            found[0].contains("hides what is imported"),
            "{glob}: {found:?}"
        );
    }
    assert_eq!(files("#[cfg(test)] mod tests { use super::*; }"), [""; 0]);
    let own = "mod inner { use super::*; }";
    assert_eq!(
        files(own),
        ["b.rs:1: `use crate::b::*` hides what is imported: name it."]
    );
}

#[test]
fn two_modules_are_compared_in_their_lowest_common_folder() {
    let root = root(A_OVER_B);
    let inner = "//! # Floors\n//! ```text\n//! c\n//! d\n//! ```\nmod c;\nmod d;";
    let files = |c, d| {
        [
            ("lib.rs", root.as_str()),
            ("a/mod.rs", inner),
            ("a/c.rs", c),
            ("a/d.rs", d),
            ("b.rs", ""),
        ]
    };
    assert_eq!(
        problems_of(&files("use super::d; use crate::b;", "use crate::b;")),
        [""; 0]
    );
    let found = problems_of(&files("", "use crate::a::c;"));
    assert!(
        found[0].starts_with("a/d.rs:1: `d` imports crate::a::c"),
        "{found:?}"
    );
}

#[test]
fn tests_may_import_anything() {
    let root = root(A_OVER_B);
    let b = "#[cfg(test)] use crate::a::A; #[cfg(test)] mod tests { use crate::a; } \
             #[cfg(test)] #[path = \"b_tests.rs\"] mod more;";
    let more = "use crate::a;";
    let files = [
        ("lib.rs", root.as_str()),
        ("a.rs", ""),
        ("b.rs", b),
        ("b_tests.rs", more),
    ];
    assert_eq!(problems_of(&files), [""; 0]);
    let here = "#[cfg(not(test))] use crate::a::A;";
    assert_eq!(
        problems_of(&[("lib.rs", &root), ("a.rs", ""), ("b.rs", here)]).len(),
        1
    );
}

#[test]
fn a_map_lists_every_module_of_its_folder_once_and_no_other() {
    let root = root("//! a a c\n");
    let found = problems_of(&[("lib.rs", &root), ("a.rs", ""), ("b.rs", "")]).join("\n");
    for said in [
        "lib.rs: `a` stands on two floors",
        "`b` is on no floor",
        "no module `c`",
    ] {
        assert!(found.contains(said), "{found}");
    }
    let found = problems_of(&[("lib.rs", "mod a; mod b;"), ("a.rs", ""), ("b.rs", "")]);
    assert!(found[0].contains("lib.rs: there is no map"), "{found:?}");
}

#[test]
fn a_map_is_the_block_under_its_heading() {
    let header = "//! ```text\n//! x y\n//! ```\n//! ## Floors\n//! Words.\n//! ```text\n\
                  //! a b  words\n//!      more words\n//! c\n//! ```\nmod a;";
    let floors = Floors::parse(header).expect("a map");
    assert_eq!(floors.0, [vec!["a", "b"], vec!["c"]]);
    assert!(Floors::parse("//! Words.\nmod a;").is_none());
}

/// Tests of the cluster share it: one without its turn would run next to those that stop parts of
/// it.
#[test]
fn every_test_of_the_cluster_begins_with_its_turn() {
    let mut folders = vec![repository().join("tests/tests/cluster")];
    let mut tests = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("text");
            let mut lines = text.lines();
            while lines.by_ref().any(|line| line.trim() == "#[test]") {
                let name = lines.by_ref().find(|line| line.contains("fn "));
                let first = lines.next().unwrap_or_default();
                assert!(
                    first.contains("let _turn = turns::"),
                    "{}: {} must begin with its turn, see turns.rs",
                    path.display(),
                    name.unwrap_or_default()
                );
                tests += 1;
            }
        }
    }
    assert!(tests > 0, "no tests");
}
