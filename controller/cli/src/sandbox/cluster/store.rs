//! The objects that an API server would serve, for the controller to read: one file each, replaced
//! by rename.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The content of the files, so that only changed ones are written.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    written: BTreeMap<String, String>,
}

impl Store {
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            written: BTreeMap::new(),
        }
    }

    /// Makes the directory hold exactly these objects.
    pub fn replace(&mut self, objects: &[Value]) -> io::Result<()> {
        let wanted: BTreeMap<String, String> = objects
            .iter()
            .map(|object| (file_name(object), object.to_string()))
            .collect();
        for (name, text) in &wanted {
            if self.written.get(name) == Some(text) {
                continue;
            }
            // A hidden file is not read as a manifest until it is complete.
            let fresh = self.directory.join(format!(".{name}"));
            fs::write(&fresh, text)?;
            fs::rename(&fresh, self.directory.join(name))?;
        }
        for name in self
            .written
            .keys()
            .filter(|name| !wanted.contains_key(*name))
        {
            fs::remove_file(self.directory.join(name))?;
        }
        self.written = wanted;
        Ok(())
    }
}

fn file_name(object: &Value) -> String {
    let part = |value: &Value| value.as_str().unwrap_or_default().to_lowercase();
    format!(
        "{}_{}_{}.json",
        part(&object["kind"]),
        part(&object["metadata"]["namespace"]),
        part(&object["metadata"]["name"])
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_directory_holds_exactly_the_objects() {
        let directory = std::env::temp_dir().join(format!("naru-objects-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let mut store = Store::new(&directory);
        let object = |name: &str, x: u32| {
            let metadata = json!({ "namespace": "shop", "name": name });
            json!({ "kind": "Pod", "metadata": metadata, "x": x })
        };
        let names = || {
            let mut names: Vec<_> = fs::read_dir(&directory)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        store.replace(&[object("a", 1), object("b", 1)]).unwrap();
        assert_eq!(names(), ["pod_shop_a.json", "pod_shop_b.json"]);
        store.replace(&[object("b", 2)]).unwrap();
        assert_eq!(names(), ["pod_shop_b.json"]);
        let text = fs::read_to_string(directory.join("pod_shop_b.json")).unwrap();
        assert!(text.contains("\"x\":2"), "{text}");
        fs::remove_dir_all(&directory).unwrap();
    }
}
