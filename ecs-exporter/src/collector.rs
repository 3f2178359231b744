//! Turns one reading into metric families: a `prometheus` collector that lives for one scrape.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ecs_stats::Snapshot;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;

use crate::catalogue::{self as cat, Family};
use crate::config::VmFilter;
use crate::families::{Families, NS_PER_SECOND, seconds, truth};
use crate::host::HostReading;
use crate::process::ProcessStats;
use crate::reading::{Reading, Vm};

/// What a scrape covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Host, exporter and every VM.
    Host,
    /// One VM, with its vCPUs.
    Vm(String),
}

/// What a scrape needs besides the reading.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    /// VMs with per-vCPU families in the host's scope.
    pub(crate) vcpus: VmFilter,
    /// Series of the whole scrape; 0: no limit.
    pub(crate) max_series: usize,
    /// Whether the last reload succeeded, and the time of the last good one, s since the epoch.
    pub(crate) reload: (bool, f64),
}

/// Collector over one [`Reading`].
pub(crate) struct ScrapeCollector {
    reading: Reading,
    scope: Scope,
    setting: Setting,
    descs: Vec<Desc>,
}

impl ScrapeCollector {
    /// # Errors
    /// A name in the catalogue that Prometheus does not allow.
    pub(crate) fn new(
        reading: Reading,
        scope: Scope,
        setting: Setting,
    ) -> Result<Self, prometheus::Error> {
        let counted_elsewhere = |family: &&&Family| family.name != cat::HTTP_REQUESTS.name;
        let descs = cat::ALL.iter().filter(counted_elsewhere).map(|family| {
            let labels = family
                .labels
                .iter()
                .map(|&label| label.to_owned())
                .collect();
            Desc::new(
                family.name.into(),
                family.help.into(),
                labels,
                HashMap::default(),
            )
        });
        Ok(Self {
            reading,
            scope,
            setting,
            descs: descs.collect::<Result<_, _>>()?,
        })
    }

    /// Families of the exporter itself.
    fn exporter(&self, out: &mut Families, runs: &mut Vec<Run>) {
        let facts = [
            env!("CARGO_PKG_VERSION"),
            env!("ECS_BUILD_REVISION"),
            env!("ECS_BUILD_TARGET"),
            env!("ECS_BUILD_RUSTC"),
        ];
        out.add(&cat::BUILD_INFO, &facts, 1.0);
        let (reloaded, reload_time) = self.setting.reload;
        out.add(&cat::CONFIG_RELOAD_OK, &[], truth(reloaded));
        out.add(&cat::CONFIG_RELOAD_TIME, &[], reload_time);
        if let Some(perf) = &self.reading.perf {
            if let Ok(totals) = &perf.result {
                out.add(&cat::PERF_RECORDS, &[], totals.records as f64);
                out.add(&cat::PERF_LOST, &[], totals.lost as f64);
                out.add(&cat::PERF_DRAIN, &[], seconds(totals.drain_ns));
            }
            runs.push(("perf", perf.result.is_ok(), perf.took));
        }
        if let Some(hardware) = &self.reading.hardware {
            // Read along with the threads: it has no time of its own.
            runs.push(("hardware", hardware.is_ok(), Duration::ZERO));
        }
        let begin = Instant::now();
        let process = ProcessStats::read();
        if let Ok(process) = &process {
            out.add(&cat::PROCESS_CPU, &[], process.cpu_seconds);
            out.add(&cat::PROCESS_RESIDENT, &[], process.resident_bytes as f64);
            out.add(&cat::PROCESS_OPEN_FDS, &[], process.open_fds as f64);
            out.add(&cat::PROCESS_START, &[], process.start_seconds);
        }
        runs.push(("process", process.is_ok(), begin.elapsed()));
    }

    /// Families of VMs, as far as the limit goes; the number of series left out.
    fn vms(&self, out: &mut Families, vms: &[Vm<'_>]) -> usize {
        let weights = vms.iter().filter_map(|vm| vm.ecs);
        let total_weight = weights.map(|vm| u64::from(vm.weight)).sum();
        let max = match self.setting.max_series {
            0 => usize::MAX,
            max => max,
        };
        let mut dropped = 0;
        for vm in vms {
            let vcpus = match &self.scope {
                Scope::Host => self.setting.vcpus.has(&vm.name),
                Scope::Vm(name) if *name == vm.name => true,
                Scope::Vm(_) => continue,
            };
            let mut series = 0;
            vm_series(vm, total_weight, vcpus, &mut |_, _, _| series += 1);
            // Once one did not fit none after it is taken: which ones are there must not depend on
            // small differences in size.
            if dropped > 0 || out.series() + RESERVED + series > max {
                dropped += series;
                continue;
            }
            vm_series(vm, total_weight, vcpus, &mut |family, labels, value| {
                out.add(family, labels, value);
            });
        }
        dropped
    }
}

/// A collector's name, whether it succeeded, and the time it took.
type Run = (&'static str, bool, Duration);

/// Series that are written after those of the VMs: the collectors' and HTTP's.
const RESERVED: usize = 40;

impl Collector for ScrapeCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut out = Families::default();
        let mut runs = Vec::new();
        let vms = self.reading.vms();
        if let Some(stats) = &self.reading.stats {
            out.add(&cat::UP, &[], truth(stats.result.is_ok()));
            runs.push(("stats", stats.result.is_ok(), stats.took));
        }
        if let Some(host) = &self.reading.host {
            runs.push(("host", host.result.is_ok(), host.took));
        }
        if self.scope == Scope::Host {
            if let Some(snapshot) = self.reading.snapshot() {
                served_host(&mut out, snapshot);
            } else if let Some(host) = self.reading.host() {
                bare_host(&mut out, host);
            }
            if self.reading.is_useful() {
                states(&mut out, &vms);
            }
            self.exporter(&mut out, &mut runs);
        }
        let dropped = self.vms(&mut out, &vms);
        if self.scope == Scope::Host {
            out.add(&cat::SERIES_DROPPED, &[], dropped as f64);
        }
        for (name, ok, took) in runs {
            out.add(&cat::COLLECTOR_DURATION, &[name], took.as_secs_f64());
            out.add(&cat::COLLECTOR_SUCCESS, &[name], truth(ok));
        }
        out.into_vec()
    }
}

/// What vmm-ecs tells of the host.
fn served_host(out: &mut Families, snapshot: &Snapshot) {
    let host = &snapshot.host;
    let abi = host.abi.to_string();
    let facts = [&host.controller, &host.mechanism, &abi, &host.kernel].map(String::as_str);
    out.add(&cat::HOST_INFO, &facts, 1.0);
    out.add(&cat::HOST_CPUS, &[], host.pcpus.len() as f64);
    out.add(&cat::HOST_SLICE, &[], seconds(host.slice_ns));
    let (extension, debt) = (host.extension_limit_ns, host.debt_limit_ns);
    out.add(&cat::HOST_EXTENSION_LIMIT, &[], seconds(extension));
    out.add(&cat::HOST_DEBT_LIMIT, &[], seconds(debt));
    for (section, extension, stall) in [
        ("non_preemptable", &host.extension_np, &host.stall_np),
        ("preemptable", &host.extension_p, &host.stall_p),
        ("wait", &host.extension_wait, &host.stall_wait),
    ] {
        out.histogram(&cat::HOST_EXTENSION_DURATION, &[section], extension);
        out.histogram(&cat::HOST_CRITICAL_STALL, &[section], stall);
    }
    out.histogram(&cat::HOST_GRANT_LATENCY, &[], &host.decision);
    out.add(&cat::HOST_ROTATIONS, &[], host.rotations as f64);
    out.add(&cat::HOST_DOORBELLS, &[], host.doorbells as f64);
    out.add(
        &cat::HOST_CONTROLLER_CPU,
        &[],
        seconds(host.controller_cpu_ns),
    );
    out.add(&cat::HOST_PERF_RECORDS, &[], host.perf_records as f64);
    out.add(&cat::HOST_PERF_LOST, &[], host.perf_lost as f64);
}

/// What the host tells of itself while no vmm-ecs does.
fn bare_host(out: &mut Families, host: &HostReading) {
    out.add(&cat::HOST_INFO, &["", "", "", &host.kernel], 1.0);
    out.add(&cat::HOST_CPUS, &[], host.cpus as f64);
}

fn states(out: &mut Families, vms: &[Vm<'_>]) {
    use ecs_stats::VmState::{Active, Disabled, Unhinted, Unreadable};
    for (state, name) in [
        (Some(Active), "active"),
        (Some(Unhinted), "unhinted"),
        (Some(Disabled), "disabled"),
        (Some(Unreadable), "unreadable"),
        (None, "unserved"),
    ] {
        let is_in = |vm: &&Vm<'_>| vm.ecs.map(|vm| vm.state) == state;
        let count = vms.iter().filter(is_in).count();
        out.add(&cat::HOST_VMS, &[name], count as f64);
    }
}

/// Every series of one VM: family, label values in the order of the catalogue, value.
fn vm_series(
    vm: &Vm<'_>,
    total_weight: u64,
    vcpus: bool,
    out: &mut impl FnMut(&'static Family, &[&str], f64),
) {
    let name = vm.name.as_ref();
    let pid = match vm.pid() {
        0 => String::new(),
        pid => pid.to_string(),
    };
    let facts = [
        name,
        vm.uuid(),
        &pid,
        vm.cgroup(),
        vm.api_socket(),
        vm.policy(),
    ];
    out(&cat::VM_INFO, &facts, 1.0);
    let mut one = |family, value| out(family, &[name], value);
    one(&cat::VM_VCPUS, vm.nr_vcpus() as f64);
    one(&cat::VM_CPU, seconds(vm.cpu_ns()));
    one(&cat::VM_DELAY, seconds(vm.delay_ns()));
    if let Some(preemptions) = vm.preemptions() {
        one(&cat::VM_PREEMPTIONS, preemptions as f64);
    }
    if let Some(up) = vm.host.and_then(|vm| vm.api_up) {
        one(&cat::VM_API_UP, truth(up));
    }
    if let Some((cycles, instructions)) = vm.host.and_then(|vm| vm.cycles_and_instructions) {
        one(&cat::VM_CYCLES, cycles as f64);
        one(&cat::VM_INSTRUCTIONS, instructions as f64);
    }
    if let Some(ecs) = vm.ecs {
        served_series(name, ecs, total_weight, out);
    }
    if vcpus {
        vcpu_series(vm, out);
    }
}

/// Series that only vmm-ecs knows.
fn served_series(
    name: &str,
    vm: &ecs_stats::VmStats,
    total_weight: u64,
    out: &mut impl FnMut(&'static Family, &[&str], f64),
) {
    let mut one = |family, value| out(family, &[name], value);
    if total_weight > 0 {
        one(&cat::VM_WEIGHT, f64::from(vm.weight) / total_weight as f64);
    }
    one(&cat::VM_ENABLED, truth(vm.enabled));
    one(&cat::VM_REQUESTS, vm.requests as f64);
    one(&cat::VM_RUNNING, vm.running as f64);
    one(&cat::VM_EXTENSION, seconds(vm.extension_ns));
    one(&cat::VM_PENALTY, seconds(vm.penalty_ns));
    one(&cat::VM_FORGIVEN, seconds(vm.forgiven_ns));
    one(&cat::VM_DEBT, seconds(vm.debt_ns));
    one(&cat::VM_AVOIDED, vm.ended.yielded as f64);
    one(&cat::VM_STEPPED_ASIDE, vm.stepped_aside as f64);
    one(&cat::VM_WAKEUPS, vm.wakeups as f64);
    one(&cat::VM_OVERLOADED, seconds(vm.overloaded_ns));
    one(&cat::VM_POLL_TIME, seconds(vm.polls.ns));
    one(&cat::VM_GUEST_FAULTS, vm.guest_faults as f64);
    one(&cat::VM_CRITICAL_STALL, seconds(vm.critical_stall_ns));
    one(&cat::VM_FAIR_CPU, seconds(vm.fair_cpu_ns));
    // Subtracted as integers: the difference of two long-running sums keeps its digits.
    let delta = i128::from(vm.cpu_ns) - i128::from(vm.fair_cpu_ns);
    one(&cat::VM_FAIRNESS_DELTA, delta as f64 / NS_PER_SECOND);
    for (outcome, count) in [("paid", vm.polls.paid), ("wasted", vm.polls.wasted)] {
        out(&cat::VM_POLLS, &[name, outcome], count as f64);
    }
    for (section, count) in [
        ("non_preemptable", vm.grants.non_preemptable),
        ("preemptable", vm.grants.preemptable),
        ("wait", vm.grants.wait),
    ] {
        out(&cat::VM_GRANTS, &[name, section], count as f64);
    }
    for (cause, count) in [
        ("used", vm.denials.used),
        ("budget", vm.denials.budget),
        ("cooldown", vm.denials.cooldown),
        ("disabled", vm.denials.disabled),
    ] {
        out(&cat::VM_DENIALS, &[name, cause], count as f64);
    }
    for (outcome, count) in [
        ("yielded", vm.ended.yielded),
        ("expired", vm.ended.expired),
        ("revoked", vm.ended.revoked),
        ("aborted", vm.ended.aborted),
    ] {
        out(&cat::VM_ENDED, &[name, outcome], count as f64);
    }
    for (cause, count) in [
        ("denied", vm.critical_preemptions.denied),
        ("expired", vm.critical_preemptions.expired),
        ("host", vm.critical_preemptions.host),
    ] {
        out(&cat::VM_CRITICAL, &[name, cause], count as f64);
    }
}

fn vcpu_series(vm: &Vm<'_>, out: &mut impl FnMut(&'static Family, &[&str], f64)) {
    let name = vm.name.as_ref();
    for vcpu in vm.vcpus() {
        let number = vcpu.vcpu.to_string();
        let mut one = |family, value| out(family, &[name, &number], value);
        one(&cat::VCPU_CPU, seconds(vcpu.cpu_ns));
        one(&cat::VCPU_DELAY, seconds(vcpu.delay_ns));
        if let Some(preemptions) = vcpu.preemptions {
            one(&cat::VCPU_PREEMPTIONS, preemptions as f64);
        }
    }
    for vcpu in vm.ecs.iter().flat_map(|vm| &vm.vcpus) {
        let number = vcpu.vcpu.to_string();
        out(&cat::VCPU_GRANTS, &[name, &number], vcpu.grants as f64);
        let critical = vcpu.critical_preemptions as f64;
        out(&cat::VCPU_CRITICAL, &[name, &number], critical);
    }
}
