//! Naru's own controllers: their metrics, restarts and absence.

use crate::kubernetes::{Namespace, READY, eventually, kubectl};

/// Naru's own namespace.
pub const SYSTEM: &str = "naru-system";
const DEPLOYMENT: [&str; 3] = ["-n", SYSTEM, "deployment/naru-controller"];

/// The names of their pods.
pub fn names() -> Vec<String> {
    Namespace::existing(SYSTEM).pod_names("app.kubernetes.io/component=controller")
}

/// The metrics of each.
pub fn metrics() -> Vec<String> {
    let system = Namespace::existing(SYSTEM);
    let names = names();
    names.iter().map(|pod| system.metrics(pod, 15014)).collect()
}

/// Restarts all of them.
pub fn restart() {
    on_deployment(&["rollout", "restart"]);
    rolled_out();
}

fn on_deployment(command: &[&str]) -> String {
    kubectl(&[command, &DEPLOYMENT].concat())
}

fn rolled_out() {
    on_deployment(&["rollout", "status", "--timeout=120s"]);
}

/// No controllers run until this is dropped.
pub struct Away {
    replicas: String,
}

impl Away {
    pub fn take() -> Self {
        let replicas = on_deployment(&["get", "-o", "jsonpath={.spec.replicas}"]);
        on_deployment(&["scale", "--replicas=0"]);
        let away = Self { replicas };
        eventually("the controllers are gone", READY, || {
            let pods = kubectl(&[
                "-n",
                SYSTEM,
                "get",
                "pods",
                "-l",
                "app.kubernetes.io/component=controller",
                "-o",
                "name",
            ]);
            match pods.trim().is_empty() {
                true => Ok(()),
                false => Err(pods),
            }
        });
        away
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        on_deployment(&["scale", &format!("--replicas={}", self.replicas)]);
        rolled_out();
    }
}
