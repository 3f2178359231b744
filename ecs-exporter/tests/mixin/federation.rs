//! One Prometheus over another: what it takes is enough for the fleet dashboard.

use std::time::Duration;

use serde_json::Value;

use crate::alertmanager::site;
use crate::common::servers::Server;
use crate::common::{tools, wait_for};
use crate::panels::filled_in;
use crate::synthetic::{FakeExporter, serve_json};
use crate::{files, read};

const SOON: Duration = Duration::from_secs(40);
/// What deploy/prometheus/federation.yml promises, with room for one unfair VM and its alerts.
const SERIES_A_HOST: f64 = 30.0;

#[test]
fn a_federating_prometheus_has_the_fleet_dashboard_and_little_else() {
    let test = "a_federating_prometheus_has_the_fleet_dashboard_and_little_else";
    let Some(prometheus) = tools::prometheus(test) else {
        return;
    };
    let exporter = FakeExporter::start(&["web", "batch"]);
    exporter.share(&[1.2, 0.8]);
    let inventory = serve_json(format!("[{{\"targets\": [\"{}\"]}}]", exporter.addr));
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());

    let config = site(dirs[0].path(), "deploy/prometheus/prometheus-http-sd.yml")
        .replace("inventory.example", &inventory.to_string());
    let site = Server::prometheus(&prometheus, dirs[0].path(), &config);
    let config = read("deploy/prometheus/federation.yml")
        .replace("30s", "1s")
        .replace("prometheus-east:9090", &site.addr.to_string());
    let fleet = Server::prometheus(&prometheus, dirs[1].path(), &config);

    let dashboards = files::dashboards();
    let (_, dashboard) = dashboards
        .iter()
        .find(|(path, _)| path.ends_with("ecs-fleet.json"))
        .unwrap();
    for panel in files::panels(dashboard) {
        for target in panel["targets"].as_array().unwrap() {
            let expr = filled_in(target["expr"].as_str().unwrap());
            let shows = || !fleet.query(&expr, None).is_empty();
            wait_for(&format!("{} shows {expr}", panel["title"]), SOON, shows);
        }
    }
    // Labels are the site's own, and the site is told apart.
    let up = fleet.query("ecs_up", None);
    assert_eq!(up[0]["metric"]["job"], "ecs-exporter", "{up:?}");
    assert_eq!(up[0]["metric"]["site"], "east", "{up:?}");

    let value = |series: Vec<Value>| -> f64 {
        let text = series[0]["value"][1].as_str().unwrap();
        text.parse().unwrap()
    };
    let count = value(fleet.query("count({job=\"ecs-exporter\"})", None));
    assert!(count <= SERIES_A_HOST, "{count} series for one host");
    assert!(fleet.query("{__name__=~\"ecs_vm_.+\"}", None).is_empty());
}
