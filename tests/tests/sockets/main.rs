//! The sockets layer: a real controller and real proxies on loopback, with apps and clients of the
//! tests' own.
//!
//! Needs only the toolchain. Addresses of 127.0.0.0/8 stand in for pods, and mapped listeners for
//! redirect rules.

use naru_tests::{apps, mesh, process};

mod admin;
mod attacks;
mod control;
mod filters;
mod floods;
mod identity;
mod injection;
mod locality;
mod memory;
mod rotation;
mod shutdown;
mod streams;
mod traffic;
mod why;
