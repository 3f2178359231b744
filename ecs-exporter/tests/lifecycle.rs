//! The program as operators run it: configuration, reload, systemd, and the small commands.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use common::*;

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ecs-exporter"))
}

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = program().args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// The program while it serves, ended when it is dropped.
struct Running {
    child: Child,
    addr: SocketAddr,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command
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

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -{name} {pid}")])
            .status();
        assert!(sent.unwrap().success());
    }

    fn metrics(&self) -> String {
        get(self.addr, "/metrics", "").text()
    }

    fn reload(&self) -> Response {
        let text =
            "POST /-/reload HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        request(self.addr, text)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A daemon, and a configuration file that reads it.
struct Site {
    dir: tempfile::TempDir,
    _daemon: Daemon,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(&dir.path().join("s"), fixture());
        Self {
            dir,
            _daemon: daemon,
        }
    }

    fn config(&self, rest: &str) -> PathBuf {
        let path = self.dir.path().join("exporter.yaml");
        let socket = self.dir.path().join("s");
        let text = format!(
            "collectors:\n  host: {{enabled: false}}\n  stats:\n    socket: {}\n{rest}",
            socket.display()
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn serve(&self, rest: &str, flags: &[&str]) -> Running {
        Running::start(
            program()
                .args(["serve", "--web.listen-address=127.0.0.1:0", "--config.file"])
                .arg(self.config(rest))
                .args(flags),
        )
    }
}

const RELOADED: &str = "ecs_exporter_config_last_reload_successful";
const RELOAD_TIME: &str = "ecs_exporter_config_last_reload_success_timestamp_seconds";

#[test]
fn a_reload_takes_over_a_good_configuration_and_keeps_out_a_bad_one() {
    let site = Site::new();
    let running = site.serve("", &["--web.enable-lifecycle"]);
    let before = running.metrics();
    assert!(!before.contains("ecs_vcpu_"));
    assert_eq!(value(&before, RELOADED), Some(1.0));

    site.config("vcpus: web\n");
    assert_eq!(running.reload().status, 200);
    let after = running.metrics();
    assert!(after.contains("ecs_vcpu_"));
    assert!(value(&after, RELOAD_TIME) > value(&before, RELOAD_TIME));

    site.config("vcpus: web\nvcpu: x\n");
    let refused = running.reload();
    assert_eq!(refused.status, 500);
    assert!(refused.text().contains("line 6"), "{}", refused.text());
    let text = running.metrics();
    assert!(text.contains("ecs_vcpu_"), "the last good one stays");
    assert_eq!(value(&text, RELOADED), Some(0.0));
    assert_eq!(value(&text, RELOAD_TIME), value(&after, RELOAD_TIME));

    site.config("");
    running.signal("HUP");
    wait_for("SIGHUP is carried out", PATIENCE, || {
        let text = running.metrics();
        !text.contains("ecs_vcpu_") && value(&text, RELOADED) == Some(1.0)
    });
}

#[test]
fn reload_over_http_must_be_asked_for() {
    let site = Site::new();
    let running = site.serve("", &[]);
    assert_eq!(running.reload().status, 404);
    assert_eq!(get(running.addr, "/-/reload", "").status, 404);
    let running = site.serve("web: {enable_lifecycle: true}\n", &[]);
    assert_eq!(get(running.addr, "/-/reload", "").status, 405);
}

#[test]
fn check_config_prints_what_is_in_force_or_why_it_is_refused() {
    let site = Site::new();
    let path = site.config("limits: {max_series: 77}\n");
    let path = path.to_str().unwrap();
    let (code, out, err) = run(&["check-config", "--config.file", path]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(
        out.contains("max_series: 77") && out.contains("drain_interval: 200ms"),
        "{out}"
    );
    let printed = site.dir.path().join("printed.yaml");
    std::fs::write(&printed, &out).unwrap();
    let (_, again, _) = run(&["check-config", "--config.file", printed.to_str().unwrap()]);
    assert_eq!(again, out, "what is printed is a configuration");
    let flags = ["--vcpus=(", "--stats.socket=/x"];
    for arguments in [
        &["check-config", "--config.file", "/nowhere/x.yaml"][..],
        &["check-config", flags[0], flags[1]],
        &["check-config", "--web.config.file=/nowhere/web.yml"],
        &["serve", "--config.file", "/nowhere/x.yaml"],
    ] {
        let (code, out, err) = run(arguments);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{arguments:?}");
        assert!(
            err.starts_with("Error: ") && err.lines().count() == 1,
            "{err}"
        );
    }
}

#[test]
fn systemd_is_told_and_its_watchdog_is_fed() {
    let site = Site::new();
    let path = site.dir.path().join("notify");
    let notify = UnixDatagram::bind(&path).unwrap();
    notify.set_read_timeout(Some(PATIENCE)).unwrap();
    // The watchdog is for one process id, which the shell hands on to the program.
    let running = Running::start(
        Command::new("sh")
            .args(["-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\""])
            .arg(env!("CARGO_BIN_EXE_ecs-exporter"))
            .args(["serve", "--web.listen-address=127.0.0.1:0", "--config.file"])
            .arg(site.config(""))
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "200000"),
    );
    let until = |wanted: &str| {
        let mut seen = Vec::new();
        for _ in 0..100 {
            let mut buffer = [0; 1024];
            let length = notify.recv(&mut buffer).unwrap();
            let text = String::from_utf8(buffer[..length].to_vec()).unwrap();
            if text.contains(wanted) {
                return text;
            }
            seen.push(text);
        }
        panic!("no {wanted} in {seen:?}");
    };
    until("READY=1");
    until("WATCHDOG=1");
    running.signal("HUP");
    assert!(until("RELOADING=1").contains("MONOTONIC_USEC="));
    until("READY=1");
    running.signal("TERM");
    until("STOPPING=1");
}

#[test]
fn sockets_that_systemd_passes_are_listened_on() {
    let name = "sockets_that_systemd_passes_are_listened_on";
    let site = Site::new();
    let addr = std::net::TcpListener::bind(loopback())
        .unwrap()
        .local_addr()
        .unwrap();
    let spawned = Command::new("systemd-socket-activate")
        .arg(format!("--listen={addr}"))
        .arg(env!("CARGO_BIN_EXE_ecs-exporter"))
        .args(["serve", "--web.systemd-socket", "--config.file"])
        .arg(site.config(""))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(child) = spawned else {
        println!("SKIPPED: {name}: systemd-socket-activate is not installed");
        return;
    };
    let running = Running { child, addr };
    wait_for("it listens", PATIENCE, || {
        std::net::TcpStream::connect(addr).is_ok()
    });
    assert_eq!(value(&running.metrics(), "ecs_up"), Some(1.0));
}

#[test]
fn without_a_socket_from_systemd_it_says_so() {
    let (code, _, err) = run(&["serve", "--web.systemd-socket", "--no-collector.host"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("systemd passed no TCP socket"), "{err}");
}

#[test]
fn healthcheck_tells_by_its_status() {
    let site = Site::new();
    let running = site.serve("", &[]);
    let address = running.addr.to_string();
    let (code, out, _) = run(&["healthcheck", "--address", &address]);
    assert_eq!((code, out.as_str()), (Some(0), "Healthy\n"));
    let (code, out, _) = run(&["healthcheck", "--ready", "--address", &address]);
    assert_eq!((code, out.as_str()), (Some(0), "Ready\n"));
    drop(site);
    let (code, _, err) = run(&["healthcheck", "--ready", "--address", &address]);
    assert_eq!(code, Some(1));
    assert!(err.contains("503") && err.contains("stats: "), "{err}");
    drop(running);
    let (code, _, err) = run(&["healthcheck", "--address", &address]);
    assert_eq!(code, Some(1));
    assert!(err.contains(&address), "{err}");
}

#[test]
fn check_host_says_what_each_collector_finds() {
    let site = Site::new();
    let path = site.config("");
    let (code, out, _) = run(&["check-host", "--config.file", path.to_str().unwrap()]);
    assert_eq!(code, Some(0));
    assert!(
        out.contains("stats     yes  vmm-ecs (userspace) serves 2 VMs"),
        "{out}"
    );
    assert!(out.contains("host      off"), "{out}");
    let (code, out, _) = run(&["check-host", "--stats.socket=/nowhere/s"]);
    assert_eq!(code, Some(0));
    assert!(
        out.contains("stats     NO   No stats socket at /nowhere/s"),
        "{out}"
    );
    assert!(out.contains("host      yes"), "{out}");
}

#[test]
fn completions_manual_page_and_mixin_are_written() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = run(&["completions", shell]);
        assert!(code == Some(0) && out.contains("healthcheck"), "{shell}");
    }
    let (code, out, _) = run(&["man"]);
    assert!(
        code == Some(0) && out.contains(".TH ecs-exporter 1"),
        "{out}"
    );
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().to_str().unwrap();
    for (command, is_rules) in [("dashboards", false), ("rules", true)] {
        let (code, out, _) = run(&[command, "--out", folder]);
        assert_eq!(code, Some(0));
        assert!(out.lines().count() > 1);
        for line in out.lines() {
            let file = Path::new(line).strip_prefix(dir.path()).unwrap();
            assert_eq!(file.starts_with("rules"), is_rules, "{line}");
            assert!(std::fs::metadata(line).unwrap().len() > 100);
        }
    }
    let thresholds = dir.path().join("t.yaml");
    std::fs::write(&thresholds, "drift_for: 7s\n").unwrap();
    let thresholds = thresholds.to_str().unwrap();
    run(&["rules", "--out", folder, "--thresholds", thresholds]);
    let alerts = std::fs::read_to_string(dir.path().join("rules/alerts.yaml")).unwrap();
    assert!(alerts.contains("for: 7s"));
    std::fs::write(thresholds, "drift: 7s\n").unwrap();
    let (code, _, err) = run(&["rules", "--out", folder, "--thresholds", thresholds]);
    assert!(code == Some(1) && err.contains("drift"), "{err}");
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind(loopback()).unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let (code, out, err) = run(&["serve", "--no-collector.host", "--listen", &addr]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.contains(&format!("Cannot listen on {addr}")), "{err}");
}

#[test]
fn it_ends_within_its_drain_time_though_a_scrape_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("hung");
    let _hung = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let path = dir.path().join("x.yaml");
    let text = format!(
        "limits: {{drain: 300ms}}\ncollectors: {{host: {{enabled: false}}, stats: {{timeout: 2s, socket: {}}}}}\n",
        socket.display()
    );
    std::fs::write(&path, text).unwrap();
    let mut running = Running::start(
        program()
            .args(["serve", "--web.listen-address=127.0.0.1:0", "--config.file"])
            .arg(&path),
    );
    let mut stream = std::net::TcpStream::connect(running.addr).unwrap();
    std::io::Write::write_all(&mut stream, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    running.signal("TERM");
    wait_for("it ends", Duration::from_secs(5), || {
        running.child.try_wait().unwrap().is_some()
    });
    assert!(running.child.wait().unwrap().success());
}
