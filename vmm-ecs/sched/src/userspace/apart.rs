//! Runs the vCPUs of a lock-bound VM apart in time.
//!
//! # Problem
//! Two vCPUs of a VM that run at the same time and want the same lock slow each other down: one
//! waits while the other holds it. Run beside a vCPU of *another* VM, each finds the lock free.
//!
//! # Approach
//! While VMs are about even in virtual time and all of them stand in lock queues now and then, each
//! pCPU prefers another VM in each epoch: the Latin square of [`ecs_policy::latin_distance`].
//!
//! # What it does not do
//! It never outweighs virtual time by more than two slices, and leaves VMs alone whose vCPUs wait
//! for something other than a lock queue: those may well need each other to run.

use ecs_policy::pace::REMEMBER_TURNS;
use ecs_policy::{Candidate, Queue, even_vtime_ns, latin_distance};

use crate::state::{State, VcpuId, VmEntry};

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
    let is_lock_bound = |id: &VcpuId| state.vm(id.vm).is_some_and(|vm| vm.lock_bound > 0);
    let Some(least_ns) = even_vtime_ns(candidates, &state.params, is_lock_bound) else {
        return;
    };
    let epoch = now_ns / state.params.slice_ns;
    let nr_vms = state.vms.iter().flatten().count();
    let place = |vm: usize| state.vms.iter().take(vm).flatten().count();
    for (id, candidate) in candidates {
        let distance = latin_distance(place(id.vm), nr_vms, pcpu, epoch);
        candidate.vm_vtime_ns = least_ns + distance as u64;
    }
}
