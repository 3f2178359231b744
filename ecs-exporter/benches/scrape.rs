//! The exporter's bars on a simulated host of 1000 VMs with 64 vCPUs each: time of a scrape, CPU
//! time at a scrape every 15 s, resident memory. Prints the figures; fails if a bar is missed.
//!
//! `cargo bench -p ecs-exporter`
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use ecs_stats::{Snapshot, VcpuStats, VmStats};
use nix::sys::resource::{Resource, getrlimit};

const VMS: u32 = 1000;
const VCPUS: u32 = 64;
const SCRAPES: usize = 100;

/// Time between two scrapes of a usual Prometheus.
const INTERVAL: Duration = Duration::from_secs(15);

/// What must hold.
const P99: Duration = Duration::from_millis(250);
const CORE_SHARE: f64 = 0.005;
const RESIDENT_KB: u64 = 64 << 10;
const MIN_SERIES: usize = 35_000;

fn main() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("stats.sock");
    let _daemon = Daemon::start(&socket, host_of(VMS, VCPUS));
    let stats = dir.path().join("stats.yaml");
    let text = format!(
        "vcpus: tenant-000-.*\ncollectors: {{host: {{enabled: false}}, stats: {{socket: {}}}}}\n",
        socket.display()
    );
    std::fs::write(&stats, text).unwrap();
    let served = measure("served by vmm-ecs", &stats, VMS);

    // A kept descriptor a vCPU: as many VMs as this machine's limit allows. Files stand for
    // schedstat, whose cost differs: these figures are shown and held to no bar.
    let (_, descriptors) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let vms = u32::try_from((descriptors - 100) / u64::from(VCPUS)).map_or(VMS, |vms| vms.min(VMS));
    let proc = dir.path().join("proc");
    write_proc(&proc, vms, VCPUS);
    let host = dir.path().join("host.yaml");
    let text = format!(
        "collectors:\n  stats: {{enabled: false}}\n  perf: {{enabled: false}}\n  \
         api: {{enabled: false}}\n  host: {{procfs: {}}}\n",
        proc.display()
    );
    std::fs::write(&host, text).unwrap();
    let found = measure("found in /proc", &host, vms);
    let per_thread = found.cpu / (vms * VCPUS);
    println!("  per thread  {per_thread:.1?}");

    let good = served.p99 < P99
        && served.cpu < INTERVAL.mul_f64(CORE_SHARE)
        && served.resident_kb < RESIDENT_KB
        && served.series >= MIN_SERIES;
    println!(
        "served by vmm-ecs: {}",
        if good { "within the bars" } else { "MISSED" }
    );
    if !good {
        std::process::exit(1);
    }
}

struct Figures {
    series: usize,
    p99: Duration,
    /// A scrape.
    cpu: Duration,
    resident_kb: u64,
}

/// Prints the figures of one configuration.
fn measure(name: &str, config: &Path, vms: u32) -> Figures {
    let exporter = Running::start(config);
    // Prometheus asks for both.
    let headers = "Accept: application/openmetrics-text;version=1.0.0\r\nAccept-Encoding: gzip\r\n";
    let text = get(exporter.addr, "/metrics", "").text();
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    let before = exporter.cpu();
    let mut times: Vec<Duration> = (0..SCRAPES)
        .map(|_| {
            let begin = Instant::now();
            let response = get(exporter.addr, "/metrics", headers);
            assert_eq!(response.status, 200);
            begin.elapsed()
        })
        .collect();
    times.sort();
    let cpu = (exporter.cpu() - before) / u32::try_from(SCRAPES).unwrap();
    let share = cpu.as_secs_f64() / INTERVAL.as_secs_f64();
    let (median, p99) = (times[SCRAPES / 2], times[SCRAPES * 99 / 100]);
    let resident = exporter.resident_kb();
    println!("{name}: {vms} VMs x {VCPUS} vCPUs, {series} series, {SCRAPES} scrapes");
    println!("  scrape      median {median:.1?}, p99 {p99:.1?} (bar {P99:?})");
    println!(
        "  CPU         {cpu:.1?} a scrape, {:.2} % of a core at 15 s (bar {:.1} %)",
        share * 100.0,
        CORE_SHARE * 100.0
    );
    println!(
        "  resident    {:.1} MiB at most (bar {} MiB)",
        resident as f64 / 1024.0,
        RESIDENT_KB / 1024
    );
    Figures {
        series,
        p99,
        cpu,
        resident_kb: resident,
    }
}

/// The program, ended when it is dropped.
struct Running {
    child: Child,
    addr: SocketAddr,
}

impl Running {
    fn start(config: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ecs-exporter"))
            .args(["serve", "--web.listen-address=127.0.0.1:0", "--config.file"])
            .arg(config)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let addr = line
            .trim_end()
            .strip_prefix("listening on http://")
            .unwrap();
        let addr = addr.strip_suffix("/metrics").unwrap().parse().unwrap();
        Self { child, addr }
    }

    /// CPU time of all its threads so far; threads stay once they are started.
    fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let ns = tasks.map(|task| {
            let text = std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap();
            text.split(' ').next().unwrap().parse::<u64>().unwrap()
        });
        Duration::from_nanos(ns.sum())
    }

    /// Most it ever held.
    fn resident_kb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let value = line.unwrap().split_ascii_whitespace().next().unwrap();
        value.parse().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A snapshot with figures as long as after weeks of running.
fn host_of(vms: u32, vcpus: u32) -> Snapshot {
    let long = 1_234_567_890_123_456;
    let vcpu = |vcpu: u32| VcpuStats {
        vcpu,
        tid: 100_000 + vcpu,
        cpu_ns: long + u64::from(vcpu),
        delay_ns: long / 7,
        grants: 123_456,
        preemptions: 1_234_567,
        critical_preemptions: 12_345,
    };
    let template = fixture().vms.pop().unwrap();
    let vm = |number: u32| VmStats {
        name: format!("tenant-{:03}-web-{number:04}", number % 100),
        pid: 1000 + number,
        cpu_ns: long * 64 + u64::from(number),
        fair_cpu_ns: long * 64,
        delay_ns: long * 9,
        vcpus: (0..vcpus).map(vcpu).collect(),
        ..template.clone()
    };
    let mut vms: Vec<VmStats> = (0..vms).map(vm).collect();
    vms.sort_by(|a, b| a.name.cmp(&b.name));
    Snapshot { vms, ..fixture() }
}

/// A /proc of files with Cloud Hypervisor processes.
fn write_proc(proc: &Path, vms: u32, vcpus: u32) {
    for vm in 0..vms {
        let pid = 1_000_000 + vm * 1000;
        let folder = proc.join(pid.to_string());
        std::fs::create_dir_all(folder.join("task")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
        write("comm", "cloud-hyperviso\n");
        write(
            "cmdline",
            &format!("ch\0--api-socket\0/run/vm{vm:04}.sock\0"),
        );
        write("cgroup", "0::/vms.slice\n");
        let mut stat = format!("{pid} (cloud-hyperviso) S ");
        for _ in 0..16 {
            stat.push_str("0 ");
        }
        writeln!(stat, "{} 0 12345 0", vcpus + 3).unwrap();
        write("stat", &stat);
        for vcpu in 0..vcpus {
            let thread = folder.join(format!("task/{}", pid + 1 + vcpu));
            std::fs::create_dir(&thread).unwrap();
            std::fs::write(thread.join("comm"), format!("vcpu{vcpu}\n")).unwrap();
            let mut file = std::fs::File::create(thread.join("schedstat")).unwrap();
            file.write_all(b"1234567890123456 234567890123456 12345678\n")
                .unwrap();
        }
    }
}
