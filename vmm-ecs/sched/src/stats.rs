//! Turns a controller's state into a statistics snapshot.

use ecs_stats::{
    CriticalCauses, Denials, Grants, HostStats, Outcomes, STATS_VERSION, Snapshot, VcpuStats,
    VmState, VmStats,
};

use crate::state::{State, VmEntry};
use crate::sys::now_ns;
use crate::threads::ThreadStat;
use crate::{Host, entitle};

pub(crate) fn snapshot(state: &mut State, host: &Host) -> Snapshot {
    let fresh = entitle::book_for_reader(state);
    let vms = state.vms.iter().flatten();
    let mut vms: Vec<VmStats> = vms.map(|vm| vm_stats(vm, fresh)).collect();
    vms.sort_by(|a, b| a.name.cmp(&b.name));
    let [extension_np, extension_p, extension_wait] = state.host.extension.clone();
    let [stall_np, stall_p, stall_wait] = state.host.critical_stall.clone();
    Snapshot {
        version: STATS_VERSION,
        taken_ns: now_ns(),
        host: HostStats {
            controller: host.controller.clone(),
            mechanism: host.mechanism.clone(),
            abi: u32::from(ecs_abi::VIRTIO_ECS_VERSION),
            kernel: host.kernel.clone(),
            pcpus: state.pcpus.iter().map(|pcpu| pcpu.cpu).collect(),
            extensions_enabled: state.params.extensions,
            slice_ns: state.params.slice_ns,
            extension_limit_ns: state.params.extension_ns,
            debt_limit_ns: state.params.budget_ns,
            controller_cpu_ns: state.pcpus.iter().map(|pcpu| pcpu.agent_cpu_ns).sum(),
            rotations: state.host.rotations,
            doorbells: state.host.doorbells,
            directed_yields: state.host.directed_yields,
            migrations: state.host.migrations,
            far_migrations: state.host.far_migrations,
            perf_records: state.pcpus.iter().map(|pcpu| pcpu.perf_records).sum(),
            perf_lost: state.pcpus.iter().map(|pcpu| pcpu.perf_lost).sum(),
            extension_np,
            extension_p,
            extension_wait,
            extension_max_ns: state.host.extension_max_ns,
            stall_np,
            stall_p,
            stall_wait,
            decision: state.host.decision.clone(),
            ended: state.host.ended.clone(),
        },
        vms,
    }
}

/// `fresh`: its vCPUs' times have just been read.
fn vm_stats(vm: &VmEntry, fresh: bool) -> VmStats {
    let ledger = &vm.policy.ledger;
    let counters = &vm.policy.counters;
    let [non_preemptable, preemptable, wait] = counters.grants;
    let [used, budget, cooldown, disabled] = counters.denials;
    let [yielded, expired, revoked, aborted] = counters.ended;
    let [denied, hard_stop, by_host] = vm.critical;
    let registered = vm.spec.slots.nr_registered();
    VmStats {
        name: vm.spec.name.clone(),
        pid: vm.spec.pid,
        cgroup: vm.cgroup.clone(),
        state: match (vm.spec.enabled, registered) {
            (false, _) => VmState::Disabled,
            (true, 0) => VmState::Unhinted,
            (true, _) => VmState::Active,
        },
        enabled: vm.spec.enabled,
        weight: ledger.weight(),
        requests: counters.requests,
        grants: Grants {
            non_preemptable,
            preemptable,
            wait,
        },
        denials: Denials {
            used,
            budget,
            cooldown,
            disabled,
        },
        ended: Outcomes {
            yielded,
            expired,
            revoked,
            aborted,
        },
        running: counters.running,
        extension_ns: ledger.extension_ns(),
        penalty_ns: ledger.penalty_ns(),
        forgiven_ns: ledger.forgiven_ns(),
        debt_ns: ledger.debt_ns(),
        critical_preemptions: CriticalCauses {
            denied,
            expired: hard_stop,
            host: by_host,
        },
        preemptions: vm.preemptions,
        critical_stall_ns: vm.stall_ns,
        stepped_aside: counters.stepped_aside,
        wakeups: vm.wakeups,
        overloaded_ns: vm.overloaded_ns(),
        polls: vm.polls,
        cpu_ns: vm.cpu_ns,
        fair_cpu_ns: vm.fair_ns,
        delay_ns: vm.delay_ns,
        guest_faults: vm
            .spec
            .slots
            .vcpus
            .iter()
            .flatten()
            .map(|slots| slots.nr_faults())
            .sum::<u64>()
            + vm.kernel_faults,
        vcpus: vm
            .vcpus
            .iter()
            .zip(0u32..)
            .filter_map(|(vcpu, number)| {
                let vcpu = vcpu.as_ref()?;
                // Once is enough to read them.
                let stat = vcpu.stat.as_ref().filter(|_| !fresh);
                let now = stat.and_then(ThreadStat::cpu_and_delay_ns);
                let (cpu_ns, delay_ns) = now.unwrap_or(vcpu.kernel_ns);
                Some(VcpuStats {
                    vcpu: number,
                    tid: vcpu.tid.cast_unsigned(),
                    cpu_ns,
                    delay_ns,
                    grants: vcpu.grants,
                    preemptions: vcpu.preemptions,
                    critical_preemptions: vcpu.critical_preemptions,
                })
            })
            .collect(),
        ..VmStats::default()
    }
}
