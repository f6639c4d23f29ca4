//! Obtains a certificate and renews it.
//!
//! In: a [`Certify`] implementation, which calls the controller. Out: a certificate in the
//! [`Identity`], renewed at a random point after half of its life, so that a mesh that started at
//! once does not renew at once. It is renewed sooner when another authority issues certificates, or
//! the controller refuses the certificate in force. A failed renewal leaves the old certificate in
//! force and is retried indefinitely, with growing waits. Keys are generated here, stay in memory,
//! and are never logged.

use std::sync::Arc;
use std::time::Duration;

use naru_contract::{CERTIFY_PATH, CertifyRequest, CertifyResponse, MAX_MESSAGE_BYTES};
use rand::RngExt;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;
use tonic::Request;
use tonic::client::Grpc;
use tonic_prost::ProstCodec;
use tracing::{info, warn};

use super::backoff::Backoff;
use super::connect::{CALL_TIMEOUT, ConnectError, Controller, describe, path, ready};
use super::refusal::Refused;
use crate::identity::{
    CertificateError, Identity, Issuing, TrustError, Validity, authority_name, unix_now,
};
use crate::observe::metrics::{Metrics, RenewalOutcome};

/// The fractions of a certificate's life after which it is renewed at the earliest and at the
/// latest: the rest is for retries.
const RENEW_FROM: f64 = 0.5;
const RENEW_BY: f64 = 0.75;
/// Longest single sleep, so that a suspended machine or a changed clock is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// First wait after a failed attempt; doubles up to [`RETRY_MAX`].
const RETRY_MIN: Duration = Duration::from_millis(500);
/// Longest wait between attempts: short enough for hundreds of attempts in an outage of half a day.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Time within which a refused certificate is replaced, at a random point: many proxies may be
/// refused at once.
const REFUSED_WITHIN: Duration = Duration::from_secs(5);
/// Minimum time between two such renewals, in seconds: a renewal that helps is not needed twice.
const REFUSED_PAUSE: i64 = 60;
/// Difference to the controller's clock that is worth a warning, in seconds. More than a slow
/// answer takes.
const CLOCK_TOLERANCE: i64 = 10;

/// Requests a certificate from the controller.
pub trait Certify {
    /// Sends `csr_der` with the current token.
    fn certify(
        &mut self,
        request: CertifyRequest,
    ) -> impl Future<Output = Result<CertifyResponse, RenewError>> + Send;
}

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    #[error("making a key: {0}")]
    Key(#[from] rcgen::Error),
    #[error("cannot read the token {path}: {source}")]
    Token {
        path: String,
        source: std::io::Error,
    },
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the controller refused: {0}")]
    Refused(String),
    #[error("the controller sent invalid trust anchors with the certificate: {0}")]
    Trust(#[from] TrustError),
    #[error("the controller sent an invalid certificate: {0}")]
    Certificate(#[from] CertificateError),
}

/// Keeps the certificate of an [`Identity`] valid.
pub struct Renewal<C> {
    pub identity: Identity,
    pub metrics: Metrics,
    pub controller: C,
}

impl<C: Certify> Renewal<C> {
    /// Never returns.
    pub async fn run(mut self) {
        let mut issuing = self.identity.issuing();
        let mut refused_at = None;
        loop {
            let (validity, issuer) = self.renew_until_done().await;
            let mut at = renew_at(validity.not_after, unix_now(), rand::rng().random());
            loop {
                let wanted = issuing.borrow_and_update().clone();
                if wanted.issuer.is_some() && wanted.issuer != issuer {
                    let random = rand::rng().random();
                    at = at.min(renew_soon(wanted.renew_within, unix_now(), random));
                    info!(
                        renew_at = at,
                        issuer = wanted.issuer.as_deref(),
                        "another authority issues certificates"
                    );
                }
                match sleep_until(at, &mut issuing, &self.identity).await {
                    Woken::Due => break,
                    Woken::Issuing => {}
                    Woken::Refused => {
                        let now = unix_now();
                        let earliest =
                            refused_at.map_or(now, |at: i64| now.max(at + REFUSED_PAUSE));
                        let soon = renew_soon(REFUSED_WITHIN, earliest, rand::rng().random());
                        if soon < at {
                            (at, refused_at) = (soon, Some(soon));
                            info!(renew_at = at, "the controller refuses the certificate");
                        }
                    }
                }
            }
        }
    }

    /// The validity of the certificate, and the authority that issued it, if that is announced.
    async fn renew_until_done(&mut self) -> (Validity, Option<Arc<str>>) {
        let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
        loop {
            match self.renew().await {
                Ok((validity, issuer)) => {
                    self.metrics.certificate_renewal(RenewalOutcome::Renewed);
                    self.metrics
                        .certificate(validity.not_after, issuer.as_deref());
                    let id = self.identity.id();
                    let id = id.as_ref().map_or("", |id| id.as_str());
                    info!(
                        id,
                        issuer = issuer.as_deref(),
                        not_after = validity.not_after,
                        "got a certificate"
                    );
                    return (validity, issuer);
                }
                Err(error) => {
                    self.metrics.certificate_renewal(RenewalOutcome::Failed);
                    let wait = backoff.wait();
                    let held = match self.identity.validity() {
                        Some(validity) if validity.holds_at(unix_now()) => {
                            "a valid certificate is in force"
                        }
                        Some(_) => "the certificate in force has expired",
                        None => "there is no certificate yet",
                    };
                    warn!(%error, retry_in = ?wait, "cannot renew the certificate; {held}");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    async fn renew(&mut self) -> Result<(Validity, Option<Arc<str>>), RenewError> {
        // A new key each time: a leaked key is useless after its certificate expires.
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let csr = CertificateParams::default().serialize_request(&key)?;
        let request = CertifyRequest {
            csr_der: csr.der().to_vec().into(),
            token: String::new(),
        };
        let response = self.controller.certify(request).await?;
        warn_of_clock(response.now_unix_seconds, unix_now());
        let certificates = |der: Vec<prost::bytes::Bytes>| -> Vec<CertificateDer<'static>> {
            der.into_iter().map(|der| der.to_vec().into()).collect()
        };
        // The anchors come first: the certificate may have been issued under a new one. Anchors
        // from the stream stay: it may be ahead of the controller replica that has answered here.
        self.identity
            .add_trust_anchors(certificates(response.trust_anchors_der))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let chain = certificates(response.chain_der);
        let validity = self.identity.set_certificate(chain, key)?;
        Ok((validity, authority_name(&response.issuer)))
    }
}

/// Why the time of renewal is computed again.
enum Woken {
    Due,
    /// The announced issuer of certificates changed.
    Issuing,
    /// The controller refuses the certificate.
    Refused,
}

async fn sleep_until(
    at: i64,
    issuing: &mut watch::Receiver<Issuing>,
    identity: &Identity,
) -> Woken {
    loop {
        let left = u64::try_from(at - unix_now()).unwrap_or(0);
        if left == 0 {
            return Woken::Due;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(left).min(LONGEST_SLEEP)) => {}
            Ok(()) = issuing.changed() => return Woken::Issuing,
            () = identity.refused() => return Woken::Refused,
        }
    }
}

/// When to renew because the issuer changed, in Unix seconds. `random` is from 0 to 1.
fn renew_soon(within: Duration, now: i64, random: f64) -> i64 {
    now.saturating_add((within.as_secs_f64() * random) as i64 + 1)
}

/// When to renew, in Unix seconds. `random` is from 0 to 1. Counted from now rather than from
/// `not_before`, so that a certificate with little time left is not renewed without pause.
fn renew_at(not_after: i64, now: i64, random: f64) -> i64 {
    let left = not_after.saturating_sub(now).max(0) as f64;
    let share = RENEW_FROM + (RENEW_BY - RENEW_FROM) * random;
    now + ((left * share) as i64).max(1)
}

fn warn_of_clock(controller: i64, own: i64) {
    let ahead = own.saturating_sub(controller);
    if ahead.abs() > CLOCK_TOLERANCE {
        let (seconds, which) = (
            ahead.unsigned_abs(),
            if ahead > 0 { "ahead of" } else { "behind" },
        );
        warn!(
            own,
            controller,
            "the clock of this machine is {seconds} s {which} the controller's: certificates will \
             seem not yet valid or expired; set the clock"
        );
    }
}

impl Certify for Controller {
    async fn certify(
        &mut self,
        mut request: CertifyRequest,
    ) -> Result<CertifyResponse, RenewError> {
        // Kubernetes replaces the file long before its token expires.
        let path_of_token = &self.config.token;
        request.token = tokio::fs::read_to_string(path_of_token)
            .await
            .map_err(|source| RenewError::Token {
                path: path_of_token.display().to_string(),
                source,
            })?
            .trim()
            .to_owned();
        let channel = self.connect(false, &Refused::default()).await?;
        let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let call = async {
            ready(&mut grpc).await?;
            let codec = ProstCodec::<CertifyRequest, CertifyResponse>::default();
            grpc.unary(Request::new(request), path(CERTIFY_PATH), codec)
                .await
        };
        match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(RenewError::Refused(describe(&status))),
            Err(_) => Err(RenewError::Refused("no answer in time".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn renewal_comes_after_half_and_before_three_quarters(
            now in 0_i64..2_000_000_000,
            left in -10_i64..1_000_000,
            random in 0.0..1.0,
        ) {
            let at = renew_at(now + left, now, random);
            prop_assert!(at > now);
            prop_assert!(at >= now + left / 2 - 1 && at <= now + (left * 3 / 4).max(1) + 1);
        }
    }
}
