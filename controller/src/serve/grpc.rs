//! The contract's two gRPC methods, dispatched by path.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use naru_contract::{
    CERTIFY_PATH, CertifyRequest, CertifyResponse, FromProxy, MAX_MESSAGE_BYTES, SYNC_PATH, ToProxy,
};
use naru_listen::Limit;
use naru_listen::turns::Turns;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};
use tracing::{debug, error, info};

use super::accept::Client;
use super::stream::{self, Context, MAX_QUEUED};
use crate::issuer::{Issuer, Refusal, TokenError};
use crate::metrics::Metrics;

/// The largest certificate request, in bytes: a signing request and a token.
const MAX_CERTIFY_BYTES: usize = 64 * 1024;

/// Concurrent certificate requests. Each costs a signature, and in a cluster a TokenReview by the
/// API server.
const MAX_CERTIFYING: usize = 32;
/// Concurrent certificate requests from one address, which is the only known property of a client
/// before its token is validated.
const MAX_CERTIFYING_OF_SOURCE: usize = 16;
/// Certificate requests from one address that wait.
const MAX_WAITING_OF_SOURCE: usize = 1_000;
/// How long a certificate request waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// Turns for certificate requests.
pub fn turns() -> Turns<IpAddr> {
    Turns::new(MAX_CERTIFYING, MAX_CERTIFYING_OF_SOURCE)
}

/// The gRPC service. Cheap to clone.
#[derive(Clone)]
pub struct Methods {
    pub issuer: Arc<Issuer>,
    pub turns: Turns<IpAddr>,
    pub context: Context,
}

type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

impl Service<http::Request<Body>> for Methods {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        let methods = self.clone();
        Box::pin(async move {
            Ok(match request.uri().path() {
                CERTIFY_PATH => {
                    let codec = ProstCodec::<CertifyResponse, CertifyRequest>::default();
                    let certify = service_fn(move |request| methods.clone().certify(request));
                    Grpc::new(codec)
                        .max_decoding_message_size(MAX_CERTIFY_BYTES)
                        .unary(certify, request)
                        .await
                }
                SYNC_PATH => {
                    let codec = ProstCodec::<ToProxy, FromProxy>::default();
                    let sync = service_fn(move |request| std::future::ready(methods.sync(request)));
                    Grpc::new(codec)
                        .max_decoding_message_size(MAX_MESSAGE_BYTES)
                        .max_encoding_message_size(MAX_MESSAGE_BYTES)
                        .streaming(sync, request)
                        .await
                }
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

impl Methods {
    async fn certify(
        self,
        request: Request<CertifyRequest>,
    ) -> Result<Response<CertifyResponse>, Status> {
        let client = client(&request)?;
        // The place belongs to the connection, so its requests use it one at a time.
        let _certifying = client.certifying.lock().await;
        let request = request.into_inner();
        let busy = |limit: Limit| {
            let text = format!("too many requests for certificates ({})", limit.as_str());
            Status::resource_exhausted(text)
        };
        // The connection is no longer closed for others while its request is in progress.
        client.place.take().map_err(busy)?;
        let turn = self
            .turns
            .take(client.place.source(), MAX_WAITING_OF_SOURCE);
        let Ok(Some(turn)) = timeout(TURN_TIMEOUT, turn).await else {
            client.place.refuse(Limit::Turn);
            client.place.wait();
            return Err(busy(Limit::Turn));
        };
        let now = SystemTime::now();
        let issued = self.issuer.certify(&request.csr_der, &request.token, now);
        let issued = issued.await;
        drop(turn);
        client.place.wait();
        let issued = issued.map_err(|refusal| refused(&self.context.metrics, &client, &refusal))?;
        self.context.metrics.issued();
        let pod = issued.pod.as_deref().unwrap_or_default();
        info!(id = %issued.id, pod, client = %client.address, "a certificate is issued");
        let chain = issued.chain.iter();
        Ok(Response::new(CertifyResponse {
            chain_der: chain.map(|der| Bytes::copy_from_slice(der)).collect(),
            trust_anchors_der: issued.by.anchors_der(),
            issuer: issued.by.ca.id().to_owned(),
            now_unix_seconds: now
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs() as i64),
        }))
    }

    fn sync(
        &self,
        request: Request<Streaming<FromProxy>>,
    ) -> Result<Response<ReceiverStream<Result<ToProxy, Status>>>, Status> {
        let client = client(&request)?;
        let peer = client.peer.ok_or_else(|| {
            debug!(client = %client.address, "Sync without a mesh identity");
            Status::unauthenticated("Sync takes a certificate of this mesh; ask for one by Certify")
        })?;
        let (sender, receiver) = mpsc::channel(MAX_QUEUED);
        tokio::spawn(stream::run(
            self.context.clone(),
            client.place.source(),
            peer,
            request.into_inner(),
            sender,
        ));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

fn client<T>(request: &Request<T>) -> Result<Client, Status> {
    request
        .extensions()
        .get::<Client>()
        .cloned()
        .ok_or_else(|| Status::internal("a request of no connection"))
}

fn refused(metrics: &Metrics, client: &Client, refusal: &Refusal) -> Status {
    metrics.refused(refusal.reason());
    let text = refusal.to_string();
    info!(client = %client.address, reason = text, "a certificate is refused");
    match refusal {
        // Not the proxy's fault, so it retries.
        Refusal::Token(TokenError::Review(_) | TokenError::ReviewTime) => Status::unavailable(text),
        Refusal::Token(_) => Status::unauthenticated(text),
        Refusal::Name | Refusal::Reserved => Status::permission_denied(text),
        Refusal::Request | Refusal::Key => Status::invalid_argument(text),
        Refusal::AuthorityExpired => Status::failed_precondition(text),
        Refusal::Make(error) => {
            error!(%error, "making a certificate");
            Status::internal("the certificate could not be made")
        }
    }
}
