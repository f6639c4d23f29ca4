//! Shopping carts: `shop.Cart` over gRPC, with `Add` and `Get` (unary) and `Watch` (a stream of
//! carts). The messages, the server and the client are hand-written.

use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::codegen::tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::serve::{self, Faults, Listen};
use crate::store;

/// Size limit of a cart in the database, in bytes, above which it is emptied.
const MAX_CART_BYTES: usize = 64;
/// Maximum number of carts in one `Watch`.
const MAX_WATCHED: u32 = 1_000;
/// Bounds on the interval of a `Watch`, in milliseconds.
const WATCH_INTERVAL: std::ops::RangeInclusive<u32> = 1..=60_000;
/// Capacity of the queue for a slow watcher.
const WATCH_BACKLOG: usize = 4;
/// Timeout of the client for a unary call.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// A product to add to a cart.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Item {
    #[prost(string, tag = "1")]
    pub user: String,
    #[prost(uint32, tag = "2")]
    pub product: u32,
}

/// The cart's owner, and for `Watch` the number of carts.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Query {
    #[prost(string, tag = "1")]
    pub user: String,
    #[prost(uint32, tag = "2")]
    pub times: u32,
    #[prost(uint32, tag = "3")]
    pub interval_milliseconds: u32,
}

/// A cart.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Cart {
    #[prost(string, tag = "1")]
    pub user: String,
    #[prost(uint32, repeated, tag = "2")]
    pub products: Vec<u32>,
}

#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    listen: Listen,
    #[command(flatten)]
    faults: Faults,
    /// The database.
    #[arg(long, env = "SHOP_STORE", default_value = "store:6379")]
    store: String,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let carts = Carts(Arc::new(store::Client::new(args.store)));
    serve::serve("cart", args.listen, args.faults, move |request| {
        let carts = carts.clone();
        async move { carts.dispatch(request).await }
    })
    .await
}

#[derive(Clone)]
struct Carts(Arc<store::Client>);

impl Carts {
    async fn dispatch(self, request: Request<Incoming>) -> Response<Body> {
        match request.uri().path() {
            "/shop.Cart/Add" => {
                let add = tower::service_fn(move |request: tonic::Request<Item>| {
                    let carts = self.clone();
                    async move {
                        carts
                            .add(request.into_inner())
                            .await
                            .map(tonic::Response::new)
                    }
                });
                let mut grpc = tonic::server::Grpc::new(ProstCodec::<Cart, Item>::default());
                grpc.unary(add, request).await
            }
            "/shop.Cart/Get" => {
                let get = tower::service_fn(move |request: tonic::Request<Query>| {
                    let carts = self.clone();
                    async move {
                        carts
                            .get(request.into_inner().user)
                            .await
                            .map(tonic::Response::new)
                    }
                });
                let mut grpc = tonic::server::Grpc::new(ProstCodec::<Cart, Query>::default());
                grpc.unary(get, request).await
            }
            "/shop.Cart/Watch" => {
                let watch = tower::service_fn(move |request: tonic::Request<Query>| {
                    let carts = self.clone();
                    async move {
                        Ok::<_, Status>(tonic::Response::new(carts.watch(request.into_inner())))
                    }
                });
                let mut grpc = tonic::server::Grpc::new(ProstCodec::<Cart, Query>::default());
                grpc.server_streaming(watch, request).await
            }
            _ => Status::new(Code::Unimplemented, "shop.Cart has Add, Get and Watch").into_http(),
        }
    }

    async fn add(&self, item: Item) -> Result<Cart, Status> {
        let key = key(&item.user)?;
        let product = format!("{},", item.product);
        let length = self.0.append(&key, &product).await.map_err(no_store)?;
        if length > MAX_CART_BYTES {
            self.0.set(&key, &product).await.map_err(no_store)?;
        }
        self.get(item.user).await
    }

    async fn get(&self, user: String) -> Result<Cart, Status> {
        let kept = self.0.get(&key(&user)?).await.map_err(no_store)?;
        let kept = String::from_utf8(kept.unwrap_or_default()).unwrap_or_default();
        let products = kept.split(',').filter_map(|id| id.parse().ok()).collect();
        Ok(Cart { user, products })
    }

    fn watch(self, query: Query) -> ReceiverStream<Result<Cart, Status>> {
        let (sender, receiver) = mpsc::channel(WATCH_BACKLOG);
        let interval = query
            .interval_milliseconds
            .clamp(*WATCH_INTERVAL.start(), *WATCH_INTERVAL.end());
        tokio::spawn(async move {
            for _ in 0..query.times.min(MAX_WATCHED) {
                let cart = self.get(query.user.clone()).await;
                // The watcher is gone, or reading the cart has failed.
                if cart.is_err() | sender.send(cart).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(interval.into())).await;
            }
        });
        ReceiverStream::new(receiver)
    }
}

fn key(user: &str) -> Result<String, Status> {
    let plain = (1..=32).contains(&user.len()) && user.bytes().all(|b| b.is_ascii_alphanumeric());
    if plain {
        Ok(format!("cart:{user}"))
    } else {
        Err(Status::invalid_argument(
            "a user is 1 to 32 letters and digits",
        ))
    }
}

fn no_store(error: std::io::Error) -> Status {
    Status::unavailable(format!("store: {error}"))
}

/// Calls `shop.Cart`.
#[derive(Clone)]
pub struct Client(tonic::client::Grpc<Channel>);

impl Client {
    /// Connects on first use, and reconnects when needed.
    pub fn new(url: String) -> anyhow::Result<Self> {
        let channel = Endpoint::from_shared(url)?.connect_lazy();
        Ok(Self(tonic::client::Grpc::new(channel)))
    }

    pub async fn add(self, item: Item, trace: HeaderMap) -> Result<Cart, Status> {
        self.unary("/shop.Cart/Add", item, trace).await
    }

    pub async fn get(self, query: Query, trace: HeaderMap) -> Result<Cart, Status> {
        self.unary("/shop.Cart/Get", query, trace).await
    }

    pub async fn watch(
        mut self,
        query: Query,
        trace: HeaderMap,
    ) -> Result<Streaming<Cart>, Status> {
        self.ready().await?;
        let path = PathAndQuery::from_static("/shop.Cart/Watch");
        let codec = ProstCodec::<Query, Cart>::default();
        let streaming = self.0.server_streaming(request(query, trace), path, codec);
        Ok(streaming.await?.into_inner())
    }

    async fn unary<M>(
        mut self,
        path: &'static str,
        message: M,
        trace: HeaderMap,
    ) -> Result<Cart, Status>
    where
        M: prost::Message + 'static,
    {
        self.ready().await?;
        let mut request = request(message, trace);
        request.set_timeout(CALL_TIMEOUT);
        let path = PathAndQuery::from_static(path);
        let codec = ProstCodec::<M, Cart>::default();
        Ok(self.0.unary(request, path, codec).await?.into_inner())
    }

    async fn ready(&mut self) -> Result<(), Status> {
        let ready = self.0.ready().await;
        ready.map_err(|error| Status::unavailable(error.to_string()))
    }
}

fn request<M>(message: M, trace: HeaderMap) -> tonic::Request<M> {
    tonic::Request::from_parts(
        MetadataMap::from_headers(trace),
        Default::default(),
        message,
    )
}
