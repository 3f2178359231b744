//! The arms that steer: the userspace controller of `ecs-sched`, on the real policy.
//!
//! Each CPU has its agent. It looks when the turn, the extension or a scan ends, when the guest rings,
//! and when another agent asks it to; it decides with [`Turn::decide`] and [`pick`], and its CPU time is
//! charged to the CPU. What it does is what `step.rs` there does, without the windows for other threads
//! (nobody else runs here). A CPU whose guests use no locks costs nothing, as if it were released.

use ecs_policy::pace::{
    CREDIT_SLICES, POLL_NS, QUIET_TURNS, REMEMBER_TURNS, SCAN_NS, SHORTEST_NS, SLEEPER_SLICES,
    VAIN_RINGS,
};
use ecs_policy::{
    Candidate, CsSnapshot, Decision, Event, Input, Leave, Params, Queue, Rank, Turn, Wait,
    aligned_slice_ns, even_vtime_ns, is_urgent, latin_distance, pick, queue_of,
};

use crate::clock::NEVER;
use crate::ids::{CpuId, Id, VcpuId, VmId};
use crate::world::{Place, World};

/// The daemon listens again to doorbells that were muted, every so often, ns (its supervisor's beat).
const BEAT_NS: u64 = 20_000_000;

/// What the agents remember together, and buffers they use again.
#[derive(Debug, Default)]
pub(crate) struct Steering {
    /// The VM that was read last.
    snaps: Vec<CsSnapshot>,
    others: Vec<(VcpuId, Rank)>,
    candidates: Vec<(VcpuId, Candidate)>,
    vclock: Vclock,
}

/// Virtual time of the VMs with work, as it was within the last slice.
#[derive(Debug, Default)]
struct Vclock {
    least_ns: u64,
    second_ns: u64,
    least: Option<VmId>,
    good_until_ns: u64,
}

impl World {
    /// An agent's timer ended.
    pub(crate) fn timer(&mut self, cpu: CpuId) {
        self.look(cpu, Event::Look, self.host.look_ns);
    }

    /// A guest rang.
    pub(crate) fn rung(&mut self, cpu: CpuId) {
        let current = self.cpus[cpu].current;
        if current.is_some_and(|id| !self.is_muted(id)) {
            self.look(cpu, Event::HandBack, self.host.doorbell_ns);
        }
    }

    /// Whether nobody listens to a vCPU's doorbell for having rung in vain too often.
    fn is_muted(&self, id: VcpuId) -> bool {
        self.now_ns < self.vcpus[id].muted_until_ns
    }

    /// The current vCPU fell asleep.
    pub(crate) fn ecs_blocked(&mut self, cpu: CpuId) {
        self.look(cpu, Event::Blocked, self.host.doorbell_ns);
    }

    /// A vCPU woke up: it waits behind the current one, unless there is none.
    pub(crate) fn ecs_woken(&mut self, id: VcpuId) {
        let (vm, cpu) = (self.vcpus[id].vm, self.vcpus[id].cpu);
        if self.vms[vm].nr_awake == 1 {
            self.forgo_credit(vm, SLEEPER_SLICES);
        }
        if self.cpus[cpu].current.is_none() {
            self.fill(cpu);
            self.delay(cpu, self.host.wake_ns);
            self.schedule(cpu);
        }
    }

    /// Gives an empty CPU its next vCPU.
    pub(crate) fn fill(&mut self, cpu: CpuId) {
        self.find_others(cpu, None);
        let chosen = self.choose(cpu, None);
        self.rotate(cpu, None, chosen, 0);
    }

    // ---- deciding ----

    fn look(&mut self, cpu: CpuId, event: Event, cost_ns: u64) {
        self.book(cpu);
        self.cpus[cpu].host_ns = NEVER;
        let this = &self.cpus[cpu];
        let (Some(current), Some(mut turn)) = (this.current, this.turn) else {
            self.fill(cpu);
            return;
        };
        let cost_ns = if this.quiet_turns >= QUIET_TURNS && event == Event::Look {
            0
        } else {
            cost_ns
        };
        self.find_others(cpu, Some(current));
        let others = &self.steering.others;
        let some_help = others.iter().any(|(_, rank)| *rank != Rank::Hopeless);
        let urgent = others
            .iter()
            .any(|&(id, rank)| rank == Rank::Head && self.is_stuck(id, current));
        let queue = self.place_of(current, None);
        let snap = self.snap(current);
        let dirty = self.asks_for_cpus(self.vcpus[current].vm);
        let vcpu = &mut self.vcpus[current];
        let vm = &mut self.vms[vcpu.vm];
        if matches!(queue, Queue::Head | Queue::HeadRuns | Queue::Hopeless) {
            vm.lock_bound = REMEMBER_TURNS;
        }
        let input = Input {
            event: match event {
                Event::HandBack if !turn.is_extended() && !dirty => Event::Look,
                event => event,
            },
            ran_ns: std::mem::take(&mut self.cpus[cpu].turn_ran_ns),
            snap,
            queue,
            others: some_help,
            urgent,
        };
        let decision = turn.decide(&self.params, &mut vm.books, &mut vcpu.policy, &input);
        self.note_quiet(cpu, &input, &decision);
        let rang = event == Event::HandBack;
        match decision {
            Decision::Keep { for_ns } | Decision::Extend { for_ns, .. } => {
                self.note_ring(cpu, current, rang);
                self.stay(cpu, current, turn, for_ns, cost_ns);
            }
            Decision::Renew => {
                let turn = self.begin(cpu, current, 0);
                self.note_ring(cpu, current, rang);
                self.stay(cpu, current, turn, turn.left_ns(), cost_ns);
            }
            Decision::Leave(leave) => self.leave_cpu(cpu, current, leave, cost_ns),
        }
    }

    fn leave_cpu(&mut self, cpu: CpuId, current: VcpuId, leave: Leave, cost_ns: u64) {
        let again = !matches!(leave, Leave::Blocked | Leave::Hopeless);
        let chosen = self.choose(cpu, again.then_some(current));
        if leave == Leave::Hopeless {
            let vm = &mut self.vms[self.vcpus[current].vm];
            vm.patience.step_aside(self.now_ns, self.params.slice_ns);
            self.hurry_head(cpu, self.vcpus[current].vm);
        }
        if chosen != Some(current) {
            match leave {
                Leave::Blocked => {}
                // Of its own will, and not where it holds others up.
                Leave::Hopeless | Leave::HandBack => {
                    let vm = self.vcpus[current].vm;
                    self.vms[vm].tally.preemptions += 1;
                }
                _ => self.count_preemption(current),
            }
            let place = if leave == Leave::Blocked {
                Place::Halted
            } else {
                Place::Waiting
            };
            self.switch_out(cpu, place);
        }
        self.rotate(cpu, Some(current), chosen, cost_ns);
    }

    /// Notes whether the guests of this CPU use locks.
    fn note_quiet(&mut self, cpu: CpuId, input: &Input, decision: &Decision) {
        let this = &mut self.cpus[cpu];
        if input.snap.holds() || input.queue != Queue::NotWaiting {
            this.quiet_turns = 0;
        } else if matches!(decision, Decision::Leave(Leave::SliceEnd) | Decision::Renew) {
            this.quiet_turns = this.quiet_turns.saturating_add(1);
        }
    }

    /// Whether `head` may take the CPU from `current` at once.
    fn is_stuck(&self, head: VcpuId, current: VcpuId) -> bool {
        let (head, current) = (self.vcpus[head].vm, self.vcpus[current].vm);
        let vtime_ns = |vm: VmId| self.vms[vm].books.ledger.vtime_ns();
        self.vms[head].stuck && (head == current || is_urgent(vtime_ns(head), vtime_ns(current)))
    }

    /// A vCPU stepped aside because the head of its queue is off the CPU: makes the agent of the head's
    /// CPU look.
    fn hurry_head(&mut self, here: CpuId, vm: VmId) {
        self.vms[vm].stuck = true;
        for id in self.vms[vm].vcpus() {
            let vcpu = &self.vcpus[id];
            if vcpu.place != Place::Waiting || vcpu.cpu == here {
                continue;
            }
            let snap = self.snap(id);
            if matches!(snap.wait, Wait::Ended { .. }) || (snap.holds() && !snap.spins()) {
                let cpu = self.vcpus[id].cpu;
                let there = &mut self.cpus[cpu];
                there.host_ns = there.host_ns.min(self.now_ns.max(there.since_ns));
                self.schedule(cpu);
            }
        }
    }

    // ---- reading ----

    /// Whether the spinners of a VM stay.
    fn is_patient(&self, vm: VmId) -> bool {
        let patience = &self.vms[vm].patience;
        patience.holds(self.now_ns, self.params.slice_ns)
    }

    /// Whether the vCPUs of a VM should give their CPUs back where they leave a section, for one that is
    /// off the CPU in a queue.
    pub(crate) fn asks_for_cpus(&self, vm: VmId) -> bool {
        self.params.queue_rules && self.vms[vm].nr_dirty > 0 && !self.is_patient(vm)
    }

    /// A vCPU's place in its lock queue, as if `except` were off the CPU.
    fn place_of(&mut self, id: VcpuId, except: Option<VcpuId>) -> Queue {
        if self.snap(id).wait == Wait::None {
            return Queue::NotWaiting;
        }
        let vm = self.vcpus[id].vm;
        let mut snaps = std::mem::take(&mut self.steering.snaps);
        snaps.clear();
        snaps.extend(self.vms[vm].vcpus().map(|id| self.snap(id)));
        let mut running = self.vms[vm].running;
        if let Some(except) = except.filter(|&except| self.vcpus[except].vm == vm) {
            running.remove(self.vcpus[except].number.into());
        }
        let place = queue_of(self.vcpus[id].number.into(), &snaps, &running);
        self.steering.snaps = snaps;
        if self.is_patient(vm) {
            place.together()
        } else {
            place
        }
    }

    /// Finds the vCPUs of a CPU that could run beside `except`, and how much that would help.
    fn find_others(&mut self, cpu: CpuId, except: Option<VcpuId>) {
        let mut others = std::mem::take(&mut self.steering.others);
        let members = std::mem::take(&mut self.cpus[cpu].members);
        others.clear();
        for &id in &members {
            if Some(id) != except && self.vcpus[id].place == Place::Waiting {
                let queue = self.place_of(id, except);
                others.push((id, Rank::of(&self.snap(id), queue, &self.params)));
            }
        }
        self.cpus[cpu].members = members;
        self.steering.others = others;
    }

    // ---- choosing ----

    /// The next vCPU among those found last, and `again`.
    fn choose(&mut self, cpu: CpuId, again: Option<VcpuId>) -> Option<VcpuId> {
        let mut candidates = std::mem::take(&mut self.steering.candidates);
        candidates.clear();
        let others = self.steering.others.iter().copied();
        candidates.extend(
            others
                .chain(again.map(|id| (id, Rank::Ready)))
                .map(|(id, rank)| {
                    let vcpu = &self.vcpus[id];
                    let candidate = Candidate {
                        vm_vtime_ns: self.vms[vcpu.vm].books.ledger.vtime_ns(),
                        vcpu_cpu_ns: vcpu.policy.cpu_ns,
                        rank,
                    };
                    (id, candidate)
                }),
        );
        self.arrange(cpu, &mut candidates);
        let index = pick(
            candidates.iter().map(|(_, candidate)| *candidate),
            &self.params,
        );
        let chosen = index.and_then(|index| candidates.get(index).map(|(id, _)| *id));
        self.steering.candidates = candidates;
        chosen
    }

    /// Puts candidates into the order of this epoch, if they are even and lock-bound.
    fn arrange(&self, cpu: CpuId, candidates: &mut [(VcpuId, Candidate)]) {
        let is_lock_bound = |id: &VcpuId| self.vms[self.vcpus[*id].vm].lock_bound > 0;
        let Some(least_ns) = even_vtime_ns(candidates, &self.params, is_lock_bound) else {
            return;
        };
        let epoch = self.now_ns / self.params.slice_ns;
        for (id, candidate) in candidates {
            let vm = self.vcpus[*id].vm.number();
            let distance = latin_distance(vm, self.vms.len(), cpu.number(), epoch);
            candidate.vm_vtime_ns = least_ns + distance as u64;
        }
    }

    // ---- steering ----

    /// Begins a turn.
    fn begin(&mut self, cpu: CpuId, id: VcpuId, bonus_ns: u64) -> Turn {
        let params = Params {
            slice_ns: aligned_slice_ns(self.now_ns, self.params.slice_ns),
            ..self.params
        };
        let vm = self.vcpus[id].vm;
        self.forgo_credit(vm, CREDIT_SLICES);
        let vcpu = &mut self.vcpus[id];
        let vm = &mut self.vms[vm];
        vm.lock_bound = vm.lock_bound.saturating_sub(1);
        let (turn, taken_ns) = Turn::start(&params, &mut vm.books, &mut vcpu.policy, bonus_ns);
        let this = &mut self.cpus[cpu];
        this.bonus_ns += taken_ns;
        this.vain_rings = 0;
        turn
    }

    /// Notes that a ring changed nothing; after too many nobody listens until the next beat.
    fn note_ring(&mut self, cpu: CpuId, id: VcpuId, rang: bool) {
        let this = &mut self.cpus[cpu];
        this.vain_rings += u32::from(rang);
        if rang && this.vain_rings > VAIN_RINGS {
            self.vcpus[id].muted_until_ns = (self.now_ns / BEAT_NS + 1) * BEAT_NS;
        }
    }

    fn stay(&mut self, cpu: CpuId, id: VcpuId, turn: Turn, for_ns: u64, cost_ns: u64) {
        self.delay(cpu, cost_ns);
        self.cpus[cpu].turn = Some(turn);
        self.set_timer(cpu, id, turn, for_ns);
    }

    fn rotate(&mut self, cpu: CpuId, from: Option<VcpuId>, chosen: Option<VcpuId>, cost_ns: u64) {
        let Some(chosen) = chosen else {
            let this = &mut self.cpus[cpu];
            (this.turn, this.host_ns) = (None, NEVER);
            return;
        };
        let vm_of = |id: VcpuId| self.vcpus[id].vm;
        let same_vm = from.map(vm_of) == Some(vm_of(chosen));
        let bonus_ns = if same_vm {
            0
        } else {
            std::mem::take(&mut self.cpus[cpu].bonus_ns)
        };
        let turn = self.begin(cpu, chosen, bonus_ns);
        self.cpus[cpu].turn = Some(turn);
        if from == Some(chosen) {
            self.delay(cpu, cost_ns);
        } else {
            self.switch_in(cpu, chosen, cost_ns + self.host.switch_ns);
        }
        let vm = self.vcpus[chosen].vm;
        self.vms[vm].stuck = false;
        self.set_timer(cpu, chosen, turn, turn.left_ns());
    }

    /// Sets the agent's timer: to the end of what was granted, or earlier where nobody will ring.
    fn set_timer(&mut self, cpu: CpuId, id: VcpuId, turn: Turn, for_ns: u64) {
        let work = self.vms[self.vcpus[id].vm].work;
        let bell = work.enlightened && !work.pins && !self.is_muted(id);
        let mut for_ns = for_ns;
        if turn.is_extended() && !bell {
            for_ns = for_ns.min(POLL_NS + self.rng.below(POLL_NS));
        } else if self.params.queue_rules
            && (self.place_of(id, None) == Queue::Hopeless
                || (self.is_muted(id) && self.asks_for_cpus(self.vcpus[id].vm)))
            && self.is_wanted(cpu)
        {
            for_ns = for_ns.min(SCAN_NS);
        }
        let this = &mut self.cpus[cpu];
        this.host_ns = this.since_ns.max(self.now_ns) + for_ns.max(SHORTEST_NS);
    }

    /// Whether somebody waits for this CPU.
    fn is_wanted(&self, cpu: CpuId) -> bool {
        let mut members = self.cpus[cpu].members.iter();
        members.any(|&id| self.vcpus[id].place == Place::Waiting)
    }

    /// A VM may lag behind the others by so many slices of virtual time, whatever held it up.
    fn forgo_credit(&mut self, vm: VmId, slices: u64) {
        if self.steering.vclock.good_until_ns <= self.now_ns {
            self.read_vclock();
        }
        let vclock = &self.steering.vclock;
        let others_ns = if vclock.least == Some(vm) {
            vclock.second_ns
        } else {
            vclock.least_ns
        };
        if others_ns != NEVER {
            let slice_ns = self.params.slice_ns;
            let vm = &mut self.vms[vm];
            vm.books.ledger.wake(others_ns, slices * slice_ns);
            let vtime_ns = vm.books.ledger.vtime_ns();
            vm.patience.stands(vtime_ns, others_ns, slice_ns);
        }
    }

    fn read_vclock(&mut self) {
        let mut vclock = Vclock {
            least_ns: NEVER,
            second_ns: NEVER,
            least: None,
            good_until_ns: self.now_ns + self.params.slice_ns,
        };
        for id in self.vms.ids() {
            let vm = &self.vms[id];
            if vm.nr_awake == 0 {
                continue;
            }
            let vtime_ns = vm.books.ledger.vtime_ns();
            if vtime_ns < vclock.least_ns {
                vclock.second_ns = vclock.least_ns;
                (vclock.least_ns, vclock.least) = (vtime_ns, Some(id));
            } else {
                vclock.second_ns = vclock.second_ns.min(vtime_ns);
            }
        }
        self.steering.vclock = vclock;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Arm;
    use ecs_policy::is_dirty;

    #[test]
    fn the_count_of_dirty_vcpus_says_what_the_policy_says() {
        for kind in ["ticket", "queue", "rwlock", "irq", "blocking"] {
            let vm = |more| {
                format!(
                    "[[vm]]\nvcpus = 3\ncount = 2\n{more}\n\
                     workload = {{ kind = \"{kind}\", in_us = 7, out_us = 9 }}\n"
                )
            };
            let text = [
                vm(""),
                vm("enlightened = false"),
                vm("guest = \"pin_counts\""),
            ]
            .concat();
            let mut world = World::build(&text.parse().unwrap(), Arm::Ecs, 5).unwrap();
            world.start();
            for step in 1..400 {
                world.run_until(step * 100_000);
                for vm in world.vms.iter() {
                    let snaps: Vec<CsSnapshot> = vm.vcpus().map(|id| world.snap(id)).collect();
                    assert_eq!(
                        vm.nr_dirty > 0,
                        is_dirty(&snaps, &vm.running),
                        "{kind} at {step}"
                    );
                }
            }
        }
    }
}
