use serde_json::{Value, json};

use super::*;
use crate::authority::{Keeper, Make, Store, Terms};
use crate::kubernetes::fake_api::FakeApi;

const PODS: &str = "/api/v1/pods";
const SECRETS: &str = "/api/v1/secrets";
const CONFIG_MAPS: &str = "/api/v1/configmaps";

fn api() -> FakeApi {
    FakeApi::new(&[PODS, SECRETS, CONFIG_MAPS])
}

fn args(check: bool) -> UninstallArgs {
    UninstallArgs {
        check,
        namespace: "naru-system".to_owned(),
        ca_secret: Some("naru-ca".to_owned()),
        trust_domain: "cluster.local".to_owned(),
    }
}

fn pod(program: &str) -> Value {
    json!({
        "metadata": { "namespace": "shop", "name": "web-1",
            "labels": { "naru.dev/injected": "true" } },
        "spec": {
            "initContainers": [{ "name": "naru-proxy", "command": [program] }],
            "containers": [{ "name": "web" }],
        },
    })
}

fn anchors(api: &FakeApi) {
    api.apply(
        CONFIG_MAPS,
        json!({ "metadata": { "namespace": "shop", "name": "naru-trust-anchors" } }),
    );
}

async fn authority(api: &FakeApi) {
    let store = Store::Secret(Box::new(SecretStore {
        client: api.client(),
        namespace: "naru-system".to_owned(),
        name: "naru-ca".to_owned(),
    }));
    let terms = Terms {
        trust_for: Duration::from_secs(600),
        retire_for: Duration::from_secs(90_000),
    };
    Keeper::open(store, terms, "cluster.local", &Make::Always)
        .await
        .expect("an authority");
}

#[tokio::test]
async fn uninstalling_is_refused_with_instructions_while_pods_have_sidecars() {
    let api = api();
    api.apply(PODS, pod("/usr/local/bin/naru-proxy"));
    let refused = run(api.client(), &args(true))
        .await
        .unwrap_err()
        .to_string();
    for said in [
        "shop/web-1",
        "kubectl label namespace shop naru.dev/inject-",
        "kubectl -n shop rollout restart",
        "--no-hooks",
    ] {
        assert!(refused.contains(said), "{said} in {refused}");
    }
    assert_eq!(api.take_written(), []);
}

#[tokio::test]
async fn pods_with_only_the_label_or_that_have_ended_are_no_reason_to_refuse() {
    let api = api();
    api.apply(PODS, pod("/bin/another"));
    run(api.client(), &args(true))
        .await
        .expect("nothing is in the way");
    let mut ended = pod("/usr/local/bin/naru-proxy");
    ended["status"]["phase"] = "Succeeded".into();
    api.apply(PODS, ended);
    run(api.client(), &args(true))
        .await
        .expect("nothing is in the way");
}

#[tokio::test]
async fn objects_that_a_controller_has_made_are_removed() {
    let api = api();
    authority(&api).await;
    anchors(&api);
    run(api.client(), &args(false))
        .await
        .expect("it is removed");
    assert_eq!(api.get(SECRETS, "naru-system", "naru-ca"), None);
    assert_eq!(api.get(CONFIG_MAPS, "shop", "naru-trust-anchors"), None);
    // A second run has no effect.
    run(api.client(), &args(false))
        .await
        .expect("nothing is left");
}

#[tokio::test]
async fn nothing_is_removed_while_pods_have_sidecars_whatever_was_run_before() {
    let api = api();
    authority(&api).await;
    anchors(&api);
    api.apply(PODS, pod("/usr/local/bin/naru-proxy"));
    let refused = run(api.client(), &args(false)).await.unwrap_err();
    assert!(refused.to_string().contains("shop/web-1"), "{refused}");
    assert!(api.get(SECRETS, "naru-system", "naru-ca").is_some());
    assert!(api.get(CONFIG_MAPS, "shop", "naru-trust-anchors").is_some());
}

#[tokio::test]
async fn a_given_authority_stays() {
    let api = api();
    authority(&api).await;
    let other = FakeApi::new(&[SECRETS]);
    authority(&other).await;
    // Another authority was put into a Secret that a controller created.
    let mut secret = api
        .get(SECRETS, "naru-system", "naru-ca")
        .expect("a Secret");
    let given = other
        .get(SECRETS, "naru-system", "naru-ca")
        .expect("a Secret");
    for key in ["tls.crt", "tls.key"] {
        secret["data"][key] = given["data"][key].clone();
    }
    api.apply(SECRETS, secret);
    run(api.client(), &args(false)).await.expect("it is left");
    assert!(api.get(SECRETS, "naru-system", "naru-ca").is_some());
}

#[tokio::test]
async fn the_cleanup_waits_for_controllers_that_are_still_running() {
    let api = api();
    anchors(&api);
    api.apply(
        PODS,
        json!({ "metadata": { "namespace": "naru-system", "name": "naru-controller-1" } }),
    );
    let (client, args) = (api.client(), args(false));
    let done = run(client, &args);
    tokio::pin!(done);
    // It has checked once, and checks again.
    let looked = async {
        while !api
            .take_requests()
            .iter()
            .any(|request| request.contains("/pods"))
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        done = &mut done => panic!("{done:?}"),
        () = looked => {}
    }
    assert!(api.get(CONFIG_MAPS, "shop", "naru-trust-anchors").is_some());
    api.delete(PODS, "naru-system", "naru-controller-1");
    done.await.expect("it is removed");
    assert_eq!(api.get(CONFIG_MAPS, "shop", "naru-trust-anchors"), None);
}
