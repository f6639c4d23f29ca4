//! The directory of manifests, with its subdirectories: read as a whole at start, again after a
//! change, and periodically. The last good objects of an invalid file stay in force, and the
//! problem is reported with its line or field. File names are filtered as in the controller.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1 as k8s;
use notify::{RecursiveMode, Watcher};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use super::names::template_hash;
use super::services::Service;
use super::template::Template;
use super::workload::{Desired, Kind};

/// The largest manifest file, in bytes: etcd accepts objects of 1.5 MiB.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// Upper bound on the number of files.
const MAX_FILES: usize = 2_000;
/// Maximum depth of subdirectories. It also stops symbolic links that point upwards.
const MAX_DEPTH: usize = 8;
/// Editors write a file in several steps: wait for the last one.
const SETTLE: Duration = Duration::from_millis(30);
/// How long an empty file counts as being written.
const BEING_WRITTEN: Duration = Duration::from_millis(500);

/// The objects that the node needs. Other kinds are for the controller alone.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// Their labels by name.
    pub namespaces: BTreeMap<String, Labels>,
    pub services: BTreeMap<(String, String), Service>,
    pub workloads: BTreeMap<(String, String), Desired>,
}

type Labels = BTreeMap<String, String>;

#[derive(Clone, Debug)]
enum Object {
    Namespace(String, Labels),
    Service(Box<Service>),
    Workload(Box<Desired>),
}

/// The files and their last good content.
#[derive(Debug)]
pub struct Manifests {
    directory: PathBuf,
    replicas: BTreeMap<String, u32>,
    files: BTreeMap<PathBuf, File>,
    /// Why the directory cannot be listed.
    unlisted: Option<String>,
}

#[derive(Debug, Default)]
struct File {
    /// `None` before the first read.
    content: Option<Vec<u8>>,
    /// The objects of its last valid version.
    objects: Vec<Object>,
    /// The problem of its current version.
    problem: Option<String>,
}

/// The result of a read.
#[derive(Debug, Default)]
pub struct Reading {
    /// The objects have changed.
    pub changed: bool,
    /// Problems that are new.
    pub problems: Vec<String>,
}

impl Manifests {
    /// Reads nothing yet. `replicas` is keyed by `namespace/name`.
    pub fn new(directory: PathBuf, replicas: BTreeMap<String, u32>) -> Self {
        Self {
            directory,
            replicas,
            files: BTreeMap::new(),
            unlisted: None,
        }
    }

    /// Reads files that have changed. A directory that cannot be listed keeps its objects.
    pub fn read(&mut self) -> Reading {
        let mut reading = Reading::default();
        let paths = match list(&self.directory) {
            Ok(paths) => {
                self.unlisted = None;
                paths
            }
            Err(error) => {
                let problem = format!("{error:#}");
                if self.unlisted.as_ref() != Some(&problem) {
                    reading.problems.push(problem.clone());
                }
                self.unlisted = Some(problem);
                return reading;
            }
        };
        let known = self.files.len();
        self.files.retain(|path, _| paths.contains(path));
        reading.changed = self.files.len() < known;
        for path in paths {
            let parsed = match read(&path) {
                // Deleted since the listing: a notification follows.
                Ok(None) => continue,
                Ok(Some(content)) => {
                    let file = self.files.entry(path.clone()).or_default();
                    let emptied = content.is_empty() && !file.objects.is_empty();
                    if file.content.as_ref() == Some(&content) || emptied && is_young(&path) {
                        continue;
                    }
                    let parsed = parse(&content);
                    file.content = Some(content);
                    parsed
                }
                Err(error) => Err(error),
            };
            let file = self.files.entry(path.clone()).or_default();
            match parsed {
                Ok(objects) => {
                    reading.changed = true;
                    file.objects = objects;
                    file.problem = None;
                }
                Err(error) => {
                    let problem = format!("{}: {error:#}", path.display());
                    if file.problem.as_ref() != Some(&problem) {
                        reading.problems.push(problem.clone());
                    }
                    file.problem = Some(problem);
                }
            }
        }
        reading
    }

    /// Files with a problem.
    pub fn wrong(&self) -> impl Iterator<Item = &Path> {
        let wrong = self.files.iter().filter(|(_, file)| file.problem.is_some());
        wrong.map(|(path, _)| path.as_path())
    }

    /// All objects in force. If two files contain the same object, the later file wins.
    pub fn objects(&self) -> Objects {
        let mut all = Objects::default();
        for object in self.files.values().flat_map(|file| &file.objects) {
            match object.clone() {
                Object::Namespace(name, labels) => {
                    all.namespaces.insert(name, labels);
                }
                Object::Service(service) => {
                    let key = (service.namespace.clone(), service.name.clone());
                    all.services.insert(key, *service);
                }
                Object::Workload(mut workload) => {
                    let key = (workload.namespace.clone(), workload.name.clone());
                    if let Some(replicas) = self.replicas.get(&format!("{}/{}", key.0, key.1)) {
                        workload.replicas = *replicas;
                    }
                    all.workloads.insert(key, *workload);
                }
            }
        }
        all
    }
}

/// Sends a notification after every possible change. The watcher must be kept alive.
pub fn watch(directory: &Path) -> anyhow::Result<(impl Watcher, mpsc::Receiver<()>)> {
    let (sender, receiver) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Ignore reads. If the channel is full, a notification is already pending.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _told = sender.try_send(());
        }
    })
    .context("watching the manifests (fs.inotify.max_user_instances may be used up)")?;
    watcher
        .watch(directory, RecursiveMode::Recursive)
        .with_context(|| format!("watching {}", directory.display()))?;
    Ok((watcher, receiver))
}

/// Waits for a change, and until the files are quiet again.
pub async fn changed(changes: &mut mpsc::Receiver<()>) {
    if changes.recv().await.is_none() {
        return std::future::pending().await;
    }
    tokio::time::sleep(SETTLE).await;
    while changes.try_recv().is_ok() {}
}

fn list(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    walk(directory, MAX_DEPTH, &mut paths)
        .with_context(|| format!("--manifests {}", directory.display()))?;
    if paths.len() > MAX_FILES {
        bail!("{}: more than {MAX_FILES} manifests", directory.display());
    }
    paths.sort();
    Ok(paths)
}

fn walk(directory: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") || paths.len() > MAX_FILES {
            continue;
        }
        let extension = path.extension().and_then(|extension| extension.to_str());
        if path.is_dir() && depth > 0 {
            match walk(&path, depth - 1, paths) {
                // Deleted since the listing.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                other => other?,
            }
        } else if matches!(extension, Some("yaml" | "yml" | "json")) && path.is_file() {
            paths.push(path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    let size = match fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if size > MAX_FILE {
        bail!("it is larger than {MAX_FILE} bytes");
    }
    Ok(Some(fs::read(path)?))
}

fn is_young(path: &Path) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|at| at.elapsed().unwrap_or_default() < BEING_WRITTEN)
}

fn parse(content: &[u8]) -> anyhow::Result<Vec<Object>> {
    let text = std::str::from_utf8(content).context("it is not UTF-8")?;
    let mut objects = Vec::new();
    for document in documents(text) {
        add(&document, &mut objects)?;
    }
    Ok(objects)
}

/// The documents of a file. Each one is padded with the empty lines above it, so that an error has
/// the line number within the file.
fn documents(text: &str) -> Vec<String> {
    let mut documents = Vec::new();
    let mut document = String::new();
    for (number, line) in text.lines().enumerate() {
        if line == "---" || line.starts_with("--- ") {
            documents.push(std::mem::replace(&mut document, "\n".repeat(number + 1)));
        } else {
            document.push_str(line);
            document.push('\n');
        }
    }
    documents.push(document);
    documents.retain(|document| {
        document
            .lines()
            .map(str::trim)
            .any(|line| !line.is_empty() && !line.starts_with('#'))
    });
    documents
}

fn typed<T: DeserializeOwned>(document: &str) -> anyhow::Result<T> {
    serde_saphyr::from_str(document).map_err(|error| {
        // The first line has location and cause; the others draw it.
        let text = error.to_string();
        let first = text.lines().next().unwrap_or("it does not parse");
        anyhow!("{}", first.strip_prefix("error: ").unwrap_or(first))
    })
}

/// Adds the objects of a document: one object or a List.
fn add(document: &str, objects: &mut Vec<Object>) -> anyhow::Result<()> {
    let value: serde_json::Value = typed(document)?;
    let text = |field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if kind.is_empty() || version.is_empty() {
        bail!("apiVersion, kind: an object has both");
    }
    if (version.as_str(), kind.as_str()) == ("v1", "List") {
        for (index, item) in value["items"].as_array().into_iter().flatten().enumerate() {
            add(&item.to_string(), objects).with_context(|| format!("items[{index}]"))?;
        }
        return Ok(());
    }
    let name = value["metadata"]["name"].as_str().unwrap_or_default();
    let namespace = value["metadata"]["namespace"].as_str().unwrap_or("default");
    if name.is_empty() {
        bail!("{kind}: metadata.name is missing");
    }
    let key = match kind.as_str() {
        "Namespace" => format!("{kind} {name}"),
        _ => format!("{kind} {namespace}/{name}"),
    };
    objects.extend(parse_object(document, &value, &version, &kind).with_context(|| key)?);
    Ok(())
}

fn parse_object(
    document: &str,
    value: &serde_json::Value,
    version: &str,
    kind: &str,
) -> anyhow::Result<Option<Object>> {
    Ok(Some(match (version, kind) {
        ("v1", "Namespace") => {
            let namespace: k8s::Namespace = typed(document)?;
            let metadata = namespace.metadata;
            Object::Namespace(
                metadata.name.unwrap_or_default(),
                metadata.labels.unwrap_or_default(),
            )
        }
        ("v1", "Service") => {
            let service: k8s::Service = typed(document)?;
            Object::Service(Box::new(Service::parse(&service, value)?))
        }
        ("apps/v1", "Deployment") => {
            let deployment: Deployment = typed(document)?;
            let spec = deployment.spec;
            let recreate = spec
                .strategy
                .and_then(|strategy| strategy.type_)
                .is_some_and(|kind| kind == "Recreate");
            Object::Workload(Box::new(desired(
                Kind::Deployment { recreate },
                &deployment.metadata,
                spec.replicas,
                &spec.selector,
                &spec.template,
            )?))
        }
        ("apps/v1", "StatefulSet") => {
            let set: StatefulSet = typed(document)?;
            let spec = set.spec;
            let template = spec.template;
            let mut desired = desired(
                Kind::StatefulSet,
                &set.metadata,
                spec.replicas,
                &spec.selector,
                &template,
            )?;
            desired.template.subdomain = spec.service_name;
            Object::Workload(Box::new(desired))
        }
        _ => return Ok(None),
    }))
}

fn desired(
    kind: Kind,
    metadata: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    replicas: Option<i32>,
    selector: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    template: &k8s::PodTemplateSpec,
) -> anyhow::Result<Desired> {
    let parsed = Template::parse(template).context("spec.template")?;
    let wanted = selector.match_labels.clone().unwrap_or_default();
    if let Some((label, value)) = wanted
        .iter()
        .find(|(label, value)| parsed.labels.get(*label) != Some(*value))
    {
        bail!("spec.selector.matchLabels: {label}={value} is not a label of spec.template");
    }
    let replicas = replicas.unwrap_or(1);
    Ok(Desired {
        kind,
        namespace: metadata
            .namespace
            .clone()
            .unwrap_or_else(|| "default".to_owned()),
        name: metadata.name.clone().unwrap_or_default(),
        replicas: u32::try_from(replicas).with_context(|| format!("spec.replicas: {replicas}"))?,
        template: parsed,
        hash: template_hash(template),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPLOYMENT: &str = "apiVersion: apps/v1
kind: Deployment
metadata: { name: web, namespace: shop }
spec:
  replicas: 2
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec: { containers: [{ name: web, command: [shop] }] }
";

    #[test]
    fn an_error_names_the_line_of_the_file() {
        let text = format!(
            "# one\n---\n{}",
            DEPLOYMENT.replace("replicas: 2", "replicas: two")
        );
        let error = format!("{:#}", parse(text.as_bytes()).unwrap_err());
        assert!(error.starts_with("Deployment shop/web: "), "{error}");
        assert!(error.contains("line 7"), "{error}");
    }

    #[test]
    fn an_error_names_the_field() {
        let text = DEPLOYMENT.replace("command: [shop]", "image: shop");
        let error = format!("{:#}", parse(text.as_bytes()).unwrap_err());
        assert!(
            error.contains("spec.template: spec.containers[0] (web): command"),
            "{error}"
        );
    }

    #[test]
    fn other_kinds_and_empty_documents_are_skipped() {
        let text = "---\n# nothing\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: \
            HTTPRoute\nmetadata: { name: r }\n---\n";
        assert!(parse(text.as_bytes()).unwrap().is_empty());
    }

    #[test]
    fn a_list_contains_objects() {
        let deployment: serde_json::Value = typed(DEPLOYMENT).unwrap();
        let namespace = serde_json::json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop" },
        });
        let mut list = serde_json::json!({
            "apiVersion": "v1", "kind": "List", "items": [namespace, deployment],
        });
        assert_eq!(parse(list.to_string().as_bytes()).unwrap().len(), 2);
        list["items"][1]["spec"]["replicas"] = "two".into();
        let error = format!("{:#}", parse(list.to_string().as_bytes()).unwrap_err());
        assert!(
            error.starts_with("items[1]: Deployment shop/web: "),
            "{error}"
        );
    }

    #[test]
    fn manifests_in_subdirectories_are_read() {
        let directory = std::env::temp_dir().join(format!("naru-below-{}", std::process::id()));
        fs::create_dir_all(directory.join("base/.git")).unwrap();
        for name in ["base/web.yaml", "base/.git/old.yaml", "README.md"] {
            fs::write(directory.join(name), "").unwrap();
        }
        assert_eq!(list(&directory).unwrap(), [directory.join("base/web.yaml")]);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_file_that_does_not_parse_keeps_its_last_good_objects() {
        let directory = std::env::temp_dir().join(format!("naru-manifest-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join("web.yaml");
        fs::write(&file, DEPLOYMENT).unwrap();
        let replicas = BTreeMap::from([("shop/web".to_owned(), 7)]);
        let mut manifests = Manifests::new(directory.clone(), replicas);
        let reading = manifests.read();
        assert!(
            reading.changed && reading.problems.is_empty(),
            "{reading:?}"
        );
        fs::write(&file, "apiVersion: [").unwrap();
        assert_eq!(manifests.read().problems.len(), 1);
        assert_eq!(manifests.wrong().collect::<Vec<_>>(), [file.as_path()]);
        let again = manifests.read();
        assert!(!again.changed && again.problems.is_empty(), "said once");
        let objects = manifests.objects();
        let web = &objects.workloads[&("shop".to_owned(), "web".to_owned())];
        assert_eq!(web.replicas, 7, "as --replicas says");
        fs::write(&file, "").unwrap();
        assert!(!manifests.read().changed, "it is being written");
        fs::remove_file(&file).unwrap();
        assert!(manifests.read().changed);
        assert!(manifests.objects().workloads.is_empty());
        fs::remove_dir_all(&directory).unwrap();
    }
}
