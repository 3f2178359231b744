//! The stock arm: a weighted fair scheduler with ticks, after EEVDF as far as it matters here.
//!
//! Each CPU picks the waiting vCPU with the least virtual time at the first tick at which the current
//! one had its base slice; a vCPU that wakes up may take the CPU earlier. Ticks come at the same
//! moments on all CPUs, as Linux's do. An idle CPU pulls a waiting vCPU from the CPU with most of them.
//! Not modelled: groups, deadlines within a slice, caches, and periodic balancing of busy CPUs.

use crate::clock::NEVER;
use crate::ids::{CpuId, VcpuId};
use crate::world::{Place, World};

impl World {
    /// A tick on `cpu`.
    pub(crate) fn tick(&mut self, cpu: CpuId) {
        self.book(cpu);
        self.set_tick(cpu);
        let Some(current) = self.cpus[cpu].current else {
            return;
        };
        let ran_ns = self.now_ns - self.cpus[cpu].came_ns;
        let Some(next) = self.stock_candidate(cpu) else {
            return;
        };
        if ran_ns >= self.stock_slice_ns
            && self.vcpus[next].vruntime_ns < self.vcpus[current].vruntime_ns
        {
            self.stock_replace(cpu, next);
        }
    }

    fn set_tick(&mut self, cpu: CpuId) {
        let jitter_ns = self.rng.below(self.tick_jitter_ns + 1);
        let tick = self.now_ns / self.tick_ns + 1;
        self.cpus[cpu].host_ns = tick * self.tick_ns + jitter_ns;
    }

    fn stock_candidate(&self, cpu: CpuId) -> Option<VcpuId> {
        let members = self.cpus[cpu].members.iter().copied();
        members
            .filter(|&id| self.vcpus[id].place == Place::Waiting)
            .min_by_key(|&id| (self.vcpus[id].vruntime_ns, id))
    }

    fn stock_replace(&mut self, cpu: CpuId, next: VcpuId) {
        if let Some(current) = self.cpus[cpu].current {
            self.count_preemption(current);
        }
        self.switch_out(cpu, Place::Waiting);
        self.switch_in(cpu, next, self.host.switch_ns);
    }

    /// The CPU is empty: its own next vCPU, or one of another CPU, or none.
    pub(crate) fn stock_next(&mut self, cpu: CpuId) {
        let Some(next) = self.stock_candidate(cpu).or_else(|| self.pull(cpu)) else {
            self.cpus[cpu].host_ns = NEVER;
            return;
        };
        if self.cpus[cpu].host_ns == NEVER {
            self.set_tick(cpu);
        }
        self.switch_in(cpu, next, self.host.switch_ns);
    }

    /// Moves a waiting vCPU from the CPU with most of them to this one.
    fn pull(&mut self, cpu: CpuId) -> Option<VcpuId> {
        if self.nr_waiting == 0 {
            return None;
        }
        let mut best: Option<(usize, VcpuId)> = None;
        for other in self.cpus.ids() {
            let members = self.cpus[other].members.iter().copied();
            let mut waiting = members.filter(|&id| self.vcpus[id].place == Place::Waiting);
            let Some(id) = waiting.clone().find(|&id| self.may_use(id, cpu)) else {
                continue;
            };
            let nr = waiting.by_ref().count();
            if best.is_none_or(|(most, _)| nr > most) {
                best = Some((nr, id));
            }
        }
        let (_, id) = best?;
        self.migrate(id, cpu);
        Some(id)
    }

    fn may_use(&self, id: VcpuId, cpu: CpuId) -> bool {
        let allowed = &self.vms[self.vcpus[id].vm].allowed;
        allowed
            .as_ref()
            .is_none_or(|allowed| allowed.contains(&cpu))
    }

    fn migrate(&mut self, id: VcpuId, to: CpuId) {
        let from = self.vcpus[id].cpu;
        let (left, joined) = (self.least_vruntime(from), self.least_vruntime(to));
        self.cpus[from].members.retain(|&member| member != id);
        self.cpus[to].members.push(id);
        let vcpu = &mut self.vcpus[id];
        vcpu.cpu = to;
        // It keeps its lag, not its virtual time, which is of the CPU it left.
        if let (Some(left), Some(joined)) = (left, joined) {
            vcpu.vruntime_ns = (vcpu.vruntime_ns + joined).saturating_sub(left);
        }
    }

    fn least_vruntime(&self, cpu: CpuId) -> Option<u64> {
        let members = self.cpus[cpu].members.iter();
        members
            .map(|&id| &self.vcpus[id])
            .filter(|vcpu| vcpu.place != Place::Halted)
            .map(|vcpu| vcpu.vruntime_ns)
            .min()
    }

    /// A vCPU woke up: to its CPU if that is idle, to another idle one, or into the queue of its own.
    pub(crate) fn stock_woken(&mut self, id: VcpuId) {
        let home = self.vcpus[id].cpu;
        let mut cpu = home;
        if self.cpus[home].current.is_some()
            && let Some(idle) = self
                .cpus
                .ids()
                .find(|&cpu| self.cpus[cpu].current.is_none() && self.may_use(id, cpu))
        {
            self.migrate(id, idle);
            cpu = idle;
        }
        // Time asleep is no credit beyond a slice.
        let members = self.cpus[cpu].members.iter();
        let least_ns = members
            .filter(|&&other| other != id && self.vcpus[other].place != Place::Halted)
            .map(|&other| self.vcpus[other].vruntime_ns)
            .min();
        if let Some(least_ns) = least_ns {
            let floor_ns = least_ns.saturating_sub(self.stock_slice_ns);
            let vcpu = &mut self.vcpus[id];
            vcpu.vruntime_ns = vcpu.vruntime_ns.max(floor_ns);
        }
        match self.cpus[cpu].current {
            None => {
                self.set_tick(cpu);
                self.switch_in(cpu, id, self.host.wake_ns);
            }
            Some(current) => {
                self.book(cpu);
                let ran_ns = self.now_ns - self.cpus[cpu].came_ns;
                if ran_ns >= self.stock_slice_ns
                    && self.vcpus[id].vruntime_ns < self.vcpus[current].vruntime_ns
                {
                    self.stock_replace(cpu, id);
                }
            }
        }
        self.schedule(cpu);
    }

    /// The current vCPU fell asleep.
    pub(crate) fn stock_blocked(&mut self, cpu: CpuId) {
        self.switch_out(cpu, Place::Halted);
        self.stock_next(cpu);
    }
}
