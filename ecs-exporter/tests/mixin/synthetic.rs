//! Made-up samples of every family in the catalogue, and an exporter that serves them.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ecs_exporter::catalogue::{self, Family, Kind};

use crate::common::{PATIENCE, loopback};

/// A VM that is entitled to one CPU.
#[derive(Debug, Clone)]
pub(crate) struct Vm {
    pub(crate) name: &'static str,
    /// CPU seconds it got.
    pub(crate) received: f64,
}

/// Text lines of a healthy host `seconds` after its start, without line ends. Each has the labels
/// `extra` as well.
pub(crate) fn samples(vms: &[Vm], seconds: f64, extra: &[(&str, &str)]) -> Vec<String> {
    let mut lines = Vec::new();
    for family in catalogue::ALL {
        for labels in combinations(family, vms) {
            let series = |suffix: &str, le: Option<&str>| {
                let own = labels.iter().map(|(name, value)| (*name, value.as_str()));
                let all = extra.iter().copied().chain(own);
                let pairs: Vec<String> = all
                    .chain(le.map(|le| ("le", le)))
                    .map(|(name, value)| format!("{name}=\"{value}\""))
                    .collect();
                format!("{}{suffix}{{{}}}", family.name, pairs.join(","))
            };
            if family.kind == Kind::Histogram {
                for (le, part) in [("0.000001", 0.5), ("0.001", 0.9), ("+Inf", 1.0)] {
                    let count = (seconds * part).floor();
                    lines.push(format!("{} {count}", series("_bucket", Some(le))));
                }
                lines.push(format!("{} {}", series("_sum", None), seconds * 1e-4));
                lines.push(format!("{} {}", series("_count", None), seconds.floor()));
            } else {
                let value = value(family, &labels, vms, seconds);
                lines.push(format!("{} {value}", series("", None)));
            }
        }
    }
    lines
}

/// Value of a counter or gauge.
fn value(family: &Family, labels: &[(&str, String)], vms: &[Vm], seconds: f64) -> f64 {
    let label = |wanted: &str| {
        let found = labels.iter().find(|(name, _)| *name == wanted);
        found.map_or("", |(_, value)| value.as_str())
    };
    match family.name {
        "ecs_vm_cpu_seconds_total" => {
            let vm = vms.iter().find(|vm| vm.name == label("vm"));
            vm.unwrap().received
        }
        "ecs_vm_fair_cpu_seconds_total" => seconds,
        "ecs_vm_delay_seconds_total" => 0.02 * seconds,
        "ecs_vm_extension_seconds_total" => 0.005 * seconds,
        "ecs_vm_avoided_preemptions_total" => 9.0 * seconds,
        "ecs_vm_extensions_ended_total" if label("outcome") == "yielded" => 9.0 * seconds,
        "ecs_exporter_perf_lost_records_total"
        | "ecs_host_perf_lost_records_total"
        | "ecs_exporter_series_dropped" => 0.0,
        "ecs_vm_vcpus" => 2.0,
        "ecs_vm_debt_seconds" => 0.01,
        _ if family.kind == Kind::Counter => seconds,
        _ => 1.0,
    }
}

/// Every combination of label values of a family.
fn combinations<'a>(family: &'a Family, vms: &[Vm]) -> Vec<Vec<(&'a str, String)>> {
    let values = |label: &str| -> Vec<&str> {
        match (label, family.name) {
            ("vm", _) => vms.iter().map(|vm| vm.name).collect(),
            ("vcpu", _) => vec!["0", "1"],
            ("section", _) => vec!["non_preemptable", "preemptable", "wait"],
            ("outcome", _) => vec!["yielded", "expired", "revoked", "aborted"],
            ("state", _) => vec!["active", "unhinted"],
            ("collector", _) => vec!["stats", "process"],
            ("cause", "ecs_vm_critical_preemptions_total") => vec!["denied", "expired", "host"],
            ("cause", _) => vec!["used", "budget", "cooldown", "disabled"],
            _ => vec!["some"],
        }
    };
    let mut all: Vec<Vec<(&str, String)>> = vec![Vec::new()];
    for label in family.labels {
        let with = |labels: &Vec<(&'a str, String)>| {
            let labels = labels.clone();
            values(label).into_iter().map(move |value| {
                let mut labels = labels.clone();
                labels.push((*label, value.to_owned()));
                labels
            })
        };
        all = all.iter().flat_map(with).collect::<Vec<_>>();
    }
    all
}

/// An exporter of made-up VMs whose share can be changed while it runs.
pub(crate) struct FakeExporter {
    pub(crate) addr: SocketAddr,
    state: Arc<Mutex<State>>,
}

struct State {
    start: Instant,
    last: Instant,
    vms: Vec<Vm>,
    /// CPUs each VM gets.
    shares: Vec<f64>,
}

impl State {
    fn advance(&mut self) {
        let passed = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        for (vm, share) in self.vms.iter_mut().zip(&self.shares) {
            vm.received += share * passed;
        }
    }
}

impl FakeExporter {
    /// Serves `/metrics` until the test program ends. The VMs get what they are entitled to.
    pub(crate) fn start(names: &[&'static str]) -> Self {
        let now = Instant::now();
        // Not at zero: the first scrape sees counters as after a while.
        let start = now.checked_sub(Duration::from_secs(60)).unwrap();
        let vm = |name: &&'static str| Vm {
            name,
            received: 60.0,
        };
        let state = Arc::new(Mutex::new(State {
            start,
            last: now,
            vms: names.iter().map(vm).collect(),
            shares: vec![1.0; names.len()],
        }));
        let listener = TcpListener::bind(loopback()).unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let body = {
                    let mut state = shared.lock().unwrap();
                    state.advance();
                    // One clock for both counters: no jitter in their ratio.
                    let seconds = (state.last - state.start).as_secs_f64();
                    samples(&state.vms, seconds, &[]).join("\n") + "\n"
                };
                // A client that went away is no failure of the test.
                let _ = answer(stream.unwrap(), "text/plain; version=0.0.4", &body);
            }
        });
        Self { addr, state }
    }

    /// CPUs each VM gets from now on.
    pub(crate) fn share(&self, shares: &[f64]) {
        let mut state = self.state.lock().unwrap();
        state.advance();
        state.shares = shares.to_vec();
    }
}

/// Serves one fixed JSON text, for service discovery.
pub(crate) fn serve_json(body: String) -> SocketAddr {
    let listener = TcpListener::bind(loopback()).unwrap();
    let addr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // As above.
            let _ = answer(stream.unwrap(), "application/json", &body);
        }
    });
    addr
}

fn answer(mut stream: TcpStream, content: &str, body: &str) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let head = BufReader::new(stream.try_clone()?).lines();
    for line in head {
        if line?.is_empty() {
            break;
        }
    }
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {content}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        body.len()
    )
}
