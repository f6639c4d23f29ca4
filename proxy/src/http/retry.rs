//! Whether a failed attempt is followed by another.
//!
//! In: how an attempt failed, and whether the request can be sent again. Out: [`Next`], and the
//! label under which the decision is counted. A request that provably never reached an application
//! is tried elsewhere regardless of the rule; all other retries are the user's choice (HTTPRoute's
//! `retry`). Every retry is charged to the Service's budget. On the inbound side there is one
//! endpoint, and the caller can retry: only a request on a pooled connection that the app had
//! already closed is sent again there. Otherwise the retries of both sidecars would multiply.

use std::time::Duration;

use rand::{Rng, RngExt};

use crate::balance::{Peer, RetryBudget};
use crate::observe::metrics::{RequestMetrics, RetryOutcome};
use crate::observe::reason::Reason;
use crate::route::RetryPolicy;
use crate::socket::Direction;
use crate::upstream::streams::Refusal;

/// The longest wait between two attempts from doubling. Only a longer `backoff` leads to a longer
/// one.
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// Share of a wait that is added at random, so that simultaneous failures do not retry together.
const JITTER: f64 = 0.5;
/// How often a request that never reached an application is retried. Each try goes to another
/// endpoint while there is one: with a whole rack of stale endpoints in a table, so many failures
/// in a row are still rare.
const MAX_UNSENT: u32 = 5;
/// Wait before the second and later tries of a request that never reached an application: it spares
/// a single endpoint that is restarting.
const UNSENT_BACKOFF: Duration = Duration::from_millis(10);

/// How an attempt failed, for the decision about a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Provably nothing of the request reached an application: tried elsewhere, whatever the
    /// method.
    NeverSent,
    /// The same, because a pooled connection had ended: another connection will do.
    Stale,
    /// All streams of the endpoint are in use, and the wait for one timed out: handled like a
    /// status.
    Full,
    /// The connection broke after something was sent and before a response. Retried where the rule
    /// has a `retry` stanza and the request may be replayed.
    Reset,
    /// `timeouts.backendRequest` ran out.
    TimedOut,
    /// A response with this status came.
    Status(u16),
}

impl From<&Refusal> for Failure {
    /// Classifies a missing stream.
    fn from(refusal: &Refusal) -> Self {
        match refusal.reason {
            Reason::Overload => Self::Full,
            _ => Self::NeverSent,
        }
    }
}

/// Decides on the attempts of one request.
#[derive(Debug)]
pub struct Retries<'a> {
    direction: Direction,
    policy: Option<&'a RetryPolicy>,
    budget: &'a RetryBudget,
    /// Retries charged to the policy.
    used: u32,
    /// Tries that never reached an application.
    unsent: u32,
    outcome: Option<RetryOutcome>,
}

/// The decision after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try again after this long.
    Retry(Duration),
    /// Answer the client with the last result.
    GiveUp,
}

impl<'a> Retries<'a> {
    pub fn new(
        direction: Direction,
        policy: Option<&'a RetryPolicy>,
        budget: &'a RetryBudget,
    ) -> Self {
        Self {
            direction,
            policy,
            budget,
            used: 0,
            unsent: 0,
            outcome: None,
        }
    }

    /// `replayable`: the request can be sent again from its start.
    fn next(&mut self, failure: Failure, replayable: bool) -> Next {
        self.next_with(failure, replayable, &mut rand::rng())
    }

    /// [`Self::next`], counted: how long to wait for the next attempt. `None`: no other attempt
    /// follows.
    pub fn wait(
        &mut self,
        failure: Failure,
        replayable: bool,
        metrics: &RequestMetrics,
    ) -> Option<Duration> {
        let next = self.next(failure, replayable);
        if let Some(outcome) = self.outcome() {
            metrics.retry(outcome);
        }
        match next {
            Next::Retry(wait) => Some(wait),
            Next::GiveUp => None,
        }
    }

    /// The failure that a response represents, if another attempt may follow it. `told`: the value
    /// of its reason header. A sidecar's answer to gRPC comes with the status of its reason.
    pub fn failure_of(&self, status: u16, told: Option<&[u8]>, peer: &Peer) -> Option<Failure> {
        if status < 400 {
            return None;
        }
        if matches!(peer, Peer::Mesh(_)) && told.is_some_and(is_never_sent) {
            return Some(Failure::NeverSent);
        }
        self.is_retried(status).then_some(Failure::Status(status))
    }

    /// How the last decision is counted. `None`: a retry was not considered.
    fn outcome(&self) -> Option<RetryOutcome> {
        self.outcome
    }

    /// Whether a response with this status is retried if a retry is still possible.
    fn is_retried(&self, status: u16) -> bool {
        self.policy
            .is_some_and(|policy| policy.attempts > 0 && policy.codes.contains(&status))
    }

    fn next_with(&mut self, failure: Failure, replayable: bool, random: &mut impl Rng) -> Next {
        let decision = self.decide(failure, replayable);
        self.outcome = match decision {
            Ok(_) => Some(RetryOutcome::Sent),
            Err(outcome) => outcome,
        };
        match decision {
            Ok(Duration::ZERO) => Next::Retry(Duration::ZERO),
            Ok(wait) => {
                let jitter = random.random_range(0.0..JITTER);
                Next::Retry(wait.mul_f64(1.0 + jitter))
            }
            Err(_) => Next::GiveUp,
        }
    }

    fn decide(
        &mut self,
        failure: Failure,
        replayable: bool,
    ) -> Result<Duration, Option<RetryOutcome>> {
        if failure == Failure::NeverSent && self.direction == Direction::Inbound {
            return Err(None);
        }
        let unsent = matches!(failure, Failure::NeverSent | Failure::Stale);
        if unsent && self.unsent < MAX_UNSENT {
            if !replayable {
                return Err(Some(RetryOutcome::BodyTooLarge));
            }
            if !self.budget.withdraw() {
                return Err(Some(RetryOutcome::BudgetExhausted));
            }
            self.unsent += 1;
            return Ok(match self.unsent {
                1 => Duration::ZERO,
                n => UNSENT_BACKOFF * (n - 1),
            });
        }
        let Some(policy) = self.policy else {
            return Err(unsent.then_some(RetryOutcome::LimitReached));
        };
        if policy.attempts == 0 {
            return Err(None);
        }
        let status = match failure {
            Failure::Status(status) => Some(status),
            Failure::Full => Reason::Overload.status(),
            _ => None,
        };
        if status.is_some_and(|status| !policy.codes.contains(&status)) {
            return Err(None);
        }
        if self.used >= policy.attempts {
            return Err(Some(RetryOutcome::LimitReached));
        }
        if !replayable {
            return Err(Some(RetryOutcome::BodyTooLarge));
        }
        if !self.budget.withdraw() {
            return Err(Some(RetryOutcome::BudgetExhausted));
        }
        let doubled = policy
            .backoff
            .saturating_mul(1_u32.checked_shl(self.used).unwrap_or(u32::MAX));
        self.used += 1;
        Ok(doubled.min(MAX_BACKOFF.max(policy.backoff)))
    }
}

/// Whether this [`crate::observe::reason::REASON_HEADER`] of a peer's proxy means that the request
/// got no further than the proxy. Trusted only from a peer that has proved its identity.
fn is_never_sent(reason: &[u8]) -> bool {
    matches!(
        Reason::from_word(reason),
        Some(
            Reason::ConnectFailed
                | Reason::ConnectTimeout
                | Reason::NoEndpoint
                | Reason::Overload
                | Reason::ShuttingDown
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(attempts: u32) -> RetryPolicy {
        RetryPolicy {
            codes: vec![500, 503],
            attempts,
            backoff: Duration::from_millis(100),
        }
    }

    fn plenty() -> RetryBudget {
        RetryBudget::new(100, Duration::from_secs(3_600), 1_000.0)
    }

    fn waits(retries: &mut Retries<'_>, failure: Failure, number: usize) -> Vec<Duration> {
        let mut waits = Vec::new();
        for _ in 0..number {
            match retries.next(failure, true) {
                Next::Retry(wait) => waits.push(wait),
                Next::GiveUp => break,
            }
        }
        waits
    }

    #[test]
    fn only_the_codes_of_the_rule_are_retried() {
        let (policy, budget) = (policy(1), plenty());
        let mut retries = Retries::new(Direction::Outbound, Some(&policy), &budget);
        assert_eq!(retries.next(Failure::Status(502), true), Next::GiveUp);
        assert_eq!(retries.outcome(), None);
        assert!(retries.is_retried(503) && !retries.is_retried(502));
        assert_ne!(retries.next(Failure::Status(503), true), Next::GiveUp);
        assert_eq!(retries.outcome(), Some(RetryOutcome::Sent));
        assert_eq!(retries.next(Failure::Status(503), true), Next::GiveUp);
        assert_eq!(retries.outcome(), Some(RetryOutcome::LimitReached));
    }

    #[test]
    fn waits_double_with_jitter_up_to_a_bound() {
        let (policy, budget) = (policy(40), plenty());
        let mut retries = Retries::new(Direction::Outbound, Some(&policy), &budget);
        let waits = waits(&mut retries, Failure::Reset, 100);
        assert_eq!(waits.len(), 40);
        let mut least = 100_u128;
        for wait in waits {
            let wait = wait.as_millis();
            assert!(
                (least..=least * 3 / 2).contains(&wait),
                "{wait} for {least}"
            );
            least = (least * 2).min(10_000);
        }
    }

    #[test]
    fn without_a_policy_only_unsent_requests_are_retried_and_that_is_bounded() {
        let budget = plenty();
        let mut retries = Retries::new(Direction::Outbound, None, &budget);
        for failure in [
            Failure::Reset,
            Failure::TimedOut,
            Failure::Status(503),
            Failure::Full,
        ] {
            assert_eq!(retries.next(failure, true), Next::GiveUp);
            assert_eq!(retries.outcome(), None);
        }
        let waits = waits(&mut retries, Failure::NeverSent, 100);
        assert_eq!(waits.len(), 5);
        assert_eq!(waits[0], Duration::ZERO);
        assert_eq!(retries.outcome(), Some(RetryOutcome::LimitReached));
    }

    #[test]
    fn an_unsent_request_costs_no_attempt_of_the_policy() {
        let (policy, budget) = (policy(2), plenty());
        let mut retries = Retries::new(Direction::Outbound, Some(&policy), &budget);
        assert_eq!(waits(&mut retries, Failure::NeverSent, 5).len(), 5);
        assert_eq!(waits(&mut retries, Failure::Reset, 5).len(), 2);
    }

    #[test]
    fn the_budget_bounds_retries() {
        let (policy, budget) = (
            policy(100),
            RetryBudget::new(0, Duration::from_secs(10), 0.3),
        );
        let mut retries = Retries::new(Direction::Outbound, Some(&policy), &budget);
        assert_eq!(waits(&mut retries, Failure::Reset, 100).len(), 3);
        assert_eq!(retries.outcome(), Some(RetryOutcome::BudgetExhausted));
    }

    #[test]
    fn unsent_requests_are_charged_to_the_budget_too() {
        let budget = RetryBudget::new(0, Duration::from_secs(10), 0.3);
        let mut retries = Retries::new(Direction::Outbound, None, &budget);
        assert_eq!(waits(&mut retries, Failure::NeverSent, 2).len(), 2);
        assert_eq!(waits(&mut retries, Failure::Stale, 2).len(), 1);
        assert_eq!(retries.outcome(), Some(RetryOutcome::BudgetExhausted));
    }

    #[test]
    fn inbound_only_closed_pooled_connections_are_retried() {
        let budget = plenty();
        let mut retries = Retries::new(Direction::Inbound, None, &budget);
        for failure in [Failure::NeverSent, Failure::Reset, Failure::Full] {
            assert_eq!(retries.next(failure, true), Next::GiveUp);
        }
        assert_eq!(retries.outcome(), None);
        assert_eq!(waits(&mut retries, Failure::Stale, 100).len(), 5);
    }

    #[test]
    fn a_request_that_cannot_be_replayed_is_not_retried() {
        let (policy, budget) = (policy(3), plenty());
        let mut retries = Retries::new(Direction::Outbound, Some(&policy), &budget);
        for failure in [Failure::NeverSent, Failure::Reset, Failure::Status(500)] {
            assert_eq!(retries.next(failure, false), Next::GiveUp);
            assert_eq!(retries.outcome(), Some(RetryOutcome::BodyTooLarge));
        }
    }

    #[test]
    fn a_peers_reason_marks_requests_that_never_reached_its_app() {
        assert!(is_never_sent(b"connect-failed"));
        assert!(is_never_sent(b"shutting-down"));
        assert!(!is_never_sent(b"upstream-reset"));
        assert!(!is_never_sent(b""));
    }
}
