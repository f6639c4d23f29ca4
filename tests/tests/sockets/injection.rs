//! The settings from injection, compared with the sidecar's flags.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use clap::Parser;
use http::StatusCode;
use k8s_openapi::ByteString;
use naru_controller::inject::{self, Options, PullPolicy, Redirection, Resources};
use naru_proxy::config::{AddressField, ClientAddress, Config, RunArgs};
use naru_proxy::node::redirect::InitArgs;
use naru_proxy::probe::ProbeContext;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::apps::App;

#[derive(Parser)]
struct Run {
    #[command(flatten)]
    args: RunArgs,
}

#[derive(Parser)]
struct Init {
    #[command(flatten)]
    args: InitArgs,
}

/// The containers that injection adds to a pod.
fn given(pod: &Value) -> Vec<Value> {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "1",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "operation": "CREATE",
            "namespace": "shop",
            "object": pod,
        },
    });
    let options = Options {
        image: "naru/proxy:1".to_owned(),
        pull_policy: PullPolicy::Never,
        controller: "naru-controller.naru-system.svc:15010".to_owned(),
        controller_identity: "spiffe://cluster.local/ns/naru-system/sa/naru-controller".to_owned(),
        native_sidecars: true,
        redirection: Redirection::Init,
        class_e_in_use: false,
        log: "info".to_owned(),
        resources: Resources {
            cpu_request: String::new(),
            cpu_limit: String::new(),
            memory_request: String::new(),
            memory_limit: String::new(),
        },
    };
    let answer = inject::answer(review.to_string().as_bytes(), true, &options).expect("an answer");
    let answer: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let patch = answer["response"]["patch"].clone();
    let patch: ByteString = serde_json::from_value(patch).expect("base64");
    let patch: Vec<Value> = serde_json::from_slice(&patch.0).expect("a patch");
    let added = patch
        .iter()
        .find(|operation| operation["path"] == "/spec/initContainers");
    let added = added.expect("init containers")["value"].as_array();
    added.expect("a list").clone()
}

/// A container's variables as flags, parsed as by Kubernetes and clap.
fn flags(container: &Value) -> Vec<String> {
    let env = container["env"].as_array().expect("variables");
    let flags = env.iter().flat_map(|variable| {
        let name = variable["name"].as_str().expect("a name");
        let name = name.strip_prefix("NARU_").expect("a variable of ours");
        let value = variable["value"]
            .as_str()
            .map_or("of-the-pod".to_owned(), |value| value.replace("$$", "$"));
        let flag = format!("--{}", name.to_lowercase().replace('_', "-"));
        match flag.as_str() {
            "--access-log" => vec![flag],
            _ => vec![flag, value],
        }
    });
    std::iter::once("naru-proxy".to_owned())
        .chain(flags)
        .collect()
}

#[tokio::test]
async fn a_sidecar_accepts_its_settings_and_sends_the_probes_to_its_app() {
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let listener = TcpListener::bind((here, 0)).await.expect("bind");
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let app = App::start(address, |number| async move {
        let status = [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE][(number - 1) % 2];
        (status, String::new())
    })
    .await;
    let pod = json!({
        "metadata": {
            "name": "web-1",
            "annotations": {
                "naru.dev/access-log": "true",
                "naru.dev/client-address": "hide",
                "naru.dev/forwarded-headers": "forwarded,x-forwarded-for",
                "naru.dev/proxy-protocol": "25,143",
                "naru.dev/log-level": "naru_proxy=debug,info",
                "naru.dev/skip-inbound-ports": "9100,9101",
                "naru.dev/skip-outbound-ports": "25",
                "naru.dev/skip-outbound-cidrs": "169.254.169.254,10.0.0.0/8,fd00::/8",
            },
        },
        "spec": {
            "terminationGracePeriodSeconds": 90,
            "containers": [{
                "name": "web",
                "livenessProbe": { "httpGet": { "port": address.port(), "path": "/live?a=$(b)" } },
                "readinessProbe": { "tcpSocket": { "port": address.port() } },
                "startupProbe": { "grpc": { "port": 1, "service": "shop" } },
            }],
        },
    });
    let containers = given(&pod);
    let init =
        Init::try_parse_from(flags(&containers[0])).unwrap_or_else(|error| panic!("{error}"));
    let rules = init.args.rules();
    assert_eq!(rules.inbound_ports_skipped, [9100, 9101, 15020]);
    assert_eq!(rules.outbound_ports_skipped, [25]);
    assert_eq!(rules.outbound_cidrs_skipped.len(), 3);

    let run = Run::try_parse_from(flags(&containers[1])).unwrap_or_else(|error| panic!("{error}"));
    let config = Config::from(run.args);
    assert_eq!(config.log, "naru_proxy=debug,info");
    assert!(config.access_log);
    assert_eq!(config.client_address, ClientAddress::Hide);
    assert_eq!(
        config.forwarded,
        [AddressField::Forwarded, AddressField::XForwardedFor]
    );
    assert_eq!(config.proxy_protocol, [25, 143]);
    assert_eq!(config.limits.drain_timeout.as_secs(), 90);
    let asked = ProbeContext {
        here,
        user_agent: "kube-probe/1.33",
        source: None,
        socket_mark: None,
    };
    let mut seen = BTreeMap::new();
    for name in [
        "web/liveness",
        "web/liveness",
        "web/readiness",
        "web/startup",
        "web/other",
    ] {
        let made = config.probes.run(name, asked).await;
        let made = made.map(|made| made.ok());
        seen.entry(name).or_insert_with(Vec::new).push(made);
    }
    assert_eq!(seen["web/liveness"], [Some(Some(200)), Some(Some(503))]);
    assert_eq!(seen["web/readiness"], [Some(Some(200))]);
    assert_eq!(seen["web/startup"], [Some(None)]);
    assert_eq!(seen["web/other"], [None]);
    assert_eq!(app.requests(), 2);
}
