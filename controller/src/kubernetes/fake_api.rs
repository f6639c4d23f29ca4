//! An in-memory Kubernetes API server for tests. It lists (by pages or as a stream), watches,
//! reviews tokens, accepts writes with optimistic concurrency, and fails in the ways of a real one.
//! The command's tests use it as well.

#![allow(dead_code)] // No crate uses all of it.
#![allow(clippy::disallowed_methods)] // A test's queues are short.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower::service_fn;

type Chunk = Result<Bytes, io::Error>;

/// Cheap to clone.
#[derive(Clone, Default)]
pub struct FakeApi(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// By path, as `/api/v1/pods`. Kinds without an entry are not installed.
    collections: HashMap<String, Collection>,
    version: u64,
    down: bool,
    lists_by_page_only: bool,
    requests: Vec<String>,
    /// Writes received: method, path with query, body.
    written: Vec<(Method, String, Value)>,
    /// Responses at other paths, as `/version`.
    documents: HashMap<String, Value>,
    /// Canned responses to writes by path, which are then not applied: status and body.
    answers: HashMap<String, (u16, Value)>,
}

#[derive(Default)]
struct Collection {
    objects: BTreeMap<String, Value>,
    /// Events with the version of each.
    log: Vec<(u64, Value)>,
    /// Watches that start before this version get "gone".
    oldest: u64,
    watchers: Vec<UnboundedSender<Chunk>>,
}

/// The answer to a request.
enum Answer {
    Now(u16, Value),
    Stream(mpsc::UnboundedReceiver<Chunk>),
}

impl FakeApi {
    /// With these kinds installed, by path.
    pub fn new(paths: &[&str]) -> Self {
        let api = Self::default();
        for path in paths {
            api.install(path);
        }
        api
    }

    pub fn client(&self) -> Client {
        let api = self.clone();
        let service = service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { api.serve(request).await }
        });
        Client::new(service, "default")
    }

    pub fn install(&self, path: &str) {
        self.state().collections.entry(path.to_owned()).or_default();
    }

    pub fn uninstall(&self, path: &str) {
        self.state().collections.remove(path);
    }

    /// Creates or replaces an object.
    pub fn apply(&self, path: &str, object: Value) {
        self.state().put(path, object);
    }

    pub fn delete(&self, path: &str, namespace: &str, name: &str) {
        self.state().remove(path, &format!("{namespace}/{name}"));
    }

    /// Deletes an object without notifying watches.
    pub fn lose(&self, path: &str, namespace: &str, name: &str) {
        let mut state = self.state();
        let collection = state.collections.get_mut(path).expect("an installed kind");
        let object = collection.objects.remove(&format!("{namespace}/{name}"));
        assert!(object.is_some());
    }

    pub fn get(&self, path: &str, namespace: &str, name: &str) -> Option<Value> {
        let state = self.state();
        let objects = &state.collections.get(path)?.objects;
        objects.get(&format!("{namespace}/{name}")).cloned()
    }

    /// Closes every connection, and accepts none until it is up again.
    pub fn down(&self, down: bool) {
        let mut state = self.state();
        state.down = down;
        for collection in state.collections.values_mut() {
            for watcher in collection.watchers.drain(..) {
                let _ = watcher.send(Err(io::ErrorKind::ConnectionReset.into()));
            }
        }
    }

    /// Drops the event history: older watches get "gone".
    pub fn compact(&self) {
        let mut state = self.state();
        let version = state.next();
        for collection in state.collections.values_mut() {
            collection.oldest = version;
            collection.log.clear();
        }
    }

    pub fn lists_by_page_only(&self) {
        self.state().lists_by_page_only = true;
    }

    /// Serves a document at another path: JSON, or a string as plain text.
    pub fn document(&self, path: &str, document: Value) {
        (self.state().documents).insert(path.to_owned(), document);
    }

    /// From now on, responds to writes of that path with this.
    pub fn answer(&self, path: &str, status: u16, body: Value) {
        (self.state().answers).insert(path.to_owned(), (status, body));
    }

    /// Accepts writes of that path again.
    pub fn answer_no_more(&self, path: &str) {
        self.state().answers.remove(path);
    }

    /// Method, path and query of every request since the last call.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }

    /// Writes received since the last call.
    pub fn take_written(&self) -> Vec<(Method, String, Value)> {
        std::mem::take(&mut self.state().written)
    }

    async fn serve(
        self,
        request: Request<Body>,
    ) -> Result<Response<impl hyper::body::Body<Data = Bytes, Error = io::Error> + Send>, io::Error>
    {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let body = serde_json::from_slice(&body).unwrap_or_default();
        let target = head.uri.to_string();
        let mut state = self.state();
        state.requests.push(format!("{} {target}", head.method));
        if state.down {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (status, chunks) = match state.request(head.method, &target, body) {
            Answer::Stream(chunks) => (200, chunks),
            Answer::Now(status, value) => {
                let (sender, chunks) = mpsc::unbounded_channel();
                let text = match value {
                    Value::String(text) => text,
                    value => value.to_string(),
                };
                let _ = sender.send(Ok(text.into()));
                (status, chunks)
            }
        };
        let frames = UnboundedReceiverStream::new(chunks).map(|chunk| chunk.map(Frame::data));
        let response = Response::builder().status(status);
        response
            .body(StreamBody::new(frames))
            .map_err(io::Error::other)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    fn put(&mut self, path: &str, mut object: Value) {
        let version = self.next();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let collection = self.collections.get_mut(path).expect("an installed kind");
        let before = collection.objects.insert(key(&object), object.clone());
        let what = if before.is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        collection.notify_watchers(version, what, &object);
    }

    fn remove(&mut self, path: &str, key: &str) {
        let version = self.next();
        let collection = self.collections.get_mut(path).expect("an installed kind");
        let mut object = collection.objects.remove(key).expect("an object");
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        collection.notify_watchers(version, "DELETED", &object);
    }

    fn request(&mut self, method: Method, target: &str, body: Value) -> Answer {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if method != Method::GET {
            (self.written).push((method.clone(), target.to_owned(), body.clone()));
            if let Some((status, body)) = self.answers.get(path) {
                return Answer::Now(*status, body.clone());
            }
        }
        if let Some(document) = self.documents.get(path) {
            // An error, if it is a Status.
            let status = document["code"]
                .as_u64()
                .and_then(|code| u16::try_from(code).ok());
            return Answer::Now(status.unwrap_or(200), document.clone());
        }
        let (path, name) = match self.collections.contains_key(path) {
            true => (path.to_owned(), None),
            false => collection_of(path),
        };
        let version = self.version;
        let Some(collection) = self.collections.get_mut(&path) else {
            return failure(404, "NotFound");
        };
        let param = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        if let Some(name) = name {
            let applied = method == Method::PATCH && !name.ends_with("/status");
            if applied && !collection.objects.contains_key(&name) {
                return self.make(&path, &name, body);
            }
            return self.one(method, &path, &name, body);
        }
        match method {
            Method::GET if param("watch").is_some() => {
                let streamed = param("sendInitialEvents").is_some();
                if streamed && self.lists_by_page_only {
                    return failure(422, "Invalid");
                }
                let since = param("resourceVersion").and_then(|v| v.parse().ok());
                collection.watch(since.unwrap_or(0), streamed, version)
            }
            Method::GET => {
                let number = |name: &str| param(name).and_then(|v| v.parse::<usize>().ok());
                let from = number("continue").unwrap_or(0);
                let limit = number("limit").unwrap_or(usize::MAX);
                // From the path, if it has a namespace.
                let namespace = target.split_once("/namespaces/");
                let namespace = namespace.and_then(|(_, rest)| Some(rest.split_once('/')?.0));
                let objects = collection.objects.values().filter(|object| {
                    namespace.is_none_or(|name| object["metadata"]["namespace"] == name)
                });
                let mut items = objects.skip(from);
                // Like a real one, whose list items have no apiVersion and kind.
                let page: Vec<Value> = (items.by_ref().take(limit).cloned())
                    .map(|mut object| {
                        let fields = object.as_object_mut().expect("an object");
                        fields.remove("kind");
                        fields.remove("apiVersion");
                        object
                    })
                    .collect();
                let mut metadata = json!({"resourceVersion": version.to_string()});
                if items.next().is_some() {
                    metadata["continue"] = json!((from + page.len()).to_string());
                }
                Answer::Now(200, json!({"metadata": metadata, "items": page}))
            }
            Method::POST => {
                let mut body = body;
                // Like a real one, which takes the namespace from the path.
                if let Some((_, rest)) = target.split_once("/namespaces/") {
                    body["metadata"]["namespace"] = json!(rest.split('/').next());
                }
                let key = key(&body);
                if collection.objects.contains_key(&key) {
                    return failure(409, "AlreadyExists");
                }
                self.put(&path, body);
                Answer::Now(201, self.collections[&path].objects[&key].clone())
            }
            _ => failure(405, "MethodNotAllowed"),
        }
    }

    /// Creates an object by server-side apply.
    fn make(&mut self, path: &str, name: &str, mut object: Value) -> Answer {
        let (namespace, name) = name.split_once('/').unwrap_or(("", name));
        object["metadata"]["namespace"] = json!(namespace);
        object["metadata"]["name"] = json!(name);
        self.put(path, object.clone());
        Answer::Now(201, object)
    }

    /// A request for one object, or its `/status`.
    fn one(&mut self, method: Method, path: &str, name: &str, body: Value) -> Answer {
        let (name, status) = match name.strip_suffix("/status") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let Some(before) = self.collections[path].objects.get(name).cloned() else {
            return failure(404, "NotFound");
        };
        let version = |object: &Value| object["metadata"]["resourceVersion"].clone();
        let after = match method {
            Method::GET => return Answer::Now(200, before),
            Method::DELETE => {
                let asked = &body["preconditions"]["resourceVersion"];
                if !asked.is_null() && *asked != version(&before) {
                    return failure(409, "Conflict");
                }
                self.remove(path, name);
                return Answer::Now(
                    200,
                    json!({"kind": "Status", "apiVersion": "v1", "status": "Success"}),
                );
            }
            _ if !version(&body).is_null() && version(&body) != version(&before) => {
                return failure(409, "Conflict");
            }
            Method::PUT => body,
            // Applying a status owns all of it, because its lists are atomic.
            Method::PATCH if status => {
                let mut after = before;
                after["status"] = body["status"].clone();
                after
            }
            Method::PATCH => merged(before, body),
            _ => return failure(405, "MethodNotAllowed"),
        };
        self.put(path, after);
        Answer::Now(200, self.collections[path].objects[name].clone())
    }
}

impl Collection {
    fn watch(&mut self, since: u64, streamed: bool, now: u64) -> Answer {
        let (sender, receiver) = mpsc::unbounded_channel();
        if streamed {
            for object in self.objects.values() {
                let _ = sender.send(line("ADDED", object));
            }
            let bookmark = json!({"kind": "X", "apiVersion": "v1", "metadata": {
                "resourceVersion": now.to_string(),
                "annotations": {"k8s.io/initial-events-end": "true"},
            }});
            let _ = sender.send(line("BOOKMARK", &bookmark));
        } else if since < self.oldest {
            let _ = sender.send(line("ERROR", &status(410, "Expired")));
            return Answer::Stream(receiver);
        } else {
            for (_, event) in self.log.iter().filter(|(version, _)| *version > since) {
                let _ = sender.send(Ok(format!("{event}\n").into()));
            }
        }
        self.watchers.push(sender);
        Answer::Stream(receiver)
    }

    fn notify_watchers(&mut self, version: u64, what: &str, object: &Value) {
        self.log
            .push((version, json!({"type": what, "object": object})));
        (self.watchers).retain(|watcher| watcher.send(line(what, object)).is_ok());
    }
}

/// Merges maps by key, and replaces everything else.
fn merged(before: Value, patch: Value) -> Value {
    match (before, patch) {
        (Value::Object(mut before), Value::Object(patch)) => {
            for (key, value) in patch {
                let old = before.remove(&key).unwrap_or_default();
                before.insert(key, merged(old, value));
            }
            Value::Object(before)
        }
        (_, patch) => patch,
    }
}

fn key(object: &Value) -> String {
    let text = |field| object["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

/// The path of a kind, and the key of the object in it (with the rest of the path), if the path is
/// an object's.
fn collection_of(path: &str) -> (String, Option<String>) {
    match path.split_once("/namespaces/") {
        None => {
            let (object, status) = match path.strip_suffix("/status") {
                Some(object) => (object, "/status"),
                None => (path, ""),
            };
            match object.rsplit_once('/') {
                Some((collection, name)) => {
                    (collection.to_owned(), Some(format!("/{name}{status}")))
                }
                None => (path.to_owned(), None),
            }
        }
        Some((prefix, rest)) => {
            let mut parts = rest.splitn(3, '/');
            let (namespace, plural) = (parts.next(), parts.next().unwrap_or_default());
            let name = parts
                .next()
                .map(|name| format!("{}/{name}", namespace.unwrap_or_default()));
            (format!("{prefix}/{plural}"), name)
        }
    }
}

fn line(what: &str, object: &Value) -> Chunk {
    Ok(format!("{}\n", json!({"type": what, "object": object})).into())
}

pub fn status(code: u16, reason: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": reason, "reason": reason, "code": code,
    })
}

fn failure(code: u16, reason: &str) -> Answer {
    Answer::Now(code, status(code, reason))
}
