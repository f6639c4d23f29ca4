//! Sockets.

/// The listeners of the data path.
#[derive(Debug)]
pub struct Listeners {}

impl Listeners {
    /// Opens all of them.
    pub fn bind(config: &crate::config::Config) -> std::io::Result<Self> {
        let _ = config;
        todo!()
    }
}
