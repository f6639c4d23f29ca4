//! A Lease that one replica holds at a time. In: a client. Out: whether this replica holds it now.
//!
//! Clocks of machines are never compared: whoever wants the lease watches how long it stays as it
//! is.

use std::time::Duration;

use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

const NAME: &str = "naru-controller-status";
/// How the lease is held, as is usual in Kubernetes. A holder that can't renew gives up before
/// another may take over.
pub const TERMS: Terms = Terms {
    lifetime: Duration::from_secs(15),
    give_up: Duration::from_secs(10),
    every: Duration::from_secs(3),
};

/// How a lease is held.
#[derive(Clone, Copy)]
pub struct Terms {
    /// How long the lease has to stay as it is before another takes it.
    pub lifetime: Duration,
    /// How long a holder goes on without having renewed it.
    pub give_up: Duration,
    /// How often it is renewed or looked at, and how long that may take.
    pub every: Duration,
}

pub struct Lease {
    leases: Api<coordination::Lease>,
    identity: String,
    terms: Terms,
    /// As it was last seen, and when it was first seen so.
    seen: Option<(coordination::Lease, Instant)>,
    /// When we have last made or renewed it.
    renewed: Option<Instant>,
}

/// Who this replica is among the others: its pod, and the run of it.
pub fn identity() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{:016x}", host.trim(), rand::random::<u64>())
}

impl Lease {
    /// In the namespace of the client.
    pub fn new(client: Client, identity: String, terms: Terms) -> Self {
        Self {
            leases: Api::default_namespaced(client),
            identity,
            terms,
            seen: None,
            renewed: None,
        }
    }

    /// Holds the lease whenever it can be had, until `stopping`; then gives it back.
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
            // Another need not wait for it to run out.
            let _ = timeout(self.terms.every, self.write(String::new())).await;
        }
    }

    /// Renews the lease, or takes it if it is free, or looks at it.
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

    /// Replaces the lease, if nobody has since it was seen.
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

    /// `asked`: the lease's time runs from before the API server had it.
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
