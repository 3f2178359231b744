//! Lets go of a pCPU whose guests use no locks, and takes it back when they do.
//!
//! Without locks there is no critical section to protect, and the host's own scheduler shares a
//! pCPU as well as an agent would, for less. The agent then only looks now and then.

use ecs_policy::pace::QUIET_TURNS;

use super::mechanism::Role;
use super::role::{assign, unpark};
use super::step::Look;
use crate::state::{State, Status, VcpuId};

/// Looks at a released pCPU: a guest that begins to use locks waits for help that long.
pub(super) const RELEASED_NS: u64 = 20_000_000;
/// Virtual time by which VMs may drift apart on a released pCPU before the agent steers again.
const DRIFT_NS: u64 = 20_000_000;

/// Whether no guest here has used a lock for long, and no VM is ahead of another: then there is
/// nothing that the kernel would not do as well.
pub(super) fn pcpu_is_quiet(state: &State, pcpu: usize) -> bool {
    state
        .pcpus
        .get(pcpu)
        .is_some_and(|pcpu| pcpu.quiet_turns >= QUIET_TURNS)
        && drift_ns(state, pcpu) < DRIFT_NS / 2
}

pub(super) fn stays_released(state: &State, pcpu: usize) -> bool {
    let Some(members) = state.pcpus.get(pcpu).map(|pcpu| pcpu.members.as_slice()) else {
        return true;
    };
    let waiting = |id: &&VcpuId| {
        state
            .vcpu(**id)
            .is_some_and(|vcpu| vcpu.status != Status::Blocked)
    };
    let in_section = |id: &VcpuId| {
        state
            .vm(id.vm)
            .map(|vm| vm.snap(id.vcpu))
            .is_some_and(|snap| snap.holds() || snap.spins())
    };
    members.iter().filter(waiting).count() < 2
        || (!members.iter().any(in_section) && drift_ns(state, pcpu) < DRIFT_NS)
}

/// Distance in virtual time of the VMs with work on this pCPU.
fn drift_ns(state: &State, pcpu: usize) -> u64 {
    let Some(pcpu) = state.pcpus.get(pcpu) else {
        return 0;
    };
    let (mut least, mut most) = (u64::MAX, 0);
    for &id in &pcpu.members {
        if state
            .vcpu(id)
            .is_some_and(|vcpu| vcpu.status != Status::Blocked)
            && let Some(vm) = state.vm(id.vm)
        {
            least = least.min(vm.policy.ledger.vtime_ns());
            most = most.max(vm.policy.ledger.vtime_ns());
        }
    }
    most.saturating_sub(least)
}

/// Lets the kernel schedule the vCPUs here as their VMMs left them.
pub(super) fn release(state: &mut State, look: &Look<'_>) {
    let Some(pcpu) = state.pcpus.get_mut(look.pcpu) else {
        return;
    };
    pcpu.released = true;
    pcpu.current = None;
    pcpu.turn = None;
    pcpu.window_since_ns = None;
    state.tell_crowded(look.pcpu, false);
    let Some(pcpu) = state.pcpus.get(look.pcpu) else {
        return;
    };
    for id in pcpu.members.clone() {
        unpark(state, id);
        let Some(vcpu) = state.vcpu_mut(id) else {
            continue;
        };
        vcpu.role = None;
        vcpu.ordered_off = false;
        vcpu.crowded = false;
        vcpu.tell_yield(0);
        if let Some(Err(error)) = vcpu.original.map(|original| original.set(vcpu.tid)) {
            tracing::warn!(tid = vcpu.tid, %error, "Cannot release a vCPU thread");
        }
    }
}

/// Steers again.
pub(super) fn take_back(state: &mut State, look: &Look<'_>) {
    let Some(pcpu) = state.pcpus.get_mut(look.pcpu) else {
        return;
    };
    pcpu.released = false;
    pcpu.quiet_turns = 0;
    pcpu.window_closed_ns = look.now_ns;
    for id in pcpu.members.clone() {
        assign(state, look, id, Role::Waiting);
    }
}
