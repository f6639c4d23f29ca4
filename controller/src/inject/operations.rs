//! The operations of a JSON Patch (RFC 6902) that injection uses, and the paths in them.

use std::fmt::Display;

use serde::Serialize;
use serde_json::{Map, Value};

/// One operation.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub enum Operation {
    Add { path: String, value: Value },
    Replace { path: String, value: Value },
    Remove { path: String },
}

/// A JSON Pointer (RFC 6901).
#[derive(Clone, Debug)]
pub struct Path(String);

impl Path {
    pub fn root() -> Self {
        Self(String::new())
    }

    pub fn key(&self, key: &str) -> Self {
        let key = key.replace('~', "~0").replace('/', "~1");
        self.then(key)
    }

    pub fn index(&self, index: usize) -> Self {
        self.then(index)
    }

    fn then(&self, step: impl Display) -> Self {
        Self(format!("{}/{step}", self.0))
    }
}

pub fn add(path: Path, value: Value) -> Operation {
    Operation::Add {
        path: path.0,
        value,
    }
}

pub fn replace(path: Path, value: Value) -> Operation {
    Operation::Replace {
        path: path.0,
        value,
    }
}

pub fn remove(path: Path) -> Operation {
    Operation::Remove { path: path.0 }
}

/// Sets keys of a string map that may not exist yet.
pub fn set_key(
    map: Path,
    is_there: bool,
    pairs: impl IntoIterator<Item = (&'static str, String)>,
) -> Vec<Operation> {
    let pairs = pairs.into_iter();
    if is_there {
        // `add` replaces existing values.
        return pairs
            .map(|(key, value)| add(map.key(key), value.into()))
            .collect();
    }
    let pairs: Map<String, Value> = pairs
        .map(|(key, value)| (key.to_owned(), value.into()))
        .collect();
    match pairs.is_empty() {
        true => Vec::new(),
        false => vec![add(map, pairs.into())],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_escaped_in_paths() {
        let path = Path::root().key("labels").key("a~b/c").index(0);
        assert_eq!(path.0, "/labels/a~0b~1c/0");
    }
}
