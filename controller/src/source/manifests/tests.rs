//! The watcher against real directories.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::*;
use crate::source::objects::*;

/// Timeout for an event, far above its usual time.
const PATIENCE: Duration = Duration::from_secs(20);

struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!(
            "naru-manifests-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Replaces by rename.
    fn write(&self, name: &str, text: &str) {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let temporary = self.0.join(".tmp");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, path).unwrap();
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

struct Watch {
    events: mpsc::Receiver<Event>,
    problems: Arc<Mutex<Vec<usize>>>,
}

impl Watch {
    fn start(directories: &[&Directory]) -> Self {
        let (sender, events) = mpsc::channel(100);
        let problems = Arc::new(Mutex::new(Vec::new()));
        let seen = problems.clone();
        let paths = directories.iter().map(|d| d.0.clone()).collect();
        tokio::spawn(manifests(paths, sender, move |n| {
            seen.lock().unwrap().push(n)
        }));
        Self { events, problems }
    }

    async fn next(&mut self) -> Event {
        timeout(PATIENCE, self.events.recv())
            .await
            .expect("an event")
            .expect("the watcher goes on")
    }

    async fn applied(&mut self) -> String {
        match self.next().await {
            Event::Apply(object) => object.key().to_string(),
            other => panic!("{other:?}"),
        }
    }

    async fn problems(&self, expected: &[usize]) {
        let start = Instant::now();
        while self.problems.lock().unwrap().as_slice() != expected {
            assert!(start.elapsed() < PATIENCE, "{:?}", self.problems);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn namespace(name: &str, mtls: &str) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Namespace\n\
         metadata: {{ name: {name}, annotations: {{ naru.dev/mtls: {mtls} }} }}\n\
         ---\n"
    )
}

fn strict(event: &Event) -> bool {
    match event {
        Event::Apply(Object::Namespace(n)) => {
            n.annotations.mtls == Some(naru_contract::MtlsMode::Strict)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn existing_objects_come_first_and_then_changes() {
    let directory = Directory::new();
    directory.write("a.yaml", &namespace("a", "strict"));
    directory.write("ignored.txt", "}");
    let mut watch = Watch::start(&[&directory]);
    assert_eq!(watch.applied().await, "Namespace a");
    assert_eq!(watch.next().await, Event::Synced);

    directory.write("below/deep/b.yml", &namespace("b", "strict"));
    assert_eq!(watch.applied().await, "Namespace b");
    directory.write(
        "below/deep/b.yml",
        &(namespace("b", "strict") + &namespace("c", "strict")),
    );
    assert_eq!(watch.applied().await, "Namespace c");
    directory.write("a.yaml", &namespace("a", "permissive"));
    assert!(!strict(&watch.next().await));
    std::fs::remove_file(directory.0.join("a.yaml")).unwrap();
    assert!(matches!(watch.next().await, Event::Delete(key) if key.name.name == "a"));
}

#[tokio::test]
async fn a_later_directory_wins_and_without_it_the_earlier_is_back() {
    let (first, second) = (Directory::new(), Directory::new());
    first.write("z.yaml", &namespace("a", "permissive"));
    second.write("a.yaml", &namespace("a", "strict"));
    let mut watch = Watch::start(&[&first, &second]);
    assert!(strict(&watch.next().await));
    assert_eq!(watch.next().await, Event::Synced);
    std::fs::remove_file(second.0.join("a.yaml")).unwrap();
    assert!(!strict(&watch.next().await));
}

#[tokio::test]
async fn an_invalid_file_keeps_its_last_objects_and_is_counted() {
    let directory = Directory::new();
    directory.write("a.yaml", &namespace("a", "permissive"));
    let mut watch = Watch::start(&[&directory]);
    watch.applied().await;
    assert_eq!(watch.next().await, Event::Synced);
    watch.problems(&[0]).await;

    directory.write("a.yaml", &(namespace("a", "strict") + "x: ]\n"));
    watch.problems(&[0, 1]).await;
    directory.write("b.yaml", &namespace("b", "permissive"));
    assert_eq!(
        watch.applied().await,
        "Namespace b",
        "and nothing of a.yaml"
    );

    directory.write("a.yaml", &namespace("a", "strict"));
    assert!(strict(&watch.next().await));
    watch.problems(&[0, 1, 0]).await;
}

#[tokio::test]
async fn a_file_that_is_written_in_place_is_read() {
    let directory = Directory::new();
    let path = directory.0.join("a.yaml");
    std::fs::write(&path, namespace("a", "strict")).unwrap();
    let mut watch = Watch::start(&[&directory]);
    watch.applied().await;
    assert_eq!(watch.next().await, Event::Synced);
    // Briefly empty, as editors leave it between two writes.
    std::fs::write(&path, "").unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    std::fs::write(&path, namespace("a", "permissive")).unwrap();
    assert!(!strict(&watch.next().await));
}

#[tokio::test]
async fn a_missing_directory_is_an_error_that_names_it() {
    let (sender, _events) = mpsc::channel(1);
    let error = manifests(vec![Path::new("/nowhere/at/all").into()], sender, |_| {})
        .await
        .unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
}
