//! The front end of the shop: translates requests of a browser into calls of `catalog` and `cart`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tonic::body::Body;

use crate::cart::{self, Cart, Item, Query};
use crate::serve::{self, Faults, Listen};

/// Timeout of a call of the catalog.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Size limit of a catalog's response, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;
/// Interval of `/cart/watch`, in milliseconds.
const WATCH_INTERVAL: u32 = 100;

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    faults: Faults,
    /// Where the catalog is.
    #[arg(long, env = "SHOP_CATALOG", default_value = "http://catalog")]
    catalog: String,
    /// Where the carts are.
    #[arg(long, env = "SHOP_CART", default_value = "http://cart")]
    cart: String,
    /// How often `/cart/watch` looks before it answers, ten times a second.
    #[arg(long, env = "SHOP_WATCHED", default_value_t = 5)]
    watched: u32,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let web = Arc::new(Web {
        catalog: args.catalog,
        http: Client::builder(TokioExecutor::new()).build_http(),
        cart: cart::Client::new(args.cart)?,
        watched: args.watched,
    });
    serve::serve("web", args.listen, args.faults, move |request| {
        let web = web.clone();
        async move { web.answer(request).await }
    })
    .await
}

struct Web {
    catalog: String,
    http: Client<HttpConnector, Empty<Bytes>>,
    cart: cart::Client,
    watched: u32,
}

impl Web {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        // A client selects the other version with this header, which the mesh's routes match.
        let mut passed_on = serve::trace_of(request.headers());
        if let Some(version) = request.headers().get("x-version") {
            passed_on.insert("x-version", version.clone());
        }
        let answer = match path {
            "/" => self.catalog("/products", passed_on).await,
            "/cart" => self.cart(passed_on).await,
            "/cart/watch" => self.watch(passed_on).await,
            _ => match path.rsplit_once('/') {
                Some(("/product", id)) => self.catalog(&format!("/products/{id}"), passed_on).await,
                Some(("/cart/add", id)) => self.add(id, passed_on).await,
                _ => Ok((StatusCode::NOT_FOUND, json!({ "error": "no such page" }))),
            },
        };
        match answer {
            Ok((status, value)) => serve::json(status, &value),
            Err(error) => {
                let error = json!({ "error": format!("{error:#}") });
                serve::json(StatusCode::BAD_GATEWAY, &error)
            }
        }
    }

    async fn catalog(&self, path: &str, headers: HeaderMap) -> anyhow::Result<(StatusCode, Value)> {
        let mut request = Request::get(format!("{}{path}", self.catalog)).body(Empty::new())?;
        request.headers_mut().extend(headers);
        let call = async {
            let response = self.http.request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await;
            let body = body.map_err(|error| anyhow!(error))?.to_bytes();
            if status != StatusCode::OK && status != StatusCode::NOT_FOUND {
                bail!("status {status}: {}", String::from_utf8_lossy(&body).trim());
            }
            Ok((status, serde_json::from_slice(&body)?))
        };
        tokio::time::timeout(CALL_TIMEOUT, call)
            .await
            .unwrap_or_else(|late| Err(late.into()))
            .context("catalog")
    }

    async fn add(&self, id: &str, headers: HeaderMap) -> anyhow::Result<(StatusCode, Value)> {
        let Ok(product) = id.parse() else {
            return Ok((StatusCode::NOT_FOUND, json!({ "error": "no such product" })));
        };
        let user = "guest".to_owned();
        let cart = self.cart.clone().add(Item { user, product }, headers).await;
        Ok((StatusCode::OK, shown(&cart.context("cart")?)))
    }

    async fn cart(&self, headers: HeaderMap) -> anyhow::Result<(StatusCode, Value)> {
        let cart = self.cart.clone().get(query(1), headers).await;
        Ok((StatusCode::OK, shown(&cart.context("cart")?)))
    }

    async fn watch(&self, headers: HeaderMap) -> anyhow::Result<(StatusCode, Value)> {
        let mut carts = Vec::new();
        let watched = self.cart.clone().watch(query(self.watched), headers).await;
        let mut watched = watched.context("cart")?;
        while let Some(cart) = watched.message().await.context("cart")? {
            carts.push(shown(&cart));
        }
        Ok((StatusCode::OK, json!({ "carts": carts })))
    }
}

fn query(times: u32) -> Query {
    Query {
        user: "guest".to_owned(),
        times,
        interval_milliseconds: WATCH_INTERVAL,
    }
}

fn shown(cart: &Cart) -> Value {
    json!({ "user": cart.user, "products": cart.products })
}
