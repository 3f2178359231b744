//! A VM that loses 20 % of its CPU time to another one, up to the real Alertmanager.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ecs_exporter::mixin::{Span, Thresholds, files_with};
use serde_json::Value;

use crate::common::servers::Server;
use crate::common::{tools, wait_for};
use crate::read;
use crate::synthetic::FakeExporter;

/// How long an alert may take from its cause to the Alertmanager; it takes about 10 s.
const SOON: Duration = Duration::from_secs(60);
/// How long a fair host is watched: longer than any alert takes.
const QUIET: Duration = Duration::from_secs(15);

/// The usual thresholds with seconds in place of minutes.
pub(crate) fn hasty() -> Thresholds {
    Thresholds {
        rate_window: Span::seconds(5),
        drift_for: Span::seconds(2),
        starved_for: Span::seconds(2),
        jain_for: Span::seconds(2),
        ready_for: Span::seconds(2),
        cost_for: Span::seconds(2),
        // Longer: on a busy machine a scrape may be late.
        down_for: Span::seconds(10),
        collector_for: Span::seconds(2),
        series_for: Span::seconds(2),
        reload_for: Span::seconds(2),
        ..Thresholds::default()
    }
}

/// Lays out what `deploy/prometheus/*.yml` refers to, and hastens it.
pub(crate) fn site(dir: &Path, config: &str) -> String {
    let rules = dir.join("ecs/rules");
    fs::create_dir_all(&rules).unwrap();
    for (path, text) in files_with(&hasty()) {
        if let Some(name) = path.strip_prefix("rules/") {
            fs::write(rules.join(name), text).unwrap();
        }
    }
    read(config).replace("15s", "1s")
}

/// Names and VMs of the alerts an Alertmanager knows, each with whether it is muted.
fn alerts(manager: &Server) -> Vec<(String, String, bool)> {
    let alerts = manager.json("/api/v2/alerts");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let alert = |alert: &Value| {
        let muted = alert["status"]["state"] == "suppressed";
        let labels = &alert["labels"];
        (text(&labels["alertname"]), text(&labels["vm"]), muted)
    };
    alerts.as_array().unwrap().iter().map(alert).collect()
}

#[test]
fn a_starved_vm_is_reported_and_a_fair_host_is_not() {
    let test = "a_starved_vm_is_reported_and_a_fair_host_is_not";
    let (Some(prometheus), Some(alertmanager)) =
        (tools::prometheus(test), tools::alertmanager(test))
    else {
        return;
    };
    let exporter = FakeExporter::start(&["web", "batch"]);
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let config = read("deploy/alertmanager/alertmanager.yml");
    let manager = Server::alertmanager(alertmanager, dirs[0].path(), &config);

    let dir = dirs[1].path();
    let config = site(dir, "deploy/prometheus/prometheus.yml")
        .replace("localhost:9093", &manager.addr.to_string());
    let targets = dir.join("ecs/targets");
    fs::create_dir_all(&targets).unwrap();
    let hosts = format!("- targets: ['{}']\n", exporter.addr);
    fs::write(targets.join("hosts.yaml"), hosts).unwrap();
    let server = Server::prometheus(&prometheus, dir, &config);

    let known = || server.query("vm:ecs_share_deviation:ratio", None).len() == 2;
    wait_for("the deviation is recorded", SOON, known);
    let begin = Instant::now();
    while begin.elapsed() < QUIET {
        let firing = server.query("ALERTS{alertstate=\"firing\"}", None);
        assert!(firing.is_empty(), "{firing:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(alerts(&manager), []);

    exporter.share(&[1.2, 0.8]);
    let wanted = [
        // The one that is starved needs no second word, the one that gains is told.
        ("EcsVmStarved", "batch", false),
        ("EcsVmFairnessDrift", "batch", true),
        ("EcsVmFairnessDrift", "web", false),
    ]
    .map(|(name, vm, muted)| (name.to_owned(), vm.to_owned(), muted));
    wait_for("the alerts are in the Alertmanager", SOON, || {
        let alerts = alerts(&manager);
        wanted.iter().all(|wanted| alerts.contains(wanted))
    });
    let told = manager.json("/api/v2/alerts");
    for alert in told.as_array().unwrap() {
        let starved = alert["labels"]["alertname"] == "EcsVmStarved";
        assert!(!starved || alert["labels"]["vm"] == "batch", "{alert}");
        for (name, text) in alert["annotations"].as_object().unwrap() {
            let text = text.as_str().unwrap();
            let rendered = !text.contains("{{") && !text.contains("error");
            assert!(rendered && !text.contains("<no value>"), "{name}: {text}");
        }
    }

    exporter.share(&[1.0, 1.0]);
    let over = || {
        server
            .query("ALERTS{alertname=~\"EcsVm.+\"}", None)
            .is_empty()
    };
    wait_for("the alerts end when the VMs are fair again", SOON, over);
}
