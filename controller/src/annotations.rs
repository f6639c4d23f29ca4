//! Naru's labels and annotations: the objects that each applies to, and its values.
//!
//! In: the name and the value of a label or an annotation. Out: its meaning, or the problem. `naru
//! check` compiles this file as well, so that it matches the controller.

#![allow(dead_code)] // The command does not use all of it.

use std::net::IpAddr;

/// Prefix of all names.
pub const PREFIX: &str = "naru.dev/";
/// A name within this edit distance of a known one is probably a typo of it.
const SLIP: usize = 2;

/// Labels and annotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Label,
    Annotation,
}

impl Place {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Label => "label",
            Self::Annotation => "annotation",
        }
    }
}

/// A known name.
struct Known {
    name: &'static str,
    place: Place,
    /// Kinds of objects. Those of a pod also apply to a pod template.
    on: &'static [&'static str],
    check: fn(&str) -> Result<(), String>,
}

const POD: &[&str] = &["Pod"];

const fn of_pod(name: &'static str, check: fn(&str) -> Result<(), String>) -> Known {
    Known {
        name,
        place: Place::Annotation,
        on: POD,
        check,
    }
}

const KNOWN: &[Known] = &[
    Known {
        name: "naru.dev/inject",
        place: Place::Label,
        on: &["Namespace"],
        check: namespace_inject,
    },
    of_pod("naru.dev/inject", |text| inject(text).map(drop)),
    Known {
        name: "naru.dev/injected",
        place: Place::Label,
        on: POD,
        check: any,
    },
    of_pod("naru.dev/skipped", any),
    of_pod("naru.dev/redirection", any),
    Known {
        name: "naru.dev/mtls",
        place: Place::Annotation,
        on: &["Namespace", "Pod"],
        check: |text| is_strict(text).map(drop),
    },
    Known {
        name: "naru.dev/opaque-ports",
        place: Place::Annotation,
        on: &["Namespace", "Service", "Pod"],
        check: |text| ports(text).map(drop),
    },
    of_pod("naru.dev/skip-inbound-ports", |text| ports(text).map(drop)),
    of_pod("naru.dev/skip-outbound-ports", |text| ports(text).map(drop)),
    of_pod("naru.dev/skip-outbound-cidrs", |text| {
        networks(text).map(drop)
    }),
    of_pod("naru.dev/proxy-cpu-request", |text| {
        quantity(text).map(drop)
    }),
    of_pod("naru.dev/proxy-cpu-limit", |text| quantity(text).map(drop)),
    of_pod("naru.dev/proxy-memory-request", |text| {
        quantity(text).map(drop)
    }),
    of_pod("naru.dev/proxy-memory-limit", |text| {
        quantity(text).map(drop)
    }),
    of_pod("naru.dev/log-level", any),
    of_pod("naru.dev/access-log", |text| boolean(text).map(drop)),
    of_pod("naru.dev/class-e-in-use", |text| boolean(text).map(drop)),
    of_pod("naru.dev/client-address", |text| {
        client_address(text).map(drop)
    }),
    of_pod("naru.dev/forwarded-headers", |text| {
        forwarded_headers(text).map(drop)
    }),
    of_pod("naru.dev/proxy-protocol", |text| ports(text).map(drop)),
    Known {
        name: "naru.dev/rotate",
        place: Place::Annotation,
        on: &["Secret"],
        check: any,
    },
];

/// The problem with a label or an annotation of an object. `None`: it is valid, or not one of
/// Naru's.
pub fn problem(place: Place, kind: &str, name: &str, value: &str) -> Option<String> {
    if !name.starts_with(PREFIX) {
        return None;
    }
    let same: Vec<&Known> = KNOWN.iter().filter(|known| known.name == name).collect();
    let here = |known: &&&Known| known.on.contains(&kind);
    let word = place.as_str();
    if let Some(known) = same.iter().filter(here).find(|known| known.place == place) {
        let problem = (known.check)(value).err()?;
        return Some(format!("the {word} {name}: {value:?}: {problem}"));
    }
    if let Some(known) = same.iter().find(here) {
        return Some(format!(
            "the {word} {name} does nothing: on a {kind} it is read as {}",
            match known.place {
                Place::Label => "a label",
                Place::Annotation => "an annotation",
            }
        ));
    }
    if let Some(known) = same.first() {
        let on = known.on.join(", ");
        return Some(format!(
            "the {word} {name} does nothing on a {kind}: it is read on {on}"
        ));
    }
    let close = KNOWN
        .iter()
        .map(|known| (distance(known.name, name), known.name));
    let close = close.min().filter(|(distance, _)| *distance <= SLIP);
    Some(match close {
        Some((_, meant)) => format!("the {word} {name} is not known: is {meant} meant?"),
        None => format!("the {word} {name} is not known"),
    })
}

fn any(_: &str) -> Result<(), String> {
    Ok(())
}

/// The API server selects namespaces by this label, so the match is exact.
fn namespace_inject(text: &str) -> Result<(), String> {
    match text {
        "enabled" | "disabled" => Ok(()),
        _ => Err("expected enabled or disabled".to_owned()),
    }
}

/// Whether a pod gets a sidecar.
pub fn inject(text: &str) -> Result<bool, String> {
    match word(text).as_str() {
        "enabled" => Ok(true),
        "disabled" => Ok(false),
        _ => Err("expected enabled or disabled".to_owned()),
    }
}

/// Whether clients without a mesh identity are rejected.
pub fn is_strict(text: &str) -> Result<bool, String> {
    match word(text).as_str() {
        "strict" => Ok(true),
        "permissive" => Ok(false),
        _ => Err("expected permissive or strict".to_owned()),
    }
}

pub fn boolean(text: &str) -> Result<bool, String> {
    match word(text).as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("expected true or false".to_owned()),
    }
}

/// The client address that the app sees on HTTP connections.
pub fn client_address(text: &str) -> Result<&'static str, String> {
    match word(text).as_str() {
        "preserve" => Ok("preserve"),
        "hide" => Ok("hide"),
        _ => Err("expected preserve or hide".to_owned()),
    }
}

/// A comma-separated list of header fields to which the proxy appends a client's address.
pub fn forwarded_headers(text: &str) -> Result<Vec<&'static str>, String> {
    let field = |item: &str| match word(item).as_str() {
        "x-forwarded-for" => Ok("x-forwarded-for"),
        "forwarded" => Ok("forwarded"),
        _ => Err(format!(
            "{item:?} is not a field for addresses: expected x-forwarded-for, forwarded or both"
        )),
    };
    items(text).map(field).collect()
}

/// Words are case-insensitive and trimmed.
fn word(text: &str) -> String {
    text.trim().to_ascii_lowercase()
}

/// A comma-separated list of ports.
pub fn ports(text: &str) -> Result<Vec<u16>, String> {
    let port = |item: &str| match item.parse::<u16>() {
        Ok(port @ 1..) => Ok(port),
        _ => Err(format!(
            "{item:?} is not a port, 1 to 65535: expected a list as \"3306,5432\""
        )),
    };
    items(text).map(port).collect()
}

/// A comma-separated list of networks, as ADDRESS or ADDRESS/BITS.
pub fn networks(text: &str) -> Result<Vec<&str>, String> {
    let network = |item| {
        let (address, prefix) = str::split_once(item, '/').unwrap_or((item, "0"));
        let longest = match address.parse() {
            Ok(IpAddr::V4(_)) => 32,
            Ok(IpAddr::V6(_)) => 128,
            Err(_) => {
                return Err(format!(
                    "{item:?} is not a network: expected ADDRESS or ADDRESS/BITS"
                ));
            }
        };
        match prefix.parse::<u8>() {
            Ok(prefix) if prefix <= longest => Ok(item),
            _ => Err(format!(
                "{item:?} is not a network: the prefix is 0 to {longest}"
            )),
        }
    };
    items(text).map(network).collect()
}

fn items(text: &str) -> impl Iterator<Item = &str> {
    (text.split(',').map(str::trim)).filter(|item| !item.is_empty())
}

/// A non-negative Kubernetes quantity: digits, an optional decimal point, and a unit or an
/// exponent.
pub fn quantity(text: &str) -> Result<String, String> {
    const UNITS: [&str; 14] = [
        "", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei",
    ];
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let is_number = number.parse::<f64>().is_ok();
    let is_exponent = unit
        .strip_prefix(['e', 'E'])
        .is_some_and(|exponent| exponent.parse::<i8>().is_ok());
    match text.is_empty() || is_number && (is_exponent || UNITS.contains(&unit)) {
        true => Ok(text.to_owned()),
        false => Err("expected a quantity, as 100m, 0.5, 64Mi or 1Gi".to_owned()),
    }
}

/// The edit distance (Levenshtein) between two texts.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, a) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::Place::{Annotation, Label};
    use super::*;

    #[test]
    fn a_valid_value_has_no_problem() {
        for (place, kind, name, value) in [
            (Label, "Namespace", "naru.dev/inject", "enabled"),
            (Annotation, "Pod", "naru.dev/inject", "Disabled"),
            (Annotation, "Namespace", "naru.dev/mtls", "STRICT"),
            (Annotation, "Pod", "naru.dev/mtls", " permissive"),
            (Annotation, "Service", "naru.dev/opaque-ports", "81, 82,"),
            (
                Annotation,
                "Pod",
                "naru.dev/skip-outbound-cidrs",
                "10.0.0.0/8,fd00::1",
            ),
            (Annotation, "Pod", "naru.dev/proxy-memory-limit", "64Mi"),
            (Label, "Pod", "naru.dev/injected", "true"),
            (Label, "Deployment", "app.kubernetes.io/name", "naru"),
        ] {
            assert_eq!(problem(place, kind, name, value), None, "{name}");
        }
    }

    #[test]
    fn an_unknown_name_or_value_is_reported_with_the_right_one() {
        for (place, kind, name, value, said) in [
            (
                Label,
                "Namespace",
                "naru.dev/inject",
                "true",
                "expected enabled",
            ),
            (
                Label,
                "Namespace",
                "naru.dev/inject",
                "Enabled",
                "expected enabled",
            ),
            (
                Annotation,
                "Namespace",
                "naru.dev/inject",
                "enabled",
                "read as a label",
            ),
            (
                Label,
                "Pod",
                "naru.dev/inject",
                "enabled",
                "read as an annotation",
            ),
            (
                Label,
                "Namespace",
                "naru.dev/mtls",
                "strict",
                "read as an annotation",
            ),
            (
                Annotation,
                "Namespace",
                "naru.dev/mtls",
                "on",
                "expected permissive or strict",
            ),
            (
                Annotation,
                "Service",
                "naru.dev/mtls",
                "strict",
                "read on Namespace, Pod",
            ),
            (
                Annotation,
                "Deployment",
                "naru.dev/mtls",
                "strict",
                "read on Namespace, Pod",
            ),
            (
                Annotation,
                "Pod",
                "naru.dev/mtsl",
                "strict",
                "is naru.dev/mtls meant?",
            ),
            (
                Annotation,
                "Pod",
                "naru.dev/opaque-port",
                "80",
                "is naru.dev/opaque-ports meant?",
            ),
            (Annotation, "Pod", "naru.dev/canary", "x", "is not known"),
            (
                Annotation,
                "Pod",
                "naru.dev/opaque-ports",
                "80-90",
                "not a port",
            ),
            (
                Annotation,
                "Pod",
                "naru.dev/opaque-ports",
                "0",
                "not a port",
            ),
            (
                Annotation,
                "Pod",
                "naru.dev/skip-outbound-cidrs",
                "10.0.0.0/33",
                "0 to 32",
            ),
            (
                Annotation,
                "Pod",
                "naru.dev/access-log",
                "yes",
                "true or false",
            ),
        ] {
            let problem = problem(place, kind, name, value).unwrap_or_default();
            assert!(problem.contains(said), "{name}: {value}: {problem:?}");
        }
    }

    #[test]
    fn a_quantity_is_parsed_as_by_kubernetes() {
        for right in ["", "1", "100m", "0.5", "64Mi", "1e3", "1E", "2.5Gi", ".5"] {
            assert_eq!(quantity(right).as_deref(), Ok(right));
        }
        for wrong in ["x", "1 Gi", "-1", "1.2.3", "10mb", "Mi", "1e", "1ee2"] {
            assert!(quantity(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn every_name_in_the_readme_is_known() {
        // This file is compiled in two crates, at two depths.
        let crates = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
        let readme = crates
            .filter_map(|folder| std::fs::read_to_string(folder.join("README.md")).ok())
            .find(|text| text.contains("## Annotations and labels"))
            .expect("controller/README.md");
        let table = readme
            .split("## Annotations and labels")
            .nth(1)
            .expect("a table");
        let table = table.split("\n## ").next().expect("a table");
        let rows: Vec<&str> = table
            .lines()
            .filter_map(|row| row.split('|').nth(1))
            .flat_map(|names| names.split('`').skip(1).step_by(2))
            .collect();
        let known: Vec<&str> = KNOWN.iter().map(|known| known.name).collect();
        for name in &rows {
            assert!(
                known.contains(name),
                "{name} is in controller/README.md alone"
            );
        }
        for name in known {
            assert!(
                rows.contains(&name),
                "{name} is not in controller/README.md's table"
            );
        }
    }
}
