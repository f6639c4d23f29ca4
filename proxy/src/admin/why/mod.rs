//! `/why`: which rule applies to a request, or which route to a connection, by the tables in force,
//! and why the others do not.
//!
//! In: a destination, and the head of a hypothetical request or the beginning of a hypothetical
//! connection. Out: every match of the destination's routes in order of precedence, the condition
//! that fails in each, and the outcome of the request or connection. The data path's own functions
//! decide. A destination that the app has not called yet is requested from the controller, as by
//! the app's first call.
//!
//! # Floors
//!
//! ```text
//! connection
//! request
//! answer question
//! ```

mod answer;
mod connection;
mod question;
mod request;

use crate::observe::reason::Reason;
use crate::route::Logical;
use crate::table::{Attached, Destination};
use crate::wire::client_hello::Hello;
use answer::{OutcomeAnswer, Rejected, Route, Service};

pub use answer::Answer;
pub use question::{Question, Sample, Target};

/// Bound on a shown value, in characters: enough to see what is wrong with it.
const MAX_SHOWN: usize = 200;

/// The answer, for a destination that has been looked up.
pub fn answer(attached: Attached, sample: Option<&Sample>) -> Answer {
    let mut answer = Answer {
        client_namespace: attached.client_namespace.to_string(),
        target: match (&*attached.destination, &attached.service) {
            (Destination::Logical(_), Some(_)) => "service",
            (Destination::Logical(_), None) => "pod",
            (Destination::Passthrough, _) => "passthrough",
            (Destination::Unknown, _) => "unknown",
        },
        service: None,
        routes: attached.routes.iter().filter_map(Route::of).collect(),
        rejected: attached
            .rejected
            .iter()
            .map(|(name, reason)| Rejected {
                name: name.to_string(),
                reason: reason.clone(),
            })
            .collect(),
        rules: Vec::new(),
        matches: Vec::new(),
        matches_left_out: 0,
        outcome: None,
    };
    match &*attached.destination {
        Destination::Logical(logical) => answer.explain(logical, sample),
        Destination::Passthrough => answer.outcome = sample.map(|_| OutcomeAnswer::default()),
        Destination::Unknown => {
            answer.outcome = sample.map(|sample| match sample {
                Sample::Request(head) => OutcomeAnswer::failed(Reason::DestinationUnknown, head),
                Sample::Connection(_) => OutcomeAnswer::ended(Reason::DestinationUnknown),
            });
        }
    }
    answer
}

impl Answer {
    fn explain(&mut self, logical: &Logical, sample: Option<&Sample>) {
        self.service = Some(Service::of(logical));
        match (&logical.opaque_routes, sample) {
            (Some(routes), None) => self.explain_connection(routes, None),
            (Some(routes), Some(Sample::Connection(hello))) => {
                self.explain_connection(routes, Some(hello));
            }
            // Opaque bytes to these routes, and not a ClientHello.
            (Some(routes), Some(Sample::Request(_))) => {
                self.explain_connection(routes, Some(&Hello::Other));
            }
            (None, None) => self.explain_request(logical, None),
            (None, Some(Sample::Request(head))) => self.explain_request(logical, Some(head)),
            (None, Some(Sample::Connection(_))) => self.explain_bytes(logical),
        }
    }
}
