//! The stock arm: the kernel's fair class, EEVDF, a CPU at a time.
//!
//! The scheduler chooses at a tick once the current one has had its slice, when somebody falls asleep,
//! and when somebody wakes up: at once if the current one has had its slice or more than its share.
//! Ticks come at the same moments on all CPUs, as Linux's do. The host's own threads ([`Thread`]) matter
//! less for the time they take than for the choices they bring. An idle CPU pulls a waiting vCPU from
//! the CPU with most of them. Not modelled: groups, caches, and periodic balancing of busy CPUs.

use crate::clock::NEVER;
use crate::fair::{Entity, Runner, Sum};
use crate::ids::{CpuId, Id, VcpuId};
use crate::rng::Rng;
use crate::world::{Place, World};

/// A thread of the host that sleeps and runs in turns, bound to its CPU.
#[derive(Debug)]
pub(crate) struct Thread {
    entity: Entity,
    asleep: bool,
    /// When it wakes up, ns; [`NEVER`] while it is awake.
    wake_ns: u64,
    /// CPU time until it sleeps again, ns.
    left_ns: u64,
    /// It sleeps for so long, ns, by chance more or less by up to [`Thread::varies_ns`].
    sleep_ns: u64,
    varies_ns: u64,
    run_ns: u64,
    observes: bool,
}

impl Thread {
    fn new(rng: &mut Rng, slice_ns: u64, (sleep_ns, varies_ns): (u64, u64), run_ns: u64) -> Self {
        Self {
            entity: Entity::new(0, slice_ns, ecs_policy::WEIGHT_DEFAULT),
            asleep: true,
            wake_ns: rng.below(2 * sleep_ns + 1),
            left_ns: 0,
            sleep_ns,
            varies_ns,
            run_ns,
            observes: false,
        }
    }

    /// It had the CPU.
    pub(crate) fn ran(&mut self, ns: u64) {
        self.entity.ran(ns);
        self.left_ns = self.left_ns.saturating_sub(ns);
    }
}

/// What the stock scheduler knows of a CPU.
#[derive(Debug)]
pub(crate) struct StockCpu {
    tick_ns: u64,
    pub(crate) threads: Vec<Thread>,
    /// The thread on the CPU.
    pub(crate) running: Option<usize>,
    /// The vCPU that was taken off the CPU last, until somebody else is known to have it.
    pub(crate) preempted: Option<VcpuId>,
}

impl Default for StockCpu {
    fn default() -> Self {
        Self {
            tick_ns: NEVER,
            threads: Vec::new(),
            running: None,
            preempted: None,
        }
    }
}

impl World {
    // ---- before the start ----

    /// Deals the vCPUs to the CPUs as the kernel does: evenly, whichever VM they are of. Gives the host
    /// its threads.
    pub(crate) fn stock_settle(&mut self) {
        let (stock, slice_ns) = (self.stock.clone(), self.stock_slice_ns);
        if !stock.apart {
            let mut order: Vec<VcpuId> = self.vcpus.ids().collect();
            for last in (1..order.len()).rev() {
                let other = self.rng.below(last as u64 + 1);
                order.swap(last, usize::try_from(other).unwrap_or(last));
            }
            for cpu in self.cpus.ids() {
                self.cpus[cpu].members.clear();
            }
            let mut load = vec![0; self.cpus.len()];
            for id in order {
                let least = |cpu: &CpuId| load.get(cpu.number()).copied();
                let allowed = self.cpus.ids().filter(|&cpu| self.may_use(id, cpu));
                let Some(cpu) = allowed.min_by_key(least) else {
                    continue;
                };
                if let Some(load) = load.get_mut(cpu.number()) {
                    *load += u64::from(self.vcpus[id].fair.weight);
                }
                self.vcpus[id].cpu = cpu;
                self.cpus[cpu].members.push(id);
            }
        }
        let busy = self.rng.below(self.cpus.len() as u64);
        for (cpu, number) in self.cpus.ids().zip(0..) {
            let mut threads = Vec::new();
            if let Some(mean_ns) = 1_000_000_000u64.checked_div(stock.wakeups_per_s) {
                let run_ns = stock.wakeup_us * 1000;
                let sleep = (
                    mean_ns.saturating_sub(run_ns),
                    mean_ns.saturating_sub(run_ns),
                );
                threads.push(Thread::new(&mut self.rng, slice_ns, sleep, run_ns));
            }
            if stock.observer_sleep_us > 0 && number == busy {
                let sleep = (stock.observer_sleep_us * 1000, 0);
                let run_ns = stock.observer_look_us * 1000;
                let mut thread = Thread::new(&mut self.rng, slice_ns, sleep, run_ns);
                thread.observes = true;
                threads.push(thread);
            }
            self.cpus[cpu].stock.threads = threads;
        }
    }

    /// Gives a CPU its first vCPU.
    pub(crate) fn stock_begin(&mut self, cpu: CpuId) {
        self.stock_next(cpu);
        self.plan(cpu);
    }

    // ---- what happens ----

    /// A tick, the end of a thread's work, or its wake-up.
    pub(crate) fn stock_event(&mut self, cpu: CpuId) {
        self.book(cpu);
        let stock = &self.cpus[cpu].stock;
        let done = |index: &usize| stock.threads.get(*index).is_some_and(|it| it.left_ns == 0);
        if let Some(index) = stock.running.filter(done) {
            self.thread_done(cpu, index);
        } else if stock.tick_ns <= self.now_ns {
            self.set_tick(cpu);
            if self.update(cpu) {
                self.choose_again(cpu);
            }
        } else if let Some(index) = stock
            .threads
            .iter()
            .position(|thread| thread.wake_ns <= self.now_ns)
        {
            self.thread_woken(cpu, index);
        }
        self.plan(cpu);
    }

    /// Sets when the host has something to do on `cpu`.
    fn plan(&mut self, cpu: CpuId) {
        let now_ns = self.now_ns;
        let this = &mut self.cpus[cpu];
        let stock = &this.stock;
        let mut next_ns = stock.tick_ns;
        for (thread, index) in stock.threads.iter().zip(0..) {
            next_ns = next_ns.min(thread.wake_ns);
            if stock.running == Some(index) {
                next_ns = next_ns.min(this.since_ns.max(now_ns) + thread.left_ns);
            }
        }
        this.host_ns = next_ns;
    }

    fn set_tick(&mut self, cpu: CpuId) {
        let jitter_ns = self.rng.below(self.tick_jitter_ns + 1);
        let tick = self.now_ns / self.tick_ns + 1;
        self.cpus[cpu].stock.tick_ns = tick * self.tick_ns + jitter_ns;
    }

    fn thread_woken(&mut self, cpu: CpuId, index: usize) {
        let Some(thread) = self.cpus[cpu].stock.threads.get_mut(index) else {
            return;
        };
        thread.wake_ns = NEVER;
        thread.left_ns = thread.run_ns;
        thread.asleep = false;
        self.enqueue(cpu, Runner::Thread(index), 0);
    }

    fn thread_done(&mut self, cpu: CpuId, index: usize) {
        self.dequeue(cpu, Runner::Thread(index));
        let now_ns = self.now_ns;
        let stock = &mut self.cpus[cpu].stock;
        stock.running = None;
        if let Some(thread) = stock.threads.get_mut(index) {
            let varies_ns = self.rng.below(2 * thread.varies_ns + 1);
            thread.asleep = true;
            thread.wake_ns = now_ns + thread.sleep_ns - thread.varies_ns + varies_ns;
        }
        self.stock_next(cpu);
    }

    /// A vCPU woke up: to its CPU if that is idle, to another idle one, or into the queue of its own.
    pub(crate) fn stock_woken(&mut self, id: VcpuId) {
        let mut cpu = self.vcpus[id].cpu;
        // One that is still in its queue does not look for another CPU.
        if !self.is_idle(cpu)
            && !self.vcpus[id].fair.delayed
            && let Some(idle) = self
                .cpus
                .ids()
                .find(|&cpu| self.is_idle(cpu) && self.may_use(id, cpu))
        {
            self.cpus[cpu].members.retain(|&member| member != id);
            self.cpus[idle].members.push(id);
            self.vcpus[id].cpu = idle;
            cpu = idle;
        }
        self.enqueue(cpu, Runner::Vcpu(id), self.host.wake_ns);
        self.plan(cpu);
        self.schedule(cpu);
    }

    /// The current vCPU fell asleep.
    pub(crate) fn stock_blocked(&mut self, cpu: CpuId) {
        self.book(cpu);
        if let Some(id) = self.cpus[cpu].current {
            self.dequeue(cpu, Runner::Vcpu(id));
        }
        self.switch_out(cpu, Place::Halted);
        self.stock_next(cpu);
        self.plan(cpu);
    }

    /// The CPU is empty: its own next one, or a vCPU of another CPU, or none.
    pub(crate) fn stock_next(&mut self, cpu: CpuId) {
        let next = self.pick(cpu).or_else(|| self.pull(cpu).map(Runner::Vcpu));
        let Some(next) = next else {
            self.cpus[cpu].stock.tick_ns = NEVER;
            return;
        };
        self.put_on(cpu, next, self.host.switch_ns);
    }

    // ---- who is next ----

    fn on_cpu(&self, cpu: CpuId) -> Option<Runner> {
        let this = &self.cpus[cpu];
        let thread = this.stock.running.map(Runner::Thread);
        this.current.map(Runner::Vcpu).or(thread)
    }

    pub(crate) fn is_observer(&self, cpu: CpuId, who: Runner) -> bool {
        let Runner::Thread(index) = who else {
            return false;
        };
        let thread = self.cpus[cpu].stock.threads.get(index);
        thread.is_some_and(|thread| thread.observes)
    }

    fn is_idle(&self, cpu: CpuId) -> bool {
        self.on_cpu(cpu).is_none()
    }

    fn entity(&mut self, cpu: CpuId, of: Runner) -> Option<&mut Entity> {
        match of {
            Runner::Vcpu(id) => Some(&mut self.vcpus[id].fair),
            Runner::Thread(index) => {
                let thread = self.cpus[cpu].stock.threads.get_mut(index)?;
                Some(&mut thread.entity)
            }
        }
    }

    /// All in a CPU's queue, the running one included.
    #[inline]
    fn queued(&self, cpu: CpuId) -> impl Iterator<Item = (Runner, &Entity)> {
        let this = &self.cpus[cpu];
        let vcpus = this.members.iter().filter_map(|&id| {
            let vcpu = &self.vcpus[id];
            let here = vcpu.place != Place::Halted || vcpu.fair.delayed;
            here.then_some((Runner::Vcpu(id), &vcpu.fair))
        });
        let threads = this.stock.threads.iter().zip(0..);
        vcpus.chain(threads.filter_map(|(thread, index)| {
            let here = !thread.asleep || thread.entity.delayed;
            here.then_some((Runner::Thread(index), &thread.entity))
        }))
    }

    fn sum_without(&self, cpu: CpuId, except: Option<Runner>) -> Sum {
        let mut sum = Sum::default();
        for (runner, entity) in self.queued(cpu) {
            if Some(runner) != except {
                sum.add(entity);
            }
        }
        sum
    }

    /// The eligible one with the earliest deadline; the running one while its slice is protected.
    fn earliest(&self, cpu: CpuId) -> Option<Runner> {
        let sum = self.sum_without(cpu, None);
        let current = self.on_cpu(cpu);
        let mut best: Option<(i64, bool, Runner)> = None;
        for (runner, entity) in self.queued(cpu) {
            if !sum.has_eligible(entity) {
                continue;
            }
            let runs = Some(runner) == current;
            if runs && entity.vruntime_ns < entity.protected_ns {
                return Some(runner);
            }
            let before = |&(deadline_ns, other_runs, _): &(i64, bool, Runner)| {
                (entity.deadline_ns, runs) < (deadline_ns, other_runs)
            };
            if best.as_ref().is_none_or(before) {
                best = Some((entity.deadline_ns, runs, runner));
            }
        }
        best.map(|(_, _, runner)| runner)
    }

    /// The next one; those that sleep and have paid leave the queue.
    fn pick(&mut self, cpu: CpuId) -> Option<Runner> {
        loop {
            let next = self.earliest(cpu)?;
            let sum = self.sum_without(cpu, None);
            let (slice_ns, tick_ns) = (self.stock_slice_ns, self.tick_ns);
            let entity = self.entity(cpu, next)?;
            if !entity.delayed {
                return Some(next);
            }
            entity.delayed = false;
            entity.lag_ns = entity.lag(&sum, slice_ns, tick_ns).min(0);
        }
    }

    /// Brings the books of the running one up to date: whether the scheduler is to choose again.
    fn update(&mut self, cpu: CpuId) -> bool {
        let Some(current) = self.on_cpu(cpu) else {
            return false;
        };
        let slice_ns = self.stock_slice_ns;
        let alone = self.queued(cpu).nth(1).is_none();
        let Some(entity) = self.entity(cpu, current) else {
            return false;
        };
        let ended = entity.vruntime_ns >= entity.deadline_ns;
        if ended {
            entity.renew(slice_ns);
        }
        !alone && (ended || entity.vruntime_ns >= entity.protected_ns)
    }

    fn choose_again(&mut self, cpu: CpuId) {
        let next = self.pick(cpu);
        if let Some(next) = next
            && self.on_cpu(cpu) != Some(next)
        {
            self.replace(cpu, next);
        }
    }

    fn replace(&mut self, cpu: CpuId, next: Runner) {
        if let Some(current) = self.cpus[cpu].current {
            self.count_preemption(current);
            self.switch_out(cpu, Place::Waiting);
            self.cpus[cpu].stock.preempted = Some(current);
        }
        self.cpus[cpu].stock.running = None;
        self.put_on(cpu, next, self.host.switch_ns);
    }

    fn put_on(&mut self, cpu: CpuId, next: Runner, cost_ns: u64) {
        if self.cpus[cpu].stock.tick_ns == NEVER {
            self.set_tick(cpu);
        }
        if let Some(entity) = self.entity(cpu, next) {
            entity.protected_ns = entity.deadline_ns;
        }
        self.watch_switch(cpu, next);
        match next {
            Runner::Vcpu(id) => self.switch_in(cpu, id, cost_ns),
            // The way out of the guest and into the next one is paid when that one comes.
            Runner::Thread(index) => {
                self.book(cpu);
                self.cpus[cpu].stock.running = Some(index);
            }
        }
    }

    // ---- into the queue and out of it ----

    /// Somebody woke up on `cpu`.
    fn enqueue(&mut self, cpu: CpuId, who: Runner, wake_ns: u64) {
        self.book(cpu);
        let idle = self.is_idle(cpu);
        let (slice_ns, tick_ns) = (self.stock_slice_ns, self.tick_ns);
        let mut others = self.sum_without(cpu, Some(who));
        let again = others.nr > 1 && self.update(cpu);
        let Some(entity) = self.entity(cpu, who) else {
            return;
        };
        if entity.delayed {
            entity.delayed = false;
            others.add(entity);
            if entity.lag(&others, slice_ns, tick_ns) > 0 {
                entity.vruntime_ns = others.average_ns().unwrap_or(entity.vruntime_ns);
                entity.renew(slice_ns);
            }
        } else {
            entity.place(&others, slice_ns);
        }
        if idle {
            self.put_on(cpu, who, wake_ns);
        } else if again {
            self.choose_again(cpu);
        } else if self.earliest(cpu) == Some(who) {
            self.replace(cpu, who);
        }
    }

    /// The running one falls asleep.
    fn dequeue(&mut self, cpu: CpuId, who: Runner) {
        let sum = self.sum_without(cpu, None);
        let (slice_ns, tick_ns) = (self.stock_slice_ns, self.tick_ns);
        self.update(cpu);
        if let Some(entity) = self.entity(cpu, who) {
            entity.lag_ns = entity.lag(&sum, slice_ns, tick_ns);
            entity.delayed = !sum.has_eligible(entity);
        }
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

    /// It keeps its lag and what is left of its slice, not its virtual time, which is of the CPU it left.
    fn migrate(&mut self, id: VcpuId, to: CpuId) {
        let from = self.vcpus[id].cpu;
        self.book(from);
        let (left, joined) = (self.sum_without(from, None), self.sum_without(to, None));
        let (slice_ns, tick_ns) = (self.stock_slice_ns, self.tick_ns);
        self.cpus[from].members.retain(|&member| member != id);
        self.cpus[to].members.push(id);
        let vcpu = &mut self.vcpus[id];
        vcpu.cpu = to;
        let entity = &mut vcpu.fair;
        let ahead_ns = entity.deadline_ns - entity.vruntime_ns;
        entity.lag_ns = entity.lag(&left, slice_ns, tick_ns);
        entity.place(&joined, slice_ns);
        entity.deadline_ns = entity.vruntime_ns + ahead_ns;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Arm, Scenario};

    const TWO_BY_TWO: &str = "[[vm]]\ncount = 2\nvcpus = 2\n\
                              workload = { kind = \"ticket\", in_us = 5, out_us = 5 }\n";

    /// Worlds of many seeds in which the vCPUs of the first VM are on one CPU; every CPU has two.
    fn together(stock: &str) -> usize {
        let text = format!("[stock]\n{stock}\n{TWO_BY_TWO}");
        let scenario: Scenario = text.parse().unwrap();
        let is_together = |&seed: &u64| {
            let world = World::build(&scenario, Arm::Stock, seed).unwrap();
            assert!(world.cpus.iter().all(|cpu| cpu.members.len() == 2));
            let mut cpus = world.vcpus.iter().map(|vcpu| vcpu.cpu);
            cpus.next() == cpus.next()
        };
        (0..600).filter(is_together).count()
    }

    #[test]
    fn the_kernel_deals_vcpus_whichever_vm_they_are_of() {
        // Of the three others one is on the same CPU.
        let nr = together("");
        assert!((150..250).contains(&nr), "{nr} of 600");
        assert_eq!(together("apart = true"), 0);
    }

    #[test]
    fn the_observer_is_on_one_cpu_and_the_other_threads_on_each() {
        let scenario: Scenario = format!("[host]\ncores = 4\n{TWO_BY_TWO}").parse().unwrap();
        let world = World::build(&scenario, Arm::Stock, 1).unwrap();
        let mut nr: Vec<usize> = world
            .cpus
            .iter()
            .map(|cpu| cpu.stock.threads.len())
            .collect();
        nr.sort_unstable();
        assert_eq!(nr, [1, 1, 1, 2]);
        let world = World::build(&scenario, Arm::Ecs, 1).unwrap();
        assert!(world.cpus.iter().all(|cpu| cpu.stock.threads.is_empty()));
    }
}
