//! What one run gave, and how it comes out of the daemon's counters.

use std::iter::Sum;

use anyhow::bail;
use ecs_microvm::Progress;
use ecs_policy::{Claim, split_fairly};
use ecs_stats::{Snapshot, VmStats};
use serde::{Deserialize, Serialize};

use super::Scenario;

/// Over time: seconds since the start, lock operations a second, CPU seconds received so far.
pub(crate) type Timeline = Vec<(f64, f64, f64)>;

/// Lock operations a second between the first and the last sample; None with less than two.
pub(super) fn steady_rate(samples: &[Progress]) -> Option<f64> {
    let (first, last) = (samples.first()?, samples.last()?);
    (last.t_ms > first.t_ms).then(|| rate(first, last))
}

/// The samples as points of the plots.
pub(super) fn timeline(samples: &[Progress]) -> Timeline {
    let point = |pair: &[Progress]| {
        let [before, now] = pair else { return None };
        let cpu_s = now.cpu_ns.iter().sum::<u64>() as f64 / 1e9;
        Some((now.t_ms as f64 / 1e3, rate(before, now), cpu_s))
    };
    samples.windows(2).filter_map(point).collect()
}

fn rate(before: &Progress, now: &Progress) -> f64 {
    let ops = |progress: &Progress| progress.ops.iter().sum::<u64>();
    let ms = now.t_ms.saturating_sub(before.t_ms).max(1);
    (ops(now) - ops(before)) as f64 * 1e3 / ms as f64
}

/// What one run of one arm gave.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct RunReport {
    /// Length, s.
    pub(crate) seconds: f64,
    /// How the vCPUs were run, and why so.
    pub(crate) vcpus_are: String,
    /// The VMs, in order.
    pub(crate) vms: Vec<VmRun>,
    /// Largest deviation of a VM's CPU time from its entitlement, percent of the entitlement. None
    /// for a run so short that the daemon, which books CPU time once a second, booked none.
    pub(crate) share_deviation_percent: Option<f64>,
    /// Counters of all VMs, over the run.
    pub(crate) counters: RunCounters,
    /// CPU time of the controller's threads, percent of one CPU, a managed pCPU.
    pub(crate) controller_cpu_percent: f64,
    /// Median of the decision time, ns: upper bound of its histogram bucket.
    pub(crate) decision_median_ns: u64,
    /// The longest extension since the daemon started, us; 0 where the controller does not say.
    #[serde(default)]
    pub(crate) extension_max_us: u64,
    /// Controller that ran.
    pub(crate) controller: String,
}

impl RunReport {
    /// Lock operations a second of all VMs.
    pub(crate) fn ops_per_s(&self) -> f64 {
        self.vms.iter().map(|vm| vm.ops_per_s).sum()
    }

    /// Preemptions a second.
    pub(crate) fn preemptions_per_s(&self) -> f64 {
        self.per_second(self.counters.preemptions as f64)
    }

    /// Preemptions inside a section, a second.
    pub(crate) fn critical_preemptions_per_s(&self) -> f64 {
        self.per_second(self.counters.critical_preemptions as f64)
    }

    /// Time that sections were held up by preemptions, ms a second.
    pub(crate) fn stalled_ms_per_s(&self) -> f64 {
        self.per_second(self.counters.critical_stall_us as f64 / 1e3)
    }

    /// Hand-over of the lock in the VM where it takes longest. None if no VM handed a lock to a
    /// waiter.
    pub(crate) fn handoff_us(&self) -> Option<HandoffUs> {
        let slowest = |of: fn(&HandoffUs) -> f64| {
            let vms = self.vms.iter().map(|vm| of(&vm.handoff_us));
            vms.fold(0.0, f64::max)
        };
        let slowest = HandoffUs {
            p50: slowest(|us| us.p50),
            p99: slowest(|us| us.p99),
            p999: slowest(|us| us.p999),
        };
        (slowest.p99 > 0.0).then_some(slowest)
    }

    fn per_second(&self, count: f64) -> f64 {
        if self.seconds > 0.0 {
            count / self.seconds
        } else {
            0.0
        }
    }
}

/// Time a released lock took to its next owner, where that one waited, us: median and high
/// percentiles. Zeros where none waited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct HandoffUs {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

/// One VM of a run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct VmRun {
    /// Name.
    pub(crate) name: String,
    /// Lock operations a second.
    pub(crate) ops_per_s: f64,
    /// CPU time received, s.
    pub(crate) cpu_s: f64,
    /// CPU time entitled to, s.
    pub(crate) entitled_s: f64,
    /// Waiters found asleep although their wait had ended.
    pub(crate) lost_wakeups: u64,
    /// Hand-over of its locks.
    pub(crate) handoff_us: HandoffUs,
    /// Over time: seconds since the start, lock operations a second, CPU seconds received so far.
    pub(crate) timeline: Timeline,
}

impl VmRun {
    /// CPU time received, away from what it was entitled to, percent of that; above 0 is too much.
    /// None where no CPU time was booked.
    pub(crate) fn off_percent(&self) -> Option<f64> {
        (self.entitled_s > 0.0).then(|| (self.cpu_s / self.entitled_s - 1.0) * 100.0)
    }
}

/// Counters of all VMs over a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RunCounters {
    pub(crate) requests: u64,
    pub(crate) grants: u64,
    pub(crate) denials: u64,
    pub(crate) yielded: u64,
    pub(crate) expired: u64,
    pub(crate) revoked: u64,
    pub(crate) aborted: u64,
    pub(crate) preemptions: u64,
    pub(crate) critical_preemptions: u64,
    pub(crate) critical_stall_us: u64,
    pub(crate) stepped_aside: u64,
    pub(crate) wakeups: u64,
    pub(crate) polls_paid: u64,
    pub(crate) polls_wasted: u64,
    pub(crate) poll_us: u64,
    pub(crate) extension_us: u64,
    pub(crate) rotations: u64,
    pub(crate) doorbells: u64,
    /// Known of the controller `scx` only.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) migrations: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) far_migrations: u64,
}

// By reference, as serde asks.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl RunCounters {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let sum = |field: fn(&VmStats) -> u64| snapshot.vms.iter().map(field).sum::<u64>();
        Self {
            requests: sum(|vm| vm.requests),
            grants: sum(|vm| vm.grants.total()),
            denials: sum(|vm| vm.denials.total()),
            yielded: sum(|vm| vm.ended.yielded),
            expired: sum(|vm| vm.ended.expired),
            revoked: sum(|vm| vm.ended.revoked),
            aborted: sum(|vm| vm.ended.aborted),
            preemptions: sum(|vm| vm.preemptions),
            critical_preemptions: sum(|vm| vm.critical_preemptions.total()),
            critical_stall_us: sum(|vm| vm.critical_stall_ns) / 1000,
            stepped_aside: sum(|vm| vm.stepped_aside),
            wakeups: sum(|vm| vm.wakeups),
            polls_paid: sum(|vm| vm.polls.paid),
            polls_wasted: sum(|vm| vm.polls.wasted),
            poll_us: sum(|vm| vm.polls.ns) / 1000,
            extension_us: sum(|vm| vm.extension_ns) / 1000,
            rotations: snapshot.host.rotations,
            doorbells: snapshot.host.doorbells,
            migrations: snapshot.host.migrations,
            far_migrations: snapshot.host.far_migrations,
        }
    }

    pub(super) fn since(&self, before: &Self) -> Self {
        self.with(before, |now, before| now - before)
    }

    /// Extensions that ended because the section ended, over all slice ends inside a section; None
    /// where no slice ended inside one.
    pub(crate) fn avoided_ratio(&self) -> Option<f64> {
        (self.requests > 0).then(|| self.yielded as f64 / self.requests as f64)
    }

    /// Each counter with that of `other`.
    fn with(&self, other: &Self, f: fn(u64, u64) -> u64) -> Self {
        Self {
            requests: f(self.requests, other.requests),
            grants: f(self.grants, other.grants),
            denials: f(self.denials, other.denials),
            yielded: f(self.yielded, other.yielded),
            expired: f(self.expired, other.expired),
            revoked: f(self.revoked, other.revoked),
            aborted: f(self.aborted, other.aborted),
            preemptions: f(self.preemptions, other.preemptions),
            critical_preemptions: f(self.critical_preemptions, other.critical_preemptions),
            critical_stall_us: f(self.critical_stall_us, other.critical_stall_us),
            stepped_aside: f(self.stepped_aside, other.stepped_aside),
            wakeups: f(self.wakeups, other.wakeups),
            polls_paid: f(self.polls_paid, other.polls_paid),
            polls_wasted: f(self.polls_wasted, other.polls_wasted),
            poll_us: f(self.poll_us, other.poll_us),
            extension_us: f(self.extension_us, other.extension_us),
            rotations: f(self.rotations, other.rotations),
            doorbells: f(self.doorbells, other.doorbells),
            migrations: f(self.migrations, other.migrations),
            far_migrations: f(self.far_migrations, other.far_migrations),
        }
    }
}

impl Sum for RunCounters {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, other| {
            sum.with(&other, |sum, other| sum + other)
        })
    }
}

/// What the daemon's counters say about a run.
pub(super) fn summary(
    scenario: &Scenario,
    before: &Snapshot,
    after: &Snapshot,
) -> anyhow::Result<RunReport> {
    let seconds = (after.taken_ns - before.taken_ns) as f64 / 1e9;
    let cpu_ns = |snapshot: &Snapshot, name: &str| -> Option<u64> {
        let vm = snapshot.vms.iter().find(|vm| vm.name == name)?;
        Some(vm.vcpus.iter().map(|vcpu| vcpu.cpu_ns).sum())
    };
    let mut vms = Vec::new();
    let mut claims = Vec::new();
    for index in 0..scenario.vms {
        let name = vm_name(index);
        let (Some(first), Some(last)) = (cpu_ns(before, &name), cpu_ns(after, &name)) else {
            bail!("The daemon lost sight of {name}");
        };
        let received_ns = last.saturating_sub(first);
        claims.push(Claim {
            weight: scenario.weights.get(index).copied().unwrap_or(100),
            // Every vCPU of the demo's workloads always has work.
            demand_ns: (after.taken_ns - before.taken_ns) * scenario.vcpus as u64,
            entitled_ns: 0,
        });
        vms.push(VmRun {
            name,
            cpu_s: received_ns as f64 / 1e9,
            ..VmRun::default()
        });
    }
    let received_ns = (vms.iter().map(|vm| vm.cpu_s).sum::<f64>() * 1e9).round();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    split_fairly(received_ns as u64, &mut claims);
    for (vm, claim) in vms.iter_mut().zip(claims) {
        vm.entitled_s = claim.entitled_ns as f64 / 1e9;
    }
    let off = vms.iter().filter_map(VmRun::off_percent).map(f64::abs);
    let worst = off.reduce(f64::max);
    let controller_ns = after.host.controller_cpu_ns - before.host.controller_cpu_ns;
    let nr_pcpus = after.host.pcpus.len().max(1) as f64;
    Ok(RunReport {
        seconds,
        vms,
        share_deviation_percent: worst,
        counters: RunCounters::of(after).since(&RunCounters::of(before)),
        controller_cpu_percent: controller_ns as f64 / 1e9 / seconds / nr_pcpus * 100.0,
        extension_max_us: after.host.extension_max_ns / 1000,
        decision_median_ns: after.host.decision.quantile_ns(0.5).unwrap_or_default(),
        controller: format!("{} {}", after.host.controller, after.host.mechanism),
        vcpus_are: String::new(),
    })
}

/// Name of a VM of the demo.
pub(super) fn vm_name(index: usize) -> String {
    format!("vm{index}")
}
