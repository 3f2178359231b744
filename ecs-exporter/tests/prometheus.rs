//! The exposition as the real promtool and the real Prometheus see it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::servers::Server;
use common::*;
use ecs_exporter::{Config, Exporter, Format, Reading, Scope, VmFilter};

#[test]
fn promtool_finds_nothing_to_complain_about() {
    let Some(promtool) = tools::promtool("promtool_finds_nothing_to_complain_about") else {
        return;
    };
    let config = Config {
        vcpus: VmFilter::all(),
        ..Config::default()
    };
    let exporter = Exporter::new(&config).unwrap();
    exporter.count_request("/metrics", 200);
    for snapshot in [fixture(), with_vms(&["a\"b\\c\nd", "ü"])] {
        for scope in [Scope::Host, Scope::Vm(snapshot.vms[0].name.clone())] {
            let reading = Reading::of_stats(Ok(snapshot.clone()));
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
fn query(server: &Server, expression: &str) -> Option<f64> {
    let series = server.query(expression, None);
    series.first()?["value"][1].as_str()?.parse().ok()
}

#[test]
fn prometheus_scrapes_it() {
    let Some(prometheus) = tools::prometheus("prometheus_scrapes_it") else {
        return;
    };
    let stack = Stack::with_config(Config {
        vcpus: VmFilter::all(),
        ..Config::default()
    });
    let daemon = stack.daemon(fixture());
    let dir = tempfile::tempdir().unwrap();
    let server = Server::prometheus(&prometheus, dir.path(), &config(stack.addr()));
    let expect = |expression: &str, wanted: Option<f64>| {
        wait_for(
            &format!("{expression} is {wanted:?}"),
            Duration::from_secs(20),
            || query(&server, expression) == wanted,
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

fn config(exporter: SocketAddr) -> String {
    let job = |name: &str, path: &str| {
        format!(
            "  - job_name: {name}\n    scrape_interval: 1s\n    scrape_timeout: 1s\n    \
             metrics_path: {path}\n    static_configs: [{{targets: ['{exporter}']}}]\n"
        )
    };
    format!(
        "scrape_configs:\n{}{}",
        job("host", "/metrics"),
        job("vm", "/metrics/vm/web")
    )
}
