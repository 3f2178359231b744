//! When slices end, and whose turn an epoch is: keeps the vCPUs of a lock-bound VM apart in time.
//!
//! Slices end at the same moments on all pCPUs, multiples of the slice: epochs. In epoch `e` pCPU `p`
//! prefers VM `(e + p) mod n`: a Latin square, in which every VM visits every pCPU and no VM is on two
//! of them at once, as long as there are at least as many VMs as pCPUs (docs/adr/0006-apart.md).

use crate::params::Params;
use crate::pick::Candidate;

/// Length of a slice that begins now and ends with an epoch, ns: half a slice to one and a half.
#[must_use]
pub fn aligned_slice_ns(now_ns: u64, slice_ns: u64) -> u64 {
    let slice_ns = slice_ns.max(1);
    let left = slice_ns - now_ns % slice_ns;
    if left < slice_ns / 2 {
        left.saturating_add(slice_ns)
    } else {
        left
    }
}

/// How far VM number `vm` of `nr_vms` is from the one that pCPU number `pcpu` prefers in an epoch; 0
/// is the preferred one.
#[must_use]
pub fn latin_distance(vm: usize, nr_vms: usize, pcpu: usize, epoch: u64) -> usize {
    let nr_vms = nr_vms.max(1);
    let epoch = usize::try_from(epoch % nr_vms as u64).unwrap_or(0);
    (vm % nr_vms + 2 * nr_vms - epoch - pcpu % nr_vms) % nr_vms
}

/// Least virtual time among candidates that an epoch may put into its order, ns: they are within two
/// slices of each other, and `is_lock_bound` says of all that they stand in lock queues now and then.
/// `None` where it may not.
#[must_use]
pub fn even_vtime_ns<T>(
    candidates: &[(T, Candidate)],
    params: &Params,
    is_lock_bound: impl Fn(&T) -> bool,
) -> Option<u64> {
    let vtimes = || {
        candidates
            .iter()
            .map(|(_, candidate)| candidate.vm_vtime_ns)
    };
    let (least_ns, most_ns) = (vtimes().min()?, vtimes().max()?);
    let may = params.queue_rules
        && most_ns - least_ns <= 2 * params.slice_ns
        && candidates.iter().all(|(of, _)| is_lock_bound(of));
    may.then_some(least_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_end_with_epochs_and_are_never_short() {
        const SLICE: u64 = 3_000_000;
        for now in (0..4 * SLICE).step_by(7_919) {
            let length = aligned_slice_ns(now, SLICE);
            assert_eq!((now + length) % SLICE, 0, "begun at {now}");
            assert!(
                (SLICE / 2..SLICE + SLICE / 2).contains(&length),
                "{length} ns"
            );
        }
    }

    #[test]
    fn an_epoch_prefers_another_vm_on_each_pcpu_and_each_vm_visits_each_pcpu() {
        const VMS: usize = 5;
        let first = |pcpu, epoch| (0..VMS).find(|&vm| latin_distance(vm, VMS, pcpu, epoch) == 0);
        for epoch in 0..VMS as u64 {
            for pcpu in 1..VMS {
                assert_ne!(first(pcpu, epoch), first(pcpu - 1, epoch));
            }
        }
        for pcpu in 0..VMS {
            assert_eq!(first(pcpu, 0), first(pcpu, VMS as u64));
            assert_eq!(first(pcpu, 7), Some((7 + pcpu) % VMS));
        }
    }
}
