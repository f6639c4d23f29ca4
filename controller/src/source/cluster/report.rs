//! Reports unusable objects: in the log, and by an Event on the object, which `kubectl describe`
//! shows.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::served::Served;
use crate::source::parse::problem::Invalid;

/// Capacity of the queue of Events. More are dropped: the log has them.
const MAX_WAITING: usize = 256;
/// Timeout for writing an Event.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes in an Event's note: the API server accepts 1 kB.
const MAX_NOTE: usize = 1_000;
/// Bytes of the object's name in its Event's name, which is slightly longer and may have 253.
const MAX_NAME: usize = 200;
/// The Events' reporting controller.
const CONTROLLER: &str = "naru-controller";
/// The namespace that the API server requires for Events of cluster-scoped objects.
const NO_NAMESPACE: &str = "default";

/// The state in force until the object is corrected.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// Its last good version.
    LastGood,
    /// The object is left out.
    LeftOut,
    /// The object except its invalid values.
    RestUsed,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Report(mpsc::Sender<(ObjectReference, String)>);

/// The future writes Events for as long as there is a [`Report`].
pub fn start(client: Client) -> (Report, impl Future<Output = ()>) {
    let (sender, mut waiting) = mpsc::channel::<(ObjectReference, String)>(MAX_WAITING);
    let publish = async move {
        while let Some((reference, note)) = waiting.recv().await {
            let namespace = reference.namespace.as_deref().unwrap_or(NO_NAMESPACE);
            let events: Api<Event> = Api::namespaced(client.clone(), namespace);
            let event = event(reference, note);
            let params = PostParams::default();
            match timeout(WRITE_TIMEOUT, events.create(&params, &event)).await {
                Ok(Ok(_)) => {}
                // Another controller has written it, or this one before a restart.
                Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
                Ok(Err(error)) => tracing::debug!(%error, "cannot write an Event"),
                Err(_) => tracing::debug!("cannot write an Event in time"),
            }
        }
    };
    (Report(sender), publish)
}

/// All controllers give an Event the same name: the first one writes it.
fn event(regarding: ObjectReference, note: String) -> Event {
    let name = text(&regarding.name);
    let name = &name[..name.floor_char_boundary(MAX_NAME)];
    let hash = hash(&[text(&regarding.uid), text(&regarding.kind), &note]);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{hash:016x}")),
            ..ObjectMeta::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some("Invalid".to_owned()),
        action: Some("Parse".to_owned()),
        note: Some(note),
        event_time: Some(MicroTime(Timestamp::now())),
        reporting_controller: Some(CONTROLLER.to_owned()),
        reporting_instance: Some(CONTROLLER.to_owned()),
        regarding: Some(regarding),
        ..Event::default()
    }
}

/// FNV-1a: the same on every replica.
fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Report {
    pub fn invalid(&self, object: ObjectReference, invalid: &Invalid, until: Until) {
        let (kind, name) = (text(&object.kind), text(&object.name));
        let namespace = text(&object.namespace);
        let Invalid { field, message } = invalid;
        let force = match until {
            Until::LastGood => "what it said before stays in force until it is right",
            Until::LeftOut => "it is left out until it is right",
            Until::RestUsed => "the rest of the object is in force",
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

/// The Event's reference to its object.
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
