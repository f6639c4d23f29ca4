use super::*;
use crate::issuer::Ca;
use crate::kubernetes::fake_api::FakeApi;
use k8s_openapi::ByteString;
use serde_json::json;
use std::time::SystemTime;

const CONFIG_MAPS: &str = "/api/v1/configmaps";
const WEBHOOKS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

fn api() -> FakeApi {
    let api = FakeApi::new(&[CONFIG_MAPS, WEBHOOKS]);
    api.apply(
        WEBHOOKS,
        json!({
            "metadata": { "name": "naru-injector", "uid": "u-1" },
            "webhooks": [
                { "name": "namespace.inject.naru.dev", "clientConfig": {},
                    "admissionReviewVersions": ["v1"], "sideEffects": "None" },
                { "name": "pod.inject.naru.dev", "clientConfig": {},
                    "admissionReviewVersions": ["v1"], "sideEffects": "None" },
            ],
        }),
    );
    api
}

fn install(api: &FakeApi) -> (Install, watch::Sender<Arc<InForce>>) {
    let (trusted, trust) = watch::channel(in_force());
    let install = Install {
        client: api.client(),
        webhook_configuration: "naru-injector".to_owned(),
        ca_bundle: true,
        trust,
        meshed: Box::new(BTreeSet::new),
    };
    (install, trusted)
}

fn in_force() -> Arc<InForce> {
    let now = SystemTime::now();
    let pair = Ca::make("cluster.local", now).expect("an authority");
    let (certificates, key) = (pair.certificates.as_bytes(), pair.key.as_bytes());
    let ca = Ca::from_pem(certificates, &[], key, "cluster.local", now).expect("an authority");
    Arc::new(InForce::new(Arc::new(ca), []))
}

#[tokio::test]
async fn a_ca_bundle_that_differs_is_written_and_a_matching_one_is_left() {
    let api = api();
    let (install, _trusted) = install(&api);
    install.look_at_webhook("PEM").await.expect("a look");
    let written = api.take_written();
    assert_eq!(written.len(), 1);
    let (method, _, body) = &written[0];
    assert_eq!(method.as_str(), "PATCH");
    assert_eq!(body["webhooks"].as_array().map(Vec::len), Some(2));
    assert_eq!(body["webhooks"][0]["clientConfig"]["caBundle"], "UEVN");
    let up_to_date = json!({ "metadata": { "name": "naru-injector", "uid": "u-1" }, "webhooks": [
        { "name": "a", "clientConfig": { "caBundle": "UEVN" }, "admissionReviewVersions": ["v1"],
            "sideEffects": "None" },
    ] });
    api.apply(WEBHOOKS, up_to_date);
    install.look_at_webhook("PEM").await.expect("a look");
    assert_eq!(api.take_written(), []);
    // Another program sets it.
    let others = Install {
        ca_bundle: false,
        ..install
    };
    others.look_at_webhook("OTHER").await.expect("a look");
    assert_eq!(api.take_written(), []);
}

#[tokio::test]
async fn a_namespace_with_sidecars_gets_the_anchors_and_keeps_them_up_to_date() {
    let api = api();
    let (install, trusted) = install(&api);
    let first = trusted.borrow().anchors_pem();
    let (needed, task) = install.start();
    tokio::spawn(task);
    needed.in_namespace("shop");
    needed.in_namespace("shop");
    let until = async |pem: String| {
        let anchors = || api.get(CONFIG_MAPS, "shop", "naru-trust-anchors");
        let bundle = || api.get(WEBHOOKS, "", "naru-injector").expect("a webhook");
        let encoded = serde_json::to_value(ByteString(pem.clone().into_bytes())).expect("base64");
        while !anchors().is_some_and(|found| found["data"]["trust-anchors.pem"] == pem)
            || bundle()["webhooks"][0]["clientConfig"]["caBundle"] != encoded
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    until(first).await;
    // New anchors are written at once rather than at the next comparison.
    trusted.send_replace(in_force());
    let second = trusted.borrow().anchors_pem();
    until(second.clone()).await;
    api.take_written();
    anchors::Anchors::new(api.client(), second)
        .look(BTreeSet::new())
        .await;
    assert_eq!(api.take_written(), []);
}

#[tokio::test]
async fn a_failed_write_to_a_namespace_is_retried() {
    let api = api();
    let mut anchors = anchors::Anchors::new(api.client(), "PEM".to_owned());
    api.down(true);
    anchors.need("shop".to_owned()).await;
    api.down(false);
    anchors.look(BTreeSet::new()).await;
    assert!(api.get(CONFIG_MAPS, "shop", "naru-trust-anchors").is_some());
}

#[tokio::test]
async fn the_queue_of_namespaces_is_bounded() {
    let api = api();
    let mut anchors = anchors::Anchors::new(api.client(), "PEM".to_owned());
    api.down(true);
    for number in 0..=MAX_WAITING {
        anchors.need(format!("shop-{number}")).await;
    }
    api.down(false);
    anchors.look(BTreeSet::new()).await;
    let written =
        |number: usize| api.get(CONFIG_MAPS, &format!("shop-{number}"), "naru-trust-anchors");
    assert!(written(0).is_some());
    assert!(written(MAX_WAITING).is_none());
}

#[tokio::test]
async fn deleted_anchors_are_restored_if_pods_need_them() {
    let api = api();
    let (mut install, _trusted) = install(&api);
    let first = install.trust.borrow().anchors_pem();
    install.meshed = Box::new(|| BTreeSet::from(["shop".to_owned()]));
    let (_needed, task) = install.start();
    tokio::spawn(task);
    let written = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let written = api.take_written();
            let anchors = written
                .into_iter()
                .find(|(_, path, _)| path.contains("/namespaces/shop/configmaps/"));
            match anchors {
                Some(found) => return found,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
    let (_, _, body) = written.await.expect("the anchors are written");
    assert_eq!(body["data"]["trust-anchors.pem"], first);
}

#[tokio::test]
async fn anchors_have_no_owner_and_a_former_owner_is_removed() {
    let api = api();
    let owner = json!([{
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "name": "naru-injector", "uid": "u-1",
    }]);
    api.apply(
        CONFIG_MAPS,
        json!({
            "metadata": { "name": "naru-trust-anchors", "namespace": "shop",
                "ownerReferences": owner },
            "data": { "trust-anchors.pem": "PEM" },
        }),
    );
    let mut anchors = anchors::Anchors::new(api.client(), "PEM".to_owned());
    anchors.look(BTreeSet::from(["cart".to_owned()])).await;
    let written = api.take_written();
    assert_eq!(written.len(), 2, "{written:?}");
    for (_, path, body) in written {
        assert!(
            body["metadata"]["ownerReferences"].is_null(),
            "{path}: {body}"
        );
    }
}

#[tokio::test]
async fn without_the_webhooks_configuration_anchors_are_still_maintained() {
    let api = api();
    api.delete(WEBHOOKS, "", "naru-injector");
    let (mut install, _trusted) = install(&api);
    install.meshed = Box::new(|| BTreeSet::from(["shop".to_owned()]));
    let (_needed, task) = install.start();
    tokio::spawn(task);
    let kept = tokio::time::timeout(Duration::from_secs(30), async {
        while api.get(CONFIG_MAPS, "shop", "naru-trust-anchors").is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    kept.await.expect("the anchors are written");
}
