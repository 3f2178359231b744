//! Gives a vCPU thread its role.

use super::mechanism::Role;
use super::step::Look;
use crate::state::{State, VcpuId};
use crate::sys::CpuSet;

/// Gives a vCPU a role, and brings it back first if it is parked on another pCPU. A thread the
/// kernel does not let us change keeps running as it is.
pub(super) fn assign(state: &mut State, look: &Look<'_>, id: VcpuId, role: Role) {
    if role != Role::Waiting {
        unpark(state, id);
    }
    let Some(vcpu) = state.vcpu_mut(id) else {
        return;
    };
    if vcpu.role == Some(role) {
        return;
    }
    vcpu.role = Some(role);
    let tid = vcpu.tid;
    if let Err(error) = look.mechanism.assign(tid, role) {
        tracing::warn!(tid, ?role, %error, "Cannot set the scheduling class of a vCPU thread");
    }
}

/// Binds a waiting vCPU to another pCPU, where a real-time vCPU keeps it from running.
pub(super) fn park(state: &mut State, id: VcpuId, to: usize) {
    let Some(cpu) = state.pcpus.get(to).map(|pcpu| pcpu.cpu) else {
        return;
    };
    let Some(vcpu) = state.vcpu_mut(id) else {
        return;
    };
    if vcpu.parked.is_none() && CpuSet::new(vec![cpu]).bind(vcpu.tid).is_ok() {
        vcpu.parked = Some(to);
        if let Some(pcpu) = state.pcpus.get_mut(to) {
            pcpu.lodgers += 1;
        }
    }
}

/// Binds a vCPU to its own pCPU again.
pub(super) fn unpark(state: &mut State, id: VcpuId) {
    let Some(vcpu) = state.vcpu_mut(id) else {
        return;
    };
    let Some(at) = vcpu.parked.take() else { return };
    let (tid, home) = (vcpu.tid, vcpu.pcpu);
    if let Some(pcpu) = state.pcpus.get_mut(at) {
        pcpu.lodgers = pcpu.lodgers.saturating_sub(1);
    }
    let Some(cpu) = home
        .and_then(|home| state.pcpus.get(home))
        .map(|pcpu| pcpu.cpu)
    else {
        return;
    };
    if let Err(error) = CpuSet::new(vec![cpu]).bind(tid) {
        tracing::warn!(tid, cpu, %error, "Cannot bind a vCPU thread to its pCPU again");
    }
}
