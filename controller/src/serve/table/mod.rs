//! What one proxy should have, has, and is being sent. Pure: no clock, no socket, no lock.
//!
//! ```text
//! subscriptions ─▶ closure of resources ─┐
//!                                        ├─ compare ─▶ push ─▶ answer ─┐
//! what the proxy holds ──────────────────┘ ◀────────────────────────────┘
//! ```
//!
//! One push is under way at a time. What changes meanwhile waits in a set of names, not in a queue
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

/// How large a push may become before the rest waits for the next one, in bytes. Far below what a
/// message may have, so that a resource of a few megabytes still fits on top.
const PUSH_BYTES: usize = 4 * 1024 * 1024;
/// The largest resource that can be sent, in bytes: with its name and the frame around it, it has
/// to fit in a message.
const MAX_RESOURCE_BYTES: usize = naru_contract::MAX_MESSAGE_BYTES - PUSH_BYTES - 64 * 1024;

/// Makes the resources of one viewer.
pub trait Compile {
    /// `None`: there is no such resource.
    fn compile(&self, name: &ResourceName) -> Option<Arc<Compiled>>;
}

/// Names that have come into the closure and left it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ClosureChange {
    pub entered: Vec<ResourceName>,
    pub left: Vec<ResourceName>,
}

/// What an answer said.
#[derive(Debug, Default)]
pub struct Outcome {
    /// When the earliest change was seen that is in force now.
    pub changed_at: Option<Instant>,
    /// Rejected as a whole: these stay as they were until they change again.
    pub rejected: Vec<Rejection>,
    /// Deltas that did not fit; the whole follows.
    pub deltas_rejected: usize,
}

/// An answer to no push.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("answer to push {answered}, and the push that waits for an answer is {}",
    .waiting.map_or("none".to_owned(), |n| n.to_string()))]
pub struct Unexpected {
    answered: u64,
    waiting: Option<u64>,
}

/// A push to be sent.
#[derive(Debug)]
pub struct Built {
    pub push: Push,
    pub forms: Vec<(ResourceName, Form)>,
    /// Too large for any message: name and bytes.
    pub too_large: Vec<(ResourceName, usize)>,
}

/// The state of one proxy.
#[derive(Default)]
pub struct Table {
    destinations: HashSet<SocketAddr>,
    /// The closure. `None`: needed by another, and it does not exist now.
    closure: HashMap<ResourceName, Option<Arc<Compiled>>>,
    held: HashMap<ResourceName, Held>,
    /// Names to compare, with when their change was seen (if it was a change that brought them
    /// here).
    dirty: HashMap<ResourceName, Option<Instant>>,
    /// Versions that the proxy did not take.
    rejected: HashMap<ResourceName, u64>,
    outstanding: Option<Outstanding>,
    sequence: u64,
}

/// In force at the proxy.
struct Held {
    /// 0: not known, and no resource's.
    version: u64,
    /// Of endpoints, where this stream knows the content: what a delta can start from.
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
    /// `held`: what the proxy says it has in force.
    pub fn new(held: impl IntoIterator<Item = (ResourceName, u64)>) -> Self {
        let held: HashMap<_, _> = held
            .into_iter()
            .map(|(name, version)| {
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

    /// Looks anew at resources that may have changed.
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
            // The earliest change that has not been sent is the one that latency is counted from.
            self.dirty.entry(name).or_default().get_or_insert(at);
        }
        match needs_changed {
            true => self.resolve_closure(compiler),
            false => ClosureChange::default(),
        }
    }

    /// Works out the closure of the subscriptions.
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

    /// The next push, if there is anything to say and no push is under way.
    pub fn next_push(&mut self) -> Option<Built> {
        if self.outstanding.is_some() || self.dirty.is_empty() {
            return None;
        }
        let mut dirty: Vec<_> = self.dirty.drain().collect();
        // What others refer to goes first, so that each push makes sense without the next. Removals
        // go last.
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
                (Some(Some(compiled)), Some(held)) if held.version == compiled.version => {
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
                // A pod that is being deleted serves on for a while, by the rules it has. Anchors
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

    /// In which version the proxy has the trust anchors.
    pub fn anchors(&self) -> Option<u64> {
        let held = self.held.get(&ResourceName::TrustAnchors);
        held.map(|held| held.version)
    }

    /// Whether a push waits for its answer.
    pub fn is_waiting(&self) -> bool {
        self.outstanding.is_some()
    }

    /// Takes in what became of the push that is under way.
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
                    version: sent.compiled.version,
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
                    // The proxy holds something, and not what was thought.
                    let unknown = Held {
                        version: 0,
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
        // About resources that were not in the push, such as a Service that does not fit its
        // changed route.
        outcome.rejected.extend(rejections.into_values());
        self.try_again(&accepted);
        self.rejected.extend(refused);
        Ok(outcome)
    }

    /// What was rejected may have been so for the sake of what it needs: when that is in force, it
    /// gets another chance.
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

/// A delta from what is held, where that is less to send.
fn change(held: &Held, new: &Compiled) -> Option<Body> {
    let (Body::Endpoints(old), Body::Endpoints(endpoints)) = (&held.base.as_ref()?.body, &new.body)
    else {
        return None;
    };
    let delta = delta::between(old, held.version, endpoints)?;
    (delta.encoded_len() < endpoints.encoded_len()).then_some(Body::EndpointsDelta(delta))
}

#[cfg(test)]
mod tests;
