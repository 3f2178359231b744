//! What happens in a second of CPU time, by over-commit: taken from the detailed simulator.

use crate::scenario::{Arm, Scenario, ScenarioError};

/// Runnable vCPUs a CPU at which the detailed simulator is asked.
const LEVELS: [(f64, usize); 6] = [(1.0, 2), (1.5, 3), (2.0, 4), (3.0, 6), (4.0, 8), (6.0, 12)];

/// The host that stands for all: 8 CPUs, VMs of 4 vCPUs with sections of 1 us every 50 us.
const HOST: &str = "duration_ms = 500\n[host]\ncores = 8\n[[vm]]\nvcpus = 4\n\
    workload = { kind = \"ticket\", in_us = 1, out_us = 50 }\n";

/// Per second of a VM's CPU time, under eCS.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Row {
    pub(super) preemptions: f64,
    pub(super) denied: f64,
    pub(super) yielded: f64,
    pub(super) expired: f64,
    pub(super) revoked: f64,
    pub(super) aborted: f64,
    /// Mean length of an extension, us.
    pub(super) extension_us: f64,
    /// Stalled time, s.
    pub(super) stall: f64,
}

/// Rows by over-commit, rising.
#[derive(Debug)]
pub(super) struct Rates(Vec<(f64, Row)>);

impl Rates {
    /// Asks the detailed simulator; takes some 100 ms.
    pub(super) fn simulated() -> Result<Self, ScenarioError> {
        let mut scenario: Scenario = HOST.parse()?;
        let mut rows = Vec::new();
        for (level, nr_vms) in LEVELS {
            for vm in &mut scenario.vms {
                vm.count = nr_vms;
            }
            let report = crate::run(&scenario, Arm::Ecs, 1)?;
            let cpu_s = report.cpu_ns as f64 / 1e9;
            let whole_s = cpu_s * (scenario.warmup_ms + scenario.duration_ms) as f64
                / scenario.duration_ms as f64;
            let policy = &report.policy;
            // The policy's counters are of the warm-up too.
            let of_policy = |count: u64| count as f64 / whole_s;
            rows.push((
                level,
                Row {
                    preemptions: report.preemptions as f64 / cpu_s,
                    denied: of_policy(policy.denials),
                    yielded: of_policy(policy.yielded),
                    expired: of_policy(policy.expired),
                    revoked: of_policy(policy.revoked),
                    aborted: of_policy(policy.aborted),
                    extension_us: policy.extension_ns as f64 / 1e3 / policy.grants.max(1) as f64,
                    stall: report.stall_ns as f64 / 1e9 / cpu_s,
                },
            ));
        }
        Ok(Self(rows))
    }

    /// The row at an over-commit: straight between two levels, nothing below the first, the last one
    /// above it.
    pub(super) fn at(&self, level: f64) -> Row {
        let mut below = (0.0, Row::default());
        for &(above_level, above) in &self.0 {
            if level < above_level {
                return below
                    .1
                    .towards(&above, (level - below.0) / (above_level - below.0));
            }
            below = (above_level, above);
        }
        below.1
    }
}

impl Row {
    fn towards(&self, other: &Self, part: f64) -> Self {
        let mix = |from: f64, to: f64| from + (to - from) * part;
        Self {
            preemptions: mix(self.preemptions, other.preemptions),
            denied: mix(self.denied, other.denied),
            yielded: mix(self.yielded, other.yielded),
            expired: mix(self.expired, other.expired),
            revoked: mix(self.revoked, other.revoked),
            aborted: mix(self.aborted, other.aborted),
            extension_us: mix(self.extension_us, other.extension_us),
            stall: mix(self.stall, other.stall),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_over_commit_means_more_preemptions_and_none_below_one() {
        let rates = Rates::simulated().unwrap();
        let at = |level| rates.at(level).preemptions;
        assert!(at(1.0) < 1.0, "{}", at(1.0));
        assert!(at(2.0) > 100.0, "{}", at(2.0));
        assert!(at(1.5) > at(1.2) && (at(9.0) - at(6.0)).abs() < 1e-9);
        assert!(rates.at(2.0).yielded > 1.0);
    }
}
