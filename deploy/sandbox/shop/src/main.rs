//! A small demo shop for a mesh: `web` calls `catalog` over HTTP/1.1 and `cart` over gRPC, and both
//! store their data in `store`, a database with Redis' protocol over TCP. `load` generates traffic.
#![forbid(unsafe_code)]

mod cart;
mod catalog;
mod load;
mod serve;
mod store;
mod web;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The demonstration shop: each subcommand is one of its services.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    service: Service,
}

#[derive(Subcommand)]
enum Service {
    /// Serve the shop's pages over HTTP/1.1: /, /product/N, /cart, /cart/add/N and /cart/watch.
    Web(web::Args),
    /// Serve the list of products over HTTP/1.1.
    Catalog(catalog::Args),
    /// Serve the carts over gRPC.
    Cart(cart::Args),
    /// Serve the database, a key-value store that speaks the protocol of Redis.
    Store(store::Args),
    /// Call the front at a fixed rate, and report the results every second.
    Load(load::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let ended = match Cli::parse().service {
        Service::Web(args) => web::run(args).await,
        Service::Catalog(args) => catalog::run(args).await,
        Service::Cart(args) => cart::run(args).await,
        Service::Store(args) => store::run(args).await,
        Service::Load(args) => load::run(args).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shop: {error:#}");
            ExitCode::FAILURE
        }
    }
}
