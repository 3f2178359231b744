//! What each VM was entitled to, booked at regular intervals from the kernel's own counters.

use ecs_policy::{Claim, split_fairly};

use crate::state::{State, Status};
use crate::sys::now_ns;
use crate::threads::ThreadStat;

/// Shorter intervals say little: the kernel books a wait when it ends.
const SHORTEST_NS: u64 = 200_000_000;

/// Books received, entitled and waited time, and what guests say of theirs: reads the kernel's counters
/// of every vCPU thread and splits what all VMs received since the last time among them, by weight,
/// limited by what each could have used.
pub(crate) fn book(state: &mut State) {
    let now = now_ns();
    let interval_ns = now.saturating_sub(std::mem::replace(&mut state.booked_ns, now));
    let mut claims = Vec::with_capacity(state.vms.len());
    let mut received_ns = 0;
    for vm in state.vms.iter_mut().flatten() {
        let (mut cpu_ns, mut demand_ns) = (0, 0);
        for vcpu in vm.vcpus.iter_mut().flatten() {
            let Some(after) = vcpu.stat.as_ref().and_then(ThreadStat::cpu_and_delay_ns) else {
                continue;
            };
            let before = std::mem::replace(&mut vcpu.kernel_ns, after);
            let ran_ns = after.0.saturating_sub(before.0);
            let delay_ns = after.1.saturating_sub(before.1);
            cpu_ns += ran_ns;
            vm.delay_ns += delay_ns;
            // The kernel books a wait when it ends: one that goes on counts from our own books.
            let waits_ns = match vcpu.status {
                Status::Waiting => now.saturating_sub(vcpu.since_ns),
                Status::Running | Status::Blocked => 0,
            };
            demand_ns += (ran_ns + delay_ns.max(waits_ns)).min(interval_ns);
        }
        vm.book_polls(interval_ns);
        vm.cpu_ns += cpu_ns;
        received_ns += cpu_ns;
        claims.push(Claim {
            weight: vm.policy.ledger.weight(),
            demand_ns: demand_ns.max(cpu_ns),
            entitled_ns: 0,
        });
    }
    split_fairly(received_ns, &mut claims);
    for (vm, claim) in state.vms.iter_mut().flatten().zip(claims) {
        vm.fair_ns += claim.entitled_ns;
    }
}

/// The same for somebody who asks for the books now; whether they were brought up to date, which they
/// are not where that was done a moment ago.
pub(crate) fn book_for_reader(state: &mut State) -> bool {
    let due = now_ns().saturating_sub(state.booked_ns) >= SHORTEST_NS;
    if due {
        book(state);
    }
    due
}
