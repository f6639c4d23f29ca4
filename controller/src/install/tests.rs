use super::*;
use crate::fake_api::FakeApi;
use crate::issuer::Ca;
use k8s_openapi::ByteString;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::SystemTime;

const SECRETS: &str = "/api/v1/secrets";
const CONFIG_MAPS: &str = "/api/v1/configmaps";
const WEBHOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let name = format!("naru-install-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _only_litter = std::fs::remove_dir_all(&self.0);
    }
}

fn api() -> FakeApi {
    let api = FakeApi::new(&[SECRETS, CONFIG_MAPS, WEBHOOKS]);
    api.apply(
        WEBHOOKS,
        json!({
            "metadata": { "name": "naru-injector", "uid": "u-1" },
            "webhooks": [
                { "name": "namespace.inject.naru.dev", "clientConfig": {}, "admissionReviewVersions": ["v1"], "sideEffects": "None" },
                { "name": "pod.inject.naru.dev", "clientConfig": {}, "admissionReviewVersions": ["v1"], "sideEffects": "None" },
            ],
        }),
    );
    api
}

async fn opened(api: &FakeApi, directory: &Directory) -> Result<Ca, AuthorityError> {
    let owner = owner(api.client(), "naru-injector")
        .await
        .expect("an owner");
    let authority = Authority {
        namespace: "naru-system",
        name: "naru-ca",
        state_dir: &directory.0,
        trust_domain: "cluster.local",
        owner: Some(owner),
    };
    authority.open(api.client(), SystemTime::now()).await
}

fn install(api: &FakeApi, anchors_pem: &str) -> Install {
    Install {
        client: api.client(),
        webhook_configuration: "naru-injector".to_owned(),
        ca_bundle: true,
        anchors_pem: anchors_pem.to_owned(),
    }
}

#[tokio::test]
async fn replicas_share_the_authority_that_the_first_one_made() {
    let api = api();
    let (first, second) = (Directory::new("first"), Directory::new("second"));
    let made = opened(&api, &first).await.expect("an authority");
    let taken = opened(&api, &second).await.expect("an authority");
    assert_eq!(made.certificate(), taken.certificate());
    let secret = api
        .get(SECRETS, "naru-system", "naru-ca")
        .expect("a Secret");
    assert_eq!(secret["type"], "kubernetes.io/tls");
    assert_eq!(secret["metadata"]["ownerReferences"][0]["uid"], "u-1");
}

#[tokio::test]
async fn a_replica_that_is_second_takes_what_the_first_has_made() {
    let api = api();
    let path = "/api/v1/namespaces/naru-system/secrets";
    // Between its look and its write, another one has written.
    api.answer(path, 409, json!({ "kind": "Status", "status": "Failure", "code": 409, "reason": "AlreadyExists", "message": "" }));
    let directory = Directory::new("race");
    let error = opened(&api, &directory).await.err().expect("no Secret yet");
    assert!(matches!(error, AuthorityError::Api(_)), "{error}");
}

#[tokio::test]
async fn a_secret_that_is_given_is_used_and_one_that_is_wrong_is_told() {
    let api = api();
    let directory = Directory::new("given");
    let (certificate, key) = Ca::make("cluster.local", SystemTime::now()).expect("an authority");
    let bytes =
        |text: &str| serde_json::to_value(ByteString(text.as_bytes().to_vec())).expect("base64");
    let secret = |data: Value| {
        api.apply(
            SECRETS,
            json!({ "metadata": { "namespace": "naru-system", "name": "naru-ca" }, "data": data }),
        );
    };
    secret(json!({ "tls.crt": bytes(&certificate) }));
    let error = opened(&api, &directory).await.err().expect("no key");
    assert!(
        matches!(error, AuthorityError::Incomplete("tls.key")),
        "{error}"
    );
    secret(json!({ "tls.crt": bytes(&certificate), "tls.key": bytes(&key) }));
    opened(&api, &directory).await.expect("an authority");
    let (_, other) = Ca::make("cluster.local", SystemTime::now()).expect("an authority");
    secret(json!({ "tls.crt": bytes(&certificate), "tls.key": bytes(&other) }));
    let error = opened(&api, &directory)
        .await
        .err()
        .expect("a key of another");
    assert!(matches!(error, AuthorityError::Ca(_)), "{error}");
}

#[tokio::test]
async fn a_ca_bundle_that_differs_is_written_and_one_that_does_not_is_left() {
    let api = api();
    let found = webhook::look(&install(&api, "PEM"))
        .await
        .expect("an owner");
    assert_eq!(found.uid, "u-1");
    let written = api.take_written();
    assert_eq!(written.len(), 1);
    let (method, _, body) = &written[0];
    assert_eq!(method.as_str(), "PATCH");
    assert_eq!(body["webhooks"].as_array().map(Vec::len), Some(2));
    assert_eq!(body["webhooks"][0]["clientConfig"]["caBundle"], "UEVN");
    let up_to_date = json!({ "metadata": { "name": "naru-injector", "uid": "u-1" }, "webhooks": [
        { "name": "a", "clientConfig": { "caBundle": "UEVN" }, "admissionReviewVersions": ["v1"], "sideEffects": "None" },
    ] });
    api.apply(WEBHOOKS, up_to_date);
    webhook::look(&install(&api, "PEM"))
        .await
        .expect("an owner");
    assert_eq!(api.take_written(), []);
    // Somebody else fills it.
    let others = Install {
        ca_bundle: false,
        ..install(&api, "OTHER")
    };
    webhook::look(&others).await.expect("an owner");
    assert_eq!(api.take_written(), []);
}

#[tokio::test]
async fn a_namespace_with_sidecars_gets_the_anchors_and_keeps_them_up_to_date() {
    let api = api();
    let (needed, task) = install(&api, "PEM").start();
    let task = tokio::spawn(task);
    needed.in_namespace("shop");
    needed.in_namespace("shop");
    let find = || api.get(CONFIG_MAPS, "shop", "naru-trust-anchors");
    let found = loop {
        match find() {
            Some(found) => break found,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert_eq!(found["data"]["trust-anchors.pem"], "PEM");
    task.abort();
    let mut other = anchors::Anchors::new(api.client(), "OTHER".to_owned());
    other.look(None).await;
    assert_eq!(
        find().expect("anchors")["data"]["trust-anchors.pem"],
        "OTHER"
    );
    api.take_written();
    other.look(None).await;
    assert_eq!(api.take_written(), []);
}

#[tokio::test]
async fn a_namespace_that_could_not_be_written_to_is_tried_again() {
    let api = api();
    let mut anchors = anchors::Anchors::new(api.client(), "PEM".to_owned());
    api.down(true);
    anchors.need("shop".to_owned(), None).await;
    api.down(false);
    anchors.look(None).await;
    assert!(api.get(CONFIG_MAPS, "shop", "naru-trust-anchors").is_some());
}
