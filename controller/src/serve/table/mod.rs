//! The state of one proxy: the resources that it needs, that it has, and that are being sent. Pure:
//! no clock, no socket, no lock.
//!
//! ```text
//! subscriptions ─▶ closure of resources ─┐
//!                                        ├─ compare ─▶ push ─▶ answer ─┐
//! what the proxy holds ──────────────────┘ ◀────────────────────────────┘
//! ```
//!
//! One push is pending at a time. Changes meanwhile wait in a set of names rather than in a queue
//! of messages.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use naru_contract::resource::Body;
use naru_contract::{Answer, Push, Rejection, Resource, ResourceName};
use prost::Message;

use super::delta;
use crate::compile::Compiled;
use crate::metrics::Form;

/// The size of a push, in bytes, above which the rest waits for the next one. Far below a message's
/// limit, so that a resource of a few megabytes still fits on top.
const PUSH_BYTES: usize = 4 * 1024 * 1024;
/// The largest resource that can be sent, in bytes: with its name and framing it must fit into a
/// message.
const MAX_RESOURCE_BYTES: usize = naru_contract::MAX_MESSAGE_BYTES - PUSH_BYTES - 64 * 1024;

/// Compiles resources for one viewer.
pub trait Compile {
    /// `None`: the resource does not exist.
    fn compile(&self, name: &ResourceName) -> Option<Arc<Compiled>>;
}

/// Names that have entered and left the closure.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ClosureChange {
    pub entered: Vec<ResourceName>,
    pub left: Vec<ResourceName>,
}

/// The result of an answer.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The time of the earliest change that is now in force.
    pub changed_at: Option<Instant>,
    /// Rejected as a whole: these are not sent again until they change.
    pub rejected: Vec<Rejection>,
    /// Deltas without a matching base; the whole resource follows.
    pub deltas_rejected: usize,
}

/// An answer without a pending push.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("answer to push {answered}, and the push that waits for an answer is {}",
    .waiting.map_or("none".to_owned(), |n| n.to_string()))]
pub struct Unexpected {
    answered: u64,
    waiting: Option<u64>,
}

/// A push to send.
#[derive(Debug)]
pub struct Built {
    pub push: Push,
    pub forms: Vec<(ResourceName, Form)>,
    /// Resources that exceed a message: name and bytes.
    pub too_large: Vec<(ResourceName, usize)>,
}

/// The state of one proxy.
#[derive(Default)]
pub struct Table {
    destinations: HashSet<SocketAddr>,
    /// The closure. `None`: another resource refers to it, but it does not exist now.
    closure: HashMap<ResourceName, Option<Arc<Compiled>>>,
    held: HashMap<ResourceName, Held>,
    /// Names to compare, with the time of their change (if a change is the reason).
    dirty: HashMap<ResourceName, Option<Instant>>,
    /// Versions that the proxy has rejected.
    rejected: HashMap<ResourceName, u64>,
    outstanding: Option<Outstanding>,
    sequence: u64,
}

/// A resource in force at the proxy.
struct Held {
    /// `None`: unknown.
    version: Option<u64>,
    /// For endpoints with known content: the base of a delta.
    base: Option<Arc<Compiled>>,
}

struct Outstanding {
    sequence: u64,
    sent: Vec<Sent>,
    removed: Vec<ResourceName>,
}

struct Sent {
    name: ResourceName,
    compiled: Arc<Compiled>,
    form: Form,
    changed_at: Option<Instant>,
}

impl Table {
    /// `held`: the resources that the proxy has in force, from its hello.
    pub fn new(held: impl IntoIterator<Item = (ResourceName, u64)>) -> Self {
        let held: HashMap<_, _> = held
            .into_iter()
            .map(|(name, version)| {
                // No resource has the version 0.
                let version = (version != 0).then_some(version);
                let base = None;
                (name, Held { version, base })
            })
            .collect();
        Self {
            dirty: held.keys().map(|name| (name.clone(), None)).collect(),
            held,
            ..Self::default()
        }
    }

    pub fn subscribe(&mut self, destinations: impl IntoIterator<Item = SocketAddr>) {
        self.destinations.extend(destinations);
    }

    pub fn unsubscribe(&mut self, destinations: impl IntoIterator<Item = SocketAddr>) {
        for destination in destinations {
            self.destinations.remove(&destination);
        }
    }

    pub fn subscriptions(&self) -> usize {
        self.destinations.len()
    }

    /// Recompiles resources that may have changed.
    pub fn refresh(
        &mut self,
        compiler: &impl Compile,
        changed: HashMap<ResourceName, Instant>,
    ) -> ClosureChange {
        let mut needs_changed = false;
        for (name, at) in changed {
            let Some(slot) = self.closure.get_mut(&name) else {
                continue;
            };
            let new = compiler.compile(&name);
            let version = |compiled: &Option<Arc<Compiled>>| compiled.as_ref().map(|c| c.version);
            let needs = |compiled: &Option<Arc<Compiled>>| {
                compiled.as_ref().map_or(Vec::new(), |c| c.needs.clone())
            };
            if version(slot) == version(&new) {
                continue;
            }
            needs_changed |= needs(slot) != needs(&new);
            *slot = new;
            // Latency is measured from the earliest change that has not been sent.
            self.dirty.entry(name).or_default().get_or_insert(at);
        }
        match needs_changed {
            true => self.resolve_closure(compiler),
            false => ClosureChange::default(),
        }
    }

    /// Recomputes the closure of the subscriptions.
    pub fn resolve_closure(&mut self, compiler: &impl Compile) -> ClosureChange {
        let mut change = ClosureChange::default();
        let mut reached = HashSet::new();
        let mut next: Vec<ResourceName> = vec![ResourceName::TrustAnchors, ResourceName::Inbound];
        next.extend(
            self.destinations
                .iter()
                .copied()
                .map(ResourceName::Destination),
        );
        while let Some(name) = next.pop() {
            if !reached.insert(name.clone()) {
                continue;
            }
            let compiled = self.closure.entry(name.clone()).or_insert_with(|| {
                change.entered.push(name.clone());
                compiler.compile(&name)
            });
            if let Some(compiled) = compiled {
                next.extend(compiled.needs.iter().cloned());
            }
        }
        self.closure.retain(|name, _| {
            let stays = reached.contains(name);
            if !stays {
                change.left.push(name.clone());
            }
            stays
        });
        for name in change.entered.iter().chain(&change.left) {
            self.dirty.entry(name.clone()).or_default();
        }
        change
    }

    /// The next push, if there are differences and no push is pending.
    pub fn next_push(&mut self) -> Option<Built> {
        if self.outstanding.is_some() || self.dirty.is_empty() {
            return None;
        }
        let mut dirty: Vec<_> = self.dirty.drain().collect();
        // Referenced resources go first, so that each push is consistent on its own. Removals go
        // last.
        let rank = |name: &ResourceName| match (self.closure.get(name), name) {
            (None | Some(None), _) => 6,
            (_, ResourceName::TrustAnchors) => 0,
            (_, ResourceName::Inbound) => 1,
            (_, ResourceName::Endpoints { .. }) => 2,
            (
                _,
                ResourceName::HttpRoute { .. }
                | ResourceName::GrpcRoute { .. }
                | ResourceName::TlsRoute { .. }
                | ResourceName::TcpRoute { .. },
            ) => 3,
            (_, ResourceName::Service { .. }) => 4,
            (_, ResourceName::Destination(_)) => 5,
        };
        dirty.sort_by(|(a, _), (b, _)| (rank(a), a).cmp(&(rank(b), b)));
        let mut built = Built {
            push: Push::default(),
            forms: Vec::new(),
            too_large: Vec::new(),
        };
        let mut sent = Vec::new();
        let mut removed = Vec::new();
        let mut bytes = 0;
        let mut dirty = dirty.into_iter();
        while bytes < PUSH_BYTES
            && let Some((name, changed_at)) = dirty.next()
        {
            match (self.closure.get(&name), self.held.get_mut(&name)) {
                (Some(Some(compiled)), Some(held)) if held.version == Some(compiled.version) => {
                    held.base = base(compiled);
                }
                (Some(Some(compiled)), held) => {
                    if self.rejected.get(&name) == Some(&compiled.version) {
                        continue;
                    }
                    let compiled = compiled.clone();
                    let delta = held.and_then(|held| change(held, &compiled));
                    let form = match delta {
                        Some(_) => Form::Delta,
                        None => Form::Full,
                    };
                    let resource = Resource {
                        name: name.to_string(),
                        version: compiled.version,
                        body: Some(delta.unwrap_or_else(|| compiled.body.clone())),
                    };
                    let size = resource.encoded_len();
                    if size > MAX_RESOURCE_BYTES {
                        self.rejected.insert(name.clone(), compiled.version);
                        built.too_large.push((name, size));
                        continue;
                    }
                    bytes += size;
                    built.push.updates.push(resource);
                    built.forms.push((name.clone(), form));
                    sent.push(Sent {
                        name,
                        compiled,
                        form,
                        changed_at,
                    });
                }
                // A pod that is being deleted serves for a while with its last rules. Anchors
                // always exist.
                (_, Some(_))
                    if matches!(name, ResourceName::Inbound | ResourceName::TrustAnchors) => {}
                (_, Some(_)) => {
                    let text = name.to_string();
                    bytes += text.len();
                    built.push.removed.push(text);
                    removed.push(name);
                }
                (_, None) => {
                    self.rejected.remove(&name);
                }
            }
        }
        self.dirty.extend(dirty);
        if sent.is_empty() && removed.is_empty() {
            return (!built.too_large.is_empty()).then_some(built);
        }
        self.sequence += 1;
        built.push.sequence = self.sequence;
        self.outstanding = Some(Outstanding {
            sequence: self.sequence,
            sent,
            removed,
        });
        Some(built)
    }

    /// The version of the trust anchors at the proxy.
    pub fn anchors(&self) -> Option<u64> {
        let held = self.held.get(&ResourceName::TrustAnchors);
        held.and_then(|held| held.version)
    }

    /// Whether a push is pending.
    pub fn is_waiting(&self) -> bool {
        self.outstanding.is_some()
    }

    /// Applies the proxy's answer to the pending push.
    pub fn answer(&mut self, answer: Answer) -> Result<Outcome, Unexpected> {
        let Some(outstanding) = self
            .outstanding
            .take_if(|outstanding| outstanding.sequence == answer.sequence)
        else {
            return Err(Unexpected {
                answered: answer.sequence,
                waiting: self.outstanding.as_ref().map(|o| o.sequence),
            });
        };
        let mut rejections: HashMap<String, Rejection> = answer
            .rejected
            .into_iter()
            .map(|rejection| (rejection.name.clone(), rejection))
            .collect();
        let mut outcome = Outcome::default();
        let mut accepted = HashSet::new();
        let mut refused = Vec::new();
        for sent in outstanding.sent {
            let Some(rejection) = rejections.remove(&sent.name.to_string()) else {
                outcome.changed_at = match (outcome.changed_at, sent.changed_at) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                };
                self.rejected.remove(&sent.name);
                accepted.insert(sent.name.clone());
                let held = Held {
                    version: Some(sent.compiled.version),
                    base: base(&sent.compiled),
                };
                self.held.insert(sent.name, held);
                continue;
            };
            match sent.form {
                Form::Delta => {
                    outcome.deltas_rejected += 1;
                    let seen = self.dirty.entry(sent.name.clone()).or_default();
                    *seen = sent.changed_at.or(*seen);
                    // The proxy has a version other than the recorded one.
                    let unknown = Held {
                        version: None,
                        base: None,
                    };
                    self.held.insert(sent.name, unknown);
                }
                Form::Full => {
                    refused.push((sent.name, sent.compiled.version));
                    outcome.rejected.push(rejection);
                }
            }
        }
        for name in outstanding.removed {
            match rejections.remove(&name.to_string()) {
                None => drop(self.held.remove(&name)),
                Some(rejection) => outcome.rejected.push(rejection),
            }
        }
        // Rejections of resources outside the push, such as a Service that is inconsistent with its
        // changed route.
        outcome.rejected.extend(rejections.into_values());
        self.try_again(&accepted);
        self.rejected.extend(refused);
        Ok(outcome)
    }

    /// A resource may have been rejected because of one that it refers to: it is sent again after
    /// that one was accepted.
    fn try_again(&mut self, accepted: &HashSet<ResourceName>) {
        if self.rejected.is_empty() || accepted.is_empty() {
            return;
        }
        let names: Vec<ResourceName> = self.rejected.keys().cloned().collect();
        for name in names {
            let mut seen = HashSet::new();
            let mut next = vec![name.clone()];
            while let Some(inner) = next.pop() {
                if accepted.contains(&inner) {
                    self.rejected.remove(&name);
                    self.dirty.entry(name).or_default();
                    break;
                }
                if let Some(Some(compiled)) = self.closure.get(&inner)
                    && seen.insert(inner)
                {
                    next.extend(compiled.needs.iter().cloned());
                }
            }
        }
    }
}

fn base(compiled: &Arc<Compiled>) -> Option<Arc<Compiled>> {
    matches!(compiled.body, Body::Endpoints(_)).then(|| compiled.clone())
}

/// A delta from the held version, if that is smaller.
fn change(held: &Held, new: &Compiled) -> Option<Body> {
    let (Body::Endpoints(old), Body::Endpoints(endpoints)) = (&held.base.as_ref()?.body, &new.body)
    else {
        return None;
    };
    let delta = delta::between(old, held.version?, endpoints)?;
    (delta.encoded_len() < endpoints.encoded_len()).then_some(Body::EndpointsDelta(delta))
}

#[cfg(test)]
mod tests;
