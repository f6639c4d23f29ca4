//! The life cycle of one Sync stream: hello, then subscriptions in, pushes out, answers in, until
//! either side ends it.
//!
//! In: messages of a proxy whose certificate has been verified, and changes. Out: messages, and in
//! case of an error a final status. An error ends only this stream.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use naru_contract::{
    Answer, CONTRACT_VERSION, CONTRACT_VERSION_SKEW, FromProxy, HEARTBEAT_INTERVAL, Heartbeat,
    Hello, MAX_SUBSCRIPTIONS, ResourceName, ToProxy, from_proxy, to_proxy,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::{Status, Streaming};
use tracing::{debug, error, info, warn};

use super::hub::{Hub, Member};
use super::table::Table;
use crate::issuer::SpiffeId;
use crate::metrics::{Metrics, StreamGuard};

/// Timeout for the hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout for the answer to a push, which may be tens of megabytes for an overloaded machine.
/// After that the proxy has to reconnect.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Capacity of the outgoing queue: one push and one heartbeat.
pub const MAX_QUEUED: usize = 2;
/// Concurrent streams. Each has a table of its own.
const MAX_STREAMS: usize = 20_000;
/// Streams of one identity: a Deployment of 10,000 pods has a quarter more during a rollout, and
/// the rest is reserved for others.
const MAX_STREAMS_OF_IDENTITY: usize = MAX_STREAMS / 4 * 3;
/// Streams from one address: pods have their own, and those behind a NAT share one. Pod names are
/// chosen by the client, so a bound on them only stops honest clients.
const MAX_STREAMS_OF_SOURCE: usize = MAX_STREAMS / 4;
/// Streams of one pod. After a broken connection, a proxy may have a few old streams that have not
/// timed out yet.
const MAX_STREAMS_OF_POD: usize = 8;
/// Resources in a proxy's hello: ten for each subscription.
const MAX_HELD: usize = 10 * MAX_SUBSCRIPTIONS;
/// Longest name of a namespace or a pod (RFC 1123 subdomain).
const MAX_NAME: usize = 253;
/// Rejections of an answer that are logged one by one.
const MAX_LOGGED: usize = 10;

type Outgoing = mpsc::Sender<Result<ToProxy, Status>>;

/// The environment of a stream.
#[derive(Clone)]
pub struct Context {
    pub hub: Arc<Hub>,
    pub metrics: Metrics,
    /// Becomes true when the controller shuts down.
    pub stopping: watch::Receiver<bool>,
    pub shares: Shares,
}

/// Counts of open streams by source, identity and pod. Cheap to clone.
#[derive(Clone, Default)]
pub struct Shares(Arc<Mutex<Counts>>);

#[derive(Default)]
struct Counts {
    identities: HashMap<SpiffeId, usize>,
    sources: HashMap<IpAddr, usize>,
    /// By identity and name: the proxy chooses the name.
    pods: HashMap<(SpiffeId, String), usize>,
}

/// One stream's share of the counts.
struct Share {
    shares: Shares,
    source: IpAddr,
    pod: (SpiffeId, String),
}

impl Shares {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a stream. Fails with the limit that it exceeds.
    fn take(&self, source: IpAddr, identity: &SpiffeId, pod: &str) -> Result<Share, &'static str> {
        let pod = (identity.clone(), pod.to_owned());
        let mut counts = self.counts();
        let count = |count: Option<&usize>| count.copied().unwrap_or(0);
        if count(counts.identities.get(identity)) >= MAX_STREAMS_OF_IDENTITY {
            return Err("identity");
        }
        if count(counts.sources.get(&source)) >= MAX_STREAMS_OF_SOURCE {
            return Err("source");
        }
        if count(counts.pods.get(&pod)) >= MAX_STREAMS_OF_POD {
            return Err("pod");
        }
        *counts.identities.entry(identity.clone()).or_default() += 1;
        *counts.sources.entry(source).or_default() += 1;
        *counts.pods.entry(pod.clone()).or_default() += 1;
        Ok(Share {
            shares: self.clone(),
            source,
            pod,
        })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        fn give_back<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
            if let Some(count) = counts.get_mut(key) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(key);
                }
            }
        }
        let mut counts = self.shares.counts();
        give_back(&mut counts.identities, &self.pod.0);
        give_back(&mut counts.sources, &self.source);
        give_back(&mut counts.pods, &self.pod);
    }
}

/// The proxy's identity from its certificate, and the certificate's expiry.
#[derive(Clone, Debug)]
pub struct Peer {
    pub id: SpiffeId,
    pub expires: SystemTime,
}

/// Runs until the stream ends.
pub async fn run(
    context: Context,
    source: IpAddr,
    peer: Peer,
    mut messages: Streaming<FromProxy>,
    outgoing: Outgoing,
) {
    let ended = tokio::select! {
        ended = stream(&context, source, &peer, &mut messages, &outgoing) => ended,
        // The connection is closed, or the proxy has reset the stream.
        () = outgoing.closed() => Ok(()),
    };
    match ended {
        Ok(()) => debug!(proxy = %peer.id, "the stream has ended"),
        Err(status) => {
            let (code, reason) = (status.code(), status.message());
            info!(proxy = %peer.id, ?code, reason, "the stream is ended");
            // The queue is full: the proxy does not read, and will see the stream end without a
            // status.
            let _ = outgoing.try_send(Err(status));
        }
    }
}

async fn stream(
    context: &Context,
    source: IpAddr,
    peer: &Peer,
    messages: &mut Streaming<FromProxy>,
    outgoing: &Outgoing,
) -> Result<(), Status> {
    let first = timeout(HELLO_TIMEOUT, messages.message())
        .await
        .map_err(|_| Status::deadline_exceeded("timed out waiting for the hello"))??;
    let Some(first) = first else {
        return Ok(());
    };
    let Some(from_proxy::Message::Hello(hello)) = first.message else {
        return Err(Status::invalid_argument("the first message is not a hello"));
    };
    let mut session = Session::begin(context, source, peer, hello, outgoing.clone())?;
    let mut synced = context.hub.synced();
    let mut stopping = context.stopping.clone();
    let mut heartbeat = interval(HEARTBEAT_INTERVAL);
    heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let valid = peer.expires.duration_since(SystemTime::now());
    let expiry = tokio::time::sleep(valid.unwrap_or_default());
    tokio::pin!(expiry);
    loop {
        if session.push()? {
            // A push also shows the client that the stream is alive.
            heartbeat.reset();
        }
        tokio::select! {
            message = messages.message() => match message? {
                None => return Ok(()),
                Some(message) => session.take(message)?,
            },
            () = session.member.changed() => session.refresh()?,
            Ok(_) = synced.wait_for(|synced| *synced), if !session.started => session.start()?,
            _ = heartbeat.tick() => session.heartbeat()?,
            () = &mut expiry => return Err(Status::unauthenticated("the certificate has expired")),
            _ = stopping.wait_for(|stopping| *stopping) => {
                return Err(Status::unavailable("the controller is shutting down"));
            }
        }
    }
}

/// A stream after its hello.
struct Session {
    member: Member,
    table: Table,
    service_account: String,
    proxy: String,
    outgoing: Outgoing,
    metrics: Metrics,
    /// The source has been read completely: from then on, a missing object does not exist.
    started: bool,
    /// When the pending push was sent.
    pushed_at: Option<Instant>,
    _counted: (StreamGuard, Share),
}

impl Session {
    fn begin(
        context: &Context,
        source: IpAddr,
        peer: &Peer,
        hello: Hello,
        outgoing: Outgoing,
    ) -> Result<Self, Status> {
        if hello.contract_version.abs_diff(CONTRACT_VERSION) > CONTRACT_VERSION_SKEW {
            return Err(Status::failed_precondition(format!(
                "the proxy speaks version {} of the contract and the controller version \
                 {CONTRACT_VERSION}; they may be {CONTRACT_VERSION_SKEW} apart",
                hello.contract_version
            )));
        }
        if hello.namespace != peer.id.namespace {
            return Err(Status::permission_denied(
                "the namespace is not the one of the certificate",
            ));
        }
        if hello.pod.is_empty() || hello.pod.len() > MAX_NAME {
            return Err(Status::invalid_argument("pod: not a valid pod name"));
        }
        if hello.held.len() > MAX_HELD {
            return Err(Status::resource_exhausted(format!(
                "held: more than {MAX_HELD} resources"
            )));
        }
        let refused = |limit| {
            context.metrics.stream_refused(limit);
            let text = match limit {
                "identity" => format!("this identity has {MAX_STREAMS_OF_IDENTITY} streams"),
                "source" => format!("this address has {MAX_STREAMS_OF_SOURCE} streams"),
                "pod" => format!("this pod has {MAX_STREAMS_OF_POD} streams"),
                _ => format!("there are {MAX_STREAMS} streams"),
            };
            Status::resource_exhausted(text)
        };
        let share = (context.shares.take(source, &peer.id, &hello.pod)).map_err(refused)?;
        let counted = (context.metrics.stream(MAX_STREAMS)).ok_or_else(|| refused("all"))?;
        // This version never sends a resource with an unknown name; the proxy keeps it.
        let held = hello.held.into_iter().filter_map(|held| {
            let name: ResourceName = held.name.parse().ok()?;
            Some((name, held.version))
        });
        let proxy = format!("{}/{}", hello.namespace, hello.pod);
        let version: String = hello.proxy_version.chars().take(MAX_NAME).collect();
        info!(proxy, version, "a proxy is connected");
        let mut session = Self {
            member: context.hub.join(&hello.namespace, &hello.pod),
            table: Table::new(held),
            service_account: peer.id.service_account.clone(),
            proxy,
            outgoing,
            metrics: context.metrics.clone(),
            started: false,
            pushed_at: None,
            _counted: (counted, share),
        };
        session.member.has_anchors(session.table.anchors());
        session.subscribe(&hello.destinations)?;
        Ok(session)
    }

    fn take(&mut self, message: FromProxy) -> Result<(), Status> {
        match message.message {
            Some(from_proxy::Message::Hello(_)) => {
                Err(Status::invalid_argument("a second hello on one stream"))
            }
            Some(from_proxy::Message::Subscribe(subscribe)) => {
                self.subscribe(&subscribe.destinations)?;
                self.resolve_closure()
            }
            Some(from_proxy::Message::Unsubscribe(unsubscribe)) => {
                let destinations = addresses(&unsubscribe.destinations)?;
                self.table.unsubscribe(destinations);
                self.resolve_closure()
            }
            Some(from_proxy::Message::Answer(answer)) => self.answer(answer),
            // A message of a newer proxy; this version does not need it.
            None => Ok(()),
        }
    }

    fn subscribe(&mut self, destinations: &[String]) -> Result<(), Status> {
        // Enforce the limit while adding, too.
        if destinations.len() > MAX_SUBSCRIPTIONS {
            return Err(too_many());
        }
        self.table.subscribe(addresses(destinations)?);
        match self.table.subscriptions() > MAX_SUBSCRIPTIONS {
            true => Err(too_many()),
            false => Ok(()),
        }
    }

    /// The source is complete.
    fn start(&mut self) -> Result<(), Status> {
        self.started = true;
        self.check_service_account()?;
        self.resolve_closure()
    }

    /// Recomputes the closure of the subscriptions.
    fn resolve_closure(&mut self) -> Result<(), Status> {
        if self.started {
            let view = self.member.view();
            let change = self.table.resolve_closure(&view);
            self.member.watch(&view, &change);
        }
        Ok(())
    }

    /// Handles the changes in the mailbox.
    fn refresh(&mut self) -> Result<(), Status> {
        let changed: HashMap<ResourceName, Instant> = self.member.take_changed();
        if changed.contains_key(&ResourceName::Inbound) {
            self.check_service_account()?;
        }
        let view = self.member.view();
        let change = self.table.refresh(&view, changed);
        self.member.watch(&view, &change);
        Ok(())
    }

    /// Only a pod's own service account may open a stream for it. An unknown pod can't be checked,
    /// and gets no resources of its own.
    fn check_service_account(&self) -> Result<(), Status> {
        match self.member.view().service_account() {
            Some(name) if name != self.service_account => Err(Status::permission_denied(
                "the pod has another service account than the certificate",
            )),
            _ => Ok(()),
        }
    }

    /// Sends the next push, if there is one and none is pending. Returns whether it did.
    fn push(&mut self) -> Result<bool, Status> {
        // Until then, resources that the proxy holds would look unneeded.
        if !self.started {
            return Ok(false);
        }
        let Some(built) = self.table.next_push() else {
            return Ok(false);
        };
        for (name, bytes) in built.too_large {
            error!(proxy = self.proxy, %name, bytes, "too large to send to a proxy");
        }
        if !self.table.is_waiting() {
            return Ok(false);
        }
        debug!(
            proxy = self.proxy,
            sequence = built.push.sequence,
            updates = built.push.updates.len(),
            removed = built.push.removed.len(),
            "push"
        );
        self.metrics.push();
        for (name, form) in &built.forms {
            self.metrics.pushed_resource(name, *form);
        }
        self.pushed_at = Some(Instant::now());
        self.send(to_proxy::Message::Push(built.push))?;
        Ok(true)
    }

    fn answer(&mut self, answer: Answer) -> Result<(), Status> {
        let outcome = self
            .table
            .answer(answer)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        self.pushed_at = None;
        self.member.has_anchors(self.table.anchors());
        if let Some(changed_at) = outcome.changed_at {
            self.metrics.push_accepted(changed_at.elapsed());
        }
        self.metrics
            .rejected(outcome.rejected.len() + outcome.deltas_rejected);
        for rejection in outcome.rejected.iter().take(MAX_LOGGED) {
            warn!(
                proxy = self.proxy,
                name = clipped(&rejection.name),
                reason = clipped(&rejection.reason),
                "a proxy rejected a resource and keeps the last good version"
            );
        }
        Ok(())
    }

    fn heartbeat(&mut self) -> Result<(), Status> {
        if let Some(pushed_at) = self.pushed_at
            && pushed_at.elapsed() > ANSWER_TIMEOUT
        {
            return Err(Status::deadline_exceeded("no answer to a push in time"));
        }
        // A heartbeat behind queued messages is useless, and would take the next push's place.
        match self.outgoing.capacity() == MAX_QUEUED {
            true => self.send(to_proxy::Message::Heartbeat(Heartbeat {})),
            false => Ok(()),
        }
    }

    fn send(&self, message: to_proxy::Message) -> Result<(), Status> {
        let message = ToProxy {
            message: Some(message),
        };
        // The queue has room for one push, as there is one at a time, and for one heartbeat.
        self.outgoing
            .try_send(Ok(message))
            .map_err(|_| Status::resource_exhausted("the proxy does not read"))
    }
}

fn too_many() -> Status {
    Status::resource_exhausted(format!("more than {MAX_SUBSCRIPTIONS} subscriptions"))
}

fn addresses(texts: &[String]) -> Result<Vec<SocketAddr>, Status> {
    let address = |text: &String| {
        text.parse()
            .map_err(|_| Status::invalid_argument(format!("{:?}: not an address", clipped(text))))
    };
    texts.iter().map(address).collect()
}

/// A peer's text, truncated for the log.
fn clipped(text: &str) -> String {
    text.chars().take(MAX_NAME).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(service_account: &str) -> SpiffeId {
        SpiffeId::new("cluster.local", "shop", service_account).unwrap()
    }

    fn address(last: usize) -> IpAddr {
        IpAddr::from(std::net::Ipv4Addr::from_bits(0x0a00_0000 + last as u32))
    }

    #[test]
    fn a_pod_has_a_few_streams_and_one_identity_cannot_have_all() {
        let shares = Shares::default();
        let take = |account: &str, pod: usize| {
            shares.take(address(pod), &identity(account), &format!("p-{pod}"))
        };
        let mut open: Vec<Share> = Vec::new();
        for _ in 0..MAX_STREAMS_OF_POD {
            open.push(take("web", 0).unwrap());
        }
        assert_eq!(take("web", 0).err(), Some("pod"));
        // Using the name of another's pod does not reduce that pod's share.
        open.push(take("other", 0).unwrap());
        while open.len() <= MAX_STREAMS_OF_IDENTITY {
            open.push(take("web", open.len()).unwrap());
        }
        assert_eq!(take("web", 1_000_000).err(), Some("identity"));
        assert!(take("other", 1).is_ok());
        drop(open);
        let counts = shares.counts();
        assert!(counts.identities.is_empty() && counts.pods.is_empty());
        assert!(counts.sources.is_empty());
    }

    #[test]
    fn a_rollout_of_ten_thousand_pods_leaves_room_for_others() {
        const { assert!(MAX_STREAMS_OF_IDENTITY >= 10_000 + 10_000 / 4) };
    }

    #[test]
    fn invented_names_are_bounded_by_the_share_of_their_address() {
        let shares = Shares::default();
        let take = |source: usize, pod: usize| {
            shares.take(address(source), &identity("web"), &format!("p-{pod}"))
        };
        let open: Vec<Share> = (0..MAX_STREAMS_OF_SOURCE)
            .map(|pod| take(1, pod).unwrap())
            .collect();
        assert_eq!(take(1, 1_000_000).err(), Some("source"));
        assert!(take(2, 1_000_000).is_ok());
        drop(open);
        assert!(take(1, 1_000_000).is_ok());
    }
}
