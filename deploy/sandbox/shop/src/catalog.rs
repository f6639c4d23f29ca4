//! The product catalog. Version `v2` also returns prices as text, so that the versions can be
//! distinguished.

use std::sync::Arc;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};
use tonic::body::Body;

use crate::serve::{self, Faults, Listen};
use crate::store;

/// Products in the list, which are read from the database.
const LISTED: u32 = 6;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    faults: Faults,
    /// Which of its versions this is.
    #[arg(long, env = "SHOP_VERSION", default_value = "v1", value_parser = ["v1", "v2"])]
    version: String,
    /// The database.
    #[arg(long, env = "SHOP_STORE", default_value = "store:6379")]
    store: String,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let catalog = Arc::new(Catalog {
        version: args.version,
        store: store::Client::new(args.store),
    });
    serve::serve("catalog", args.listen, args.faults, move |request| {
        let catalog = catalog.clone();
        async move { catalog.answer(request).await }
    })
    .await
}

struct Catalog {
    version: String,
    store: store::Client,
}

impl Catalog {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        let answer = match path.strip_prefix("/products") {
            Some("" | "/") => self.list().await,
            Some(id) => match id.strip_prefix('/').and_then(|id| id.parse().ok()) {
                Some(id) => self.product(id).await,
                None => Ok(None),
            },
            None => Ok(None),
        };
        match answer {
            Ok(Some(value)) => serve::json(StatusCode::OK, &value),
            Ok(None) => serve::json(
                StatusCode::NOT_FOUND,
                &json!({ "error": "no such product" }),
            ),
            Err(error) => {
                let error = json!({ "error": format!("store: {error}") });
                serve::json(StatusCode::BAD_GATEWAY, &error)
            }
        }
    }

    async fn list(&self) -> std::io::Result<Option<Value>> {
        let mut products = Vec::new();
        for id in 1..=LISTED {
            products.extend(self.product(id).await?);
        }
        Ok(Some(
            json!({ "catalog": self.version, "products": products }),
        ))
    }

    async fn product(&self, id: u32) -> std::io::Result<Option<Value>> {
        let Some(found) = self.store.get(&format!("product:{id}")).await? else {
            return Ok(None);
        };
        let mut product: Value = serde_json::from_slice(&found)?;
        product["catalog"] = json!(self.version);
        if self.version == "v2" {
            let cents = product["cents"].as_u64().unwrap_or_default();
            product["price"] = json!(format!("€ {}.{:02}", cents / 100, cents % 100));
        }
        Ok(Some(product))
    }
}
