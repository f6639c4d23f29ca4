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
    /// From 1. `None`: it is a problem of the file as a whole.
    pub line: Option<u64>,
    /// As `Service shop/web`. `None`: unknown.
    pub object: Option<String>,
    /// As `spec.ports[0].port`. `None`: no particular field.
    pub field: Option<String>,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)
    }
}
