//! Takes the programs' books over into the state that statistics are made from.

use ecs_policy::{Books, Counters, Ledger};
use ecs_stats::Histogram;

use super::kernel::{Program, types};
use crate::state::{State, Status};

/// Everything that has been booked so far. `epochs` says which VM is in each place.
pub(crate) fn collect(state: &mut State, program: &Program, epochs: &[u32]) {
    let mut rotations = 0;
    for (index, vm) in state.vms.iter_mut().enumerate() {
        let (Some(vm), Some(books)) = (vm.as_mut(), program.vm(index)) else {
            continue;
        };
        // Until one of its vCPUs runs, the place holds the books of the VM before.
        if Some(&books.epoch) != epochs.get(index) {
            continue;
        }
        vm.policy.ledger = ledger(&books.vm.ledger);
        vm.policy.counters = counters(&books.vm.counters);
        vm.preemptions = books.preemptions;
        vm.critical = books.critical;
        vm.stall_ns = books.stall_ns;
        vm.wakeups = books.wakeups;
        vm.overloaded_ns = books.overloaded_ns;
        rotations += books.rotations;
        let mut faults = 0;
        for (number, vcpu) in vm.vcpus.iter_mut().enumerate() {
            let (Some(vcpu), Some(seen)) = (vcpu.as_mut(), program.vcpu(index, number)) else {
                continue;
            };
            if seen.epoch != books.epoch {
                continue;
            }
            vcpu.preemptions = seen.preemptions;
            vcpu.critical_preemptions = seen.critical;
            vcpu.grants = seen.grants;
            vcpu.since_ns = seen.since_ns;
            vcpu.status = match (seen.running, seen.runnable) {
                (1, _) => Status::Running,
                (_, 1) => Status::Waiting,
                _ => Status::Blocked,
            };
            faults += seen.faults;
        }
        vm.kernel_faults = faults;
    }
    state.host.rotations = rotations;
    collect_host(state, program);
}

fn collect_host(state: &mut State, program: &Program) {
    let host = &mut state.host;
    host.extension = Default::default();
    host.critical_stall = Default::default();
    host.decision = Histogram::default();
    host.doorbells = 0;
    host.directed_yields = 0;
    host.migrations = 0;
    host.far_migrations = 0;
    for cpu in (0..).map_while(|cpu| program.cpu(cpu)) {
        let sums = host.extension.iter_mut().chain(&mut host.critical_stall);
        let parts = cpu.extension.iter().chain(&cpu.critical_stall);
        for (sum, part) in sums.zip(parts) {
            sum.merge(&histogram(part));
        }
        host.decision.merge(&histogram(&cpu.decision));
        host.doorbells += cpu.doorbells;
        host.directed_yields += cpu.yields;
        host.migrations += cpu.moves;
        host.far_migrations += cpu.far_moves;
        host.extension_max_ns = host.extension_max_ns.max(cpu.extended_max_ns);
    }
}

fn ledger(ledger: &types::ecs_ledger) -> Ledger {
    Ledger::from_books(Books {
        weight: ledger.weight,
        vtime_ns: ledger.vtime_ns,
        vtime_rest: ledger.vtime_rest,
        cpu_ns: ledger.cpu_ns,
        extension_ns: ledger.extension_ns,
        penalty_ns: ledger.penalty_ns,
        forgiven_ns: ledger.forgiven_ns,
    })
}

fn counters(counters: &types::ecs_counters) -> Counters {
    Counters {
        requests: counters.requests,
        grants: counters.grants,
        denials: counters.denials,
        ended: counters.ended,
        running: counters.running,
        stepped_aside: counters.stepped_aside,
        handed_back: counters.handed_back,
    }
}

fn histogram(histogram: &types::ecs_histogram) -> Histogram {
    Histogram {
        buckets: histogram.buckets,
        count: histogram.count,
        sum_ns: histogram.sum_ns,
    }
}
