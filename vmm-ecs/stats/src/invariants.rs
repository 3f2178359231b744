//! The identities every snapshot keeps.

use crate::snapshot::{Histogram, STATS_VERSION, Snapshot, VmStats};

/// The first identity a snapshot breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvariantError {
    /// Not the version this crate describes.
    #[error("Snapshot version is {0}, not {STATS_VERSION}")]
    Version(u32),
    /// VMs are not sorted by name, or two share one.
    #[error("VM {0:?} is out of order, or its name is not unique")]
    Order(String),
    /// `grants = ended + running` fails.
    #[error("VM {vm:?}: {granted} extensions granted, but {ended} ended and {running} running")]
    Grants {
        /// Name of the VM.
        vm: String,
        /// Extensions granted.
        granted: u128,
        /// Extensions ended.
        ended: u128,
        /// Extensions running.
        running: u64,
    },
    /// `debt = extension - penalty - forgiven` fails.
    #[error(
        "VM {vm:?}: debt {debt_ns} ns is not extension {extension_ns} ns \
         - penalty {penalty_ns} ns - forgiven {forgiven_ns} ns"
    )]
    Debt {
        /// Name of the VM.
        vm: String,
        /// Debt, ns.
        debt_ns: u64,
        /// CPU time inside extensions, ns.
        extension_ns: u64,
        /// CPU time taken back, ns.
        penalty_ns: u64,
        /// Extension time written off, ns.
        forgiven_ns: u64,
    },
    /// The buckets of a histogram do not add up to its count.
    #[error("Histogram {name}: buckets hold {buckets} values, its count is {count}")]
    Histogram {
        /// Field of [`HostStats`](crate::HostStats).
        name: &'static str,
        /// Sum of the buckets.
        buckets: u128,
        /// Count.
        count: u64,
    },
}

impl Snapshot {
    /// Checks the identities of docs/metrics.md: `grants = ended + running` and
    /// `debt = extension - penalty - forgiven` for each VM, names sorted and unique, histograms
    /// that add up. Sums are exact whatever the counters hold.
    ///
    /// # Errors
    /// The first identity that fails.
    pub fn check_invariants(&self) -> Result<(), InvariantError> {
        if self.version != STATS_VERSION {
            return Err(InvariantError::Version(self.version));
        }
        let names = self.vms.iter().zip(self.vms.iter().skip(1));
        for (before, after) in names {
            if before.name >= after.name {
                return Err(InvariantError::Order(after.name.clone()));
            }
        }
        let host = &self.host;
        check_histogram("extension_np", &host.extension_np)?;
        check_histogram("extension_p", &host.extension_p)?;
        check_histogram("extension_wait", &host.extension_wait)?;
        check_histogram("stall_np", &host.stall_np)?;
        check_histogram("stall_p", &host.stall_p)?;
        check_histogram("stall_wait", &host.stall_wait)?;
        check_histogram("decision", &host.decision)?;
        self.vms.iter().try_for_each(check_vm)
    }
}

fn check_vm(vm: &VmStats) -> Result<(), InvariantError> {
    let granted = sum([
        vm.grants.non_preemptable,
        vm.grants.preemptable,
        vm.grants.wait,
    ]);
    let ended = sum([
        vm.ended.yielded,
        vm.ended.expired,
        vm.ended.revoked,
        vm.ended.aborted,
    ]);
    if granted != ended + u128::from(vm.running) {
        return Err(InvariantError::Grants {
            vm: vm.name.clone(),
            granted,
            ended,
            running: vm.running,
        });
    }
    if u128::from(vm.extension_ns) != sum([vm.debt_ns, vm.penalty_ns, vm.forgiven_ns]) {
        return Err(InvariantError::Debt {
            vm: vm.name.clone(),
            debt_ns: vm.debt_ns,
            extension_ns: vm.extension_ns,
            penalty_ns: vm.penalty_ns,
            forgiven_ns: vm.forgiven_ns,
        });
    }
    Ok(())
}

fn check_histogram(name: &'static str, histogram: &Histogram) -> Result<(), InvariantError> {
    let buckets = sum(histogram.buckets);
    if buckets == u128::from(histogram.count) {
        return Ok(());
    }
    Err(InvariantError::Histogram {
        name,
        buckets,
        count: histogram.count,
    })
}

fn sum(parts: impl IntoIterator<Item = u64>) -> u128 {
    parts.into_iter().map(u128::from).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]

    use super::*;
    use crate::snapshot::{Grants, Outcomes};

    fn good() -> Snapshot {
        let vm = |name: &str| VmStats {
            name: name.into(),
            grants: Grants {
                non_preemptable: 5,
                preemptable: 2,
                wait: 1,
            },
            ended: Outcomes {
                yielded: 4,
                expired: 1,
                revoked: 1,
                aborted: 1,
            },
            running: 1,
            extension_ns: 100,
            penalty_ns: 60,
            forgiven_ns: 10,
            debt_ns: 30,
            ..VmStats::default()
        };
        let mut snapshot = Snapshot {
            version: STATS_VERSION,
            vms: vec![vm("a"), vm("b")],
            ..Snapshot::default()
        };
        snapshot.host.decision.observe(300);
        snapshot
    }

    #[test]
    fn a_good_snapshot_and_an_empty_one_pass() {
        assert_eq!(good().check_invariants(), Ok(()));
        let empty = Snapshot {
            version: STATS_VERSION,
            ..Snapshot::default()
        };
        assert_eq!(empty.check_invariants(), Ok(()));
    }

    #[test]
    fn a_lost_grant_is_found() {
        let mut snapshot = good();
        snapshot.vms[1].running = 0;
        assert_eq!(
            snapshot.check_invariants(),
            Err(InvariantError::Grants {
                vm: "b".into(),
                granted: 8,
                ended: 7,
                running: 0
            })
        );
    }

    #[test]
    fn lost_and_invented_debt_is_found() {
        for debt_ns in [0, 29, 31, u64::MAX] {
            let mut snapshot = good();
            snapshot.vms[0].debt_ns = debt_ns;
            assert!(
                matches!(snapshot.check_invariants(), Err(InvariantError::Debt { vm, .. }) if vm == "a"),
                "{debt_ns}"
            );
        }
    }

    #[test]
    fn sums_do_not_wrap() {
        let mut snapshot = good();
        snapshot.vms[0].grants.wait = u64::MAX;
        assert!(matches!(
            snapshot.check_invariants(),
            Err(InvariantError::Grants { granted, .. }) if granted > u128::from(u64::MAX)
        ));
    }

    #[test]
    fn wrong_order_twins_and_version_are_found() {
        let mut snapshot = good();
        snapshot.vms.swap(0, 1);
        assert_eq!(
            snapshot.check_invariants(),
            Err(InvariantError::Order("a".into()))
        );
        snapshot.vms[1].name = "b".into();
        assert_eq!(
            snapshot.check_invariants(),
            Err(InvariantError::Order("b".into()))
        );
        snapshot.version = 9;
        assert_eq!(snapshot.check_invariants(), Err(InvariantError::Version(9)));
    }

    #[test]
    fn a_histogram_that_does_not_add_up_is_found() {
        let mut snapshot = good();
        snapshot.host.decision.count += 1;
        assert_eq!(
            snapshot.check_invariants(),
            Err(InvariantError::Histogram {
                name: "decision",
                buckets: 1,
                count: 2
            })
        );
    }
}
