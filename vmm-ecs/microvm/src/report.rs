//! What a VM says of itself.

use serde::{Deserialize, Serialize};

use crate::shared::{HANDOFF_BUCKETS, PerVcpu, Shared};
use std::sync::atomic::Ordering;

/// How the vCPUs run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KindUsed {
    /// In a KVM guest.
    Kvm,
    /// As plain threads.
    Thread,
}

impl KindUsed {
    /// Name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Thread => "thread",
        }
    }
}

/// Where a running VM stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Time since the start of the work, ms.
    pub t_ms: u64,
    /// Operations done, by vCPU.
    pub ops: Vec<u64>,
    /// CPU time used since the start of the work, ns, by vCPU.
    pub cpu_ns: Vec<u64>,
}

/// How long a released lock took to its next owner, where that one was waiting. Log-linear buckets,
/// exact to 25 %.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Handoff {
    /// Hand-overs measured.
    pub nr: u64,
    /// Median, ns.
    pub p50_ns: u64,
    /// 99th percentile, ns.
    pub p99_ns: u64,
    /// 99.9th percentile, ns.
    pub p999_ns: u64,
}

/// What became of the eCS device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// A backend is connected and every vCPU is registered.
    pub registered: bool,
    /// Connections made.
    pub nr_connects: u64,
    /// Rounds of registration made.
    pub nr_registrations: u64,
    /// Events received.
    pub nr_events: u64,
    /// Generation of the device that was registered with last.
    pub generation: u32,
    /// Why the last attempt failed, if it did.
    pub error: Option<String>,
}

/// The final report of a VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmReport {
    /// Always true: tells the report from a progress line.
    pub r#final: bool,
    /// Name of the VM.
    pub name: String,
    /// Operations done, by vCPU.
    pub ops: Vec<u64>,
    /// CPU time used, ns, by vCPU.
    pub cpu_ns: Vec<u64>,
    /// Time from the start of the work to its end, ns.
    pub elapsed_ns: u64,
    /// How the vCPUs ran.
    pub kind_used: KindUsed,
    /// Why that kind.
    pub why: String,
    /// Sleepers found asleep, at a look every 2 s, although the word they wait for had changed.
    /// They were woken.
    pub lost_wakeups: u64,
    /// Times a vCPU went to sleep.
    pub nr_halts: u64,
    /// Hand-overs of the lock.
    pub handoff: Handoff,
    /// Sections that changed protected data, as counted inside the lock without atomics.
    pub protected: u64,
    /// The same, as counted by each vCPU for itself. Equal unless exclusion is broken.
    pub expected: u64,
    /// Readers that saw half of a write.
    pub torn_reads: u64,
    /// Hand-backs rung, by vCPU.
    pub handbacks: Vec<u32>,
    /// Loop iterations of work per us that were used.
    pub iterations_per_us: f64,
    /// The eCS device; none: the VM had no such device.
    pub device: Option<DeviceReport>,
}

impl VmReport {
    /// Operations per second, all vCPUs together.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn ops_per_s(&self) -> f64 {
        self.ops.iter().sum::<u64>() as f64 * 1e9 / self.elapsed_ns.max(1) as f64
    }

    /// Whether the locks kept their promise.
    #[must_use]
    pub fn exclusion_held(&self) -> bool {
        self.protected == self.expected && self.torn_reads == 0
    }
}

/// Bucket of a number of ticks: four buckets an octave.
pub(crate) fn bucket_of(ticks: u64) -> usize {
    let ticks = ticks.max(4);
    let octave = ticks.ilog2();
    let quarter = (ticks >> (octave - 2)) & 3;
    usize::try_from(u64::from(octave) * 4 + quarter)
        .unwrap_or(0)
        .min(HANDOFF_BUCKETS - 1)
}

/// Middle of a bucket, ticks.
#[expect(clippy::cast_precision_loss, reason = "a percentile exact to 25 %")]
fn middle_of(bucket: usize) -> f64 {
    let octave = i32::try_from(bucket / 4).unwrap_or(0);
    2f64.powi(octave) * (1.0 + ((bucket % 4) as f64 + 0.5) / 4.0)
}

/// Percentiles over the histograms of all vCPUs.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a percentile exact to 25 %, never negative"
)]
pub(crate) fn handoff(shared: &Shared, vcpus: usize, ns_per_tick: f64) -> Handoff {
    let of = |vcpu: &PerVcpu, bucket: usize| {
        vcpu.handoff
            .get(bucket)
            .map_or(0, |count| count.load(Ordering::Relaxed))
    };
    let total = |bucket| {
        shared
            .vcpus
            .iter()
            .take(vcpus)
            .map(|vcpu| of(vcpu, bucket))
            .sum::<u64>()
    };
    let counts: Vec<u64> = (0..HANDOFF_BUCKETS).map(total).collect();
    let nr: u64 = counts.iter().sum();
    let percentile = |share: f64| {
        let target = (nr as f64 * share) as u64;
        let mut seen = 0;
        let bucket = counts.iter().position(|count| {
            seen += count;
            seen > target
        });
        bucket.map_or(0, |bucket| (middle_of(bucket) * ns_per_tick) as u64)
    };
    Handoff {
        nr,
        p50_ns: percentile(0.50),
        p99_ns: percentile(0.99),
        p999_ns: percentile(0.999),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_exact_to_a_quarter() {
        for ticks in [4u64, 5, 100, 1_000, 123_456, 1 << 40] {
            let middle = middle_of(bucket_of(ticks));
            #[expect(clippy::cast_precision_loss, reason = "a test")]
            let error = (middle / ticks as f64 - 1.0).abs();
            assert!(error <= 0.25, "{ticks}: {middle}");
        }
        assert_eq!(bucket_of(0), bucket_of(4));
        assert!(bucket_of(u64::MAX) < HANDOFF_BUCKETS);
    }
}
