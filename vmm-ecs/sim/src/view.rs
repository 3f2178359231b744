//! What can be seen of a vCPU: what its guest tells the host, and what is so.

use ecs_policy::{CsSnapshot, Wait};

use crate::guest::Phase;
use crate::ids::{Id, VcpuId};
use crate::report::Class;
use crate::scenario::Kind;
use crate::world::{Place, World};

impl World {
    /// Whether a vCPU holds something, or spins for it, as the host sees it: off the CPU it would hold
    /// others up.
    pub(crate) fn is_dirt(&self, id: VcpuId) -> bool {
        let vcpu = &self.vcpus[id];
        let work = &self.vms[vcpu.vm].work;
        work.enlightened && (work.pins || !matches!(vcpu.phase, Phase::Outside | Phase::Asleep))
    }

    /// What the host reads of a vCPU.
    pub(crate) fn snap(&self, id: VcpuId) -> CsSnapshot {
        let vcpu = &self.vcpus[id];
        let work = &self.vms[vcpu.vm].work;
        if !work.enlightened {
            return CsSnapshot::default();
        }
        let blocking = work.kind == Kind::Blocking;
        let inside = matches!(vcpu.phase, Phase::Inside | Phase::Serve);
        CsSnapshot {
            non_preemptable: work.pins || (inside && !blocking),
            preemptable: inside && blocking,
            blocked: vcpu.phase == Phase::Asleep,
            wait: match vcpu.phase {
                Phase::Outside | Phase::Inside => Wait::None,
                Phase::Serve => match vcpu.outer {
                    Some((Phase::Spin, _)) => Wait::Entering,
                    _ => Wait::None,
                },
                Phase::Spin | Phase::Asleep => self.wait_of(id),
            },
            idle: false,
        }
    }

    fn wait_of(&self, id: VcpuId) -> Wait {
        let vcpu = &self.vcpus[id];
        let own_word = (1 << 32) | id.number() as u64;
        let Some(lock) = vcpu.lock else {
            let holder = Some(self.vcpus[self.next_of(id)].number);
            return if vcpu.answered {
                Wait::Ended { lock: own_word }
            } else {
                Wait::Pending {
                    lock: own_word,
                    holder,
                }
            };
        };
        let this = &self.locks[lock];
        let word = match this.kind {
            Kind::Queue => own_word,
            _ => lock.number() as u64,
        };
        if this.is_open_for(id, vcpu.reads) {
            return Wait::Ended { lock: word };
        }
        let holder = match this.kind {
            // The hint of readers is the last writer: not this one.
            Kind::RwLock => this.owner.map(|owner| self.vcpus[owner].number),
            _ => this.hint,
        };
        Wait::Pending { lock: word, holder }
    }

    /// What a vCPU would be preempted in; `None` outside of everything. This is what is so, whatever
    /// the guest says.
    pub(crate) fn critical_class(&self, id: VcpuId) -> Option<Class> {
        let vcpu = &self.vcpus[id];
        match vcpu.phase {
            // It has released its lock, and wakes the next one.
            Phase::Inside if vcpu.lock.is_none() => None,
            Phase::Inside if vcpu.reads => Some(Class::Reader),
            Phase::Inside => Some(Class::Holder),
            Phase::Serve => Some(Class::Interrupt),
            Phase::Spin => self.is_next(id).then_some(Class::Waiter),
            Phase::Outside | Phase::Asleep => None,
        }
    }

    /// Whether a spinning vCPU has its lock already, or is next in line for one whose owner runs.
    fn is_next(&self, id: VcpuId) -> bool {
        let vcpu = &self.vcpus[id];
        let Some(lock) = vcpu.lock else {
            return vcpu.answered;
        };
        let this = &self.locks[lock];
        let owner_runs = this
            .owner
            .is_some_and(|owner| self.vcpus[owner].place == Place::Running);
        this.is_open_for(id, vcpu.reads) || (owner_runs && this.queue.front() == Some(&id))
    }
}
