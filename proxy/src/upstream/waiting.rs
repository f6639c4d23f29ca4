//! Requests that wait for a stream to one endpoint.
//!
//! In: a request for which no stream is free. Out: the request that gets the next one. Requests
//! whose client has the fewest streams come first, and among these the oldest. The queue is
//! bounded, and shared like the streams ([`super::share`]): a client that fills its share leaves
//! room for the others.

use std::collections::VecDeque;
use std::rc::Rc;

use tokio::sync::oneshot;

use super::share::{self, Holder};

/// Requests of one worker that wait for a stream to one endpoint. More would only wait longer than
/// their clients do.
pub const MAX_WAITING: usize = 1_024;

/// The waiting requests, in order of arrival. Each is answered with a `T`.
pub struct Waiting<T>(VecDeque<Waiter<T>>);

struct Waiter<T> {
    holder: Option<Rc<Holder>>,
    answer: oneshot::Sender<T>,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Waiting<T> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `None`: the queue is full, or `holder` has used its share of it.
    pub fn join(&mut self, holder: Option<&Rc<Holder>>) -> Option<oneshot::Receiver<T>> {
        if self.0.len() >= MAX_WAITING / 2 && !self.has_room(holder) {
            return None;
        }
        let (answer, receiver) = oneshot::channel();
        let holder = holder.cloned();
        self.0.push_back(Waiter { holder, answer });
        Some(receiver)
    }

    fn has_room(&mut self, holder: Option<&Rc<Holder>>) -> bool {
        self.0.retain(|waiter| !waiter.answer.is_closed());
        let free = MAX_WAITING.saturating_sub(self.0.len());
        let Some(holder) = holder else {
            return free > 0;
        };
        let others = || self.0.iter().filter_map(|waiter| waiter.holder.as_ref());
        let connection = others().filter(|other| Rc::ptr_eq(other, holder)).count();
        let client = others().filter(|other| other.is_of_client_of(holder));
        share::within(connection, client.count(), free)
    }

    /// How many of the waiting requests are to be served as soon as a stream is free.
    pub fn count(&self, is_next: impl Fn(Option<&Holder>) -> bool) -> usize {
        let waiting = self.0.iter();
        let waiting = waiting.filter(|waiter| !waiter.answer.is_closed());
        waiting.filter(|waiter| is_next(waiter.holder())).count()
    }

    /// Removes the request to serve first. `rank`: `None` is not served, and the smallest of the
    /// others comes first.
    pub fn next<R: Ord>(
        &mut self,
        rank: impl Fn(Option<&Holder>) -> Option<R>,
    ) -> Option<(oneshot::Sender<T>, Option<Rc<Holder>>)> {
        // Some requests have given up while they waited.
        while self.0.front().is_some_and(|w| w.answer.is_closed()) {
            self.0.pop_front();
        }
        let mut first: Option<(R, usize)> = None;
        for (at, waiter) in self.0.iter().enumerate() {
            if let Some(rank) = rank(waiter.holder())
                && !waiter.answer.is_closed()
                && first.as_ref().is_none_or(|(least, _)| rank < *least)
            {
                first = Some((rank, at));
            }
        }
        let (_, at) = first?;
        let waiter = self.0.remove(at)?;
        Some((waiter.answer, waiter.holder))
    }

    /// Removes all requests.
    pub fn take(&mut self) -> impl Iterator<Item = oneshot::Sender<T>> + use<T> {
        std::mem::take(&mut self.0)
            .into_iter()
            .map(|waiter| waiter.answer)
    }
}

impl<T> Waiter<T> {
    fn holder(&self) -> Option<&Holder> {
        self.holder.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::testing::spiffe_id;
    use crate::upstream::share::{ClientKey, Clients};

    #[test]
    fn a_client_that_fills_the_queue_leaves_room_for_others() {
        let clients = Clients::default();
        let greedy = clients.connection(ClientKey::App);
        let mut waiting = Waiting::<()>::default();
        let mut kept = Vec::new();
        while let Some(receiver) = waiting.join(Some(&greedy)) {
            kept.push(receiver);
        }
        assert!(kept.len() < MAX_WAITING, "{}", kept.len());
        let other = clients.connection(ClientKey::Peer(spiffe_id("spiffe://t/other")));
        assert!(waiting.join(Some(&other)).is_some());
        assert!(waiting.join(None).is_some());
        // Requests that have given up no longer count.
        drop(kept);
        assert!(waiting.join(Some(&greedy)).is_some());
    }

    #[test]
    fn the_client_with_the_fewest_streams_is_served_first_then_the_oldest_request() {
        let clients = Clients::default();
        let busy = clients.connection(ClientKey::Peer(spiffe_id("spiffe://t/busy")));
        let idle = clients.connection(ClientKey::Peer(spiffe_id("spiffe://t/idle")));
        for _ in 0..3 {
            busy.take(1);
        }
        let mut waiting = Waiting::<u32>::default();
        let order = [&busy, &busy, &idle, &idle];
        let mut receivers: Vec<_> = order
            .iter()
            .map(|holder| waiting.join(Some(holder)).expect("room"))
            .collect();
        let rank = |holder: Option<&Holder>| holder.map(|holder| holder.holds(1));
        let mut number = 0;
        while let Some((next, _)) = waiting.next(rank) {
            next.send(number).expect("it waits");
            number += 1;
        }
        let served: Vec<u32> = receivers
            .iter_mut()
            .map(|receiver| receiver.try_recv().expect("served"))
            .collect();
        assert_eq!(served, [2, 3, 0, 1]);
    }
}
