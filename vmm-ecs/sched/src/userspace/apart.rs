//! Runs the vCPUs of a lock-bound VM apart in time.
//!
//! # Problem
//! Two vCPUs of a VM that run at the same time and want the same lock slow each other down: one
//! waits while the other holds it. Run beside a vCPU of *another* VM, each finds the lock free.
//!
//! # Approach
//! Slices end at the same moments on all pCPUs, multiples of the slice: epochs. While VMs are about
//! even in virtual time and all of them stand in lock queues now and then, pCPU `p` prefers VM
//! `(epoch + p) mod n`: a Latin square, in which every VM visits every pCPU and no VM is on two of
//! them at once, as long as there are at least as many VMs as pCPUs.
//!
//! # What it does not do
//! It never outweighs virtual time by more than two slices, and leaves VMs alone whose vCPUs wait
//! for something other than a lock queue: those may well need each other to run.

use ecs_policy::{Candidate, Queue};

use crate::state::{State, VcpuId, VmEntry};

/// Turns for which a VM counts as lock-bound after one of its vCPUs was seen in a lock queue.
const REMEMBER_TURNS: u32 = 32;

/// Length of a slice that begins now and ends with an epoch, ns: half a slice to one and a half.
pub(super) fn aligned_slice_ns(now_ns: u64, slice_ns: u64) -> u64 {
    let left = slice_ns - now_ns % slice_ns;
    if left < slice_ns / 2 {
        left + slice_ns
    } else {
        left
    }
}

/// Notes where a vCPU of the VM stands.
pub(super) fn note(vm: &mut VmEntry, queue: Queue) {
    match queue {
        Queue::Head | Queue::HeadRuns | Queue::Hopeless => vm.lock_bound = REMEMBER_TURNS,
        Queue::NotWaiting | Queue::Unknown => {}
    }
}

/// Puts the candidates of one pCPU into the order of this epoch, if they are even and lock-bound.
pub(super) fn arrange(
    state: &State,
    pcpu: usize,
    now_ns: u64,
    candidates: &mut [(VcpuId, Candidate)],
) {
    let slice_ns = state.params.slice_ns;
    let vtimes = || {
        candidates
            .iter()
            .map(|(_, candidate)| candidate.vm_vtime_ns)
    };
    let (Some(least), Some(most)) = (vtimes().min(), vtimes().max()) else {
        return;
    };
    let lock_bound = |id: &VcpuId| {
        state.params.queue_rules && state.vm(id.vm).is_some_and(|vm| vm.lock_bound > 0)
    };
    if most - least > 2 * slice_ns || !candidates.iter().all(|(id, _)| lock_bound(id)) {
        return;
    }
    let nr_vms = state.vms.iter().flatten().count();
    let place = |vm: usize| state.vms.iter().take(vm).flatten().count();
    let Ok(epoch) = usize::try_from(now_ns / slice_ns) else {
        return;
    };
    let first = (epoch % nr_vms.max(1)) + pcpu;
    for (id, candidate) in candidates {
        let distance = (place(id.vm) + nr_vms * (pcpu + 1) - first) % nr_vms.max(1);
        candidate.vm_vtime_ns = least + distance as u64;
    }
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
}
