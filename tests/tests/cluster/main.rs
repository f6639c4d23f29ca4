//! Tests that require a real Kubernetes. `tests/run cluster` starts a cluster with Naru installed,
//! runs these, side by side where they allow it ([`turns`]), and takes it down; on a running one
//! (`tests/cluster/up --naru`), `cargo test` runs any of them.

#![allow(clippy::disallowed_methods)] // A test has its thread to itself, and may sleep.

mod admission;
mod authority;
mod chart;
mod check;
mod cni;
mod control;
mod controllers;
mod gateway;
mod install;
mod jobs;
mod kubernetes;
mod load;
mod locality;
mod nodes;
mod objects;
mod probes;
mod push;
mod restarts;
mod rights;
mod rotation;
mod services;
mod turns;
mod why;
