//! How a connection is closed after it has been served.

/// What remains to be done with a client's connection.
#[must_use]
pub enum Closing<S> {
    /// Nothing: it has ended in order, or the client has left.
    Done,
    /// It must be reset, so that the client does not take partial data for all of it.
    Reset(S),
}

impl<S> Closing<S> {
    pub fn map<T>(self, inner: impl FnOnce(S) -> T) -> Closing<T> {
        match self {
            Self::Done => Closing::Done,
            Self::Reset(io) => Closing::Reset(inner(io)),
        }
    }
}
