//! The demo, the statistics and the exporter, end to end.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use ecs_microvm::WorkloadKind;
use ecs_stats::Snapshot;
use ecs_tests::process::{Process, until};
use ecs_tests::{Rig, TestVm, rig, skip, workspace_program};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// Why `/dev/kvm` cannot be used, if it cannot.
fn no_kvm(rig: &Rig) -> Option<String> {
    let check = rig.command().arg("check").output().unwrap();
    let check = String::from_utf8_lossy(&check.stdout).into_owned();
    let line = check
        .lines()
        .find(|line| line.starts_with("/dev/kvm"))
        .unwrap();
    let found = line.trim_start_matches("/dev/kvm").trim();
    (!found.starts_with("yes")).then(|| found.to_owned())
}

/// Runs a short demo, and checks that each arm got work done.
fn demo(rig: &Rig, workload: &str, kind: &str) {
    let [first, second] = rig.pcpus();
    let (json, html) = (rig.dir().join("out.json"), rig.dir().join("out.html"));
    let log = rig.dir().join("demo.log");
    let mut command = rig.command();
    command
        .args([
            "demo",
            "--seconds",
            "0.5",
            "--runs",
            "1",
            "--json",
            "-",
            "--quiet",
        ])
        .args(["--workload", workload, "--kind", kind])
        .args(["--pcpus", &format!("{first},{second}"), "--html"])
        .arg(&html)
        .stdout(File::create(&json).unwrap())
        .stderr(File::create(&log).unwrap());
    let mut process = Process::spawn("the demo", &mut command).unwrap();
    let status = process.wait(PATIENCE).unwrap();
    let said = fs::read_to_string(&log).unwrap();
    assert!(status.success(), "{status}\n{said}");
    assert_eq!(said, "", "--quiet is not");

    let report: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let arms = report["arms"].as_array().unwrap();
    let names: Vec<&str> = arms
        .iter()
        .map(|arm| arm["arm"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["stock", "rotate", "ecs"]);
    for arm in arms {
        let name = &arm["arm"];
        assert!(arm["ops_per_s"].as_f64().unwrap() > 0.0, "{name}: {arm}");
        for vm in arm["runs"][0]["vms"].as_array().unwrap() {
            assert!(vm["ops_per_s"].as_f64().unwrap() > 0.0, "{name}: {vm}");
            assert_eq!(vm["lost_wakeups"], 0, "{name}: {vm}");
        }
    }
    assert!(report["alone_ops_per_s"].as_f64().unwrap() > 0.0);
    let used = report["vcpus_are"].as_str().unwrap();
    assert!(used.starts_with(kind), "asked for {kind}, got {used}");
    let html = fs::read_to_string(&html).unwrap();
    assert!(html.contains("<svg"), "the report has no plot");
}

fn demo_kvm(name: &str, workload: &str) {
    let rig = rig!(name);
    if let Some(reason) = no_kvm(&rig) {
        skip!(name, "{reason}");
    }
    demo(&rig, workload, "kvm");
}

fn demo_thread(name: &str, workload: &str) {
    let rig = rig!(name);
    demo(&rig, workload, "thread");
}

#[test]
fn demo_ticket_kvm() {
    demo_kvm("demo_ticket_kvm", "ticket");
}

#[test]
fn demo_queue_kvm() {
    demo_kvm("demo_queue_kvm", "queue");
}

#[test]
fn demo_rwlock_kvm() {
    demo_kvm("demo_rwlock_kvm", "rwlock");
}

#[test]
fn demo_irq_kvm() {
    demo_kvm("demo_irq_kvm", "irq");
}

#[test]
fn demo_blocking_kvm() {
    demo_kvm("demo_blocking_kvm", "blocking");
}

#[test]
fn demo_compute_kvm() {
    demo_kvm("demo_compute_kvm", "compute");
}

#[test]
fn demo_ticket_thread() {
    demo_thread("demo_ticket_thread", "ticket");
}

#[test]
fn demo_blocking_thread() {
    demo_thread("demo_blocking_thread", "blocking");
}

/// Two VMs at work; a daemon serves them.
fn at_work(rig: &Rig) -> [TestVm; 2] {
    let vms = ["a", "b"].map(|name| {
        let mut vm = rig.vm(&rig.vm_config(name, WorkloadKind::Ticket)).unwrap();
        vm.go().unwrap();
        vm
    });
    for (name, vm) in ["a", "b"].iter().zip(&vms) {
        rig.registered(name, 2).unwrap();
        vm.wait_for_work().unwrap();
        rig.stats_when(name, |stats| stats.grants.total() > 0)
            .unwrap();
    }
    vms
}

#[test]
fn statistics_add_up_while_vms_run() {
    let rig = rig!("statistics_add_up_while_vms_run");
    let _daemon = rig.steer(&["a", "b"]).unwrap();
    let vms = at_work(&rig);
    let mut grants = Vec::new();
    for _ in 0..20 {
        let output = rig
            .command()
            .args(["stats", "--socket"])
            .arg(rig.stats_socket())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let snapshot: Snapshot = serde_json::from_slice(&output.stdout).unwrap();
        snapshot.check_invariants().unwrap();
        assert_eq!(snapshot.host.controller, "userspace");
        assert_eq!(snapshot.host.pcpus, rig.pcpus());
        assert_eq!(snapshot.vms.len(), 2);
        grants.push(snapshot.vms.iter().map(|vm| vm.grants.total()).sum::<u64>());
    }
    assert!(grants.is_sorted(), "a counter went back: {grants:?}");
    assert!(
        grants.first() < grants.last(),
        "nothing was granted meanwhile: {grants:?}"
    );
    drop(vms);
}

/// Body of the answer to a plain GET.
fn get(address: &str) -> String {
    let rest = address.strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    write!(
        stream,
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    body.to_owned()
}

#[test]
fn the_exporter_serves_what_the_daemon_counts() {
    let rig = rig!("the_exporter_serves_what_the_daemon_counts");
    // Before the VMs leave cargo little of the CPUs.
    let program = workspace_program("ecs-exporter").unwrap();
    let _daemon = rig.steer(&["a", "b"]).unwrap();
    let vms = at_work(&rig);
    let (out, log) = (
        rig.dir().join("exporter.out"),
        rig.dir().join("exporter.log"),
    );
    let mut command = Command::new(program);
    command
        .args(["serve", "--no-collector.perf", "--listen", "127.0.0.1:0"])
        .arg("--stats-socket")
        .arg(rig.stats_socket())
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .stderr(File::create(&log).unwrap());
    let _exporter = Process::spawn("the exporter", &mut command).unwrap();
    let line = until("the address of the exporter", PATIENCE, || {
        let text = fs::read_to_string(&out).unwrap();
        text.ends_with('\n').then_some(text)
    });
    let line =
        line.unwrap_or_else(|error| panic!("{error}\n{}", fs::read_to_string(&log).unwrap()));
    let address = line.trim().strip_prefix("listening on ").unwrap();
    let granted = |vm: &str| -> Option<f64> {
        let text = get(address);
        let name = format!("ecs_vm_extension_grants_total{{vm=\"{vm}\",");
        let values = text
            .lines()
            .filter(|line| line.starts_with(&name))
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap());
        let sum: f64 = values.sum();
        (sum > 0.0).then_some(sum)
    };
    for vm in ["a", "b"] {
        let what = format!("extensions of {vm} in the metrics");
        until(&what, Duration::from_secs(10), || granted(vm)).unwrap();
    }
    drop(vms);
}
