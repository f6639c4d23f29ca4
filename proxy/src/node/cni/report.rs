//! The agent's state: whether the plugin is in place, and the repairs made.

use std::sync::{Arc, Mutex, PoisonError};

use naru_listen::admin::BOUNDS;
use naru_listen::{Limit, Places};
use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

use super::node::Repaired;

/// Cheap to clone.
#[derive(Clone)]
pub struct Report {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Registry,
    in_place: IntGauge,
    programs: IntCounter,
    configurations: IntCounter,
    pods_repaired: IntCounter,
    pods_failed: IntCounter,
    refused: IntCounterVec,
    places: Places,
    /// Why the plugin is not in place.
    problem: Mutex<Option<String>>,
}

impl Report {
    /// The state before the first check.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let in_place = IntGauge::new(
            "naru_cni_in_place",
            "1 if the CNI plugin and its entry are in place, else 0.",
        )?;
        registry.register(Box::new(in_place.clone()))?;
        let refused = IntCounterVec::new(
            Opts::new(
                "naru_cni_connections_refused_total",
                "Connections that the agent refused or gave up for others, by the limit that was \
                 reached.",
            ),
            &["limit"],
        )?;
        registry.register(Box::new(refused.clone()))?;
        let counter = |name: &str, help: &str, label: (&str, &str)| {
            let counter =
                IntCounter::with_opts(Opts::new(name, help).const_label(label.0, label.1))?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let node = "How often a part of the plugin was missing or another, and was put in place.";
        let pods = "Pods that asked for the redirect rules that they had not.";
        Ok(Self {
            inner: Arc::new(Inner {
                in_place,
                programs: counter("naru_cni_repairs_total", node, ("what", "program"))?,
                configurations: counter("naru_cni_repairs_total", node, ("what", "configuration"))?,
                pods_repaired: counter("naru_cni_pods_total", pods, ("outcome", "redirected"))?,
                pods_failed: counter("naru_cni_pods_total", pods, ("outcome", "failed"))?,
                refused,
                places: Places::new(BOUNDS),
                problem: Mutex::new(Some("not looked at yet".to_owned())),
                registry,
            }),
        })
    }

    pub fn repaired(&self, what: &Repaired) {
        match what {
            Repaired::Program => self.inner.programs.inc(),
            Repaired::Configuration(_) => self.inner.configurations.inc(),
        }
    }

    /// Counts a pod that requested rules: installed, or failed.
    pub fn pod(&self, redirected: bool) {
        match redirected {
            true => self.inner.pods_repaired.inc(),
            false => self.inner.pods_failed.inc(),
        }
    }

    /// Sets whether the plugin is in place and, if not, why. Returns the previous problem.
    pub fn set(&self, problem: Option<String>) -> Option<String> {
        self.inner.in_place.set(problem.is_none().into());
        std::mem::replace(&mut *self.problem_lock(), problem)
    }

    /// Why the plugin is not in place. `None`: it is in place.
    pub fn problem(&self) -> Option<String> {
        self.problem_lock().clone()
    }

    fn problem_lock(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        self.inner
            .problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Connection slots of the admin port.
    pub fn places(&self) -> Places {
        self.inner.places.clone()
    }

    /// In Prometheus' text format.
    pub fn render(&self) -> prometheus::Result<String> {
        for limit in Limit::ALL {
            let counter = self.inner.refused.with_label_values(&[limit.as_str()]);
            counter.inc_by(
                self.inner
                    .places
                    .refused(limit)
                    .saturating_sub(counter.get()),
            );
        }
        TextEncoder::new().encode_to_string(&self.inner.registry.gather())
    }
}
