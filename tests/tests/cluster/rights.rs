//! The controller has exactly the rights that it needs, and sidecars and their pods have none: by
//! the API server's audit log, from the installation on, and by its access reviews.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::authority::without_policy;
use crate::controllers;
use crate::kubernetes::{
    Namespace, READY, apply, eventually, get, kubectl, run, script, try_kubectl,
};
use crate::objects::{deployment, pod_spec, server, service};
use crate::turns;

const CONTROLLER: &str = "system:serviceaccount:naru-system:naru-controller";
/// The default rights of all service accounts in Kubernetes: to review their own access, and to
/// read public information.
const OF_ALL: [&str; 4] = [
    "clustertrustbundles",
    "selfsubjectaccessreviews",
    "selfsubjectreviews",
    "selfsubjectrulesreviews",
];

/// One verb on one kind of object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    verb: String,
    group: String,
    /// Including the subresource, as `pods/log`.
    resource: String,
    /// Empty: any.
    name: String,
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items
        .filter_map(|item| item.as_str().map(str::to_owned))
        .collect()
}

/// The rights from rules of a role or of a review.
fn rights(rules: &Value) -> BTreeSet<Right> {
    let mut rights = BTreeSet::new();
    for rule in rules.as_array().into_iter().flatten() {
        let mut names = texts(&rule["resourceNames"]);
        if names.is_empty() {
            names.push(String::new());
        }
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                for name in &names {
                    for verb in texts(&rule["verbs"]) {
                        rights.insert(Right {
                            verb,
                            group: group.clone(),
                            resource: resource.clone(),
                            name: name.clone(),
                        });
                    }
                }
            }
        }
    }
    rights
}

/// The rights of `user` in a namespace according to the API server, in addition to everyone's.
fn granted(user: &str, namespace: &str) -> BTreeSet<Right> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": { "namespace": namespace },
    });
    let groups = ["system:serviceaccounts", "system:authenticated"];
    let mut command = script("kubectl");
    // Validation reads objects that the user may not read.
    command.args([
        "create",
        "-o=json",
        "-f=-",
        "--validate=false",
        "--as",
        user,
    ]);
    command.args(groups.map(|group| format!("--as-group={group}")));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl");
    let mut input = child.stdin.take().expect("piped");
    input
        .write_all(review.to_string().as_bytes())
        .expect("kubectl reads");
    drop(input);
    let output = child.wait_with_output().expect("kubectl");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(answer["status"]["incomplete"], false, "{answer}");
    let mut granted = rights(&answer["status"]["resourceRules"]);
    granted.retain(|right| !OF_ALL.contains(&&*right.resource));
    granted
}

fn assert_same(granted: &BTreeSet<Right>, written: &BTreeSet<Right>) {
    let more: Vec<&Right> = granted.difference(written).collect();
    let less: Vec<&Right> = written.difference(granted).collect();
    assert!(
        more.is_empty() && less.is_empty(),
        "granted and in no role: {more:#?}; in a role and not granted: {less:#?}"
    );
}

fn role(arguments: &[&str]) -> BTreeSet<Right> {
    rights(&get(arguments)["rules"])
}

/// The running cluster's state directory.
fn state() -> PathBuf {
    let name = std::env::var("NARU_CLUSTER").unwrap_or_else(|_| "naru".to_owned());
    PathBuf::from(format!("/tmp/naru-cluster-{name}"))
}

/// Requests of pods' service accounts since the cluster was started.
fn audited() -> Vec<Value> {
    let path = state().join("log/audit.log");
    let log = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    // The last line may be incomplete.
    log.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// The requests of `user` that were allowed, or denied.
fn requests<'a>(log: &'a [Value], user: &'a str, allowed: bool) -> impl Iterator<Item = &'a Value> {
    log.iter().filter(move |event| {
        let decision = &event["annotations"]["authorization.k8s.io/decision"];
        event["user"]["username"] == user && (decision == "allow") == allowed
    })
}

/// The rights that a request requires, for its object by name and for any.
fn taken(event: &Value) -> Vec<Right> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &event["objectRef"];
    let resource = match object["subresource"].as_str() {
        Some(subresource) => format!("{}/{subresource}", text(&object["resource"])),
        None => text(&object["resource"]),
    };
    let uri = text(&event["requestURI"]);
    let chosen = uri
        .split(['?', '&'])
        .find_map(|parameter| parameter.strip_prefix("fieldSelector=metadata.name%3D"));
    let name = chosen.map_or(text(&object["name"]), str::to_owned);
    let right = |verb: &str, name: &str| Right {
        verb: verb.to_owned(),
        group: text(&object["apiGroup"]),
        resource: resource.clone(),
        name: name.to_owned(),
    };
    let verb = text(&event["verb"]);
    let mut rights = vec![right(&verb, &name), right(&verb, "")];
    // Applying a missing object creates it, which requires that right as well.
    if verb == "patch" && event["responseStatus"]["code"] == 201 {
        rights.push(right("create", ""));
    }
    rights
}

/// Restarts the API server, as after a crash: with flags in addition to those of `up`; without,
/// with those alone.
fn restart_api_server(flags: &str) {
    let restart = format!(
        "cd {state} && kill -9 $(cat run/kube-apiserver.pid) && while kill -0 $(cat run/kube-apiserver.pid) 2> /dev/null; do sleep 0.1; done
         sed 's/--authorization-mode/{flags} &/' run/kube-apiserver > run/kube-apiserver-again && chmod +x run/kube-apiserver-again
         setsid run/kube-apiserver-again > /dev/null 2>&1 < /dev/null &",
        state = state().display(),
    );
    run(Command::new("bash").args(["-c", &restart])).expect("the API server's script");
    eventually("the API server is ready", READY, || {
        try_kubectl(&["get", "--raw", "/readyz"])
    });
}

/// The experimental kinds of the controller, and an XMesh of ours. Deleted on drop.
struct Experimental(Vec<String>);

impl Experimental {
    fn install() -> Self {
        let folder = state().join("gateway-api/experimental");
        let files = ["xbackendtrafficpolicies", "xmeshes"].map(|plural| {
            let file = folder.join(format!("gateway.networking.x-k8s.io_{plural}.yaml"));
            file.to_str().expect("text").to_owned()
        });
        for file in &files {
            kubectl(&["apply", "--server-side", "-f", file]);
        }
        let established = [
            "wait",
            "--for=condition=Established",
            "--timeout=30s",
            "crd",
        ];
        let crd = "xmeshes.gateway.networking.x-k8s.io";
        kubectl(&[&established[..], &[crd]].concat());
        apply(&[json!({
            "apiVersion": "gateway.networking.x-k8s.io/v1alpha1", "kind": "XMesh", "metadata": { "name": "rights" },
            "spec": { "controllerName": "naru.dev/controller" },
        })]);
        Self(files.to_vec())
    }
}

impl Drop for Experimental {
    fn drop(&mut self) {
        for file in &self.0 {
            let _gone_with_the_cluster = try_kubectl(&["delete", "-f", file]);
        }
    }
}

/// A route of `kind` to the Service `web`.
fn route(kind: &str, name: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind, "metadata": { "name": name },
        "spec": {
            "parentRefs": [{ "group": "", "kind": "Service", "name": "web" }],
            "rules": [{ "backendRefs": [{ "name": "web", "port": 80 }] }],
        },
    })
}

#[test]
fn the_controller_has_exactly_the_rights_that_it_uses_and_sidecars_use_none() {
    let _turn = turns::alone();
    let namespace = Namespace::meshed("rights");
    let mut spec = pod_spec(server());
    // The service account token is for the app only, not the sidecar.
    spec["automountServiceAccountToken"] = true.into();
    let mut tls = route("TLSRoute", "tls");
    tls["spec"]["hostnames"] = json!(["web.example"]);
    namespace.apply(&[
        deployment("web", 1, spec),
        service("web"),
        route("HTTPRoute", "web"),
        route("GRPCRoute", "rpc"),
        tls,
        route("TCPRoute", "tcp"),
    ]);
    namespace.rolled_out("deployment/web");
    let _experimental = Experimental::install();
    // An unusable object is reported once, and a second time with the same Event.
    without_policy(|| {
        for wrong in ["naru.dev/mtls=sometimes", "naru.dev/mtls=never"] {
            kubectl(&["annotate", "--overwrite", "namespace", &namespace.0, wrong]);
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    // A controller creates it again.
    kubectl(&[
        "-n",
        "naru-system",
        "delete",
        "lease",
        "naru-controller-status",
    ]);
    // A controller writes it again: the only write without a rotation. Once it has, a restart loses
    // nothing of it.
    let authority = ["-n", "naru-system", "secret", "naru-ca"];
    let record = |secret: &Value| secret["data"]["naru-rotation.json"].clone();
    let before = record(&get(&authority));
    kubectl(&[
        "-n",
        "naru-system",
        "patch",
        "secret",
        "naru-ca",
        "--type=json",
        "-p",
        r#"[{"op":"remove","path":"/data/naru-rotation.json"}]"#,
    ]);
    eventually("the record is back", READY, || {
        let now = record(&get(&authority));
        match now == before {
            true => Ok(()),
            false => Err(now.to_string()),
        }
    });
    // An API server without streaming lists is read by pages.
    restart_api_server("--feature-gates=WatchList=false");
    controllers::restart();
    restart_api_server("");

    let everywhere = role(&["clusterrole", "naru-controller"]);
    let own = role(&["-n", "naru-system", "role", "naru-controller"]);
    assert!(!everywhere.is_empty() && !own.is_empty());
    let all: BTreeSet<Right> = everywhere.union(&own).cloned().collect();
    assert_same(&granted(CONTROLLER, &namespace.0), &everywhere);
    assert_same(&granted(CONTROLLER, "naru-system"), &all);

    eventually("every right is used", Duration::from_secs(60), || {
        let log = audited();
        let used: BTreeSet<Right> = requests(&log, CONTROLLER, true).flat_map(taken).collect();
        let unused: Vec<&Right> = all.iter().filter(|right| !used.contains(right)).collect();
        match unused.is_empty() {
            true => Ok(()),
            false => Err(format!("nobody uses {unused:#?}")),
        }
    });
    let log = audited();
    // A starting API server denies everything until it has read the roles. No other request was
    // ever denied.
    let refused = requests(&log, CONTROLLER, false)
        .filter(|event| !taken(event).iter().any(|right| all.contains(right)));
    let refused: Vec<&Value> = refused.collect();
    assert!(refused.is_empty(), "{refused:#?}");

    // Pods with sidecars: nothing is granted to them, and they sent no requests.
    let user = format!("system:serviceaccount:{}:default", namespace.0);
    assert_eq!(granted(&user, &namespace.0), BTreeSet::new());
    let asked = log
        .iter()
        .filter(|event| event["user"]["username"] == *user);
    let asked: Vec<&Value> = asked.collect();
    assert!(asked.is_empty(), "{asked:#?}");
    // At the path of the app's token, both of our containers mount another volume.
    let pods = namespace.pods("app=web");
    let containers = |field: &str| pods[0]["spec"][field].as_array().expect("a list").clone();
    let at = "/var/run/secrets/kubernetes.io/serviceaccount";
    let mounted = |container: &Value| {
        let mounts = container["volumeMounts"].as_array().into_iter().flatten();
        let mut volumes = mounts.filter(|mount| mount["mountPath"] == at);
        volumes
            .next()
            .and_then(|mount| mount["name"].as_str().map(str::to_owned))
    };
    let ours: Vec<Option<String>> = containers("initContainers").iter().map(mounted).collect();
    assert_eq!(ours, vec![Some("naru-identity".to_owned()); 2]);
    let apps = mounted(&containers("containers")[0]).expect("the app's token");
    assert_ne!(apps, "naru-identity");
}

#[test]
fn the_controller_has_no_right_that_would_be_useful_to_an_attacker() {
    let _turn = turns::beside_others();
    let groups = [
        "--as-group=system:serviceaccounts",
        "--as-group=system:authenticated",
    ];
    let may = |question: &[&str]| {
        let user = ["auth", "can-i", "--as", CONTROLLER];
        let arguments = [&user[..], &groups[..], question].concat();
        // kubectl answers "no" with the exit code 1.
        let answer = try_kubectl(&arguments).unwrap_or_else(|answer| answer);
        answer.lines().any(|line| line == "yes")
    };
    // The command itself works.
    assert!(may(&["list", "pods", "--all-namespaces"]));
    for question in [
        &["get", "secrets", "-n", "default"][..],
        &["list", "secrets", "-n", "naru-system"],
        &["get", "secrets/other", "-n", "naru-system"],
        &["update", "secrets/naru-ca", "-n", "naru-system"],
        &["create", "pods", "-n", "default"],
        &["create", "pods", "-n", "naru-system"],
        &["patch", "pods", "-n", "default"],
        &["delete", "pods", "-n", "default"],
        &["create", "pods/exec", "-n", "default"],
        &["get", "configmaps", "-n", "kube-system"],
        &["patch", "configmaps/kube-root-ca.crt", "-n", "default"],
        &["delete", "configmaps/naru-trust-anchors", "-n", "default"],
        &["create", "serviceaccounts/token", "-n", "default"],
        &["create", "mutatingwebhookconfigurations"],
        &["patch", "mutatingwebhookconfigurations/other"],
        &["patch", "nodes"],
        &["create", "clusterrolebindings"],
        &["escalate", "clusterroles"],
        &["impersonate", "users"],
        &["patch", "services", "-n", "default"],
        &[
            "update",
            "httproutes.gateway.networking.k8s.io",
            "-n",
            "default",
        ],
    ] {
        assert!(!may(question), "{question:?}");
    }
}
