//! From the kernel's scheduler to the Alertmanager: a VM that really is starved is reported, and VMs
//! that really get their share are not.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "../../ecs-exporter/tests/common/mod.rs"]
mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::servers::Server;
use common::{loopback, tools, wait_for};
use ecs_exporter::mixin::{Span, Thresholds, files_with};
use ecs_exporter::{Config, spawn_in_thread};
use ecs_microvm::WorkloadKind;
use ecs_tests::scheduling::Scheduling;
use ecs_tests::{TestVm, rig, root, slow};
use serde_json::Value;

/// How long an alert may take from its cause to the Alertmanager; it takes about 15 s.
const SOON: Duration = Duration::from_secs(90);
/// How long the fair host is watched: longer than any alert takes.
const QUIET: Duration = Duration::from_secs(15);

/// The usual thresholds with seconds in place of minutes.
fn hasty() -> Thresholds {
    Thresholds {
        // Long against the slices of a busy machine.
        rate_window: Span::seconds(8),
        drift_for: Span::seconds(3),
        starved_for: Span::seconds(3),
        jain_for: Span::seconds(3),
        down_for: Span::seconds(15),
        collector_for: Span::seconds(3),
        // Two vCPUs a CPU: that each waits half of the time is what this host is for.
        ready_high: 0.9,
        ready_critical: 0.95,
        ..Thresholds::default()
    }
}

/// Lays out what `deploy/prometheus/prometheus.yml` refers to; returns it with shorter intervals.
fn site(dir: &Path, exporter: &str, manager: &str) -> String {
    let rules = dir.join("ecs/rules");
    let targets = dir.join("ecs/targets");
    for folder in [&rules, &targets] {
        fs::create_dir_all(folder).unwrap();
    }
    for (path, text) in files_with(&hasty()) {
        if let Some(name) = path.strip_prefix("rules/") {
            fs::write(rules.join(name), text).unwrap();
        }
    }
    fs::write(
        targets.join("here.yaml"),
        format!("- targets: ['{exporter}']\n"),
    )
    .unwrap();
    let config = fs::read_to_string(root().join("deploy/prometheus/prometheus.yml")).unwrap();
    config
        .replace("15s", "1s")
        .replace("localhost:9093", manager)
}

/// Binds each vCPU of a VM to a CPU of its own, with a nice value.
fn give(vm: &TestVm, nice: i32, cpus: [u32; 2]) {
    for (tid, cpu) in vm.vcpus().unwrap().into_iter().zip(cpus) {
        Scheduling::give(tid, nice, &[cpu]).unwrap();
    }
}

#[test]
fn a_vm_starved_by_a_fifth_is_reported_and_fair_ones_are_not() {
    slow!("a_vm_starved_by_a_fifth_is_reported_and_fair_ones_are_not");
    let test = "a_vm_starved_by_a_fifth_is_reported_and_fair_ones_are_not";
    let (Some(prometheus), Some(alertmanager)) =
        (tools::prometheus(test), tools::alertmanager(test))
    else {
        return;
    };
    let rig = rig!(test);
    // It observes: what the kernel does is not corrected.
    let _daemon = rig
        .serve(&rig.config("controller = \"observe\"", &["web", "db"]))
        .unwrap();
    let mut vms =
        ["web", "db"].map(|name| rig.vm(&rig.vm_config(name, WorkloadKind::Compute)).unwrap());
    for (vm, name) in vms.iter_mut().zip(["web", "db"]) {
        vm.go().unwrap();
        rig.registered(name, 2).unwrap();
        give(vm, 0, rig.pcpus());
    }

    let exporter = spawn_in_thread(Config {
        listen: vec![loopback()],
        stats_socket: rig.stats_socket(),
        ..Config::default()
    })
    .unwrap();
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let config = fs::read_to_string(root().join("deploy/alertmanager/alertmanager.yml")).unwrap();
    let manager = Server::alertmanager(alertmanager, dirs[0].path(), &config);
    let config = site(
        dirs[1].path(),
        &exporter.addrs()[0].to_string(),
        &manager.addr.to_string(),
    );
    let server = Server::prometheus(&prometheus, dirs[1].path(), &config);

    let deviations = || {
        let series = server.query("vm:ecs_share_deviation:ratio", None);
        let deviation = |series: &Value| series["value"][1].as_str()?.parse::<f64>().ok();
        series.iter().filter_map(deviation).collect::<Vec<_>>()
    };
    wait_for("the deviation is recorded", SOON, || {
        deviations().len() == 2
    });
    // The first values are of the start.
    std::thread::sleep(Duration::from_secs(u64::from(
        hasty().rate_window.as_seconds(),
    )));
    let begin = Instant::now();
    while begin.elapsed() < QUIET {
        let firing = server.query("ALERTS{alertstate=\"firing\"}", None);
        assert!(firing.is_empty(), "{firing:?} {:?}", deviations());
        std::thread::sleep(Duration::from_millis(500));
    }
    println!("fair: deviations {:?}", deviations());
    let known = |name: &str, vm: &str| {
        let alerts = manager.json("/api/v2/alerts");
        alerts.as_array().unwrap().iter().any(|alert| {
            let labels = &alert["labels"];
            labels["alertname"] == name && labels["vm"] == vm
        })
    };
    assert_eq!(manager.json("/api/v2/alerts"), serde_json::json!([]));

    // Behind the daemon's back, which takes the weights for equal: 1586 against 1024 for the kernel,
    // so db gets 39 % in place of half.
    give(&vms[0], -2, rig.pcpus());
    wait_for("the alerts are in the Alertmanager", SOON, || {
        known("EcsVmStarved", "db")
            && known("EcsVmFairnessDrift", "db")
            && known("EcsVmFairnessDrift", "web")
    });
    let unfair = deviations();
    println!("starved: deviations {unfair:?}");
    assert!(
        unfair.iter().any(|it| (-0.35..-0.12).contains(it)),
        "{unfair:?}"
    );
    assert!(!known("EcsVmStarved", "web"));

    give(&vms[0], 0, rig.pcpus());
    wait_for("the alerts end", SOON, || {
        server
            .query("ALERTS{alertname=~\"EcsVm.+\"}", None)
            .is_empty()
    });
}
