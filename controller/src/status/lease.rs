//! A Lease that one replica holds at a time. In: a client. Out: whether this replica holds it now.
//!
//! Clocks of machines are never compared: a replica that wants the lease measures how long it stays
//! unchanged.

use std::time::Duration;

use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

const NAME: &str = "naru-controller-status";
/// The usual terms in Kubernetes. A holder that can't renew steps down before another replica may
/// acquire the lease.
pub const TERMS: Terms = Terms {
    lifetime: Duration::from_secs(15),
    give_up: Duration::from_secs(10),
    every: Duration::from_secs(3),
};

/// The terms of a lease.
#[derive(Clone, Copy)]
pub struct Terms {
    /// How long the lease has to stay unchanged before another replica acquires it.
    pub lifetime: Duration,
    /// How long a holder continues without a renewal.
    pub give_up: Duration,
    /// The interval of renewals and checks, and the timeout of each.
    pub every: Duration,
}

pub struct Lease {
    leases: Api<coordination::Lease>,
    identity: String,
    terms: Terms,
    /// The last state of the lease, and when it was first observed.
    seen: Option<(coordination::Lease, Instant)>,
    /// When this replica last acquired or renewed it.
    renewed: Option<Instant>,
}

/// The identity of this replica: its pod, and its process.
pub fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{:016x}", host.trim(), rand::random::<u64>())
}

impl Lease {
    /// In the client's default namespace.
    pub fn new(client: Client, identity: String, terms: Terms) -> Self {
        Self {
            leases: Api::default_namespaced(client),
            identity,
            terms,
            seen: None,
            renewed: None,
        }
    }

    /// Acquires and renews the lease until `stopping`; then releases it.
    pub async fn hold(mut self, held: watch::Sender<bool>, mut stopping: watch::Receiver<bool>) {
        loop {
            match timeout(self.terms.every, self.step()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::debug!(%error, "the lease for writing status");
                    self.seen = self.seen.take().filter(|_| self.renewed.is_none());
                }
                Err(_) => tracing::debug!("the lease for writing status: no answer in time"),
            }
            let give_up = self.terms.give_up;
            self.renewed = self.renewed.filter(|renewed| renewed.elapsed() < give_up);
            let holds = self.renewed.is_some();
            let changed = held.send_if_modified(|held| std::mem::replace(held, holds) != holds);
            if changed {
                tracing::info!(holds, "the lease for writing the status of routes");
            }
            tokio::select! {
                _ = stopping.wait_for(|stopping| *stopping) => break,
                () = tokio::time::sleep(self.terms.every) => {}
            }
        }
        if held.send_replace(false) {
            // Another replica then need not wait for the expiry.
            let _ = timeout(self.terms.every, self.write(String::new())).await;
        }
    }

    /// Renews the lease, or acquires it if it is free, or observes it.
    async fn step(&mut self) -> kube::Result<()> {
        if self.renewed.is_none() || self.seen.is_none() {
            let Some(lease) = self.leases.get_opt(NAME).await? else {
                return self.create().await;
            };
            let version = |lease: &coordination::Lease| lease.metadata.resource_version.clone();
            match &self.seen {
                Some((seen, _)) if version(seen) == version(&lease) => {}
                _ => self.seen = Some((lease, Instant::now())),
            }
        }
        let Some((lease, since)) = &self.seen else {
            return Ok(());
        };
        let spec = lease.spec.as_ref();
        let holder = spec
            .and_then(|spec| spec.holder_identity.as_deref())
            .unwrap_or_default();
        if holder == self.identity || holder.is_empty() || since.elapsed() >= self.terms.lifetime {
            return self.write(self.identity.clone()).await;
        }
        self.renewed = None;
        Ok(())
    }

    async fn create(&mut self) -> kube::Result<()> {
        let lease = coordination::Lease {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                ..ObjectMeta::default()
            },
            spec: Some(self.spec(self.identity.clone(), None)),
        };
        let asked = Instant::now();
        let lease = self.leases.create(&PostParams::default(), &lease).await?;
        self.took(lease, asked);
        Ok(())
    }

    /// Updates the lease, if it has not changed since it was observed.
    async fn write(&mut self, holder: String) -> kube::Result<()> {
        let Some((seen, _)) = &self.seen else {
            return Ok(());
        };
        let mut lease = seen.clone();
        lease.spec = Some(self.spec(holder, lease.spec.as_ref()));
        let asked = Instant::now();
        let lease = self
            .leases
            .replace(NAME, &PostParams::default(), &lease)
            .await?;
        self.took(lease, asked);
        Ok(())
    }

    /// `asked`: the lifetime starts when the request was sent.
    fn took(&mut self, lease: coordination::Lease, asked: Instant) {
        self.seen = Some((lease, asked));
        self.renewed = Some(asked);
    }

    fn spec(
        &self,
        holder: String,
        before: Option<&coordination::LeaseSpec>,
    ) -> coordination::LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        let mut spec = before.cloned().unwrap_or_default();
        if spec.holder_identity.as_ref() != Some(&holder) {
            spec.acquire_time = now.clone();
            spec.lease_transitions = Some(match before {
                Some(_) => spec.lease_transitions.unwrap_or_default().saturating_add(1),
                None => 0,
            });
        }
        spec.holder_identity = Some(holder);
        spec.lease_duration_seconds = Some(self.terms.lifetime.as_secs().max(1) as i32);
        spec.renew_time = now;
        spec
    }
}
