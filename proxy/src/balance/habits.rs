//! What an endpoint without a sidecar does with its HTTP/1.1 connections: how long it keeps one
//! that is idle, and how many it serves at once.
//!
//! In: what pools see of their connections. Out: for how long a request that can't be sent twice
//! may trust an idle connection, and whether idle connections starve those that wait. Shared by all
//! workers; atomics only.
//!
//! An app that closes idle connections closes some of them as the next request arrives, and says so
//! to nobody. So a connection is trusted for half the time for which others were seen open.
//!
//! A server with few threads stays with a connection until it ends. It accepts in order, so a newer
//! connection that is answered shows that an older one has a thread. While none is answered, idle
//! connections are kept only up to the number that the server has been seen to serve at once. Where
//! that has happened of late, they give way as soon as another connection is opened: clients that
//! the app tells apart by their addresses have connections of their own.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::Nanos;

/// How long idle connections must have been seen open before any is trusted. What closes after each
/// response does so sooner, even on a busy machine.
const PROOF: Duration = Duration::from_millis(100);
/// How long an early close counts, and a wait for a thread: after that, connections that stay open
/// are believed again.
const REMEMBERED: Duration = Duration::from_secs(60);

/// What is known. New endpoints are trusted with nothing.
#[derive(Debug, Default)]
pub struct Habits {
    /// The longest time, in nanoseconds, for which an idle connection was seen open, if none was
    /// closed earlier than that of late.
    kept: AtomicU64,
    /// The shortest time after which one was closed …
    closed: AtomicU64,
    /// … which counts until then.
    closed_until: AtomicU64,
    /// Connections that were opened, and that have ended.
    opened: AtomicU64,
    ended: AtomicU64,
    /// The newest connection that was answered, by its number in the order of opening.
    answered: AtomicU64,
    /// The newest that has waited for its first answer for too long …
    waiting: AtomicU64,
    /// … which is remembered until then.
    waited_until: AtomicU64,
    /// The most connections that were served at once.
    width: AtomicU64,
}

impl Habits {
    /// How long a connection may have been idle that carries a request which can't be sent twice.
    pub fn trusted_idle(&self) -> Duration {
        let kept = Duration::from_nanos(self.kept.load(Relaxed));
        match kept >= PROOF {
            true => kept / 2,
            false => Duration::ZERO,
        }
    }

    /// Whether it would change anything that a connection is open after this time.
    pub fn is_news(&self, idle: Duration) -> bool {
        self.is_news_at(idle, Nanos::now())
    }

    /// A connection is open that has been idle for this long.
    pub fn saw_open(&self, idle: Duration) {
        self.saw_open_at(idle, Nanos::now());
    }

    /// The endpoint has closed a connection that had been idle for this long.
    pub fn saw_close(&self, idle: Duration) {
        self.saw_close_at(idle, Nanos::now());
    }

    /// A connection is being opened. Returns its number.
    pub fn opened(&self) -> u64 {
        self.opened.fetch_add(1, Relaxed) + 1
    }

    /// A connection has ended.
    pub fn ended(&self) {
        self.ended.fetch_add(1, Relaxed);
    }

    /// The first answer has come on this connection: every older one that is open has been
    /// accepted.
    pub fn answered(&self, number: u64) {
        self.answered.fetch_max(number, Relaxed);
        let served = number.saturating_sub(self.ended.load(Relaxed));
        self.width.fetch_max(served, Relaxed);
    }

    /// This connection has waited for its first answer for too long.
    pub fn waits(&self, number: u64) {
        self.waiting.fetch_max(number, Relaxed);
        let until = Nanos::now().0 + REMEMBERED.as_nanos() as u64;
        self.waited_until.store(until, Relaxed);
    }

    /// Whether idle connections may hold the threads that others wait for.
    pub fn is_starving(&self) -> bool {
        self.excess() > 0
    }

    /// How many idle connections may hold a thread that another one waits for.
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

    /// No more than the time after which a connection was closed of late.
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
    fn one_thread_starves_whoever_waits_behind_an_idle_connection() {
        let habits = Habits::default();
        let first = habits.opened();
        habits.answered(first);
        assert!(!habits.is_starving());
        let second = habits.opened();
        habits.waits(second);
        assert!(habits.is_starving());
        // The idle one was closed, and so it is the other's turn.
        habits.ended();
        assert!(!habits.is_starving());
        habits.answered(second);
        assert!(!habits.is_starving());
        // From now on without a wait.
        let third = habits.opened();
        assert_eq!(habits.excess(), 1);
        habits.ended();
        habits.answered(third);
        assert!(!habits.is_starving());
    }

    #[test]
    fn a_slow_answer_is_no_starvation_where_newer_connections_are_answered() {
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
