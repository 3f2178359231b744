//! What happened between two looks, for people: the terminal and the live page show the same.
//!
//! # Approach
//! [`Sampler`] keeps the counters of the last look and makes a [`Frame`] of rates from the next
//! one. Prometheus never sees these: it makes rates of its own.
//!
//! # Invariants
//! - What is not known is `None`, never 0: a VM that has just come has no rates.
//! - Counters that went back, or another process under the same name, start anew.
//! - Time between two looks is that of the monotonic clock: a step of the wall clock changes nothing.

mod columns;
pub(crate) mod hub;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ecs_stats::VmState;
use serde::Serialize;

use crate::families::seconds;
use crate::mixin::Thresholds;
use crate::reading::{Reading, Vm};

pub use columns::{COLUMNS, Column, Unit};

/// One moment of the host.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Frame {
    /// Number of the look, from 1.
    pub number: u64,
    /// Time of the look, ms since the epoch. It goes on evenly when the wall clock is set.
    pub time_ms: u64,
    /// Time since the last look, s; 0 in the first one, which has no rates.
    pub span_seconds: f64,
    /// The host.
    pub host: HostView,
    /// VMs, by name.
    pub vms: Vec<VmView>,
    /// What failed.
    pub problems: Vec<Problem>,
}

/// A collector that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Its name.
    pub collector: &'static str,
    /// What it said.
    pub text: String,
}

/// The host in a frame. Ratios are fractions of 1; `None` is not known.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct HostView {
    /// Kernel release.
    pub kernel: String,
    /// Controller and mechanism of vmm-ecs, empty without it.
    pub controller: String,
    /// CPUs the VMs may run on.
    pub cpus: usize,
    /// vCPU threads.
    pub vcpus: usize,
    /// CPU time of all VMs, as a part of all CPUs.
    pub used: Option<f64>,
    /// Time a vCPU was runnable but not running, as a part of its time.
    pub ready: Option<f64>,
    /// Extensions granted, 1/s.
    pub grants: Option<f64>,
    /// Extensions that ended as yielded, as a part of those that ended.
    pub avoided: Option<f64>,
    /// Preemptions that hit a critical section, 1/s.
    pub critical: Option<f64>,
    /// Debt of all VMs, s.
    pub debt_seconds: Option<f64>,
    /// Jain's index over the VMs' received and entitled CPU time; 1 is fair.
    pub jain: Option<f64>,
}

/// A VM in a frame. Ratios are fractions of 1; `None` is not known.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct VmView {
    /// Name.
    pub name: String,
    /// Process id of the VMM, 0 if unknown.
    pub pid: u32,
    /// State, in the words of `ecs_host_vms`.
    pub state: &'static str,
    /// vCPU threads.
    pub vcpus: usize,
    /// CPU weight, 100 is usual.
    pub weight: Option<u32>,
    /// CPU time received, as a part of all CPUs.
    pub share: Option<f64>,
    /// CPU time entitled to, as a part of all CPUs.
    pub entitlement: Option<f64>,
    /// Received over entitled, less 1; below 0 the VM lost.
    pub deviation: Option<f64>,
    /// Time a vCPU was runnable but not running, as a part of its time.
    pub ready: Option<f64>,
    /// Extensions granted, 1/s.
    pub grants: Option<f64>,
    /// Extensions that ended as yielded, as a part of those that ended.
    pub avoided: Option<f64>,
    /// Extension time not yet taken back, s.
    pub debt_seconds: Option<f64>,
    /// Preemptions, 1/s.
    pub preemptions: Option<f64>,
    /// Preemptions that hit a critical section, 1/s.
    pub critical: Option<f64>,
    /// Time vCPUs were off the CPU inside a critical section, s/s.
    pub stall: Option<f64>,
    /// Time inside extensions, as a part of the CPU time.
    pub cost: Option<f64>,
    /// Columns whose values are bad by the thresholds of the alerts: 1 is worth a look, 2 bad.
    pub severity: BTreeMap<&'static str, u8>,
}

/// Makes frames of readings.
#[derive(Debug, Default)]
pub struct Sampler {
    /// Both clocks at the first look.
    start: Option<(Instant, Duration)>,
    last: Option<Instant>,
    /// By name and process.
    before: HashMap<(String, u32), Counters>,
    number: u64,
}

/// Counters of a VM. Those of vmm-ecs are 0 without it.
#[derive(Debug, Clone, Copy, Default)]
struct Counters {
    is_served: bool,
    cpu_ns: u64,
    fair_ns: u64,
    delay_ns: u64,
    preemptions: Option<u64>,
    grants: u64,
    ended: u64,
    yielded: u64,
    critical: u64,
    stall_ns: u64,
    extension_ns: u64,
}

impl Counters {
    fn of(vm: &Vm<'_>) -> Self {
        let common = Self {
            cpu_ns: vm.cpu_ns(),
            delay_ns: vm.delay_ns(),
            preemptions: vm.preemptions(),
            ..Self::default()
        };
        let Some(ecs) = vm.ecs else {
            return common;
        };
        Self {
            is_served: true,
            fair_ns: ecs.fair_cpu_ns,
            grants: ecs.grants.total(),
            ended: ecs.ended.total(),
            yielded: ecs.ended.yielded,
            critical: ecs.critical_preemptions.total(),
            stall_ns: ecs.critical_stall_ns,
            extension_ns: ecs.extension_ns,
            ..common
        }
    }

    /// What was added since `before`; `None` if anything went back.
    fn since(&self, before: &Self) -> Option<Self> {
        if self.is_served != before.is_served {
            return None;
        }
        let preemptions = match (self.preemptions, before.preemptions) {
            (Some(now), Some(before)) => Some(now.checked_sub(before)?),
            _ => None,
        };
        Some(Self {
            is_served: self.is_served,
            cpu_ns: self.cpu_ns.checked_sub(before.cpu_ns)?,
            fair_ns: self.fair_ns.checked_sub(before.fair_ns)?,
            delay_ns: self.delay_ns.checked_sub(before.delay_ns)?,
            preemptions,
            grants: self.grants.checked_sub(before.grants)?,
            ended: self.ended.checked_sub(before.ended)?,
            yielded: self.yielded.checked_sub(before.yielded)?,
            critical: self.critical.checked_sub(before.critical)?,
            stall_ns: self.stall_ns.checked_sub(before.stall_ns)?,
            extension_ns: self.extension_ns.checked_sub(before.extension_ns)?,
        })
    }

    fn plus(self, other: &Self) -> Self {
        Self {
            is_served: self.is_served || other.is_served,
            cpu_ns: self.cpu_ns + other.cpu_ns,
            fair_ns: self.fair_ns + other.fair_ns,
            delay_ns: self.delay_ns + other.delay_ns,
            preemptions: self.preemptions.or(other.preemptions),
            grants: self.grants + other.grants,
            ended: self.ended + other.ended,
            yielded: self.yielded + other.yielded,
            critical: self.critical + other.critical,
            stall_ns: self.stall_ns + other.stall_ns,
            extension_ns: self.extension_ns + other.extension_ns,
        }
    }

    fn avoided(&self) -> Option<f64> {
        (self.ended > 0).then(|| self.yielded as f64 / self.ended as f64)
    }
}

impl Sampler {
    /// The frame of a reading that was made just now.
    pub fn take(&mut self, reading: &Reading) -> Frame {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        // A clock before the epoch shows as the epoch.
        self.take_at(reading, Instant::now(), wall.unwrap_or_default())
    }

    fn take_at(&mut self, reading: &Reading, now: Instant, wall: Duration) -> Frame {
        let (began, began_wall) = *self.start.get_or_insert((now, wall));
        let time = began_wall + now.saturating_duration_since(began);
        let span = self
            .last
            .map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.last = Some(now);
        self.number += 1;
        let vms = reading.vms();
        let cpus = cpus(reading);
        let mut views = Vec::with_capacity(vms.len());
        let mut counts = HashMap::with_capacity(vms.len());
        let mut total = None;
        let mut vcpus = 0;
        for vm in &vms {
            let key = (vm.name.to_string(), vm.pid());
            let counters = Counters::of(vm);
            let added = self
                .before
                .get(&key)
                .and_then(|before| counters.since(before));
            let added = added.filter(|_| !span.is_zero());
            if let Some(added) = &added {
                total = Some(total.map_or(*added, |total: Counters| total.plus(added)));
                vcpus += vm.nr_vcpus();
            }
            views.push(view(vm, added.as_ref(), span.as_secs_f64(), cpus));
            counts.insert(key, counters);
        }
        self.before = counts;
        Frame {
            number: self.number,
            time_ms: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            span_seconds: span.as_secs_f64(),
            host: HostView {
                cpus,
                vcpus: vms.iter().map(Vm::nr_vcpus).sum(),
                jain: jain(&views),
                debt_seconds: reading
                    .snapshot()
                    .map(|stats| stats.vms.iter().map(|vm| seconds(vm.debt_ns)).sum()),
                ..host(reading, total, span.as_secs_f64(), cpus, vcpus)
            },
            vms: views,
            problems: reading
                .problems()
                .into_iter()
                .map(|(collector, text)| Problem { collector, text })
                .collect(),
        }
    }
}

fn cpus(reading: &Reading) -> usize {
    let served = reading.snapshot().map(|stats| stats.host.pcpus.len());
    served.or(reading.host().map(|host| host.cpus)).unwrap_or(0)
}

fn host(
    reading: &Reading,
    total: Option<Counters>,
    span: f64,
    cpus: usize,
    vcpus: usize,
) -> HostView {
    let facts = reading.snapshot().map(|stats| &stats.host);
    let controller = facts.map_or_else(String::new, |host| {
        let parts = [host.controller.as_str(), host.mechanism.as_str()];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        parts.join("/")
    });
    let kernel = facts
        .map(|host| &host.kernel)
        .or(reading.host().map(|host| &host.kernel));
    let served = total.filter(|total| total.is_served);
    HostView {
        kernel: kernel.cloned().unwrap_or_default(),
        controller,
        used: total.and_then(|total| part(seconds(total.cpu_ns), span * cpus as f64)),
        ready: total.and_then(|total| part(seconds(total.delay_ns), span * vcpus as f64)),
        grants: served.map(|total| total.grants as f64 / span),
        avoided: served.and_then(|total| total.avoided()),
        critical: served.map(|total| total.critical as f64 / span),
        ..HostView::default()
    }
}

fn view(vm: &Vm<'_>, added: Option<&Counters>, span: f64, cpus: usize) -> VmView {
    let served = added.filter(|added| added.is_served);
    let of_cpus = |ns: u64| part(seconds(ns), span * cpus as f64);
    let rate = |count: u64| count as f64 / span;
    // Below it the VM is idle, and what it got says nothing.
    let floor = Thresholds::default().fair_floor_cpus * span;
    let fair = served
        .map(|added| seconds(added.fair_ns))
        .filter(|fair| *fair > floor);
    let mut view = VmView {
        name: vm.name.to_string(),
        pid: vm.pid(),
        state: state(vm.ecs.map(|vm| vm.state)),
        vcpus: vm.nr_vcpus(),
        weight: vm.ecs.map(|vm| vm.weight),
        share: added.and_then(|added| of_cpus(added.cpu_ns)),
        entitlement: served.and_then(|added| of_cpus(added.fair_ns)),
        deviation: added
            .zip(fair)
            .map(|(added, fair)| seconds(added.cpu_ns) / fair - 1.0),
        ready: added.and_then(|added| part(seconds(added.delay_ns), span * vm.nr_vcpus() as f64)),
        grants: served.map(|added| rate(added.grants)),
        avoided: served.and_then(Counters::avoided),
        debt_seconds: vm.ecs.map(|vm| seconds(vm.debt_ns)),
        preemptions: added.and_then(|added| added.preemptions).map(rate),
        critical: served.map(|added| rate(added.critical)),
        stall: served.map(|added| seconds(added.stall_ns) / span),
        cost: served.and_then(|added| part(added.extension_ns as f64, added.cpu_ns as f64)),
        severity: BTreeMap::new(),
    };
    let severities = COLUMNS
        .iter()
        .map(|column| (column.id, column.severity(&view)));
    view.severity = severities.filter(|(_, severity)| *severity > 0).collect();
    view
}

/// `None` of nothing.
fn part(of: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| of / whole)
}

/// Jain's index of what each VM got of its entitlement.
fn jain(vms: &[VmView]) -> Option<f64> {
    let got: Vec<f64> = vms
        .iter()
        .filter_map(|vm| Some(vm.deviation? + 1.0))
        .collect();
    let sum: f64 = got.iter().sum();
    let squares: f64 = got.iter().map(|got| got * got).sum();
    part(sum * sum, squares * got.len() as f64)
}

/// State of a VM in the words of the metrics; `None` is one that vmm-ecs does not serve.
pub(crate) fn state(state: Option<VmState>) -> &'static str {
    match state {
        Some(VmState::Active) => "active",
        Some(VmState::Unhinted) => "unhinted",
        Some(VmState::Disabled) => "disabled",
        Some(VmState::Unreadable) => "unreadable",
        None => "unserved",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use ecs_stats::{Grants, HostStats, Outcomes, Snapshot, VcpuStats, VmStats};

    use super::*;
    use crate::host::{HostReading, HostVm};
    use crate::reading::Timed;

    /// A served VM of two vCPUs with the counters given, ms.
    fn vm(name: &str, cpu: u64, fair: u64, delay: u64) -> VmStats {
        const MS: u64 = 1_000_000;
        VmStats {
            name: name.to_owned(),
            pid: 7,
            state: VmState::Active,
            enabled: true,
            weight: 100,
            cpu_ns: cpu * MS,
            fair_cpu_ns: fair * MS,
            delay_ns: delay * MS,
            grants: Grants {
                non_preemptable: cpu / 10,
                ..Grants::default()
            },
            ended: Outcomes {
                yielded: cpu / 20,
                expired: cpu / 20,
                ..Outcomes::default()
            },
            debt_ns: 2 * MS,
            extension_ns: cpu * MS / 100,
            preemptions: delay,
            vcpus: vec![VcpuStats::default(), VcpuStats::default()],
            ..VmStats::default()
        }
    }

    fn served(vms: Vec<VmStats>) -> Reading {
        Reading::of_stats(Ok(Snapshot {
            host: HostStats {
                controller: "userspace".into(),
                mechanism: "rt".into(),
                kernel: "6.1.0".into(),
                pcpus: vec![0, 1],
                ..HostStats::default()
            },
            vms,
            ..Snapshot::default()
        }))
    }

    /// Frames 2 s apart, of which VM `db` loses a fifth to VM `web`.
    pub(crate) fn frames(count: u64) -> Vec<Frame> {
        let mut sampler = Sampler::default();
        let begin = Instant::now();
        (0..count)
            .map(|n| {
                let reading = served(vec![
                    vm("db", 1600 * n, 2000 * n, 2400 * n),
                    vm("web", 2400 * n, 2000 * n, 200 * n),
                ]);
                let now = begin + Duration::from_secs(2 * n);
                sampler.take_at(&reading, now, Duration::from_secs(1_000_000))
            })
            .collect()
    }

    fn near(value: Option<f64>, wanted: f64) -> bool {
        value.is_some_and(|value| (value - wanted).abs() < 1e-9)
    }

    #[test]
    fn rates_come_from_two_looks() {
        let frames = frames(2);
        assert_eq!(
            (frames[0].span_seconds, frames[0].vms[0].share),
            (0.0, None)
        );
        let frame = &frames[1];
        assert_eq!((frame.number, frame.time_ms), (2, 1_000_002_000));
        let db = &frame.vms[0];
        // 1.6 of 2 s x 2 CPUs.
        assert!(near(db.share, 0.4) && near(db.entitlement, 0.5));
        assert!(near(db.deviation, -0.2) && near(db.ready, 0.6));
        assert!(near(db.grants, 80.0) && near(db.avoided, 0.5));
        assert!(near(db.debt_seconds, 0.002) && near(db.cost, 0.01));
        assert!(near(db.preemptions, 1200.0));
        let host = &frame.host;
        assert_eq!(host.controller, "userspace/rt");
        assert!(near(host.used, 1.0) && near(host.ready, 2.6 / 8.0));
        assert!(near(host.debt_seconds, 0.004));
        // (0.8 + 1.2)² / (2 x (0.64 + 1.44))
        assert!(near(host.jain, 4.0 / 4.16));
    }

    #[test]
    fn counters_that_went_back_and_other_processes_start_anew() {
        let mut sampler = Sampler::default();
        let begin = Instant::now();
        let mut look = |vms, second| {
            let now = begin + Duration::from_secs(second);
            sampler.take_at(&served(vms), now, Duration::ZERO)
        };
        look(vec![vm("a", 100, 100, 0), vm("b", 100, 100, 0)], 0);
        let other = VmStats {
            pid: 8,
            ..vm("b", 200, 200, 0)
        };
        let frame = look(vec![vm("a", 50, 100, 0), other], 1);
        assert!(frame.vms.iter().all(|vm| vm.share.is_none()));
        assert_eq!((frame.host.used, frame.host.jain), (None, None));
        let frame = look(vec![vm("a", 150, 200, 0)], 2);
        assert!(near(frame.vms[0].share, 0.05));
    }

    #[test]
    fn a_step_of_the_wall_clock_changes_nothing() {
        let mut sampler = Sampler::default();
        let begin = Instant::now();
        for (second, wall) in [(0, 5_000), (1, 9_000_000), (2, 10), (3, 0)] {
            let reading = served(vec![vm("a", 1000 * second, 1000 * second, 0)]);
            let now = begin + Duration::from_secs(second);
            let frame = sampler.take_at(&reading, now, Duration::from_secs(wall));
            assert_eq!(frame.time_ms, (5_000 + second) * 1000);
            assert!(second == 0 || near(frame.vms[0].share, 0.5));
        }
    }

    #[test]
    fn an_idle_vm_has_no_deviation_and_a_host_without_vmm_ecs_has_what_it_has() {
        let mut sampler = Sampler::default();
        let begin = Instant::now();
        sampler.take_at(&served(vec![vm("a", 0, 0, 0)]), begin, Duration::ZERO);
        let later = begin + Duration::from_secs(1);
        let frame = sampler.take_at(&served(vec![vm("a", 3, 5, 0)]), later, Duration::ZERO);
        assert_eq!(frame.vms[0].deviation, None);

        let bare = |n: u64| Reading {
            host: Some(Timed::take(|| {
                Ok(HostReading {
                    cpus: 4,
                    kernel: "6.1".into(),
                    vms: vec![HostVm {
                        name: "w".into(),
                        cpu_ns: n,
                        delay_ns: n,
                        vcpus: vec![crate::host::HostVcpu::default()],
                        ..HostVm::default()
                    }],
                })
            })),
            ..Reading::default()
        };
        let mut sampler = Sampler::default();
        sampler.take_at(&bare(0), begin, Duration::ZERO);
        let frame = sampler.take_at(&bare(500_000_000), later, Duration::ZERO);
        let vm = &frame.vms[0];
        assert!(near(vm.share, 0.125) && near(vm.ready, 0.5));
        assert_eq!((vm.state, vm.entitlement), ("unserved", None));
        assert_eq!((vm.grants, vm.preemptions), (None, None));
        assert_eq!((frame.host.grants, frame.host.debt_seconds), (None, None));
        assert!(near(frame.host.ready, 0.5));
    }
}
