//! Finds the line of a field in a YAML or JSON document. Slow, and only for messages.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A step of a field's path.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// A document reduced to its shape and positions.
enum Node {
    Map(Vec<(String, Spanned<Node>)>),
    Sequence(Vec<Spanned<Node>>),
    Scalar,
}

/// The line, from 1, of a field such as `spec.rules[0].name`, or of its deepest existing ancestor.
pub fn line(document: &str, field: &str) -> Option<u64> {
    let root: Spanned<Node> = serde_saphyr::from_str(document).ok()?;
    let mut at = &root;
    for step in steps(field) {
        let next = match (&at.value, step) {
            (Node::Map(entries), Step::Key(key)) => {
                entries.iter().find(|(k, _)| *k == key).map(|(_, v)| v)
            }
            (Node::Sequence(items), Step::Index(index)) => items.get(index),
            _ => None,
        };
        match next {
            Some(next) => at = next,
            None => break,
        }
    }
    Some(at.referenced.line()).filter(|line| *line > 0)
}

/// Splits `a.b[0]["c.d"]` into steps.
fn steps(field: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut rest = field;
    while !rest.is_empty() {
        if let Some(quoted) = rest.strip_prefix("[\"") {
            let (key, after) = quoted.split_once("\"]").unwrap_or((quoted, ""));
            steps.push(Step::Key(key.to_owned()));
            rest = after;
        } else if let Some(bracketed) = rest.strip_prefix('[') {
            let (index, after) = bracketed.split_once(']').unwrap_or((bracketed, ""));
            match index.parse() {
                Ok(index) => steps.push(Step::Index(index)),
                Err(_) => break,
            }
            rest = after;
        } else {
            let bare = rest.strip_prefix('.').unwrap_or(rest);
            let end = bare.find(['.', '[']).unwrap_or(bare.len());
            let (key, after) = bare.split_at(end);
            if key.is_empty() {
                break;
            }
            steps.push(Step::Key(key.to_owned()));
            rest = after;
        }
    }
    steps
}

/// Appends a key to a field's path in its text form.
pub fn with_key(field: &str, key: &str) -> String {
    if !key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        format!("{field}[\"{key}\"]")
    } else if field.is_empty() {
        key.to_owned()
    } else {
        format!("{field}.{key}")
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            entries.push((key, map.next_value()?));
        }
        Ok(Node::Map(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element()? {
            items.push(item);
        }
        Ok(Node::Sequence(items))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_str<E>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        IgnoredAny::deserialize(deserializer)?;
        Ok(Node::Scalar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str =
        "a:\n  b:\n    - c: 1\n      d: x\n    - {c: 2, \"e.f/g\": [3,\n 4]}\nz: ~\n";

    #[test]
    fn a_field_is_located_in_its_line() {
        for (field, expected) in [
            ("a.b[0].d", 4),
            ("a.b[1].c", 5),
            ("a.b[1][\"e.f/g\"][1]", 6),
            ("z", 7),
        ] {
            assert_eq!(line(DOCUMENT, field), Some(expected), "{field}");
        }
    }

    #[test]
    fn a_missing_field_is_located_at_its_parent() {
        assert_eq!(line(DOCUMENT, "a.b[0].missing"), Some(3));
    }

    #[test]
    fn a_key_with_a_dot_round_trips_through_its_text_form() {
        let field = with_key(&with_key("", "a"), "e.f/g");
        assert_eq!(field, "a[\"e.f/g\"]");
        assert_eq!(
            steps(&field),
            [Step::Key("a".into()), Step::Key("e.f/g".into())]
        );
    }
}
