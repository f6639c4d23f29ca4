//! The modules of a crate, parsed from its files as tokens. In: the root file. Out: for each module
//! the paths in its code, except code for tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// Maximum length of a chain of re-exports.
const MAX_STEPS: usize = 16;
/// Keywords before the name of an item.
const ITEMS: [&str; 9] = [
    "fn",
    "struct",
    "enum",
    "union",
    "trait",
    "const",
    "static",
    "type",
    "macro_rules",
];

/// A file of a crate.
#[derive(Default)]
pub struct Module {
    /// From the root, whose path is empty.
    pub path: Vec<String>,
    pub file: PathBuf,
    pub text: String,
    /// Modules that have files of their own.
    pub children: BTreeSet<String>,
    pub used: Vec<Used>,
    /// The paths of names from `use`.
    aliases: BTreeMap<String, Vec<String>>,
    /// The paths before `::*`.
    globs: Vec<Vec<String>>,
    items: BTreeSet<String>,
}

impl Module {
    fn has(&self, name: &str) -> bool {
        self.items.contains(name) || self.children.contains(name) || self.aliases.contains_key(name)
    }
}

/// A path in the code, resolved from the crate's root.
pub struct Used {
    pub path: Vec<String>,
    pub line: usize,
    /// By `pub use`, which hands the item on and needs nothing of it.
    pub reexport: bool,
    /// By `use …::*`.
    pub glob: bool,
}

impl Used {
    fn new(path: Vec<String>, line: usize) -> Self {
        Self {
            path,
            line,
            reexport: false,
            glob: false,
        }
    }
}

/// All modules of a crate by their path.
pub struct Crate(BTreeMap<Vec<String>, Module>);

type Read<'a> = &'a dyn Fn(&Path) -> Option<String>;

impl Crate {
    pub fn read(root: &Path, read: Read<'_>) -> Self {
        let mut modules = Self(BTreeMap::new());
        let directory = root.parent().unwrap_or(Path::new("")).to_owned();
        modules.add(root.to_owned(), directory, Vec::new(), read);
        modules
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Module> {
        self.0.values()
    }

    /// Parses a file and those of its modules, which are in `directory`.
    fn add(&mut self, file: PathBuf, directory: PathBuf, path: Vec<String>, read: Read<'_>) {
        let text = read(&file).unwrap_or_else(|| panic!("there is no {}", file.display()));
        let tokens = TokenStream::from_str(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut walk = Walk {
            module: Module {
                path: path.clone(),
                file: file.clone(),
                ..Module::default()
            },
            scope: path.clone(),
            declared: Vec::new(),
        };
        walk.tokens(tokens);
        let Walk {
            mut module,
            declared,
            ..
        } = walk;
        module.text = text;
        for (name, given) in declared {
            let beside = file.parent().unwrap_or(Path::new(""));
            let leaf = match &given {
                Some(given) => beside.join(given),
                None => directory.join(format!("{name}.rs")),
            };
            let folder = directory.join(&name);
            let whole = folder.join("mod.rs");
            let child = if read(&leaf).is_some() { leaf } else { whole };
            module.children.insert(name.clone());
            self.add(child, folder, [&path[..], &[name]].concat(), read);
        }
        self.0.insert(path, module);
    }

    /// The module that defines the item at `path`, as seen from the module `from`; `None` if the
    /// item is not in a module of this crate.
    pub fn find(&self, from: &[String], path: &[String]) -> Option<&Module> {
        self.follow(from, path, MAX_STEPS)
    }

    fn follow(&self, from: &[String], path: &[String], steps: usize) -> Option<&Module> {
        let steps = steps.checked_sub(1)?;
        let (mut at, rest) = match path.split_first()? {
            (first, rest) if first == "crate" => (Vec::new(), rest),
            // As in `use`: a module or a name of this one, or another crate.
            (first, _) => {
                let here = self.0.get(from)?;
                if !here.children.contains(first) && !here.aliases.contains_key(first) {
                    return None;
                }
                (from.to_vec(), path)
            }
        };
        for (index, name) in rest.iter().enumerate() {
            let module = self.0.get(&at)?;
            if module.children.contains(name) {
                at.push(name.clone());
                continue;
            }
            let rest = &rest[index + 1..];
            if let Some(alias) = module.aliases.get(name) {
                return self.follow(&at, &[alias, rest].concat(), steps);
            }
            let handed_on = module.globs.iter().find_map(|glob| {
                let has = self.follow(&at, glob, steps)?.has(name);
                let whole = [&glob[..], std::slice::from_ref(name)].concat();
                has.then(|| self.follow(&at, &whole, steps)).flatten()
            });
            return handed_on.or(Some(module));
        }
        self.0.get(&at)
    }
}

/// The walk through the tokens of one file.
struct Walk {
    module: Module,
    /// The module of the code: an inline one has no file.
    scope: Vec<String>,
    /// Modules with files, and their `#[path]`.
    declared: Vec<(String, Option<String>)>,
}

impl Walk {
    fn tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut given = None;
        let mut at = 0;
        while at < tokens.len() {
            if let Some((inner, attribute)) = attribute(&tokens[at..]) {
                at += 2 + usize::from(inner);
                if is_for_tests(attribute) {
                    if inner {
                        return;
                    }
                    at += length_of_item(&tokens[at..]);
                }
                given = path_attribute(attribute).or(given);
                continue;
            }
            match &tokens[at] {
                // `impl Trait + use<'a>` names what it captures, and imports nothing.
                TokenTree::Ident(word)
                    if word == "use"
                        && !tokens.get(at + 1).is_some_and(|next| is_punct(next, ['<'])) =>
                {
                    let end = end_of_use(&tokens, at);
                    let first = self.module.used.len();
                    self.tree(&tokens[at + 1..end], &[]);
                    for used in &mut self.module.used[first..] {
                        used.reexport = is_public(&tokens[..at]);
                    }
                    at = end;
                }
                TokenTree::Ident(word) if word == "mod" => {
                    at += self.submodule(&tokens[at + 1..], given.take());
                }
                TokenTree::Ident(word) => {
                    if ITEMS.iter().any(|item| word == item) {
                        let named = tokens[at + 1..].iter().find_map(ident);
                        self.module.items.extend(named);
                    }
                    let path = path_at(&tokens[at..]);
                    // In `a.b` and `<A>::b`, `b` is not a path.
                    if !(at > 0 && is_punct(&tokens[at - 1], ['.', ':'])) || path[0] == "crate" {
                        self.code(&path, word.span().start().line);
                    }
                    at += 3 * path.len() - 2;
                }
                TokenTree::Group(group) => {
                    self.tokens(group.stream());
                    at += 1;
                }
                _ => at += 1,
            }
        }
    }

    /// `mod name;` or `mod name { … }` after its first word. Returns its number of tokens.
    fn submodule(&mut self, tokens: &[TokenTree], given: Option<String>) -> usize {
        let Some(name) = tokens.first().and_then(ident) else {
            return 1;
        };
        match tokens.get(1) {
            Some(TokenTree::Group(body)) if body.delimiter() == Delimiter::Brace => {
                self.scope.push(name);
                self.tokens(body.stream());
                self.scope.pop();
            }
            _ => self.declared.push((name, given)),
        }
        3
    }

    /// A path in code.
    fn code(&mut self, path: &[String], line: usize) {
        let relative = ["crate", "super", "self"].contains(&path[0].as_str());
        if path.len() > 1 && (relative || self.declared.iter().any(|(name, _)| *name == path[0])) {
            let path = self.absolute(path);
            self.module.used.push(Used::new(path, line));
        }
    }

    /// A tree of `use` below `before`.
    fn tree(&mut self, tokens: &[TokenTree], before: &[String]) {
        if tokens.is_empty() {
            return;
        }
        let mut path = before.to_vec();
        let mut line = 0;
        let mut alias = None;
        let mut at = 0;
        while at < tokens.len() {
            match &tokens[at] {
                TokenTree::Ident(word) if word == "as" => {
                    alias = tokens.get(at + 1).and_then(ident);
                    at += 1;
                }
                TokenTree::Ident(word) => {
                    line = word.span().start().line;
                    // `{self}` is the path before the brace.
                    if word != "self" || path.is_empty() {
                        path.push(word.to_string());
                    }
                }
                TokenTree::Group(group) => {
                    let inside: Vec<TokenTree> = group.stream().into_iter().collect();
                    for part in inside.split(|token| is_punct(token, [','])) {
                        self.tree(part, &path);
                    }
                    return;
                }
                TokenTree::Punct(punct) if punct.as_char() == '*' => {
                    let path = self.absolute(&path);
                    self.module.globs.push(path.clone());
                    self.module.used.push(Used {
                        glob: true,
                        ..Used::new(path, punct.span().start().line)
                    });
                    return;
                }
                _ => {}
            }
            at += 1;
        }
        let Some(last) = path.last().cloned() else {
            return;
        };
        let path = self.absolute(&path);
        if self.scope == self.module.path {
            self.module
                .aliases
                .insert(alias.unwrap_or(last), path.clone());
        }
        self.module.used.push(Used::new(path, line));
    }

    /// From the crate's root, if it begins with `super` or `self`.
    fn absolute(&self, path: &[String]) -> Vec<String> {
        let mut at = self.scope.clone();
        let mut rest = path;
        let mut relative = false;
        while let Some((first, after)) = rest.split_first() {
            match first.as_str() {
                "self" => {}
                "super" => drop(at.pop()),
                _ => break,
            }
            relative = true;
            rest = after;
        }
        match relative {
            true => [&["crate".to_owned()], &at[..], rest].concat(),
            // A name in an inline module does not belong to the file.
            false => path.to_vec(),
        }
    }
}

fn ident(token: &TokenTree) -> Option<String> {
    match token {
        TokenTree::Ident(name) => Some(name.to_string()),
        _ => None,
    }
}

fn is_punct<const N: usize>(token: &TokenTree, any: [char; N]) -> bool {
    matches!(token, TokenTree::Punct(punct) if any.contains(&punct.as_char()))
}

/// Whether these tokens end in `pub` or `pub(…)`.
fn is_public(before: &[TokenTree]) -> bool {
    let word = match before {
        [.., word, TokenTree::Group(group)] if group.delimiter() == Delimiter::Parenthesis => word,
        [.., word] => word,
        [] => return false,
    };
    ident(word).as_deref() == Some("pub")
}

/// `a::b::c`, from its first name on.
fn path_at(tokens: &[TokenTree]) -> Vec<String> {
    let mut path: Vec<String> = tokens.first().and_then(ident).into_iter().collect();
    let mut at = 1;
    while let [first, second, name, ..] = &tokens[at.min(tokens.len())..]
        && is_punct(first, [':'])
        && is_punct(second, [':'])
        && let Some(name) = ident(name)
    {
        path.push(name);
        at += 3;
    }
    path
}

/// `#[…]` or `#![…]`: whether it is the latter, and its content.
fn attribute(tokens: &[TokenTree]) -> Option<(bool, &Group)> {
    let (inner, rest) = match tokens {
        [hash, bang, rest @ ..] if is_punct(hash, ['#']) && is_punct(bang, ['!']) => (true, rest),
        [hash, rest @ ..] if is_punct(hash, ['#']) => (false, rest),
        _ => return None,
    };
    match rest.first()? {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => Some((inner, group)),
        _ => None,
    }
}

fn is_for_tests(attribute: &Group) -> bool {
    let text = attribute.stream().to_string().replace(' ', "");
    let words = |text: &str| {
        text.split(|c: char| !c.is_alphanumeric())
            .any(|word| word == "test")
    };
    text.starts_with("cfg(") && words(&text) && !text.contains("not(")
}

fn path_attribute(attribute: &Group) -> Option<String> {
    let text = attribute.stream().to_string();
    let text = text.strip_prefix("path = \"")?;
    Some(text.strip_suffix('"')?.to_owned())
}

/// The number of tokens of the item, statement or field under an attribute.
fn length_of_item(tokens: &[TokenTree]) -> usize {
    let mut at = 0;
    while let Some((inner, _)) = attribute(&tokens[at..]) {
        at += 2 + usize::from(inner);
    }
    let is_field = matches!(&tokens[at..], [TokenTree::Ident(_), colon, after, ..]
        if is_punct(colon, [':']) && !is_punct(after, [':']));
    let is_use = tokens[at..]
        .iter()
        .take(3)
        .any(|token| ident(token).as_deref() == Some("use"));
    let end = tokens[at..].iter().position(|token| match token {
        TokenTree::Group(group) => !is_use && group.delimiter() == Delimiter::Brace,
        token => is_punct(token, [';']) || is_field && is_punct(token, [',']),
    });
    end.map_or(tokens.len(), |end| at + end + 1)
}

/// The `;` of a `use`.
fn end_of_use(tokens: &[TokenTree], from: usize) -> usize {
    let end = tokens[from..]
        .iter()
        .position(|token| is_punct(token, [';']));
    end.map_or(tokens.len(), |end| from + end)
}
