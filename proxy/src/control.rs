//! The proxy's side of the contract.
