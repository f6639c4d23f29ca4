//! What is wrong with a manifest, in words that lead to the place and out of it.

use std::fmt;

/// Something wrong with one field of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// As `spec.rules[0].retry.codes[1]`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Invalid {
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

/// Something wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// From 1; 0: the file as a whole.
    pub line: u64,
    /// As `Service shop/web`; empty: not known that far.
    pub object: String,
    /// As `spec.ports[0].port`; empty: none in particular.
    pub field: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        if !self.object.is_empty() {
            write!(f, "{}: ", self.object)?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}
