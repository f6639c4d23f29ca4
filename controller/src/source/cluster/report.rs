//! Tells people of objects that can't be used as they are: in the log, and by an Event on the object, where `kubectl
//! describe` shows it.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::served::Served;
use crate::source::problem::Invalid;

/// Events that wait to be written. More are left out: the log has them.
const MAX_WAITING: usize = 256;
/// How long writing one may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes in an Event's note: the API server takes 1 kB.
const MAX_NOTE: usize = 1_000;

/// Cheap to clone.
#[derive(Clone)]
pub struct Report(mpsc::Sender<(ObjectReference, String)>);

/// The future writes what is reported, for as long as there is a [`Report`].
pub fn start(client: Client) -> (Report, impl Future<Output = ()>) {
    let (sender, mut waiting) = mpsc::channel::<(ObjectReference, String)>(MAX_WAITING);
    let recorder = Recorder::new(client, Reporter::from("naru-controller"));
    let publish = async move {
        while let Some((reference, note)) = waiting.recv().await {
            let event = Event {
                type_: EventType::Warning,
                reason: "Invalid".to_owned(),
                note: Some(note),
                action: "Parse".to_owned(),
                secondary: None,
            };
            match timeout(WRITE_TIMEOUT, recorder.publish(&event, &reference)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "an Event could not be written"),
                Err(_) => tracing::debug!("an Event could not be written in time"),
            }
        }
    };
    (Report(sender), publish)
}

impl Report {
    pub fn invalid(&self, object: ObjectReference, invalid: &Invalid, last_good: bool) {
        let (kind, name) = (text(&object.kind), text(&object.name));
        let namespace = text(&object.namespace);
        let Invalid { field, message } = invalid;
        let force = match last_good {
            true => "what it said before stays in force until it is right",
            false => "it is left out until it is right",
        };
        tracing::error!(
            kind,
            namespace,
            name,
            field,
            "object: {field}: {message}; {force}"
        );
        let mut note = format!("{field}: {message}; {force}");
        note.truncate(note.floor_char_boundary(MAX_NOTE));
        if self.0.try_send((object, note)).is_err() {
            tracing::debug!("too many Events wait to be written: one is left out");
        }
    }
}

/// How an Event names the object that it is about.
pub fn reference(served: &Served, api_version: &str, metadata: &ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(served.kind.as_str().to_owned()),
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

fn text(field: &Option<String>) -> &str {
    field.as_deref().unwrap_or_default()
}
