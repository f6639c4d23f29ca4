//! The catalog from objects to resources.
