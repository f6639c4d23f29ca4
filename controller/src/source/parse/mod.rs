//! Parses manifests into objects. In: YAML with any number of documents, or JSON, or one object of
//! the API server. Out: every object of the kinds that we use, or all problems.
//!
//! # Floors
//!
//! ```text
//! routes             the routes of the Gateway API
//! policy             policies attached to Services
//! builtin            kinds of Kubernetes itself
//! gateway            kinds of the Gateway API as they are written
//! locate             the line of a field
//! duration problem
//! ```

mod builtin;
mod duration;
mod gateway;
mod locate;
mod policy;
pub(super) mod problem;
mod routes;
#[cfg(test)]
mod tests;

use k8s_openapi::api::core::v1 as k8s;
use k8s_openapi::api::discovery::v1 as discovery;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;

use crate::source::objects::Object;
use problem::{Invalid, Problem};

pub use duration::milliseconds;

/// Length limit, in bytes, of a parser's message that is passed on.
const MAX_MESSAGE_BYTES: usize = 300;

/// Every object in the text. Ignored values are not a problem here.
#[cfg(test)]
pub fn objects(text: &str, json: bool) -> Result<Vec<Object>, Vec<Problem>> {
    let found = read(text, json);
    match found.problems.is_empty() {
        true => Ok(found.objects),
        false => Err(found.problems),
    }
}

/// The content of a text.
#[derive(Default)]
pub struct Found {
    pub objects: Vec<Object>,
    /// Invalid values that are ignored, while the rest of their objects is used.
    pub ignored: Vec<Problem>,
    /// Problems that make objects unusable.
    pub problems: Vec<Problem>,
}

pub fn read(text: &str, json: bool) -> Found {
    let mut found = Found::default();
    let documents = match json {
        true => vec![(0, text)],
        false => documents(text),
    };
    for (lines_before, document) in documents {
        let value = match json {
            true => json_value(document),
            false => yaml_value(document),
        };
        match value {
            Err(mut problem) => {
                problem.line = problem.line.map(|line| lines_before + line);
                found.problems.push(problem);
            }
            Ok(value) => {
                let place = Place {
                    document,
                    lines_before,
                    item: None,
                };
                place.objects(value, &mut found);
            }
        }
    }
    found
}

/// The documents of a YAML text, each with the number of lines before it. Only a document boundary
/// may start a line with `---` (YAML 1.2, section 9.1.2).
fn documents(text: &str) -> Vec<(u64, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (number, line) in (0..).zip(text.split_inclusive('\n')) {
        let boundary = (line.strip_prefix("---"))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if boundary {
            documents.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, number);
        }
        offset += line.len();
    }
    documents.push((start_line, &text[start..]));
    documents.retain(|(_, document)| {
        (document.lines())
            .map(|line| line.strip_prefix("---").unwrap_or(line).trim_start())
            .any(|line| !line.is_empty() && !line.starts_with('#'))
    });
    documents
}

fn yaml_value(document: &str) -> Result<Value, Problem> {
    serde_saphyr::from_str(document).map_err(|error| {
        let line = error.location().map(|location| location.line());
        parser_problem(line, &error.without_snippet().to_string())
    })
}

fn json_value(document: &str) -> Result<Value, Problem> {
    serde_json::from_str(document)
        .map_err(|error| parser_problem(Some(error.line() as u64), &error.to_string()))
}

fn parser_problem(line: Option<u64>, message: &str) -> Problem {
    let message = message.lines().next().unwrap_or_default();
    // The parser counts lines from the start of the document.
    let message = (message.rsplit_once(" at line ")).map_or(message, |(message, _)| message);
    let mut end = message.len().min(MAX_MESSAGE_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    Problem {
        line,
        object: None,
        field: None,
        message: message[..end].to_owned(),
    }
}

/// The location of an object in a file.
struct Place<'a> {
    document: &'a str,
    lines_before: u64,
    /// Path of the object in its List. `None`: it is the document.
    item: Option<String>,
}

impl Place<'_> {
    fn objects(&self, value: Value, found: &mut Found) {
        let text = |field: &str| value.pointer(field).and_then(Value::as_str);
        let kind = text("/kind").unwrap_or_default().to_owned();
        let version = text("/apiVersion").unwrap_or_default().to_owned();
        let name = match (text("/metadata/namespace"), text("/metadata/name")) {
            (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
            (None, Some(name)) => format!("{kind} {name}"),
            _ => kind.clone(),
        };
        if kind == "List" && version == "v1" {
            let items = match value {
                Value::Object(mut list) => list.remove("items"),
                _ => None,
            };
            if let Some(Value::Array(items)) = items {
                for (i, item) in items.into_iter().enumerate() {
                    let list = self.item.as_deref().unwrap_or_default();
                    let path = format!("{}[{i}]", locate::with_key(list, "items"));
                    let place = Place {
                        item: Some(path),
                        ..*self
                    };
                    place.objects(item, found);
                }
            }
            return;
        }
        for (field, given) in [("apiVersion", &version), ("kind", &kind)] {
            if given.is_empty() {
                let message = "every object needs apiVersion and kind, as v1 and Service";
                let problem = self.problem(name, Invalid::new(field, message));
                found.problems.push(problem);
                return;
            }
        }
        match object(&version, &kind, value) {
            Ok(Some(Parsed { object, ignored })) => {
                let ignored = ignored.into_iter();
                let ignored = ignored.map(|invalid| self.problem(name.clone(), invalid));
                found.ignored.extend(ignored);
                found.objects.push(object);
            }
            Ok(None) => {
                tracing::debug!(api_version = version, kind, "kind is not used: ignored");
            }
            Err(invalid) => found.problems.push(self.problem(name, invalid)),
        }
    }

    fn problem(&self, object: String, invalid: Invalid) -> Problem {
        let field = match &self.item {
            None => invalid.field.clone(),
            Some(item) => format!("{item}.{}", invalid.field),
        };
        let line = locate::line(self.document, &field).unwrap_or(1);
        Problem {
            line: Some(self.lines_before + line),
            object: Some(object).filter(|object| !object.is_empty()),
            field: Some(invalid.field).filter(|field| !field.is_empty()),
            message: invalid.message,
        }
    }
}

/// One object.
pub(super) struct Parsed {
    pub object: Object,
    /// Its invalid values, which are ignored while the rest is used.
    pub ignored: Vec<Invalid>,
}

/// Parses one object. `None`: the kind is not used.
pub(super) fn object(version: &str, kind: &str, value: Value) -> Result<Option<Parsed>, Invalid> {
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let mut ignored = Vec::new();
    let object = match (group, version, kind) {
        ("", "v1", "Namespace") => {
            let (namespace, left_out) = builtin::namespace(typed::<k8s::Namespace>(value)?)?;
            ignored = left_out;
            Object::Namespace(namespace)
        }
        ("", "v1", "Service") => {
            let (service, left_out) = builtin::service(typed::<k8s::Service>(value)?)?;
            ignored = left_out;
            Object::Service(service)
        }
        ("", "v1", "Pod") => {
            let (pod, left_out) = builtin::pod(typed::<k8s::Pod>(value)?)?;
            ignored = left_out;
            Object::Pod(pod)
        }
        ("discovery.k8s.io", "v1", "EndpointSlice") => {
            let slice = typed::<discovery::EndpointSlice>(value)?;
            Object::EndpointSlice(builtin::endpoint_slice(slice)?)
        }
        ("gateway.networking.k8s.io", "v1" | "v1beta1", "HTTPRoute") => {
            let route = typed::<gateway::HttpRoute>(value)?;
            Object::Route(routes::http_route(route)?)
        }
        ("gateway.networking.k8s.io", "v1", "GRPCRoute") => {
            let route = typed::<gateway::GrpcRoute>(value)?;
            Object::Route(routes::grpc_route(route)?)
        }
        ("gateway.networking.k8s.io", "v1", "TLSRoute") => {
            let route = typed::<gateway::TlsRoute>(value)?;
            Object::Route(routes::tls_route(route)?)
        }
        ("gateway.networking.k8s.io", "v1", "TCPRoute") => {
            let route = typed::<gateway::TcpRoute>(value)?;
            Object::Route(routes::tcp_route(route)?)
        }
        ("gateway.networking.k8s.io", "v1" | "v1beta1", "ReferenceGrant") => {
            let grant = typed::<gateway::ReferenceGrant>(value)?;
            Object::ReferenceGrant(policy::reference_grant(grant)?)
        }
        ("gateway.networking.x-k8s.io", "v1alpha1", "XBackendTrafficPolicy") => {
            let given = typed::<gateway::BackendTrafficPolicy>(value)?;
            Object::BackendTrafficPolicy(policy::backend_traffic_policy(given)?)
        }
        _ => return Ok(None),
    };
    Ok(Some(Parsed { object, ignored }))
}

fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Invalid> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = error
            .path()
            .iter()
            .fold(String::new(), |field, segment| match segment {
                Segment::Seq { index } => format!("{field}[{index}]"),
                Segment::Map { key } => locate::with_key(&field, key),
                Segment::Enum { variant } => locate::with_key(&field, variant),
                Segment::Unknown => field,
            });
        Invalid::new(field, error.into_inner().to_string())
    })
}
