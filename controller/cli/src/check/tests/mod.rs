//! A whole check against an API server in memory: the report for a healthy cluster, and for each
//! problem.

mod after;
mod before;
mod fixture;
mod mesh;

use std::collections::BTreeSet;

use serde_json::Value;

use super::Stage;
use super::finding::Level;
use super::rights::{RIGHTS, Where};
use crate::report::Output;
use fixture::*;

#[tokio::test]
async fn a_cluster_without_naru_is_checked_for_what_an_installation_needs() {
    let api = empty();
    let report = report(&api).await;
    assert_eq!(report.stage, Stage::Before);
    assert!(
        above(&report, Level::Info).is_empty(),
        "{:#?}",
        above(&report, Level::Info)
    );
    let mut text = Vec::new();
    report.write(Output::Text, &mut text).expect("memory");
    let text = String::from_utf8(text).expect("text");
    assert!(text.contains("Naru can be installed"), "{text}");
}

#[tokio::test]
async fn a_healthy_installation_has_no_warning_and_is_not_written_to() {
    let api = installed();
    let report = report(&api).await;
    assert_eq!(report.stage, Stage::After);
    assert!(
        above(&report, Level::Info).is_empty(),
        "{:#?}",
        above(&report, Level::Info)
    );
    for (method, target, _) in api.take_written() {
        let is_review = target.starts_with(RIGHTS_OF);
        assert!(
            is_review || target.contains("dryRun=All"),
            "{method} {target}"
        );
    }
    let mut json = Vec::new();
    report.write(Output::Json, &mut json).expect("memory");
    let json: Value = serde_json::from_slice(&json).expect("JSON");
    assert_eq!(json["ok"], true);
    assert_eq!(json["stage"], "after");
    assert!(
        json["groups"]
            .as_array()
            .is_some_and(|groups| groups.len() == 7)
    );
}

#[tokio::test]
async fn an_unreachable_api_server_is_one_line() {
    let api = installed();
    api.down(true);
    let wrong = wrong(&api).await;
    assert_eq!(at(&wrong), ("api-server", Level::Failure));
    assert!(wrong.text.contains("https://api"), "{}", wrong.text);
}

#[tokio::test]
async fn a_user_without_permissions_in_the_controllers_namespace_gets_a_failure() {
    let api = installed();
    let forbidden = crate::fake_api::status(403, "deployments.apps is forbidden: User eve");
    api.document(
        "/apis/apps/v1/namespaces/naru-system/deployments/naru-controller",
        forbidden,
    );
    let found = wrong(&api).await;
    assert_eq!(at(&found), ("ready", Level::Failure));
    assert!(found.text.contains("User eve"), "{}", found.text);
    let fix = found.fix.unwrap_or_default();
    assert!(
        fix.contains("naru-system") && fix.contains("a user who may"),
        "{fix}"
    );
    // Checks of other namespaces still run.
    api.apply(ROUTES, route("False"));
    let report = report(&api).await;
    assert_eq!(report.stage, Stage::After);
    let checks: Vec<_> = above(&report, Level::Info)
        .iter()
        .map(|f| f.check)
        .collect();
    assert_eq!(checks, ["ready", "accepted"]);
    let mut text = Vec::new();
    report.write(Output::Text, &mut text).expect("memory");
    let text = String::from_utf8(text).expect("text");
    assert!(text.contains("; 1 checks could not be made"), "{text}");
    assert!(!text.contains("; Naru works"), "{text}");
}

/// One verb on one kind of object.
type Verb = (Where, String, String, String, String);

#[test]
fn the_controllers_rights_are_those_of_the_chart() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../charts/naru/templates/rbac.yaml"
    );
    let template = std::fs::read_to_string(path).expect(path);
    // Strip the template syntax of Helm: conditions, labels, and the values of which one is a name.
    let lines = template
        .lines()
        .filter(|line| !line.trim_start().starts_with("{{-"));
    let text: String = lines
        .map(|line| match line.split_once("{{") {
            Some((before, after)) => {
                let after = after.rsplit_once("}}").map_or("", |(_, after)| after);
                format!("{before}value{after}\n")
            }
            None => format!("{line}\n"),
        })
        .collect();
    let mut given = BTreeSet::new();
    for document in text.split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document).expect("YAML");
        let place = match object["kind"].as_str() {
            Some("ClusterRole") => Where::Everywhere,
            Some("Role") => Where::OwnNamespace,
            _ => continue,
        };
        let list = |value: &Value| -> Vec<String> {
            let items = value.as_array().into_iter().flatten();
            items
                .filter_map(|item| item.as_str().map(str::to_owned))
                .collect()
        };
        for rule in object["rules"].as_array().into_iter().flatten() {
            let mut names = list(&rule["resourceNames"]);
            if names.is_empty() {
                names.push(String::new());
            }
            for group in list(&rule["apiGroups"]) {
                for resource in list(&rule["resources"]) {
                    for name in &names {
                        for verb in list(&rule["verbs"]) {
                            given.insert((
                                place,
                                group.clone(),
                                resource.clone(),
                                name.clone(),
                                verb,
                            ));
                        }
                    }
                }
            }
        }
    }
    // A value names the authority's Secret, and the role contains it only if a value asks for it.
    given.retain(|(_, _, resource, ..)| resource != "secrets");
    let known: BTreeSet<Verb> = RIGHTS
        .iter()
        .flat_map(|(place, group, resource, name, verbs)| {
            let text = |text: &str| text.to_owned();
            verbs.iter().map(move |verb| {
                (
                    *place,
                    text(group),
                    text(resource),
                    text(name.unwrap_or_default()),
                    text(verb),
                )
            })
        })
        .collect();
    assert_eq!(given, known);
}
