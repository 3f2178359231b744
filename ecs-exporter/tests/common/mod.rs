//! A fixed snapshot, a daemon that serves it, a small HTTP client, and the real servers.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "each test binary uses a part of it"
)]

pub mod browser;
pub mod servers;
pub mod tools;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ecs_exporter::{Config, Handle, Limits, spawn_in_thread};
use ecs_stats::*;

pub const PATIENCE: Duration = Duration::from_secs(60);

/// Two VMs with a value of its own in every field.
pub fn fixture() -> Snapshot {
    let histogram = |values: &[u64]| {
        let mut histogram = Histogram::default();
        values.iter().for_each(|value| histogram.observe(*value));
        histogram
    };
    let vcpu = |vcpu: u32| VcpuStats {
        vcpu,
        tid: 100 + vcpu,
        cpu_ns: 500_000_000,
        delay_ns: 250_000_000,
        grants: 10 + u64::from(vcpu),
        preemptions: 20,
        critical_preemptions: 1,
    };
    let web = VmStats {
        name: "web".into(),
        uuid: Some("6b2f".into()),
        pid: 4242,
        cgroup: Some("/machine/web".into()),
        api_socket: Some("/run/web.sock".into()),
        state: VmState::Active,
        enabled: true,
        weight: 300,
        requests: 30,
        grants: Grants {
            non_preemptable: 12,
            preemptable: 6,
            wait: 3,
        },
        denials: Denials {
            used: 4,
            budget: 3,
            cooldown: 2,
            disabled: 0,
        },
        ended: Outcomes {
            yielded: 15,
            expired: 2,
            revoked: 1,
            aborted: 2,
        },
        running: 1,
        extension_ns: 9_000_000,
        penalty_ns: 6_000_000,
        forgiven_ns: 1_000_000,
        debt_ns: 2_000_000,
        critical_preemptions: CriticalCauses {
            denied: 7,
            expired: 2,
            host: 5,
        },
        preemptions: 90,
        critical_stall_ns: 12_500_000,
        stepped_aside: 8,
        wakeups: 600,
        overloaded_ns: 3_500_000_000,
        polls: Polls {
            paid: 400,
            wasted: 20,
            ns: 45_000_000,
        },
        cpu_ns: 7_500_000_000,
        fair_cpu_ns: 7_498_000_000,
        delay_ns: 2_500_000_000,
        guest_faults: 0,
        vcpus: vec![vcpu(0), vcpu(1)],
    };
    let batch = VmStats {
        name: "batch".into(),
        state: VmState::Unhinted,
        weight: 100,
        preemptions: 11,
        cpu_ns: 2_498_000_000,
        fair_cpu_ns: 2_500_000_000,
        vcpus: vec![vcpu(0)],
        ..VmStats::default()
    };
    Snapshot {
        version: STATS_VERSION,
        taken_ns: 1_000,
        host: HostStats {
            controller: "userspace".into(),
            mechanism: "rt".into(),
            abi: 1,
            kernel: "6.1.0".into(),
            pcpus: vec![2, 3],
            extensions_enabled: true,
            slice_ns: 3_000_000,
            extension_limit_ns: 1_000_000,
            debt_limit_ns: 50_000_000,
            controller_cpu_ns: 5,
            rotations: 6,
            doorbells: 7,
            directed_yields: 3,
            migrations: 5,
            far_migrations: 1,
            perf_records: 1001,
            perf_lost: 3,
            extension_np: histogram(&[700, 900, 40_000]),
            extension_p: histogram(&[1_000_000]),
            extension_wait: histogram(&[]),
            extension_max_ns: 1_000_000,
            ended: None,
            stall_np: histogram(&[3_000_000, 2_000_000_000]),
            stall_p: histogram(&[5_000_000]),
            stall_wait: histogram(&[]),
            decision: histogram(&[180, 200, 300]),
        },
        vms: vec![batch, web],
    }
}

/// A snapshot with one VM a name.
pub fn with_vms(names: &[&str]) -> Snapshot {
    let vm = |name: &&str| VmStats {
        name: (*name).into(),
        weight: 100,
        ..VmStats::default()
    };
    Snapshot {
        vms: names.iter().map(vm).collect(),
        ..fixture()
    }
}

/// The real server of the stats socket over a snapshot that can be changed.
pub struct Daemon {
    pub snapshot: Arc<Mutex<Snapshot>>,
    _server: StatsServer,
}

impl Daemon {
    pub fn start(path: &Path, snapshot: Snapshot) -> Self {
        let snapshot = Arc::new(Mutex::new(snapshot));
        let shared = Arc::clone(&snapshot);
        let provider = Arc::new(move || shared.lock().unwrap().clone());
        let server = StatsServer::bind(path, 0o600, provider).unwrap();
        Self {
            snapshot,
            _server: server,
        }
    }

    pub fn set(&self, snapshot: Snapshot) {
        *self.snapshot.lock().unwrap() = snapshot;
    }
}

/// An exporter on a free loopback port and the path of the stats socket it reads.
pub struct Stack {
    pub exporter: Handle,
    pub socket: PathBuf,
    dir: tempfile::TempDir,
}

impl Stack {
    pub fn start() -> Self {
        Self::with_limits(Limits::default())
    }

    pub fn with_limits(limits: Limits) -> Self {
        Self::with_config(Config {
            limits,
            ..Config::default()
        })
    }

    pub fn with_config(config: Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("stats.sock");
        let exporter = spawn_in_thread(Config {
            listen: vec![loopback()],
            stats_socket: socket.clone(),
            ..config
        })
        .unwrap();
        Self {
            exporter,
            socket,
            dir,
        }
    }

    pub fn addr(&self) -> SocketAddr {
        *self.exporter.addrs().first().unwrap()
    }

    pub fn daemon(&self, snapshot: Snapshot) -> Daemon {
        Daemon::start(&self.socket, snapshot)
    }

    pub fn get(&self, path: &str) -> Response {
        get(self.addr(), path, "")
    }

    /// Body of `/metrics` as text; the scrape must succeed.
    pub fn metrics(&self) -> String {
        let response = self.get("/metrics");
        assert_eq!(response.status, 200);
        response.text()
    }
}

pub fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

/// One GET with extra header lines, each ended by CRLF.
pub fn get(addr: SocketAddr, path: &str, headers: &str) -> Response {
    request(
        addr,
        &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n"),
    )
}

/// One request as given; the server must close the connection.
pub fn request(addr: SocketAddr, text: &str) -> Response {
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .expect("a header end");
    let body = bytes.split_off(end + 4);
    let head = String::from_utf8(bytes).unwrap();
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap();
    Response { status, head, body }
}

/// Value of the series written exactly so, e.g. `ecs_vm_vcpus{vm="a"}`.
pub fn value(text: &str, series: &str) -> Option<f64> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    rest.parse().ok()
}

/// Polls until `done`, for at most `limit`.
pub fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
