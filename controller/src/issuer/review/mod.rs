//! Token validation by the Kubernetes API server (TokenReview). In addition to the signature it
//! verifies that the token's pod still exists.

use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use naru_contract::TOKEN_AUDIENCE;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::token::{Bearer, TokenError, service_account};

/// Timeout of a review, including waiting. The proxy then retries.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(5);
/// Concurrent reviews: when a whole cluster starts, it does not overload its API server.
const MAX_REVIEWS: usize = 32;
/// Length limit, in bytes, of the API server's messages that are passed on.
const MAX_MESSAGE: usize = 300;
/// The pod that the token is bound to.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";

/// Validates tokens with the API server.
pub struct TokenReviewer {
    reviews: Api<TokenReview>,
    places: Semaphore,
    timeout: Duration,
}

impl TokenReviewer {
    pub fn new(client: Client) -> Self {
        Self {
            reviews: Api::all(client),
            places: Semaphore::new(MAX_REVIEWS),
            timeout: REVIEW_TIMEOUT,
        }
    }

    /// The bearer, if the API server accepts the token for our audience and it is bound to a pod.
    pub(super) async fn check(&self, token: &str) -> Result<Bearer, TokenError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]),
            },
            ..TokenReview::default()
        };
        let asked = async {
            let _place = self.places.acquire().await;
            self.reviews.create(&PostParams::default(), &review).await
        };
        let reviewed = match timeout(self.timeout, asked).await {
            Ok(Ok(reviewed)) => reviewed,
            Ok(Err(kube::Error::Api(status))) => {
                return Err(TokenError::Review(short(status.message)));
            }
            Ok(Err(error)) => return Err(TokenError::Review(short(error.to_string()))),
            Err(_) => return Err(TokenError::ReviewTime),
        };
        bearer(reviewed.status.unwrap_or_default())
    }
}

fn bearer(status: TokenReviewStatus) -> Result<Bearer, TokenError> {
    if status.authenticated != Some(true) {
        let error = status
            .error
            .unwrap_or_else(|| "it does not say why".to_owned());
        return Err(TokenError::NotAccepted(short(error)));
    }
    // API servers without support for audiences return none.
    if !(status.audiences.iter().flatten()).any(|audience| audience == TOKEN_AUDIENCE) {
        return Err(TokenError::Audience);
    }
    let user = status.user.unwrap_or_default();
    let username = user.username.unwrap_or_default();
    let (namespace, service_account) = service_account(&username)?;
    let mut extra = user.extra.unwrap_or_default();
    let pod = (extra.remove(POD_NAME))
        .and_then(|values| values.into_iter().next())
        .filter(|pod| !pod.is_empty())
        .ok_or(TokenError::Unbound)?;
    Ok(Bearer {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod: Some(pod),
    })
}

fn short(mut message: String) -> String {
    message.truncate(message.floor_char_boundary(MAX_MESSAGE));
    message
}

#[cfg(test)]
mod tests;
