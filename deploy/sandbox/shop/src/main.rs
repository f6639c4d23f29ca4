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
    /// The front: /, /product/N, /cart, /cart/add/N and /cart/watch, over HTTP/1.1.
    Web(web::Args),
    /// What there is to buy, over HTTP/1.1.
    Catalog(catalog::Args),
    /// What is about to be bought, over gRPC.
    Cart(cart::Args),
    /// The database: a key-value store that redis-cli can talk to.
    Store(store::Args),
    /// Calls the front at a fixed rate and says how it went, every second.
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
