//! The host collector: on a /proc made of files, and on real threads of this process.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::*;
use ecs_exporter::host::HostReading;
use ecs_exporter::{ApiConfig, Config, HostCollector, HostConfig};
use regex::Regex;

/// A process in a /proc made of files.
struct Process<'a> {
    proc: &'a Path,
    pid: u32,
}

impl Process<'_> {
    /// Writes a Cloud Hypervisor process with vCPUs of the given CPU times, ns, which all waited
    /// for half of that.
    fn write(&self, arguments: &[&str], vcpus: &[u64]) {
        let folder = self.proc.join(self.pid.to_string());
        std::fs::create_dir_all(folder.join("task")).unwrap();
        std::fs::write(folder.join("comm"), "cloud-hyperviso\n").unwrap();
        std::fs::write(folder.join("cmdline"), arguments.join("\0") + "\0").unwrap();
        std::fs::write(folder.join("cgroup"), "0::/vms.slice\n").unwrap();
        for (number, cpu_ns) in vcpus.iter().enumerate() {
            self.thread(number, &format!("{cpu_ns} {} 7\n", cpu_ns / 2));
        }
        self.stat(vcpus.len() + 1, 500);
    }

    fn stat(&self, threads: usize, start: u64) {
        let stat = format!(
            "{} (cloud hyper) S {} {threads} 0 {start} 0\n",
            self.pid,
            "0 ".repeat(16).trim_end()
        );
        let folder = self.proc.join(self.pid.to_string());
        std::fs::write(folder.join("stat"), stat).unwrap();
    }

    fn thread(&self, vcpu: usize, schedstat: &str) {
        let tid = self.pid as usize + 1 + vcpu;
        let folder = self.proc.join(format!("{}/task/{tid}", self.pid));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("comm"), format!("vcpu{vcpu}\n")).unwrap();
        std::fs::write(folder.join("schedstat"), schedstat).unwrap();
    }

    fn remove_thread(&self, vcpu: usize) {
        let tid = self.pid as usize + 1 + vcpu;
        let folder = self.proc.join(format!("{}/task/{tid}", self.pid));
        std::fs::remove_dir_all(folder).unwrap();
    }
}

fn collector(proc: &Path) -> HostCollector {
    HostCollector::new(HostConfig {
        proc: proc.to_owned(),
        ..HostConfig::default()
    })
}

fn cpu_of(reading: &HostReading) -> Vec<(String, u64, usize)> {
    let of = |vm: &ecs_exporter::host::HostVm| (vm.name.clone(), vm.cpu_ns, vm.vcpus.len());
    reading.vms.iter().map(of).collect()
}

#[test]
fn vms_are_found_followed_and_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (web, db) = (
        Process {
            proc: dir.path(),
            pid: 100,
        },
        Process {
            proc: dir.path(),
            pid: 200,
        },
    );
    web.write(&["ch", "--api-socket", "/run/web.sock"], &[10, 20]);
    db.write(&["ch", "--platform", "uuid=ab-cd"], &[5]);
    // Neither a VM nor a process.
    std::fs::create_dir_all(dir.path().join("300")).unwrap();
    std::fs::write(dir.path().join("300/comm"), "bash\n").unwrap();
    std::fs::write(dir.path().join("uptime"), "1 1\n").unwrap();
    let host = collector(dir.path());
    let reading = host.read().unwrap();
    let named = |name: &str, cpu_ns, vcpus| (name.to_owned(), cpu_ns, vcpus);
    assert_eq!(cpu_of(&reading), [named("web", 30, 2), named("vms", 5, 1)]);
    assert_eq!(reading.vms[1].uuid.as_deref(), Some("ab-cd"));
    assert_eq!(reading.vms[0].delay_ns, 15);
    assert_eq!(reading.vms[0].preemptions, None);

    // Through the descriptors that are kept.
    web.thread(0, "110 55 7\n");
    assert_eq!(cpu_of(&host.read().unwrap())[0], named("web", 130, 2));
    // One comes, one goes: what it had used stays in the sum.
    web.thread(2, "1 0 0\n");
    web.remove_thread(0);
    web.stat(4, 500);
    let _ = host.read().unwrap();
    assert_eq!(cpu_of(&host.read().unwrap())[0], named("web", 131, 2));
    // The process id is used again by another VM: nothing of the old one is left.
    web.stat(3, 900);
    assert_eq!(cpu_of(&host.read().unwrap())[0], named("web", 21, 2));
    std::fs::remove_dir_all(dir.path().join("200")).unwrap();
    assert_eq!(host.read().unwrap().vms.len(), 1);
    drop(dir);
    let error = host.read().unwrap_err().to_string();
    assert!(error.contains("is /proc mounted"), "{error}");
}

#[test]
fn what_a_dying_process_leaves_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let vm = Process {
        proc: dir.path(),
        pid: 100,
    };
    vm.write(&["ch"], &[10, 20]);
    std::fs::write(dir.path().join("100/task/101/schedstat"), "").unwrap();
    std::fs::write(dir.path().join("100/task/102/schedstat"), "nonsense\n").unwrap();
    std::fs::write(dir.path().join("100/cmdline"), b"\xff\xfe\0\0--api-socket").unwrap();
    let reading = collector(dir.path()).read().unwrap();
    assert_eq!(reading.vms[0].cpu_ns, 0);
    std::fs::write(dir.path().join("100/stat"), "100 (x").unwrap();
    assert!(collector(dir.path()).read().unwrap().vms.is_empty());
}

/// Threads named as vCPUs that burn CPU time until it is dropped.
struct Burners {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Burners {
    fn start(count: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let burn = |number| {
            let stop = Arc::clone(&stop);
            thread::Builder::new()
                .name(format!("vcpu{number}"))
                .spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                })
                .unwrap()
        };
        Self {
            threads: (0..count).map(burn).collect(),
            stop,
        }
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// `comm` of this process.
fn own_comm() -> Regex {
    let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
    Regex::new(&format!("^{}$", regex::escape(comm.trim_end()))).unwrap()
}

fn own_vm(host: &HostCollector) -> ecs_exporter::host::HostVm {
    let vms = host.read().unwrap().vms;
    let own = vms.into_iter().find(|vm| vm.pid == std::process::id());
    own.expect("this process")
}

#[test]
fn real_threads_are_measured_with_their_preemptions() {
    let cpus = thread::available_parallelism().unwrap().get();
    let burners = Burners::start(2 * cpus);
    let host = HostCollector::new(HostConfig {
        process: own_comm(),
        perf: Some(Duration::from_millis(20)),
        ..HostConfig::default()
    });
    let has = |vm: &ecs_exporter::host::HostVm| vm.vcpus.len() >= burners.threads.len();
    wait_for("vCPU threads are found", PATIENCE, || has(&own_vm(&host)));
    let before = own_vm(&host);
    wait_for("CPU time and delay grow", PATIENCE, || {
        let now = own_vm(&host);
        now.cpu_ns > before.cpu_ns + 1_000_000 && now.delay_ns > before.delay_ns + 1_000_000
    });
    match host.perf().unwrap() {
        Err(problem) => {
            assert!(problem.contains("CAP_PERFMON"), "{problem}");
            println!("SKIPPED: real_threads_are_measured_with_their_preemptions: {problem}");
        }
        Ok(_) => {
            // Twice as many as CPUs: the host's scheduler must take turns.
            wait_for("preemptions are counted", PATIENCE, || {
                own_vm(&host).preemptions.unwrap() > before.preemptions.unwrap() + 10
            });
            let totals = host.perf().unwrap().unwrap();
            assert!(totals.records > 10 && totals.drain_ns > 0, "{totals:?}");
        }
    }
}

#[test]
fn cycles_are_counted_where_the_machine_has_them() {
    let _burners = Burners::start(1);
    let host = HostCollector::new(HostConfig {
        process: own_comm(),
        hardware: true,
        ..HostConfig::default()
    });
    let name = "cycles_are_counted_where_the_machine_has_them";
    match host.hardware() {
        None => {
            println!("SKIPPED: {name}: this machine has no counters for cycles");
            assert_eq!(own_vm(&host).cycles_and_instructions, None);
        }
        Some(Err(problem)) => println!("SKIPPED: {name}: {problem}"),
        Some(Ok(())) => wait_for("cycles are counted", PATIENCE, || {
            own_vm(&host)
                .cycles_and_instructions
                .is_some_and(|(cycles, instructions)| cycles > 0 && instructions > 0)
        }),
    }
}

/// Answers like Cloud Hypervisor's API, one connection after the other, until the test ends.
fn vmm_api(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut line = String::new();
            BufReader::new(stream.try_clone().unwrap())
                .read_line(&mut line)
                .unwrap();
            let body = match line.trim_end() {
                "GET /api/v1/vmm.ping HTTP/1.1" => r#"{"version":"v48.0"}"#,
                "GET /api/v1/vm.info HTTP/1.1" => {
                    r#"{"config":{"cpus":{"boot_vcpus":2},"platform":{"uuid":"9f-api"}},"state":"Running"}"#
                }
                other => panic!("{other}"),
            };
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\
                 Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            // The client may have left.
            let _ = stream.write_all(answer.as_bytes());
        }
    });
}

#[test]
fn vmms_are_asked_and_one_that_hangs_or_babbles_costs_its_time_only() {
    let dir = tempfile::tempdir().unwrap();
    let proc = dir.path().join("proc");
    let sockets = ["good", "hung", "rude", "gone"].map(|name| dir.path().join(name));
    for (pid, socket) in (100u32..).step_by(100).zip(&sockets) {
        let path = format!("path={}", socket.display());
        Process { proc: &proc, pid }.write(&["ch", "--api-socket", &path], &[1]);
    }
    vmm_api(&sockets[0]);
    let _hung = UnixListener::bind(&sockets[1]).unwrap();
    let rude = UnixListener::bind(&sockets[2]).unwrap();
    thread::spawn(move || {
        for mut stream in rude.incoming().flatten() {
            let _ = stream.write_all(b"SSH-2.0-not HTTP\r\n\r\n");
        }
    });
    let host = Arc::new(HostCollector::new(HostConfig {
        proc,
        api: Some(ApiConfig {
            interval: Duration::from_secs(60),
            timeout: Duration::from_millis(300),
        }),
        ..HostConfig::default()
    }));
    assert!(
        host.read()
            .unwrap()
            .vms
            .iter()
            .all(|vm| vm.api_up.is_none())
    );
    let begin = Instant::now();
    let runtime = ecs_exporter::runtime().unwrap();
    runtime.block_on(Arc::clone(&host).refresh_api()).unwrap();
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "{:?}",
        begin.elapsed()
    );
    let vms = host.read().unwrap().vms;
    let up: Vec<_> = vms.iter().map(|vm| vm.api_up).collect();
    assert_eq!(up, [Some(true), Some(false), Some(false), Some(false)]);
    assert_eq!(vms[0].uuid.as_deref(), Some("9f-api"));
}

#[test]
fn the_exporter_shows_vms_without_any_vmm_ecs() {
    let dir = tempfile::tempdir().unwrap();
    Process {
        proc: dir.path(),
        pid: 100,
    }
    .write(&["ch", "--api-socket", "/run/web.sock"], &[10]);
    let stack = Stack::with_config(Config {
        host: Some(HostConfig {
            proc: dir.path().to_owned(),
            ..HostConfig::default()
        }),
        ..Config::default()
    });
    let text = stack.metrics();
    assert_eq!(value(&text, "ecs_up"), Some(0.0));
    assert_eq!(value(&text, "ecs_vm_vcpus{vm=\"web\"}"), Some(1.0));
    assert_eq!(
        value(&text, "ecs_scrape_collector_success{collector=\"host\"}"),
        Some(1.0)
    );
    assert_eq!(stack.get("/-/ready").status, 200);
    assert_eq!(stack.get("/metrics/vm/nobody").status, 404);
    assert!(stack.get("/").text().contains("/metrics/vm/web"));

    // vmm-ecs appears and serves the same process under a name of its own.
    let mut snapshot = with_vms(&["served"]);
    snapshot.vms[0].pid = 100;
    let _daemon = stack.daemon(snapshot);
    let text = stack.metrics();
    assert_eq!(value(&text, "ecs_vm_vcpus{vm=\"web\"}"), None);
    assert!(text.contains("vm=\"served\",vm_uuid") || text.contains("vm=\"served\""));
    assert!(text.contains("api_socket=\"/run/web.sock\""), "{text}");
}

#[test]
fn a_missing_privilege_is_a_failed_collector_not_a_failed_scrape() {
    // Rings cannot be opened for a user without privilege: run the binary as one.
    let name = "a_missing_privilege_is_a_failed_collector_not_a_failed_scrape";
    let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid");
    if paranoid
        .unwrap_or_default()
        .trim()
        .parse::<i32>()
        .unwrap_or(0)
        < 1
    {
        println!("SKIPPED: {name}: this kernel lets everybody read context switches");
        return;
    }
    // The program may lie where only root may look.
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("ecs-exporter");
    std::fs::copy(env!("CARGO_BIN_EXE_ecs-exporter"), &program).unwrap();
    let open = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    let mut command = std::process::Command::new("setpriv");
    command
        .args([
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "--bounding-set=-all",
        ])
        .arg(&program)
        .args(["scrape", "--stats.socket=/nowhere/stats.sock"]);
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(command.output()));
    let output = match receiver.recv_timeout(PATIENCE).unwrap() {
        Ok(output) if !String::from_utf8_lossy(&output.stderr).contains("setpriv:") => output,
        _ => {
            println!("SKIPPED: {name}: setpriv cannot drop privileges here");
            return;
        }
    };
    let text = String::from_utf8(output.stdout).unwrap();
    let success = |name: &str| {
        value(
            &text,
            &format!("ecs_scrape_collector_success{{collector=\"{name}\"}}"),
        )
    };
    assert_eq!(success("perf"), Some(0.0), "{text}");
    assert_eq!(success("host"), Some(1.0));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("CAP_PERFMON"), "{said}");
}
