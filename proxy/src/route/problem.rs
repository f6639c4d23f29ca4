//! An error in a field of the contract, with the field's path.

use std::fmt;

use http::HeaderName;

/// The error, and the path of the field relative to the decoded message.
pub(super) struct Problem {
    pub field: String,
    pub text: String,
}

pub(super) fn problem(text: impl fmt::Display) -> Problem {
    Problem {
        field: String::new(),
        text: text.to_string(),
    }
}

pub(super) trait In<T> {
    /// Prepends `field` to the path.
    fn within(self, field: impl fmt::Display) -> Result<T, Problem>;
}

impl<T> In<T> for Result<T, Problem> {
    fn within(self, field: impl fmt::Display) -> Self {
        self.map_err(|problem| Problem {
            field: format!("{field}{}", problem.field),
            ..problem
        })
    }
}

pub(super) fn method(name: &str) -> Result<&str, Problem> {
    http::Method::from_bytes(name.as_bytes())
        .map(|_| name)
        .map_err(|_| problem(format_args!("{name:?} is not a method")))
}

pub(super) fn header_name(name: &str) -> Result<&str, Problem> {
    HeaderName::from_bytes(name.as_bytes())
        .map(|_| name)
        .map_err(|_| problem(format_args!("{name:?} is no header name")))
}
