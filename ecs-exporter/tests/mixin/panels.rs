//! Every panel's query, on a real Prometheus over an hour of made-up data.

use std::fs;
use std::path::Path;
use std::process::Command;

use ecs_exporter::mixin::Thresholds;
use serde_json::{Value, json};

use crate::common::servers::Server;
use crate::common::tools;
use crate::files;
use crate::synthetic::{Vm, samples};

/// The last moment of the data, in seconds since 1970.
pub(crate) const END: u64 = 1_790_000_000;
pub(crate) const LENGTH: u64 = 3600;
pub(crate) const STEP: usize = 30;
/// Rules that depend on rules that depend on rules.
const LEVELS: usize = 4;

/// An hour of one host in OpenMetrics, with an unfair VM and its alert.
fn history() -> String {
    let mut text = String::new();
    for time in (END - LENGTH..=END).step_by(STEP) {
        let seconds = (time - (END - LENGTH)) as f64 + 60.0;
        let vm = |name, share| Vm {
            name,
            received: share * seconds,
        };
        let vms = [vm("web", 1.2), vm("batch", 0.8)];
        let mut lines = samples(
            &vms,
            seconds,
            &[("job", "ecs-exporter"), ("instance", "h1")],
        );
        let alert = "alertname=\"EcsVmStarved\",alertstate=\"firing\",severity=\"critical\"";
        lines.push(format!(
            "ALERTS{{job=\"ecs-exporter\",instance=\"h1\",vm=\"batch\",{alert}}} 1"
        ));
        for line in lines {
            text.push_str(&format!("{line} {time}\n"));
        }
    }
    text + "# EOF\n"
}

fn promtool(program: &Path, args: &[&str]) {
    tools::run(Command::new(program).args(args)).unwrap_or_else(|error| panic!("{error}"));
}

/// Adds blocks with the recorded series: one pass a level, with the rules that have no data yet.
fn record(promtool_path: &Path, prometheus: &Path, dir: &Path) -> Server {
    let mut server = Server::prometheus(prometheus, dir, "{}");
    for _ in 0..LEVELS {
        let rules = files::rules(&Thresholds::default(), "rules/recording.yaml");
        let missing: Vec<Value> = rules
            .into_iter()
            .filter(|rule| {
                let record = rule["record"].as_str().unwrap();
                server.query(record, Some(END)).is_empty()
            })
            .collect();
        if missing.is_empty() {
            break;
        }
        let path = dir.join("rules.json");
        let group = json!({ "groups": [{ "name": "missing", "rules": missing }] });
        fs::write(&path, group.to_string()).unwrap();
        promtool(
            promtool_path,
            &[
                "tsdb",
                "create-blocks-from",
                "rules",
                &format!("--start={}", END - LENGTH),
                &format!("--end={END}"),
                &format!("--eval-interval={STEP}s"),
                &format!("--url=http://{}", server.addr),
                &format!("--output-dir={}", dir.join("data").display()),
                path.to_str().unwrap(),
            ],
        );
        // A running server looks for new blocks once a minute, a new one at once.
        drop(server);
        server = Server::prometheus(prometheus, dir, "{}");
    }
    server
}

/// A Prometheus with that hour and what is recorded of it; `None`, and a printed reason, where there is
/// no Prometheus.
pub(crate) fn with_history(test: &str, dir: &Path) -> Option<Server> {
    let (promtool_path, prometheus) = (tools::promtool(test)?, tools::prometheus(test)?);
    let text = dir.join("history.om");
    fs::write(&text, history()).unwrap();
    let data = dir.join("data");
    promtool(
        &promtool_path,
        &[
            "tsdb",
            "create-blocks-from",
            "openmetrics",
            "--quiet",
            text.to_str().unwrap(),
            data.to_str().unwrap(),
        ],
    );
    Some(record(&promtool_path, &prometheus, dir))
}

#[test]
fn every_panel_shows_data() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = with_history("every_panel_shows_data", dir.path()) else {
        return;
    };
    let mut empty = Vec::new();
    for (path, dashboard) in files::dashboards() {
        for panel in files::panels(&dashboard) {
            for target in panel["targets"].as_array().unwrap() {
                let expr = filled_in(target["expr"].as_str().unwrap());
                let series = server.query(&expr, Some(END));
                let real = |series: &Value| series["value"][1].as_str() != Some("NaN");
                if !series.iter().any(real) {
                    empty.push(format!("{path}: {}: {expr}", panel["title"]));
                }
            }
        }
    }
    assert!(empty.is_empty(), "no data:\n{}", empty.join("\n"));
}

/// A query as Grafana sends it, for one host and VM.
pub(crate) fn filled_in(expr: &str) -> String {
    expr.replace("$__rate_interval", "2m")
        .replace("$job", ".*")
        .replace("$instance", "h1")
        .replace("$vm", "web")
}
