//! The committed files are the generated ones, and whole.

use std::collections::BTreeSet;
use std::process::Command;

use ecs_exporter::mixin::{Thresholds, files, files_with};
use serde_json::Value;

use crate::common::tools;
use crate::{read, tree};

/// Every alert of the rule files: name and rule.
pub(crate) fn alerts(thresholds: &Thresholds) -> Vec<(String, Value)> {
    let rules = rules(thresholds, "rules/alerts.yaml");
    let alert = |rule: Value| (rule["alert"].as_str().unwrap().to_owned(), rule);
    rules.into_iter().map(alert).collect()
}

/// Every rule of one rule file.
pub(crate) fn rules(thresholds: &Thresholds, path: &str) -> Vec<Value> {
    let files = files_with(thresholds);
    let (_, text) = files.iter().find(|(name, _)| *name == path).unwrap();
    let file: Value = serde_saphyr::from_str(text).unwrap();
    let groups = file["groups"].as_array().unwrap();
    let rules = groups
        .iter()
        .map(|group| group["rules"].as_array().unwrap());
    rules.flatten().cloned().collect()
}

/// Every dashboard: path and JSON.
pub(crate) fn dashboards() -> Vec<(&'static str, Value)> {
    let dashboards = files()
        .into_iter()
        .filter(|(path, _)| path.ends_with(".json"));
    dashboards
        .map(|(path, text)| (path, serde_json::from_str(&text).unwrap()))
        .collect()
}

/// Panels of a dashboard that are no rows.
pub(crate) fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels.filter(|panel| panel["type"] != "row")
}

#[test]
fn the_committed_files_are_up_to_date() {
    for (path, text) in files() {
        let committed = read(&format!("dashboards/{path}"));
        let command = if path.starts_with("rules/") {
            "rules"
        } else {
            "dashboards"
        };
        assert!(
            committed == text,
            "dashboards/{path} is out of date: \
             cargo run -p ecs-exporter -- {command} --out dashboards"
        );
    }
}

#[test]
fn every_alert_has_severity_texts_a_runbook_a_dashboard_and_a_test() {
    let dashboards: BTreeSet<String> = dashboards()
        .iter()
        .map(|(_, dashboard)| format!("/d/{}", dashboard["uid"].as_str().unwrap()))
        .collect();
    let mut runbooks = BTreeSet::new();
    for (name, alert) in alerts(&Thresholds::default()) {
        let severity = alert["labels"]["severity"].as_str().unwrap();
        assert!(
            ["critical", "warning", "info"].contains(&severity),
            "{name}"
        );
        let annotation = |key: &str| alert["annotations"][key].as_str().unwrap().to_owned();
        assert!(!annotation("summary").is_empty(), "{name}");
        assert!(annotation("description").ends_with('.'), "{name}");
        let link = annotation("dashboard");
        let (board, _) = link.split_once('?').unwrap();
        assert!(dashboards.contains(board), "{name}: {link}");

        let path = annotation("runbook_url");
        let runbook = read(&path);
        let title = runbook.lines().next().unwrap();
        assert_eq!(title, format!("# {name}"), "{path}");
        let sections: Vec<&str> = runbook
            .lines()
            .filter_map(|line| line.strip_prefix("## "))
            .collect();
        assert_eq!(
            sections,
            ["What it means", "Verify", "What to do", "Whom to call"],
            "{path}"
        );
        runbooks.insert(path);

        let test = read(&format!("dashboards/tests/{name}.yaml"));
        assert!(test.contains("exp_samples: []"), "{name} is never quiet");
        let fires = format!("labels: 'ALERTS{{alertname=\"{name}\"");
        assert!(test.contains(&fires), "{name} never fires");
    }
    for entry in std::fs::read_dir(tree("dashboards/runbooks")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = format!("dashboards/runbooks/{name}");
        assert!(runbooks.contains(&path), "{path} belongs to no alert");
    }
}

#[test]
fn every_panel_has_a_description_a_unit_and_a_place_of_its_own() {
    for (path, dashboard) in dashboards() {
        let mut ids = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let title = panel["title"].as_str().unwrap();
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{path}: {title}");
            let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
            assert!(at("x") + at("w") <= 24, "{path}: {title}");
            for x in at("x")..at("x") + at("w") {
                for y in at("y")..at("y") + at("h") {
                    assert!(taken.insert((x, y)), "{path}: {title} covers another");
                }
            }
        }
        for panel in panels(&dashboard) {
            let title = panel["title"].as_str().unwrap();
            let description = panel["description"].as_str().unwrap();
            assert!(description.ends_with('.'), "{path}: {title}");
            assert!(
                !panel["targets"].as_array().unwrap().is_empty(),
                "{path}: {title}"
            );
        }
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        assert_eq!(variables[0]["name"], "datasource", "{path}");
        let links = dashboard["links"].as_array().unwrap();
        assert!(!links.is_empty(), "{path} leads nowhere");
    }
}

#[test]
fn the_mixin_has_the_same_rules_and_dashboards() {
    let Some(jsonnet) = tools::jsonnet("the_mixin_has_the_same_rules_and_dashboards") else {
        return;
    };
    let visible = "local mixin = import 'mixin.libsonnet'; \
                   { [name]: mixin[name] for name in std.objectFieldsAll(mixin) }";
    let output = Command::new(jsonnet)
        .args(["-e", visible])
        .current_dir(tree("dashboards"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let mixin: Value = serde_json::from_slice(&output.stdout).unwrap();
    let usual = Thresholds::default();
    for (field, path) in [
        ("prometheusRules", "rules/recording.yaml"),
        ("prometheusAlerts", "rules/alerts.yaml"),
    ] {
        let rules = mixin[field]["groups"][0]["rules"].as_array().unwrap();
        assert_eq!(*rules, self::rules(&usual, path), "{field}");
    }
    for (path, dashboard) in dashboards() {
        let name = path.trim_start_matches("grafana/");
        let uid = &mixin["grafanaDashboards"][name]["uid"];
        assert_eq!(*uid, dashboard["uid"], "{path}");
    }
}
