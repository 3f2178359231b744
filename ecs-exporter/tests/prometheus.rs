//! The exposition as the real promtool and the real Prometheus see it. Both come with Debian's
//! package `prometheus`; PROMTOOL and PROMETHEUS may name them, else PATH is searched.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::*;
use ecs_exporter::{Config, Exporter, Format, Reading, Scope};

/// The program, or a printed reason for not finding it.
fn find(test: &str, variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        assert!(
            path.is_file(),
            "{variable} names {}, which is no file",
            path.display()
        );
        return Some(path);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    if found.is_none() {
        println!("SKIPPED: {test}: {name} is neither in PATH nor named by {variable}");
    }
    found
}

/// Ends the process it started when the test ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn promtool_finds_nothing_to_complain_about() {
    let Some(promtool) = find(
        "promtool_finds_nothing_to_complain_about",
        "PROMTOOL",
        "promtool",
    ) else {
        return;
    };
    let exporter = Exporter::new("unused".into(), Duration::ZERO, true).unwrap();
    exporter.count_request("/metrics", 200);
    for snapshot in [fixture(), with_vms(&["a\"b\\c\nd", "ü"])] {
        for scope in [
            exporter.host_scope(),
            Scope::Vm(snapshot.vms[0].name.clone()),
        ] {
            let reading = Reading {
                result: Ok(snapshot.clone()),
                took: Duration::ZERO,
            };
            let text = exporter.expose(reading, scope, Format::Text).unwrap();
            let mut child = Command::new(&promtool)
                .args(["check", "metrics"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child
                .stdin
                .take()
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
            let output = child.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned()
                + &String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && said.trim().is_empty(),
                "{said}\n{text}"
            );
        }
    }
}

/// Value of an instant query that yields one series, `None` while it yields none.
fn query(addr: SocketAddr, expression: &str) -> Option<f64> {
    let encoded: String = expression
        .bytes()
        .map(|byte| format!("%{byte:02x}"))
        .collect();
    let response = get(addr, &format!("/api/v1/query?query={encoded}"), "");
    let json: serde_json::Value = serde_json::from_slice(&response.body).ok()?;
    json["data"]["result"][0]["value"][1].as_str()?.parse().ok()
}

#[test]
fn prometheus_scrapes_it() {
    let Some(prometheus) = find("prometheus_scrapes_it", "PROMETHEUS", "prometheus") else {
        return;
    };
    let stack = Stack::with_config(Config {
        vcpu_metrics: true,
        ..Config::default()
    });
    let daemon = stack.daemon(fixture());
    let dir = tempfile::tempdir().unwrap();
    let addr = TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
    let _running = Running(start(&prometheus, dir.path(), addr, stack.addr()));
    let answers = || std::net::TcpStream::connect(addr).is_ok();
    wait_for("Prometheus listens", Duration::from_secs(30), answers);
    let expect = |expression: &str, wanted: Option<f64>| {
        wait_for(
            &format!("{expression} is {wanted:?}"),
            Duration::from_secs(20),
            || query(addr, expression) == wanted,
        );
    };
    expect("up{job=\"host\"}", Some(1.0));
    expect("up{job=\"vm\"}", Some(1.0));
    expect("ecs_up{job=\"host\"}", Some(1.0));
    expect(
        "sum(ecs_vm_extension_grants_total{job=\"host\",vm=\"web\"})",
        Some(21.0),
    );
    expect(
        "ecs_vm_fairness_delta_seconds{job=\"host\",vm=\"web\"}",
        Some(0.002),
    );
    expect("count(ecs_vcpu_cpu_seconds_total{job=\"vm\"})", Some(2.0));
    let stall = "histogram_quantile(0.5, ecs_host_grant_latency_seconds_bucket{job=\"host\"})";
    expect(&format!("{stall} < bool 1e-6"), Some(1.0));
    // A VM that is gone is stale at the next scrape, not five minutes later.
    let mut less = fixture();
    less.vms.retain(|vm| vm.name != "web");
    daemon.set(less);
    expect("ecs_vm_info{job=\"host\",vm=\"web\"}", None);
    drop(daemon);
    expect("ecs_up{job=\"host\"}", Some(0.0));
    expect("up{job=\"host\"}", Some(1.0));
}

fn start(prometheus: &Path, dir: &Path, addr: SocketAddr, exporter: SocketAddr) -> Child {
    let config = dir.join("prometheus.yml");
    let job = |name: &str, path: &str| {
        format!(
            "  - job_name: {name}\n    scrape_interval: 1s\n    scrape_timeout: 1s\n    \
             metrics_path: {path}\n    static_configs: [{{targets: ['{exporter}']}}]\n"
        )
    };
    let text = format!(
        "scrape_configs:\n{}{}",
        job("host", "/metrics"),
        job("vm", "/metrics/vm/web")
    );
    std::fs::write(&config, text).unwrap();
    Command::new(prometheus)
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            dir.join("data").display()
        ))
        .arg(format!("--web.listen-address={addr}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}
