//! Edits a network configuration: the plugin at the end of its list, or removed from it. Pure.

use serde_json::{Value, json};
use thiserror::Error;

use super::{ANNOTATIONS_CAPABILITY, PLUGIN};

/// Why a plugin cannot be chained to this configuration.
#[derive(Debug, Error)]
pub enum ChainError {
    #[error("is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("has no list of plugins")]
    NoPlugins,
    #[error("has no type of plugin")]
    NoType,
}

fn entry() -> Value {
    json!({ "type": PLUGIN, "capabilities": { ANNOTATIONS_CAPABILITY: true } })
}

fn is_ours(plugin: &Value) -> bool {
    plugin["type"] == PLUGIN
}

fn plugins(list: &mut Value) -> Result<&mut Vec<Value>, ChainError> {
    list.get_mut("plugins")
        .and_then(Value::as_array_mut)
        .ok_or(ChainError::NoPlugins)
}

fn written(list: &Value) -> Result<String, ChainError> {
    Ok(serde_json::to_string_pretty(list)? + "\n")
}

/// A list with the plugin in it. `None`: it is in place already.
pub fn chained(list: &str) -> Result<Option<String>, ChainError> {
    let mut list: Value = serde_json::from_str(list)?;
    let plugins = plugins(&mut list)?;
    let ours: Vec<_> = plugins.iter().filter(|plugin| is_ours(plugin)).collect();
    if ours == [&entry()] {
        return Ok(None);
    }
    plugins.retain(|plugin| !is_ours(plugin));
    plugins.push(entry());
    written(&list).map(Some)
}

/// A list without the plugin. `None`: it does not contain the plugin.
pub fn unchained(list: &str) -> Result<Option<String>, ChainError> {
    let mut list: Value = serde_json::from_str(list)?;
    let plugins = plugins(&mut list)?;
    let before = plugins.len();
    plugins.retain(|plugin| !is_ours(plugin));
    match plugins.len() == before {
        true => Ok(None),
        false => written(&list).map(Some),
    }
}

/// The list equivalent to a configuration of one plugin, with ours added.
pub fn list_of(single: &str) -> Result<String, ChainError> {
    let mut single: Value = serde_json::from_str(single)?;
    if !single["type"].is_string() {
        return Err(ChainError::NoType);
    }
    let mut list = json!({});
    for key in ["cniVersion", "name"] {
        if let Some(value) = single.as_object_mut().and_then(|single| single.remove(key)) {
            list[key] = value;
        }
    }
    list["plugins"] = json!([single, entry()]);
    written(&list)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [
        {"type": "ptp", "ipam": {"type": "host-local"}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;

    fn value(text: &str) -> Value {
        serde_json::from_str(text).expect("JSON")
    }

    #[test]
    fn the_plugin_comes_last_and_is_chained_once() {
        let list = chained(LIST).expect("a list").expect("a change");
        let plugins = value(&list)["plugins"].clone();
        let types: Vec<_> = plugins
            .as_array()
            .expect("plugins")
            .iter()
            .map(|plugin| &plugin["type"])
            .collect();
        assert_eq!(types, ["ptp", "portmap", "naru-cni"]);
        assert_eq!(plugins[2]["capabilities"][ANNOTATIONS_CAPABILITY], true);
        assert_eq!(chained(&list).expect("a list"), None);
    }

    #[test]
    fn removal_restores_the_meaning_of_the_list() {
        let list = chained(LIST).expect("a list").expect("a change");
        let without = unchained(&list).expect("a list").expect("a change");
        assert_eq!(value(&without), value(LIST));
        assert_eq!(unchained(LIST).expect("a list"), None);
    }

    #[test]
    fn a_duplicate_or_wrong_entry_is_repaired() {
        let wrong = r#"{"name": "pods", "plugins": [
            {"type": "naru-cni"}, {"type": "ptp"}, {"type": "naru-cni"}]}"#;
        let right = chained(wrong).expect("a list").expect("a change");
        assert_eq!(
            value(&right)["plugins"],
            json!([{ "type": "ptp" }, entry()])
        );
        // Another plugin may be chained behind it.
        let behind =
            json!({ "name": "pods", "plugins": [{ "type": "ptp" }, entry(), { "type": "other" }] });
        assert_eq!(chained(&behind.to_string()).expect("a list"), None);
    }

    #[test]
    fn a_configuration_of_one_plugin_becomes_a_list() {
        let list =
            list_of(r#"{"cniVersion": "0.4.0", "name": "pods", "type": "bridge", "mtu": 1400}"#)
                .expect("a list");
        assert_eq!(
            value(&list),
            json!({
                "cniVersion": "0.4.0",
                "name": "pods",
                "plugins": [{ "type": "bridge", "mtu": 1400 }, entry()],
            })
        );
    }

    #[test]
    fn an_invalid_network_is_rejected() {
        assert!(matches!(chained("{"), Err(ChainError::Json(_))));
        assert!(matches!(chained("{}"), Err(ChainError::NoPlugins)));
        assert!(matches!(list_of("{}"), Err(ChainError::NoType)));
    }
}
