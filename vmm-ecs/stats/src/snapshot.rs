//! Types of the snapshot. Every time is in nanoseconds, every counter runs since the VM was first
//! seen, and the identities of docs/metrics.md hold in each snapshot:
//! `granted = ended + running`, `debt = extension - penalty - forgiven`.

use serde::{Deserialize, Serialize};

/// Version of [`Snapshot`]; a reader refuses any other.
pub const STATS_VERSION: u32 = 2;

/// Everything `vmm-ecs` knows at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`STATS_VERSION`].
    pub version: u32,
    /// `CLOCK_MONOTONIC` when the snapshot was taken, ns.
    pub taken_ns: u64,
    /// Facts and totals of the host.
    pub host: HostStats,
    /// One entry a VM, sorted by name.
    pub vms: Vec<VmStats>,
}

/// Facts and totals of the host.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HostStats {
    /// `userspace`, `observe` or `scx`.
    pub controller: String,
    /// How the controller steers, e.g. `rt`; empty when it does not.
    pub mechanism: String,
    /// Version of the guest ABI.
    pub abi: u32,
    /// Kernel release.
    pub kernel: String,
    /// CPUs the VMs may run on.
    pub pcpus: Vec<u32>,
    /// Whether extensions are given at all.
    pub extensions_enabled: bool,
    /// Slice, ns.
    pub slice_ns: u64,
    /// Longest extension, ns.
    pub extension_limit_ns: u64,
    /// Debt at which a VM gets no more extensions, ns.
    pub debt_limit_ns: u64,
    /// CPU time of the controller's own threads, ns.
    pub controller_cpu_ns: u64,
    /// Slice ends and hand-backs that changed the running vCPU.
    pub rotations: u64,
    /// Doorbells rung by guests.
    pub doorbells: u64,
    /// CPUs that guests handed to a sibling by KVM's directed yield; 0 where nobody hears of it.
    #[serde(default)]
    pub directed_yields: u64,
    /// vCPUs that began to run on another CPU than before; 0 where the kernel's own scheduler moves them.
    #[serde(default)]
    pub migrations: u64,
    /// Those of them that came from another cache, or NUMA node.
    #[serde(default)]
    pub far_migrations: u64,
    /// Context-switch records read.
    pub perf_records: u64,
    /// Context-switch records the kernel dropped.
    pub perf_lost: u64,
    /// Time from grant to end of an extension, non-preemptable sections.
    pub extension_np: Histogram,
    /// Time from grant to end of an extension, preemptable sections.
    pub extension_p: Histogram,
    /// Time from grant to end of an extension, waiters whose head ran.
    pub extension_wait: Histogram,
    /// The longest extension, ns; 0 where the controller does not say.
    #[serde(default)]
    pub extension_max_ns: u64,
    /// Time a vCPU was off the CPU while inside a non-preemptable section.
    pub stall_np: Histogram,
    /// Time a vCPU was off the CPU while inside a preemptable section.
    pub stall_p: Histogram,
    /// Time a vCPU was off the CPU while it was due in a lock queue.
    pub stall_wait: Histogram,
    /// Time one decision took.
    pub decision: Histogram,
    /// Why the controller steers no longer, if so: the host schedules by itself.
    #[serde(default)]
    pub ended: Option<String>,
}

/// State of a VM as the host sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Its vCPUs are registered and read.
    Active,
    /// It is known, and registered nothing.
    #[default]
    Unhinted,
    /// Policy gives it no extensions.
    Disabled,
    /// Its slots make no sense.
    Unreadable,
}

/// Counters and facts of one VM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VmStats {
    /// Name, unique on the host.
    pub name: String,
    /// UUID, where the VMM tells it.
    pub uuid: Option<String>,
    /// Process id of the VMM, 0 while not connected.
    pub pid: u32,
    /// cgroup path of the VMM.
    pub cgroup: Option<String>,
    /// API socket of the VMM.
    pub api_socket: Option<String>,
    /// State.
    pub state: VmState,
    /// Whether policy lets the VM have extensions.
    pub enabled: bool,
    /// CPU weight, 100 is the default (cgroup `cpu.weight`).
    pub weight: u32,
    /// Slice ends that met a raised hint.
    pub requests: u64,
    /// Extensions granted, by section.
    pub grants: Grants,
    /// Extensions refused, by cause.
    pub denials: Denials,
    /// Extensions ended, by outcome.
    pub ended: Outcomes,
    /// Extensions running now.
    pub running: u64,
    /// CPU time inside extensions, ns.
    pub extension_ns: u64,
    /// CPU time taken back, ns.
    pub penalty_ns: u64,
    /// Extension time written off, ns.
    pub forgiven_ns: u64,
    /// Extension time not yet taken back, ns.
    pub debt_ns: u64,
    /// Preemptions that hit a critical section, by cause.
    pub critical_preemptions: CriticalCauses,
    /// Involuntary deschedules of vCPU threads.
    pub preemptions: u64,
    /// Time vCPUs were off the CPU while inside a critical section, ns.
    pub critical_stall_ns: u64,
    /// Times a hopeless spinner stepped aside.
    pub stepped_aside: u64,
    /// Times a vCPU thread that slept got a CPU again.
    #[serde(default)]
    pub wakeups: u64,
    /// Time vCPUs ran while their pCPU had other tasks to run, ns.
    #[serde(default)]
    pub overloaded_ns: u64,
    /// Polls in place of a halt, as the guest counts them.
    #[serde(default)]
    pub polls: Polls,
    /// CPU time of the vCPU threads, ns.
    pub cpu_ns: u64,
    /// CPU time the VM was entitled to by weight while runnable, ns.
    pub fair_cpu_ns: u64,
    /// Time vCPUs were runnable but not running, ns.
    pub delay_ns: u64,
    /// Slot reads that made no sense.
    pub guest_faults: u64,
    /// One entry a vCPU thread.
    pub vcpus: Vec<VcpuStats>,
}

/// Polls of a guest in place of halts: for work in its idle loop, or for a lock. The guest's word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Polls {
    /// Met what they polled for.
    pub paid: u64,
    /// Ended in a halt.
    pub wasted: u64,
    /// Time spent polling, ns.
    pub ns: u64,
}

/// Counters of one vCPU.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct VcpuStats {
    /// vCPU number.
    pub vcpu: u32,
    /// Thread id, 0 while unknown.
    pub tid: u32,
    /// CPU time, ns.
    pub cpu_ns: u64,
    /// Time runnable but not running, ns.
    pub delay_ns: u64,
    /// Extensions granted.
    pub grants: u64,
    /// Involuntary deschedules.
    pub preemptions: u64,
    /// Preemptions that hit a critical section.
    pub critical_preemptions: u64,
}

/// Extensions granted, by what the vCPU was doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grants {
    /// In a non-preemptable section.
    pub non_preemptable: u64,
    /// In a preemptable section.
    pub preemptable: u64,
    /// In a lock queue whose head was running.
    pub wait: u64,
}

impl Grants {
    /// Sum.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.non_preemptable + self.preemptable + self.wait
    }
}

/// Extensions refused, by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denials {
    /// The slice had its extension already.
    pub used: u64,
    /// The VM's debt has reached its budget.
    pub budget: u64,
    /// Earlier extensions of this vCPU expired: it is cooling down.
    pub cooldown: u64,
    /// Policy gives the VM none.
    pub disabled: u64,
}

impl Denials {
    /// Sum.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.used + self.budget + self.cooldown + self.disabled
    }
}

/// Extensions ended, by rseq's outcome words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcomes {
    /// The guest left the section inside the extension.
    pub yielded: u64,
    /// The hard stop came first.
    pub expired: u64,
    /// The controller took it back early.
    pub revoked: u64,
    /// The vCPU went away: blocked, halted, unplugged.
    pub aborted: u64,
}

impl Outcomes {
    /// Sum.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.yielded + self.expired + self.revoked + self.aborted
    }
}

/// Preemptions that hit a critical section, by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CriticalCauses {
    /// At a slice end, no extension granted.
    pub denied: u64,
    /// At the hard stop of an extension.
    pub expired: u64,
    /// By the host's scheduler, outside the controller's decisions.
    pub host: u64,
}

impl CriticalCauses {
    /// Sum.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.denied + self.expired + self.host
    }
}

/// Number of buckets of a [`Histogram`].
pub const HISTOGRAM_BUCKETS: usize = 32;

/// Histogram over powers of two: bucket `i` counts values `v` with `2^(i-1) < v <= 2^i` ns
/// (bucket 0: 0 and 1 ns), the last one everything above.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Histogram {
    /// Counts, not cumulative.
    pub buckets: [u64; HISTOGRAM_BUCKETS],
    /// Number of values.
    pub count: u64,
    /// Sum of the values, ns.
    pub sum_ns: u64,
}

impl Histogram {
    /// Adds one value, ns.
    pub fn observe(&mut self, value_ns: u64) {
        let bits = u64::BITS - value_ns.saturating_sub(1).leading_zeros();
        let index = (bits as usize).min(HISTOGRAM_BUCKETS - 1);
        if let Some(bucket) = self.buckets.get_mut(index) {
            *bucket += 1;
        }
        self.count += 1;
        self.sum_ns = self.sum_ns.saturating_add(value_ns);
    }

    /// Adds another histogram.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum_ns = self.sum_ns.saturating_add(other.sum_ns);
    }

    /// The `q` quantile (0 to 1), ns, taking values as evenly spread inside a bucket; `None` if
    /// empty.
    #[must_use]
    pub fn quantile_ns(&self, q: f64) -> Option<u64> {
        let mut seen = 0u64;
        for (index, bucket) in self.buckets.iter().enumerate() {
            seen += bucket;
            if *bucket > 0 && seen as f64 >= q * self.count as f64 {
                let low = if index == 0 {
                    0.0
                } else {
                    (1u64 << (index - 1)) as f64
                };
                let high = (1u64 << index) as f64;
                let inside = q * self.count as f64 - (seen - bucket) as f64;
                let value = low + (high - low) * inside / *bucket as f64;
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                return Some(value.round() as u64);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_bucket_of_its_power_of_two() {
        let mut h = Histogram::default();
        for v in [0, 1, 2, 3, 4, 5, 1024, 1025, u64::MAX] {
            h.observe(v);
        }
        assert_eq!(h.buckets[0], 2);
        assert_eq!(h.buckets[1], 1);
        assert_eq!(h.buckets[2], 2);
        assert_eq!(h.buckets[3], 1);
        assert_eq!(h.buckets[10], 1);
        assert_eq!(h.buckets[11], 1);
        assert_eq!(h.buckets[31], 1);
        assert_eq!(h.count, 9);
        assert_eq!(h.quantile_ns(0.5), Some(4));
        assert_eq!(h.quantile_ns(0.0), Some(0));
    }
}
