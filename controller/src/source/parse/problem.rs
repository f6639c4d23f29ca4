//! Problems of manifests, in messages that name the location and the fix.

use std::fmt;

/// A problem with one field of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// As `spec.rules[0].retry.codes[1]`.
    pub field: String,
    /// The problem, and a valid alternative.
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

/// A problem with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// From 1; 0: the file as a whole.
    pub line: u64,
    /// As `Service shop/web`; empty: unknown.
    pub object: String,
    /// As `spec.ports[0].port`; empty: no particular field.
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
