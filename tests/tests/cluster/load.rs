//! Requests at a steady rate from a pod, and their results.

use std::time::Duration;

use serde_json::{Value, json};

use crate::kubernetes::{Namespace, READY, eventually};
use crate::objects::{pod_spec, shell, shop};

/// Timeout of a request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Requests at a fixed rate, from a pod of its own, for as long as the namespace lasts.
pub struct Load<'a> {
    namespace: &'a Namespace,
    name: String,
}

/// The results so far.
#[derive(Clone, Debug)]
pub struct Totals {
    pub ok: u64,
    pub failed: u64,
    /// The count of each kind of failure.
    pub failures: Value,
}

impl<'a> Load<'a> {
    /// Requests `url`'s `/healthz`, `rate` times a second. Returns once the first second's requests
    /// have got responses.
    pub fn start(namespace: &'a Namespace, name: &str, url: &str, rate: u32) -> Self {
        Self::start_on(namespace, name, url, rate, None)
    }

    /// [`Self::start`], on a node.
    pub fn start_on(
        namespace: &'a Namespace,
        name: &str,
        url: &str,
        rate: u32,
        node: Option<&str>,
    ) -> Self {
        // As many as can be in flight before the first one times out: a machine that pauses for a
        // moment is not a failure.
        let concurrency = (rate * (TIMEOUT.as_secs() as u32 + 1)).to_string();
        let timeout = TIMEOUT.as_millis().to_string();
        let rate = rate.to_string();
        let arguments = [
            "load",
            "--json",
            "--url",
            url,
            "--paths",
            "/healthz",
            "--rate",
            &rate,
            "--concurrency",
            &concurrency,
            "--timeout",
            &timeout,
        ];
        let mut spec = pod_spec(shop(&arguments));
        spec["restartPolicy"] = "Never".into();
        // The cluster's DNS may not know a new Service yet, and cache that for seconds.
        let asks = format!("until wget -q -O /dev/null {url}/healthz; do sleep 1; done");
        spec["initContainers"] = json!([shell("known", &asks)]);
        if let Some(node) = node {
            spec["nodeSelector"] = json!({ "kubernetes.io/hostname": node });
        }
        namespace.apply(&[json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": name, "labels": { "app": name } }, "spec": spec,
        })]);
        let load = Self {
            namespace,
            name: name.to_owned(),
        };
        eventually("the load answers", READY, || match load.try_totals() {
            Some(totals) if totals.ok > 0 => Ok(()),
            totals => Err(format!("{totals:?}")),
        });
        load
    }

    fn try_totals(&self) -> Option<Totals> {
        let logs = crate::kubernetes::try_kubectl(&[
            "-n",
            &self.namespace.0,
            "logs",
            &self.name,
            "-c",
            "shop",
            "--tail=1",
        ]);
        let line: Value = serde_json::from_str(logs.ok()?.trim()).ok()?;
        Some(Totals {
            ok: line["ok"].as_u64()?,
            failed: line["failed"].as_u64()?,
            failures: line["failures"].clone(),
        })
    }

    /// As of the last second.
    pub fn totals(&self) -> Totals {
        self.try_totals().expect("a line of the load")
    }

    /// Waits until requests in flight are done: none may have failed, and there must have been some
    /// since `before`.
    pub fn assert_none_failed(&self, before: &Totals) -> Totals {
        std::thread::sleep(TIMEOUT + Duration::from_secs(1));
        let totals = self.totals();
        assert_eq!(totals.failed, 0, "{}", totals.failures);
        assert!(totals.ok > before.ok, "{totals:?}, before {before:?}");
        totals
    }
}
