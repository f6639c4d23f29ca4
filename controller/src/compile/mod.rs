//! Routing tables out of the index. Pure and synchronous.
