//! Which endpoints are tried, with a transport that sends nothing.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::{Answer, Attempts, Failed, Outcome, Transport, Unanswered};
use crate::balance::{AttemptOutcome, InFlight, Peer};
use crate::http::deadlines::Deadlines;
use crate::http::exchange::{Exchange, ForwardPlan, Plan};
use crate::http::retry::Failure;
use crate::observe::metrics::HttpVersion;
use crate::observe::reason::Reason;
use crate::session::Session;
use crate::testing::mesh::{Setup, run};

/// The result of an attempt.
enum Script {
    Status(u16),
    Failed(Failed),
    GivenUp,
}

/// A transport that follows its script, and then answers with 200.
struct Scripted {
    script: VecDeque<Script>,
    tried: Vec<SocketAddr>,
    discarded: Vec<u16>,
    replayable: bool,
    bound: Option<u64>,
    deadlines: Deadlines,
}

/// The request was abandoned.
#[derive(Debug, PartialEq, Eq)]
struct GivenUp;

impl Transport for Scripted {
    type Answered = u16;
    type Interrupt = GivenUp;

    fn bound(&self) -> Option<u64> {
        self.bound
    }

    fn deadlines(&mut self) -> &mut Deadlines {
        &mut self.deadlines
    }

    fn is_replayable(&self) -> bool {
        self.replayable
    }

    async fn attempt(&mut self, in_flight: InFlight) -> Result<u16, Unanswered<GivenUp>> {
        self.tried.push(in_flight.endpoint.address);
        in_flight.finish(AttemptOutcome::Cancelled, Instant::now());
        match self.script.pop_front() {
            None => Ok(200),
            Some(Script::Status(status)) => Ok(status),
            Some(Script::Failed(failed)) => Err(Unanswered::Failed(failed)),
            Some(Script::GivenUp) => Err(Unanswered::Interrupted(GivenUp)),
        }
    }

    fn answer<'a>(&'a self, answered: &'a u16) -> Answer<'a> {
        Answer {
            status: *answered,
            reason: None,
            peer: &Peer::Plain,
        }
    }

    fn discard(&mut self, answered: u16) {
        self.discarded.push(answered);
    }

    fn rewind(&mut self) {}

    async fn wait(&mut self, _: Duration) -> Result<(), GivenUp> {
        Ok(())
    }
}

/// How the attempts ended, and which endpoints were tried.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Answered(u16),
    Failed(Reason),
    GivenUp,
}

const ENDPOINTS: usize = 3;

/// Carries one request to a Service of [`ENDPOINTS`] endpoints.
async fn attempted(
    setup: fn(Setup) -> Setup,
    change: impl FnOnce(&mut Scripted, &[u64]),
    script: Vec<Script>,
) -> (Ended, Scripted) {
    let addresses: Vec<SocketAddr> = (1..=ENDPOINTS as u16)
        .map(|port| ([127, 0, 0, 1], port).into())
        .collect();
    let mesh = setup(Setup::new(&addresses)).start();
    let session = Session::outbound(mesh.worker.clone(), mesh.cell.clone());
    let head = http::Request::get("http://web/").body(()).unwrap();
    let (mut parts, ()) = head.into_parts();
    let mut exchange = Exchange::begin(&session, HttpVersion::Http2, &parts);
    let Plan::Forward(ForwardPlan {
        logical,
        rule,
        backend,
        ..
    }) = exchange.decide(&mut parts, |_| None, |_| None)
    else {
        panic!("it is not forwarded");
    };
    let backend = rule.target(backend).unwrap();
    let ids: Vec<u64> = (backend.endpoints().endpoints.iter())
        .map(|endpoint| endpoint.id)
        .collect();
    let mut transport = Scripted {
        script: script.into(),
        tried: Vec::new(),
        discarded: Vec::new(),
        replayable: true,
        bound: None,
        deadlines: Deadlines::new(exchange.started, &rule),
    };
    change(&mut transport, &ids);
    let (policy, budget) = (rule.retry.as_ref(), &logical.budget);
    let mut attempts = Attempts::new(session.direction(), &backend, policy, budget);
    let ended = match attempts.run(&mut exchange, &mut transport).await {
        Outcome::Answered(status) => Ended::Answered(status),
        Outcome::Failed(failed) => Ended::Failed(failed.reason),
        Outcome::Interrupted(GivenUp) => Ended::GivenUp,
    };
    (ended, transport)
}

fn never_sent(reason: Reason) -> Script {
    let outcome = AttemptOutcome::Cancelled;
    Script::Failed(Failed::new(Failure::NeverSent, reason, outcome))
}

#[test]
fn other_endpoints_are_tried_first_and_the_last_failure_is_reported() {
    run(async {
        const TRIES: usize = 6;
        let refused = || never_sent(Reason::ConnectFailed);
        let mut script: Vec<Script> = (1..TRIES).map(|_| refused()).collect();
        script.push(never_sent(Reason::ConnectTimeout));
        let (ended, transport) = attempted(|setup| setup, |_, _| {}, script).await;
        assert_eq!(ended, Ended::Failed(Reason::ConnectTimeout));
        assert_eq!(transport.tried.len(), TRIES);
        let mut first = transport.tried[..ENDPOINTS].to_vec();
        first.sort();
        first.dedup();
        assert_eq!(first.len(), ENDPOINTS);
    });
}

#[test]
fn a_response_is_passed_on_unless_its_status_is_retried() {
    run(async {
        let retry: fn(Setup) -> Setup = |setup| setup.retry(&[503], 1);
        for (replayable, script, ended, discarded) in [
            (true, vec![500], 500, vec![]),
            (true, vec![503], 200, vec![503]),
            // The policy allows no more retries, or the body can't be sent again.
            (true, vec![503, 503], 503, vec![503]),
            (false, vec![503], 503, vec![]),
        ] {
            let script = script.into_iter().map(Script::Status).collect();
            let change = |transport: &mut Scripted, _: &[u64]| transport.replayable = replayable;
            let (found, transport) = attempted(retry, change, script).await;
            assert_eq!(found, Ended::Answered(ended));
            assert_eq!(transport.discarded, discarded);
        }
    });
}

#[test]
fn without_a_certificate_no_other_endpoint_is_tried() {
    run(async {
        let script = vec![never_sent(Reason::NoCertificate)];
        let (ended, transport) = attempted(|setup| setup, |_, _| {}, script).await;
        assert_eq!(ended, Ended::Failed(Reason::NoCertificate));
        assert_eq!(transport.tried.len(), 1);
    });
}

#[test]
fn an_abandoned_request_is_not_retried() {
    run(async {
        let retry: fn(Setup) -> Setup = |setup| setup.retry(&[503], 5);
        let script = vec![Script::Status(503), Script::GivenUp];
        let (ended, transport) = attempted(retry, |_, _| {}, script).await;
        assert_eq!((ended, transport.tried.len()), (Ended::GivenUp, 2));
    });
}

#[test]
fn a_connection_bound_to_an_endpoint_stays_with_it() {
    run(async {
        for wanted in 0..ENDPOINTS {
            let change =
                |transport: &mut Scripted, ids: &[u64]| transport.bound = Some(ids[wanted]);
            let (ended, transport) = attempted(|setup| setup, change, Vec::new()).await;
            let port = wanted as u16 + 1;
            assert_eq!(transport.tried, [([127, 0, 0, 1], port).into()]);
            assert_eq!(ended, Ended::Answered(200));
        }
    });
}
