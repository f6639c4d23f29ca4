//! Interpretation of the API server's reviews.

use serde_json::{Value, json};

use super::*;
use crate::issuer::TokenCheck;
use crate::kubernetes::fake_api::{self, FakeApi};

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

fn good() -> Value {
    json!({
        "authenticated": true,
        "audiences": ["naru.dev"],
        "user": {
            "username": "system:serviceaccount:shop:web",
            "uid": "1",
            "groups": ["system:serviceaccounts"],
            "extra": {
                "authentication.kubernetes.io/pod-name": ["web-1"],
                "authentication.kubernetes.io/pod-uid": ["2"],
            },
        },
    })
}

async fn check(api: &FakeApi) -> Result<Bearer, TokenError> {
    TokenCheck::Review(TokenReviewer::new(api.client()))
        .check("a.b.c")
        .await
}

async fn reviewed(status: Value) -> Result<Bearer, TokenError> {
    let api = FakeApi::default();
    let body = json!({
        "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
        "spec": {}, "status": status,
    });
    api.answer(PATH, 201, body);
    let bearer = check(&api).await;
    let written = api.take_written();
    let (_, path, body) = &written[0];
    assert_eq!(path.trim_end_matches('?'), PATH);
    assert_eq!(
        body["spec"],
        json!({"token": "a.b.c", "audiences": ["naru.dev"]})
    );
    bearer
}

fn with(path: &str, value: Value) -> Value {
    let mut status = good();
    *status.pointer_mut(path).unwrap() = value;
    status
}

#[tokio::test]
async fn the_bearer_is_the_user_in_the_review() {
    let bearer = Bearer {
        namespace: "shop".into(),
        service_account: "web".into(),
        pod: Some("web-1".into()),
    };
    assert_eq!(reviewed(good()).await, Ok(bearer));
}

#[tokio::test]
async fn a_token_that_the_api_server_does_not_accept_proves_nothing() {
    let error = "the pod web-1 is gone";
    let no = json!({"authenticated": false, "error": error});
    assert_eq!(
        reviewed(no).await,
        Err(TokenError::NotAccepted(error.into()))
    );
    assert!(matches!(
        reviewed(json!({})).await,
        Err(TokenError::NotAccepted(_))
    ));
    let accepted = with("/authenticated", json!(false));
    assert!(matches!(
        reviewed(accepted).await,
        Err(TokenError::NotAccepted(_))
    ));
}

#[tokio::test]
async fn a_token_for_another_audience_proves_nothing() {
    for audiences in [
        json!(["https://kubernetes.default.svc"]),
        json!([]),
        json!(null),
    ] {
        assert_eq!(
            reviewed(with("/audiences", audiences)).await,
            Err(TokenError::Audience)
        );
    }
}

#[tokio::test]
async fn users_that_are_not_service_accounts_or_have_no_pod_are_refused() {
    for user in [
        "system:node:n1",
        "system:serviceaccount:shop",
        "system:serviceaccount:a:b:c",
        "",
    ] {
        let status = with("/user/username", json!(user));
        assert_eq!(reviewed(status).await, Err(TokenError::Subject), "{user}");
    }
    for extra in [
        json!({}),
        json!(null),
        json!({"authentication.kubernetes.io/pod-name": []}),
    ] {
        let status = with("/user/extra", extra);
        assert_eq!(reviewed(status).await, Err(TokenError::Unbound));
    }
}

#[tokio::test]
async fn a_failing_api_server_is_distinct_from_an_invalid_token() {
    let api = FakeApi::default();
    api.answer(PATH, 403, fake_api::status(403, "Forbidden"));
    assert_eq!(
        check(&api).await,
        Err(TokenError::Review("Forbidden".into()))
    );
    api.down(true);
    assert!(matches!(check(&api).await, Err(TokenError::Review(_))));
}

#[tokio::test]
async fn an_unresponsive_api_server_runs_into_the_timeout() {
    let silent = tower::service_fn(|_: http::Request<kube::client::Body>| {
        std::future::pending::<Result<http::Response<kube::client::Body>, std::io::Error>>()
    });
    let mut reviewer = TokenReviewer::new(Client::new(silent, "default"));
    reviewer.timeout = Duration::from_millis(10);
    let checked = TokenCheck::Review(reviewer).check("a.b.c").await;
    assert_eq!(checked, Err(TokenError::ReviewTime));
}
