//! How an endpoint without a sidecar treats its HTTP/1.1 connections: how long it keeps an idle
//! one, and how many it serves at once.
//!
//! In: what pools observe of their connections. Out: for how long an idle connection may be trusted
//! with a request that can't be replayed, and whether idle connections starve waiting ones. Shared
//! by all workers; atomics only.
//!
//! An app that closes idle connections closes some of them just as the next request arrives,
//! without notice. So a connection is trusted for half the time for which others were seen open.
//!
//! A server with few threads binds a thread to a connection until the connection ends. It accepts
//! in order, so an answer on a newer connection shows that every older one has a thread. While a
//! connection waits for its first answer, idle ones are kept only up to the number of connections
//! that the server has been seen to serve at once. Where such a wait was recent, idle connections
//! are also closed as soon as another connection is opened: clients that the app distinguishes by
//! address have connections of their own.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::clock::Nanos;

/// How long idle connections must have been seen open before any is trusted. Servers that close
/// after each response do so sooner, even on a busy machine.
const PROOF: Duration = Duration::from_millis(100);
/// How long an early close counts, and a wait for a thread: after that, connections that stay open
/// are trusted again.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The observations. A new endpoint is not trusted at all.
#[derive(Debug, Default)]
pub struct Habits {
    /// The longest time, in nanoseconds, for which an idle connection was seen open, unless one was
    /// closed earlier than that recently.
    kept: AtomicU64,
    /// The shortest idle time after which a connection was closed …
    closed: AtomicU64,
    /// … which counts until then.
    closed_until: AtomicU64,
    /// Connections opened, and connections ended.
    opened: AtomicU64,
    ended: AtomicU64,
    /// The newest connection that was answered, by its number in the order of opening.
    answered: AtomicU64,
    /// The newest connection that has waited too long for its first answer …
    waiting: AtomicU64,
    /// … which is remembered until then.
    waited_until: AtomicU64,
    /// The most connections that were served at once.
    width: AtomicU64,
}

impl Habits {
    /// How long a connection may have been idle to carry a request that can't be replayed.
    pub fn trusted_idle(&self) -> Duration {
        let kept = Duration::from_nanos(self.kept.load(Relaxed));
        match kept >= PROOF {
            true => kept / 2,
            false => Duration::ZERO,
        }
    }

    /// Whether an open connection after this idle time would change the estimate.
    pub fn is_news(&self, idle: Duration) -> bool {
        self.is_news_at(idle, Nanos::now())
    }

    /// Records that a connection is still open after this idle time.
    pub fn saw_open(&self, idle: Duration) {
        self.saw_open_at(idle, Nanos::now());
    }

    /// Records that the endpoint has closed a connection after this idle time.
    pub fn saw_close(&self, idle: Duration) {
        self.saw_close_at(idle, Nanos::now());
    }

    /// Records that a connection is being opened. Returns its number.
    pub fn opened(&self) -> u64 {
        self.opened.fetch_add(1, Relaxed) + 1
    }

    /// Records that a connection has ended.
    pub fn ended(&self) {
        self.ended.fetch_add(1, Relaxed);
    }

    /// Records the first answer on this connection: every older open one has been accepted.
    pub fn answered(&self, number: u64) {
        self.answered.fetch_max(number, Relaxed);
        let served = number.saturating_sub(self.ended.load(Relaxed));
        self.width.fetch_max(served, Relaxed);
    }

    /// Records that this connection has waited too long for its first answer.
    pub fn waits(&self, number: u64) {
        self.waiting.fetch_max(number, Relaxed);
        let until = Nanos::now().0 + REMEMBERED.as_nanos() as u64;
        self.waited_until.store(until, Relaxed);
    }

    /// Whether idle connections may hold threads for which others wait.
    pub fn is_starving(&self) -> bool {
        self.excess() > 0
    }

    /// How many idle connections may hold a thread for which another one waits.
    pub fn excess(&self) -> u64 {
        let (opened, answered) = (self.opened.load(Relaxed), self.answered.load(Relaxed));
        let waits = self.waiting.load(Relaxed) > answered
            || opened > answered && self.waited_until.load(Relaxed) > Nanos::now().0;
        match waits {
            true => {
                let open = opened.saturating_sub(self.ended.load(Relaxed));
                open.saturating_sub(self.width.load(Relaxed))
            }
            false => 0,
        }
    }

    fn is_news_at(&self, idle: Duration, now: Nanos) -> bool {
        self.bounded(idle, now) > self.kept.load(Relaxed)
    }

    fn saw_open_at(&self, idle: Duration, now: Nanos) {
        self.kept.fetch_max(self.bounded(idle, now), Relaxed);
    }

    fn saw_close_at(&self, idle: Duration, now: Nanos) {
        let idle = self.bounded(idle, now);
        self.closed.store(idle, Relaxed);
        self.closed_until
            .store(now.0 + REMEMBERED.as_nanos() as u64, Relaxed);
        self.kept.fetch_min(idle, Relaxed);
    }

    /// The idle time, at most the one after which a connection was closed recently.
    fn bounded(&self, idle: Duration, now: Nanos) -> u64 {
        let idle = idle.as_nanos() as u64;
        match self.closed_until.load(Relaxed) > now.0 {
            true => idle.min(self.closed.load(Relaxed)),
            false => idle,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_connection_is_trusted_for_half_as_long_as_others_stayed_open() {
        let habits = Habits::default();
        assert_eq!(habits.trusted_idle(), Duration::ZERO);
        habits.saw_open_at(99 * MS, Nanos(0));
        assert_eq!(habits.trusted_idle(), Duration::ZERO);
        habits.saw_open_at(900 * MS, Nanos(0));
        habits.saw_open_at(300 * MS, Nanos(0));
        assert_eq!(habits.trusted_idle(), 450 * MS);
        assert!(habits.is_news_at(901 * MS, Nanos(0)));
        assert!(!habits.is_news_at(900 * MS, Nanos(0)));
    }

    #[test]
    fn an_early_close_counts_for_a_minute_and_the_earliest_of_them() {
        let habits = Habits::default();
        habits.saw_open_at(4_000 * MS, Nanos(0));
        habits.saw_close_at(500 * MS, Nanos(SECOND));
        assert_eq!(habits.trusted_idle(), 250 * MS);
        habits.saw_close_at(800 * MS, Nanos(2 * SECOND));
        habits.saw_open_at(2_000 * MS, Nanos(3 * SECOND));
        assert_eq!(habits.trusted_idle(), 250 * MS);
        habits.saw_close_at(50 * MS, Nanos(4 * SECOND));
        assert!(!habits.is_news_at(2_000 * MS, Nanos(63 * SECOND)));
        assert_eq!(habits.trusted_idle(), Duration::ZERO);
        habits.saw_open_at(2_000 * MS, Nanos(65 * SECOND));
        assert_eq!(habits.trusted_idle(), 1_000 * MS);
    }

    #[test]
    fn a_server_with_one_thread_starves_connections_behind_an_idle_one() {
        let habits = Habits::default();
        let first = habits.opened();
        habits.answered(first);
        assert!(!habits.is_starving());
        let second = habits.opened();
        habits.waits(second);
        assert!(habits.is_starving());
        // The idle connection was closed, so the thread serves the other one.
        habits.ended();
        assert!(!habits.is_starving());
        habits.answered(second);
        assert!(!habits.is_starving());
        // From now on without a wait for the first answer.
        let third = habits.opened();
        assert_eq!(habits.excess(), 1);
        habits.ended();
        habits.answered(third);
        assert!(!habits.is_starving());
    }

    #[test]
    fn a_slow_answer_is_not_starvation_where_newer_connections_are_answered() {
        let habits = Habits::default();
        let slow = habits.opened();
        habits.waits(slow);
        assert!(habits.is_starving());
        let fast = habits.opened();
        habits.answered(fast);
        assert!(!habits.is_starving());
        // As many as were served at once may be idle or slow at any time.
        habits.ended();
        let other = habits.opened();
        habits.waits(other);
        assert!(!habits.is_starving());
        let one_more = habits.opened();
        habits.waits(one_more);
        assert!(habits.is_starving());
    }
}
