//! Which VMs and vCPU threads there are: the part of keeping track that every controller shares.

use crate::state::{State, Vcpu, VcpuId, VmEntry, VmSpec};
use crate::sys::Tid;
use crate::threads::VcpuThread;

/// Enters a VM, or takes over what is new about it. Returns what it replaces: dropping that may
/// unmap guest memory, which is not done under the lock.
pub(crate) fn update(state: &mut State, spec: VmSpec) -> Option<VmSpec> {
    let known = state.find(&spec.name);
    if let Some(vm) = known.and_then(|vm| state.vm_mut(vm)) {
        return Some(vm.set_spec(spec));
    }
    let entry = VmEntry::new(spec, state.vclock_ns(None).unwrap_or(0));
    match state.vms.iter_mut().find(|vm| vm.is_none()) {
        Some(free) => *free = Some(entry),
        None => state.vms.push(Some(entry)),
    }
    None
}

/// Known vCPUs whose thread is not among `threads`.
pub(crate) fn gone(state: &State, vm: usize, threads: &[VcpuThread]) -> Vec<VcpuId> {
    let vcpus = state
        .vm(vm)
        .map(|vm| vm.vcpus.as_slice())
        .unwrap_or_default();
    let is_gone = |vcpu: &Vcpu| !threads.iter().any(|thread| thread.tid == vcpu.tid);
    vcpus
        .iter()
        .enumerate()
        .filter(|(_, vcpu)| vcpu.as_ref().is_some_and(is_gone))
        .map(|(vcpu, _)| VcpuId { vm, vcpu })
        .collect()
}

/// Threads that no vCPU is known for.
pub(crate) fn new(state: &State, threads: &[VcpuThread]) -> Vec<VcpuThread> {
    let is_new = |thread: &&VcpuThread| {
        (thread.vcpu as usize) < ecs_policy::MAX_VCPUS && !state.by_tid.contains_key(&thread.tid)
    };
    threads.iter().filter(is_new).copied().collect()
}

/// Enters a vCPU; on a pCPU if it is bound to one.
pub(crate) fn insert(state: &mut State, id: VcpuId, mut vcpu: Vcpu) {
    let (tid, pcpu): (Tid, Option<usize>) = (vcpu.tid, vcpu.pcpu);
    let teller = state.teller.as_ref();
    vcpu.told = teller.and_then(|teller| teller.name(id, tid));
    let Some(vm) = state.vm_mut(id.vm) else {
        return;
    };
    if vm.vcpus.len() <= id.vcpu {
        vm.vcpus.resize_with(id.vcpu + 1, || None);
    }
    if let Some(slot) = vm.vcpus.get_mut(id.vcpu) {
        *slot = Some(vcpu);
    }
    vm.link_slots();
    state.by_tid.insert(tid, id);
    if let Some(pcpu) = pcpu.and_then(|pcpu| state.pcpus.get_mut(pcpu)) {
        pcpu.members.push(id);
    }
}

/// Forgets a vCPU, and lets its guest see no hints any more.
pub(crate) fn remove(state: &mut State, id: VcpuId) -> Option<Vcpu> {
    for pcpu in &mut state.pcpus {
        pcpu.members.retain(|&member| member != id);
        if pcpu.current == Some(id) {
            pcpu.current = None;
            pcpu.turn = None;
        }
    }
    let vm = state.vm_mut(id.vm)?;
    vm.running.remove(id.vcpu);
    let mut vcpu = vm.vcpus.get_mut(id.vcpu)?.take()?;
    if vcpu.extended {
        vm.policy.abort_extension();
    }
    // Before its words are cleared: the programs write no more.
    if let Some(told) = vcpu.told.take() {
        vm.overloaded_ns += told.overloaded_ns();
    }
    if let Some(slots) = &vcpu.slots {
        slots.clear_hints();
    }
    state.by_tid.remove(&vcpu.tid);
    if let Some(host) = vcpu.parked.and_then(|host| state.pcpus.get_mut(host)) {
        host.lodgers = host.lodgers.saturating_sub(1);
    }
    Some(vcpu)
}

/// Whether some VM has fewer vCPU threads than its guest registered, or none at all.
pub(crate) fn is_incomplete(state: &State) -> bool {
    state
        .vms
        .iter()
        .flatten()
        .any(|vm| vm.vcpus.iter().flatten().count() < vm.spec.slots.nr_registered().max(1))
}

/// Index and process of every VM.
pub(crate) fn processes(state: &State) -> Vec<(usize, u32)> {
    let entries = state.vms.iter().enumerate();
    entries
        .filter_map(|(index, vm)| Some((index, vm.as_ref()?.spec.pid)))
        .collect()
}
