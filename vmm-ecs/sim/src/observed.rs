//! What the observing daemon would count of the stock arm: not what is so, but what `ecs-sched`'s
//! observer sees of it.
//!
//! It learns of preemptions from context switches, its own interruptions left out, and looks about once
//! a millisecond. A vCPU that is still off its CPU then shows what it was doing: only such preemptions
//! can count as critical, and one that waited in line is judged by where the queue has got to since.
//! Stalls count once they have ended.

use ecs_policy::{CsSnapshot, Queue, Section, queue_of};
use serde::{Deserialize, Serialize};

use crate::fair::Runner;
use crate::ids::{CpuId, VcpuId};
use crate::world::{Place, World};

/// Counters as of the daemon in observe mode; zeros without the observer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Times a vCPU lost its CPU though it had work, but to the observer itself.
    pub preemptions: u64,
    /// Those that met a section or a queue whose head ran, and lasted until the observer looked.
    pub critical: u64,
    /// Time vCPUs were off the CPU after these, ns: of those in a section that the guest cannot preempt,
    /// in one it can, and in a queue.
    pub stall_ns: [u64; 3],
}

impl Observed {
    /// Time vCPUs were off the CPU after critical preemptions, ns.
    #[must_use]
    pub fn all_stall_ns(&self) -> u64 {
        self.stall_ns.iter().sum()
    }

    /// Counter by counter, what grew since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let mut grown = *self;
        grown.preemptions -= before.preemptions;
        grown.critical -= before.critical;
        for (now, before) in grown.stall_ns.iter_mut().zip(before.stall_ns) {
            *now -= before;
        }
        grown
    }
}

/// What the observer remembers.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    pub(crate) counts: Observed,
    /// vCPUs that lost their CPU since the last look.
    lost: Vec<VcpuId>,
    snaps: Vec<CsSnapshot>,
}

impl World {
    /// Somebody came to a CPU after `self.cpus[cpu].last`: the vCPU that was preempted there has lost it
    /// unless it is that one again.
    pub(crate) fn watch_switch(&mut self, cpu: CpuId, next: Runner) {
        if self.stock.observer_sleep_us == 0 {
            // Nobody looks.
            return;
        }
        if self.is_observer(cpu, next) {
            self.watch_look();
            return;
        }
        let before = self.cpus[cpu].stock.preempted.take();
        if let Some(id) = before
            && next != Runner::Vcpu(id)
            && self.vcpus[id].place == Place::Waiting
        {
            self.watch.counts.preemptions += 1;
            self.watch.lost.push(id);
        }
        if let Runner::Vcpu(id) = next {
            // It came back, here or elsewhere, before anybody looked.
            self.watch.lost.retain(|&other| other != id);
            let vcpu = &mut self.vcpus[id];
            if let Some((since_ns, section)) = vcpu.seen_critical.take() {
                let stalled_ns = self.now_ns - since_ns;
                if let Some(sum) = self.watch.counts.stall_ns.get_mut(section as usize) {
                    *sum += stalled_ns;
                }
            }
        }
    }

    /// The observer looks at those that lost their CPU.
    fn watch_look(&mut self) {
        let mut lost = std::mem::take(&mut self.watch.lost);
        let mut snaps = std::mem::take(&mut self.watch.snaps);
        for id in lost.drain(..) {
            if self.vcpus[id].place != Place::Waiting {
                continue;
            }
            let vm = &self.vms[self.vcpus[id].vm];
            snaps.clear();
            snaps.extend(vm.vcpus().map(|vcpu| self.snap(vcpu)));
            let number = usize::from(self.vcpus[id].number);
            let place = queue_of(number, &snaps, &vm.running);
            let own = self.snap(id);
            if own.holds() || matches!(place, Queue::Head | Queue::HeadRuns) {
                let vcpu = &mut self.vcpus[id];
                vcpu.seen_critical = Some((vcpu.since_ns, Section::interrupted(&own)));
                self.watch.counts.critical += 1;
            }
        }
        (self.watch.lost, self.watch.snaps) = (lost, snaps);
    }
}
