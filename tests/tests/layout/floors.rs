//! Maps of floors, and imports that violate them. In: the modules of a crate. Out: a sentence for
//! each problem, with its location and fix.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Crate, Module};

/// Names of modules by floor, the top one first.
pub struct Floors(pub Vec<Vec<String>>);

/// The name of the folder's own file in maps.
const OWN: &str = "self";

const WAY_OUT: &str = "    Put what both need into a module below them, or have the upper one pass \
                       it in;\n    \
                       or, if the code is right and the map is wrong, change the map.";

impl Floors {
    /// The first block of text under the heading `# Floors` in the header of a file.
    pub fn parse(text: &str) -> Option<Self> {
        let header = text.lines().map_while(|line| line.strip_prefix("//!"));
        let mut lines = header.map(|line| line.strip_prefix(' ').unwrap_or(line));
        lines.find(|line| line.starts_with('#') && line.trim_matches(['#', ' ']) == "Floors")?;
        lines.find(|line| line.starts_with("```text"))?;
        let floors = lines.take_while(|line| !line.starts_with("```"));
        let names = floors.map(|line| {
            let names = line.split("  ").next().unwrap_or_default();
            names.split_whitespace().map(str::to_owned).collect()
        });
        Some(Self(
            names.filter(|names: &Vec<_>| !names.is_empty()).collect(),
        ))
    }

    /// The index of a module's floor, from the top.
    fn depth(&self, name: &str) -> Option<usize> {
        self.0
            .iter()
            .position(|floor| floor.iter().any(|on_it| on_it == name))
    }
}

/// An import from the perspective of one folder's map.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Import<'a> {
    /// The name of the importing module in that folder, or [`OWN`].
    from: &'a str,
    to: &'a str,
    file: String,
    line: usize,
    /// The whole path of the module that defines the item.
    target: String,
    reexport: bool,
}

impl std::fmt::Display for Import<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}:{}: `{}` imports {}",
            self.file, self.line, self.from, self.target
        )
    }
}

/// What is wrong with a crate. With `everywhere`, each folder of two modules or more needs a map.
pub fn problems(modules: &Crate) -> Vec<String> {
    let imports = imports(modules);
    let none = BTreeSet::new();
    let mut problems = Vec::new();
    for folder in modules.iter().filter(|module| !module.children.is_empty()) {
        let Some(floors) = Floors::parse(&folder.text) else {
            if folder.children.len() > 1 {
                problems.push(format!(
                    "{}: there is no map (`# Floors`) of the modules {}.",
                    folder.file.display(),
                    names(&folder.children)
                ));
            }
            continue;
        };
        problems.extend(incomplete(folder, &floors));
        let imports = imports.get(&folder.path).unwrap_or(&none);
        problems.extend(upward(folder, &floors, imports));
        problems.extend(circles(folder, &floors, imports));
        problems.extend(circles_with_own(folder, &floors, imports));
    }
    problems.extend(modules.iter().flat_map(hidden));
    problems
}

/// The imports by the lowest common folder of the two modules.
fn imports(modules: &Crate) -> BTreeMap<Vec<String>, BTreeSet<Import<'_>>> {
    let mut found: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for module in modules.iter() {
        for used in &module.used {
            let Some(target) = modules.find(&module.path, &used.path) else {
                continue;
            };
            let (from, to) = (&module.path, &target.path);
            let common = from.iter().zip(to).take_while(|(a, b)| a == b).count();
            if from != to {
                found
                    .entry(from[..common].to_vec())
                    .or_default()
                    .insert(Import {
                        from: from.get(common).map_or(OWN, String::as_str),
                        to: to.get(common).map_or(OWN, String::as_str),
                        file: module.file.display().to_string(),
                        line: used.line,
                        target: [&["crate".to_owned()], &to[..]].concat().join("::"),
                        reexport: used.reexport,
                    });
            }
        }
    }
    found
}

/// Modules that are missing from the folder's map, and unknown names in it.
fn incomplete(folder: &Module, floors: &Floors) -> Vec<String> {
    let file = folder.file.display();
    let mut problems = Vec::new();
    let mut named = BTreeSet::new();
    for name in floors.0.iter().flatten() {
        if !named.insert(name) {
            problems.push(format!("{file}: `{name}` stands on two floors of the map."));
        }
        if name != OWN && !folder.children.contains(name) {
            problems.push(format!(
                "{file}: there is no module `{name}`, and the map names it."
            ));
        }
    }
    for name in folder.children.iter().filter(|name| !named.contains(name)) {
        problems.push(format!(
            "{file}: `{name}` is on no floor of the map: name it on the one above all that it \
             imports."
        ));
    }
    problems
}

fn upward(folder: &Module, floors: &Floors, imports: &BTreeSet<Import<'_>>) -> Vec<String> {
    let above = imports.iter().filter(|import| {
        let depths = (floors.depth(import.from), floors.depth(import.to));
        matches!(depths, (Some(from), Some(to)) if to < from)
    });
    let problem = |import: &Import<'_>| {
        format!(
            "{import} from a floor above (the map in {}).\n{WAY_OUT}",
            folder.file.display()
        )
    };
    above.map(problem).collect()
}

/// Modules of one floor that import each other.
fn circles(folder: &Module, floors: &Floors, imports: &BTreeSet<Import<'_>>) -> Vec<String> {
    let mut problems = Vec::new();
    for floor in &floors.0 {
        let on_it = |name: &str| floor.iter().any(|one| one == name);
        let within: Vec<_> = imports
            .iter()
            .filter(|import| on_it(import.from) && on_it(import.to))
            .collect();
        let reached = |from: &str| {
            let mut reached = BTreeSet::new();
            let mut next = vec![from.to_owned()];
            while let Some(name) = next.pop() {
                for import in within.iter().filter(|import| import.from == name) {
                    if reached.insert(import.to) {
                        next.push(import.to.to_owned());
                    }
                }
            }
            reached
        };
        let mut named = BTreeSet::new();
        for name in floor {
            let around = |other: &&String| {
                reached(name).contains(other.as_str()) && reached(other).contains(name.as_str())
            };
            let circle: BTreeSet<String> = floor.iter().filter(around).cloned().collect();
            if circle.len() > 1 && named.is_disjoint(&circle) {
                let ties = within
                    .iter()
                    .filter(|import| circle.contains(import.from) && circle.contains(import.to));
                let ties: Vec<_> = ties.map(|import| format!("    {import}")).collect();
                problems.push(format!(
                    "{}: modules of one floor close a circle: {}\n{}\n{WAY_OUT}",
                    folder.file.display(),
                    names(&circle),
                    ties.join("\n")
                ));
                named.extend(circle);
            }
        }
    }
    problems
}

/// Modules that import from the folder's own file while it imports from them. What it only hands on
/// with `pub use` does not count.
fn circles_with_own(
    folder: &Module,
    floors: &Floors,
    imports: &BTreeSet<Import<'_>>,
) -> Vec<String> {
    if floors.depth(OWN).is_some() {
        return Vec::new();
    }
    let needed = |import: &&Import<'_>| !import.reexport;
    let mut problems = Vec::new();
    for child in &folder.children {
        let down = imports.iter().filter(needed);
        let down: Vec<_> = down.filter(|i| i.from == OWN && i.to == child).collect();
        let up: Vec<_> = imports
            .iter()
            .filter(|i| i.from == child && i.to == OWN)
            .collect();
        if !down.is_empty() && !up.is_empty() {
            let ties = down.iter().chain(&up).map(|import| format!("    {import}"));
            problems.push(format!(
                "{}: the folder's own file and its module `{child}` import each other:\n{}\n{WAY_OUT}",
                folder.file.display(),
                ties.collect::<Vec<_>>().join("\n")
            ));
        }
    }
    problems
}

/// `use super::*` and the like, which import everything that a module above has imported.
fn hidden(module: &Module) -> Vec<String> {
    let above = |path: &[String]| {
        path.first().is_some_and(|first| first == "crate") && module.path.starts_with(&path[1..])
    };
    let globs = module
        .used
        .iter()
        .filter(|used| used.glob && above(&used.path));
    let problem = |used: &crate::source::Used| {
        format!(
            "{}:{}: `use {}::*` hides what is imported: name it.",
            module.file.display(),
            used.line,
            used.path.join("::")
        )
    };
    globs.map(problem).collect()
}

fn names(names: &BTreeSet<String>) -> String {
    names
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(" ")
}
