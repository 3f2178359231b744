//! Books context-switch records: who ran, who was preempted, and inside what.

use ecs_policy::pace::SLEEPER_SLICES;
use ecs_policy::{Queue, Section, queue_of};

use crate::perf::{Switch, SwitchKind};
use crate::state::{State, Status, VcpuId};
use crate::sys::Tid;

/// Cause of a critical preemption; the index of its counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// At a slice end without an extension.
    Denied,
    /// At the hard stop of an extension.
    Expired,
    /// By the host's scheduler.
    Host,
}

/// Books records of one or more CPUs, oldest first; each names the index of its pCPU. `ours` is the
/// thread that looks: it interrupts vCPUs, but preempts none.
pub(crate) fn account(
    state: &mut State,
    switches: impl Iterator<Item = (usize, Switch)>,
    ours: Tid,
) {
    let mut lost: Vec<(VcpuId, u64)> = Vec::new();
    for (pcpu, switch) in switches {
        // The idle task is nobody.
        if switch.tid == ours || switch.tid == 0 {
            continue;
        }
        let id = state.by_tid.get(&switch.tid).copied();
        let Some(pcpu) = state.pcpus.get_mut(pcpu) else {
            continue;
        };
        if id.is_none() {
            match switch.kind {
                SwitchKind::In => pcpu.host_since_ns = switch.time_ns,
                SwitchKind::Preempted | SwitchKind::Blocked => {
                    pcpu.host_ran_ns += switch.time_ns.saturating_sub(pcpu.host_since_ns);
                }
            }
        }
        if switch.kind == SwitchKind::In {
            let before = std::mem::replace(&mut pcpu.last_tid, switch.tid);
            if before != switch.tid
                && let Some(&before) = state.by_tid.get(&before)
                && state
                    .vcpu(before)
                    .is_some_and(|vcpu| vcpu.status == Status::Waiting && !vcpu.ordered_off)
            {
                // The kernel chose somebody else.
                lost.push((before, switch.time_ns));
                count_preemption(state, before);
            }
            if let Some(id) = id {
                // A short interruption: nobody knows what it was doing then.
                lost.retain(|(other, _)| *other != id);
                came(state, id, switch.time_ns);
            }
        } else if let Some(id) = id {
            pcpu.last = Some(id);
            left(state, id, &switch);
        }
    }
    // Only a vCPU that is still off the CPU shows what it was doing when it lost it.
    for (id, time_ns) in lost {
        let Some(vm) = state.vm_mut(id.vm) else {
            continue;
        };
        if vm
            .vcpu(id.vcpu)
            .is_some_and(|vcpu| vcpu.status == Status::Waiting)
        {
            vm.read();
            let place = queue_of(id.vcpu, &vm.snaps, &vm.running);
            if vm.snap(id.vcpu).holds() || matches!(place, Queue::Head | Queue::HeadRuns) {
                count_critical(state, id, Cause::Host, time_ns);
            }
        }
    }
}

fn came(state: &mut State, id: VcpuId, time_ns: u64) {
    let slept = state.vm(id.vm).is_some_and(|vm| {
        vm.vcpus
            .iter()
            .flatten()
            .all(|vcpu| vcpu.status == Status::Blocked)
    });
    if slept {
        state.forgo_credit(id.vm, SLEEPER_SLICES);
    }
    let Some(vm) = state.vm_mut(id.vm) else {
        return;
    };
    vm.running.insert(id.vcpu);
    let Some(vcpu) = vm.vcpus.get_mut(id.vcpu).and_then(Option::as_mut) else {
        return;
    };
    vm.wakeups += u64::from(vcpu.status == Status::Blocked);
    vcpu.status = Status::Running;
    vcpu.stale = true;
    vcpu.since_ns = time_ns;
    vcpu.ordered_off = false;
    vcpu.tell_preempted(false);
    if let Some((since_ns, section)) = vcpu.critical_since.take() {
        let stalled_ns = time_ns.saturating_sub(since_ns);
        vm.stall_ns += stalled_ns;
        if let Some(histogram) = state.host.critical_stall.get_mut(section as usize) {
            histogram.observe(stalled_ns);
        }
    }
}

fn left(state: &mut State, id: VcpuId, switch: &Switch) {
    let Some(vm) = state.vm_mut(id.vm) else {
        return;
    };
    let Some(vcpu) = vm.vcpus.get_mut(id.vcpu).and_then(Option::as_mut) else {
        return;
    };
    let ran_ns = match vcpu.status {
        Status::Running => switch.time_ns.saturating_sub(vcpu.since_ns),
        Status::Waiting | Status::Blocked => 0,
    };
    vcpu.policy.cpu_ns += ran_ns;
    vcpu.turn_ran_ns += ran_ns;
    vm.policy.ledger.charge(ran_ns);
    if vcpu.told.is_none() && vcpu.overloaded {
        vm.overloaded_ns += ran_ns;
    }
    vcpu.since_ns = switch.time_ns;
    if switch.kind == SwitchKind::Blocked {
        vcpu.status = Status::Blocked;
        vm.running.remove(id.vcpu);
    } else {
        vcpu.status = Status::Waiting;
    }
}

/// Counts an involuntary deschedule.
pub(crate) fn count_preemption(state: &mut State, id: VcpuId) {
    let Some(vm) = state.vm_mut(id.vm) else {
        return;
    };
    vm.preemptions += 1;
    vm.running.remove(id.vcpu);
    if let Some(vcpu) = vm.vcpu_mut(id.vcpu) {
        vcpu.preemptions += 1;
        vcpu.tell_preempted(true);
    }
}

/// Counts a critical preemption at `time_ns`, of a vCPU whose words have been read since it left.
pub(crate) fn count_critical(state: &mut State, id: VcpuId, cause: Cause, time_ns: u64) {
    let Some(vm) = state.vm_mut(id.vm) else {
        return;
    };
    if let Some(counter) = vm.critical.get_mut(cause as usize) {
        *counter += 1;
    }
    let section = Section::interrupted(&vm.snap(id.vcpu));
    if let Some(vcpu) = vm.vcpu_mut(id.vcpu) {
        vcpu.critical_preemptions += 1;
        vcpu.critical_since = Some((time_ns, section));
    }
}
