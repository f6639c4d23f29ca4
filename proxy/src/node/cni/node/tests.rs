use super::*;

use serde_json::{Value, json};

/// Temporary directories of a node, removed on drop.
struct Folders {
    root: PathBuf,
    node: Node,
}

impl Folders {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("naru-cni-{name}-{}", std::process::id()));
        let _of_an_earlier_run = fs::remove_dir_all(&root);
        for folder in ["bin", "net.d"] {
            fs::create_dir_all(root.join(folder)).expect("a folder");
        }
        fs::write(root.join("source"), "the program").expect("a file");
        let node = Node {
            source: root.join("source"),
            bin_dir: root.join("bin"),
            conf_dir: root.join("net.d"),
            placed: None,
        };
        Self { root, node }
    }

    fn write(&self, file: &str, content: impl ToString) {
        fs::write(self.root.join(file), content.to_string()).expect("written");
    }

    fn read(&self, file: &str) -> Value {
        let text = fs::read_to_string(self.root.join(file)).expect("a file");
        serde_json::from_str(&text).expect("JSON")
    }

    fn files(&self) -> Vec<String> {
        let mut files = Vec::new();
        for folder in ["bin", "net.d"] {
            for entry in fs::read_dir(self.root.join(folder)).expect("a folder") {
                let name = entry.expect("an entry").file_name();
                files.push(format!("{folder}/{}", name.to_string_lossy()));
            }
        }
        files.sort();
        files
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        let _cleared_by_the_system = fs::remove_dir_all(&self.root);
    }
}

fn list() -> Value {
    json!({ "cniVersion": "1.0.0", "name": "pods", "plugins": [{ "type": "ptp" }] })
}

fn is_chained(list: &Value) -> bool {
    let plugins = list["plugins"].as_array().expect("plugins");
    plugins
        .last()
        .is_some_and(|plugin| plugin["type"] == PLUGIN)
}

#[test]
fn missing_files_are_installed_once() {
    let mut folders = Folders::new("place");
    folders.write("net.d/10-pods.conflist", list());
    folders.write("net.d/20-other.conflist", list());
    let path = folders.root.join("net.d/10-pods.conflist");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("mode");
    let repaired = folders.node.repair().expect("repaired");
    assert_eq!(
        repaired,
        [Repaired::Program, Repaired::Configuration(path.clone())]
    );
    assert!(is_chained(&folders.read("net.d/10-pods.conflist")));
    assert!(!is_chained(&folders.read("net.d/20-other.conflist")));
    assert_eq!(fs::metadata(&path).expect("a file").mode() & 0o777, 0o600);
    let program = folders.root.join("bin/naru-cni");
    assert_eq!(
        fs::metadata(&program).expect("a file").mode() & 0o777,
        0o755
    );
    assert_eq!(folders.node.repair().expect("repaired"), []);
    // The agent was restarted.
    folders.node.placed = None;
    assert_eq!(folders.node.repair().expect("repaired"), []);
}

#[test]
fn files_that_others_rewrite_or_remove_are_repaired() {
    let mut folders = Folders::new("repair");
    folders.write("net.d/10-pods.conflist", list());
    folders.node.repair().expect("repaired");
    folders.write("net.d/10-pods.conflist", list());
    let path = folders.root.join("net.d/10-pods.conflist");
    assert_eq!(
        folders.node.repair().expect("repaired"),
        [Repaired::Configuration(path)]
    );
    folders.write("bin/naru-cni", "another program");
    assert_eq!(
        folders.node.repair().expect("repaired"),
        [Repaired::Program]
    );
    fs::remove_file(folders.root.join("bin/naru-cni")).expect("removed");
    assert_eq!(
        folders.node.repair().expect("repaired"),
        [Repaired::Program]
    );
    assert_eq!(
        fs::read(folders.root.join("bin/naru-cni")).expect("a file"),
        b"the program"
    );
    // Another network comes first by name now.
    folders.write("net.d/05-new.conflist", list());
    let path = folders.root.join("net.d/05-new.conflist");
    assert_eq!(
        folders.node.repair().expect("repaired"),
        [Repaired::Configuration(path)]
    );
}

#[test]
fn removal_restores_the_directories() {
    let mut folders = Folders::new("remove");
    folders.write("net.d/10-pods.conflist", list());
    folders.node.repair().expect("repaired");
    folders.write("net.d/05-new.conflist", list());
    folders.node.repair().expect("repaired");
    folders.node.remove().expect("removed");
    assert_eq!(
        folders.files(),
        ["net.d/05-new.conflist", "net.d/10-pods.conflist"]
    );
    assert_eq!(folders.read("net.d/10-pods.conflist"), list());
    assert_eq!(folders.read("net.d/05-new.conflist"), list());
    folders.node.remove().expect("nothing is left to remove");
}

#[test]
fn a_configuration_of_one_plugin_becomes_a_list_and_is_restored() {
    let mut folders = Folders::new("single");
    let single = json!({ "cniVersion": "0.4.0", "name": "pods", "type": "bridge" });
    folders.write("net.d/10-pods.conf", &single);
    folders.node.repair().expect("repaired");
    assert!(is_chained(&folders.read("net.d/10-pods.conflist")));
    assert!(!folders.root.join("net.d/10-pods.conf").exists());
    // Its owner rewrites it.
    let renewed = json!({ "cniVersion": "0.4.0", "name": "pods", "type": "bridge", "mtu": 1400 });
    folders.write("net.d/10-pods.conf", &renewed);
    folders.node.repair().expect("repaired");
    assert_eq!(
        folders.read("net.d/10-pods.conflist")["plugins"][0]["mtu"],
        1400
    );
    assert_eq!(folders.node.repair().expect("repaired"), []);
    folders.node.remove().expect("removed");
    assert_eq!(folders.files(), ["net.d/10-pods.conf"]);
    assert_eq!(folders.read("net.d/10-pods.conf"), renewed);
}

#[test]
fn a_configuration_that_cannot_be_chained_to_is_named_and_left_unchanged() {
    let mut folders = Folders::new("refuse");
    let said = |folders: &mut Folders| {
        folders
            .node
            .repair()
            .expect_err("nothing to chain to")
            .to_string()
    };
    assert!(said(&mut folders).starts_with("there is no network configuration in "));
    folders.write("net.d/10-pods.conflist", "{");
    assert!(said(&mut folders).contains("10-pods.conflist is not valid JSON"));
    folders.write(
        "net.d/05-pods.conf",
        json!({ "name": "pods", "type": "bridge" }),
    );
    folders.write("net.d/05-pods.conflist", list());
    let problem = said(&mut folders);
    assert!(
        problem.contains("cannot turn the network configuration"),
        "{problem}"
    );
    assert_eq!(folders.read("net.d/05-pods.conflist"), list());
}
