//! Objects by name, and which of them depend on which. Pure and synchronous.
