//! The guests: what vCPUs do, which locks they take, and what they tell the host.
//!
//! The workloads are those of `ecs-microvm`, the locks those of `ecs-guest`: a spinning waiter burns its
//! CPU, a ticket lock goes to the next in line whether that one runs or not, a released mutex or
//! reader-writer lock to whoever runs and sees it first.

use std::collections::VecDeque;

use crate::clock::NEVER;
use crate::ids::{CpuId, Id, LockId, VcpuId};
use crate::scenario::{Guest, Kind, VmSection};
use crate::world::{Place, World};

/// Time of spinning before a hopeless waiter rings its doorbell, and between two rings, ns (`ecs-guest`).
const HOPELESS_AFTER_NS: u64 = 2_000;
const HOPELESS_AGAIN_NS: u64 = 20_000;
/// Longest spin for a mutex before its waiter halts, ns (`ecs-guest`).
const SPIN_BEFORE_BLOCK_NS: u64 = 100_000;
/// What a woken waiter spends to find that another one took its mutex, ns.
const RETRY_NS: u64 = 500;
/// `irq`: pieces of the work between two calls, with a look for calls after each (`ecs-microvm`).
const PIECES: u8 = 8;

/// What a vCPU is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// It computes, outside of sections.
    Outside,
    /// It is in a section of its lock.
    Inside,
    /// It spins for its lock, or for the answer to its call.
    Spin,
    /// It answers a call in interrupt context.
    Serve,
    /// It sleeps for its mutex, or was woken and has not tried again yet.
    Asleep,
}

/// What the vCPUs of a VM do, in ns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) kind: Kind,
    pub(crate) in_ns: u64,
    pub(crate) out_ns: u64,
    jitter_ns: u64,
    read_pct: u64,
    nr_locks: u64,
    pub(crate) enlightened: bool,
    pub(crate) pins: bool,
}

impl Work {
    pub(crate) fn new(section: &VmSection, slowdown_pct: u64) -> Self {
        let work = &section.workload;
        let ns = |us| ns(us) * (100 + slowdown_pct) / 100;
        let out_ns = ns(work.out_us);
        Self {
            kind: work.kind,
            in_ns: ns(work.in_us),
            out_ns,
            jitter_ns: out_ns * u64::from(work.jitter_pct) / 100,
            read_pct: work.read_pct.into(),
            nr_locks: work.locks as u64,
            enlightened: section.enlightened,
            pins: section.guest == Guest::PinCounts,
        }
    }

    /// Whether its vCPUs ring doorbells: one that pins its counts never sees a section end.
    fn rings(&self) -> bool {
        self.enlightened && !self.pins
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "0 to 1e9 ns, as the scenario was checked"
)]
fn ns(us: f64) -> u64 {
    (us * 1e3).round() as u64
}

/// A lock of a VM.
#[derive(Debug)]
pub(crate) struct Lock {
    pub(crate) kind: Kind,
    /// Who owns it, other than readers. Of a ticket or queue lock: running or not, aware of it or not.
    pub(crate) owner: Option<VcpuId>,
    readers: u32,
    /// A writer waits: new readers do too.
    pending: bool,
    /// Those that wait, oldest first.
    pub(crate) queue: VecDeque<VcpuId>,
    /// Number of the vCPU that took it last: the hint beside the lock.
    pub(crate) hint: Option<u16>,
    released_ns: u64,
    socket: usize,
}

impl Lock {
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            kind,
            owner: None,
            readers: 0,
            pending: false,
            queue: VecDeque::new(),
            hint: None,
            released_ns: 0,
            socket: 0,
        }
    }

    pub(crate) fn is_open_for(&self, vcpu: VcpuId, reads: bool) -> bool {
        match self.kind {
            Kind::Ticket | Kind::Queue => self.owner == Some(vcpu),
            _ if reads => self.owner.is_none() && !self.pending,
            _ => self.owner.is_none() && self.readers == 0,
        }
    }
}

impl World {
    // ---- what happens ----

    /// The phase of the vCPU on `cpu` has ended.
    pub(crate) fn guest_event(&mut self, cpu: CpuId) {
        let Some(id) = self.cpus[cpu].current else {
            return;
        };
        match self.vcpus[id].phase {
            Phase::Outside => match self.vms[self.vcpus[id].vm].work.kind {
                Kind::Compute => self.operation_done(cpu, id),
                Kind::Irq => self.piece_done(cpu, id),
                _ => self.enter(cpu, id),
            },
            Phase::Inside => self.leave(cpu, id),
            Phase::Serve => self.served(cpu, id),
            Phase::Spin => self.fall_asleep(cpu, id),
            Phase::Asleep => self.resume_or_sleep(cpu, id),
        }
    }

    /// A vCPU is about to run: it sees what happened while it did not.
    pub(crate) fn resume(&mut self, cpu: CpuId, id: VcpuId) {
        let vcpu = &self.vcpus[id];
        match (vcpu.phase, vcpu.lock) {
            (Phase::Spin | Phase::Asleep, Some(lock)) => {
                if self.locks[lock].is_open_for(id, vcpu.reads) {
                    self.take_from_queue(cpu, id, lock);
                } else if vcpu.phase == Phase::Asleep {
                    // Another one was faster: it finds out, and sleeps again.
                    self.set_phase_end(cpu, RETRY_NS);
                } else {
                    self.announce(lock, id);
                    self.spin_on(cpu, id);
                }
            }
            (Phase::Spin, None) => self.look_for_call(cpu, id),
            _ => {}
        }
    }

    fn operation_done(&mut self, cpu: CpuId, id: VcpuId) {
        let vm = self.vcpus[id].vm;
        self.vms[vm].tally.ops += 1;
        let work = self.vms[vm].work;
        let left_ns = self.outside_ns(id)
            + if work.kind == Kind::Compute {
                work.in_ns
            } else {
                0
            };
        self.set_phase(cpu, id, Phase::Outside, left_ns);
    }

    /// Time until the next section.
    fn outside_ns(&mut self, id: VcpuId) -> u64 {
        let work = &self.vms[self.vcpus[id].vm].work;
        if work.jitter_ns == 0 {
            return work.out_ns;
        }
        work.out_ns - work.jitter_ns + self.rng.below(2 * work.jitter_ns + 1)
    }

    fn set_phase(&mut self, cpu: CpuId, id: VcpuId, phase: Phase, left_ns: u64) {
        self.vcpus[id].phase = phase;
        self.set_phase_end(cpu, left_ns);
    }

    // ---- locks ----

    fn enter(&mut self, cpu: CpuId, id: VcpuId) {
        let vm = &self.vms[self.vcpus[id].vm];
        let work = vm.work;
        let mut lock = vm.first_lock;
        if work.nr_locks > 1 {
            let index = usize::try_from(self.rng.below(work.nr_locks)).unwrap_or(0);
            lock = LockId::of(lock.number() + index);
        }
        let reads = work.kind == Kind::RwLock && self.rng.below(100) < work.read_pct;
        let vcpu = &mut self.vcpus[id];
        vcpu.lock = Some(lock);
        vcpu.reads = reads;
        let free = match work.kind {
            Kind::Ticket | Kind::Queue => self.locks[lock].owner.is_none(),
            _ => self.locks[lock].is_open_for(id, reads),
        };
        if free {
            self.take(cpu, id, lock, 0);
            return;
        }
        self.locks[lock].queue.push_back(id);
        if work.kind == Kind::Blocking {
            if self.keeps_spinning(cpu, id, lock) {
                self.set_phase(cpu, id, Phase::Spin, SPIN_BEFORE_BLOCK_NS);
            } else {
                self.fall_asleep(cpu, id);
            }
            return;
        }
        self.set_phase(cpu, id, Phase::Spin, NEVER);
        self.announce(lock, id);
        self.spin_on(cpu, id);
    }

    /// A waiting writer keeps new readers out.
    fn announce(&mut self, lock: LockId, id: VcpuId) {
        if !self.vcpus[id].reads {
            self.locks[lock].pending = true;
        }
    }

    /// Scheduling-aware spinning: while the holder runs and nobody else wants this CPU. Only a
    /// controller that steers tells of the latter.
    fn keeps_spinning(&self, cpu: CpuId, id: VcpuId, lock: LockId) -> bool {
        let waits = |id: &VcpuId| self.vcpus[*id].place == Place::Waiting;
        let overloaded = self.arm.steers() && self.cpus[cpu].members.iter().any(waits);
        let holder_runs = self.locks[lock]
            .owner
            .is_none_or(|owner| self.vcpus[owner].place != Place::Waiting);
        self.vms[self.vcpus[id].vm].work.enlightened && !overloaded && holder_runs
    }

    /// Takes a lock that is open for it; `cost_ns` is what it takes to see that.
    fn take(&mut self, cpu: CpuId, id: VcpuId, lock: LockId, cost_ns: u64) {
        let vcpu = &mut self.vcpus[id];
        let this = &mut self.locks[lock];
        if vcpu.reads {
            this.readers += 1;
        } else {
            this.owner = Some(id);
            // Other writers announce themselves again, those that run at once.
            this.pending = false;
        }
        this.hint = Some(vcpu.number);
        this.socket = self.cpus[cpu].socket;
        let left_ns = cost_ns + self.vms[vcpu.vm].work.in_ns;
        self.set_phase(cpu, id, Phase::Inside, left_ns);
    }

    fn take_from_queue(&mut self, cpu: CpuId, id: VcpuId, lock: LockId) {
        let this = &mut self.locks[lock];
        if let Some(place) = this.queue.iter().position(|&waiter| waiter == id) {
            this.queue.remove(place);
        }
        let cost_ns = if this.socket == self.cpus[cpu].socket {
            self.host.handoff_ns
        } else {
            self.host.remote_handoff_ns
        };
        let starts_ns = self.cpus[cpu].since_ns.max(self.now_ns) + cost_ns;
        self.handoffs.add(starts_ns - self.locks[lock].released_ns);
        self.cpus[cpu].ring_ns = NEVER;
        self.take(cpu, id, lock, cost_ns);
        if self.locks[lock].kind == Kind::RwLock {
            self.announce_all(lock);
        }
    }

    fn announce_all(&mut self, lock: LockId) {
        let vcpus = &self.vcpus;
        let this = &mut self.locks[lock];
        this.pending |= this
            .queue
            .iter()
            .any(|&waiter| vcpus[waiter].place == Place::Running && !vcpus[waiter].reads);
    }

    fn leave(&mut self, cpu: CpuId, id: VcpuId) {
        let vcpu = &mut self.vcpus[id];
        let Some(lock) = vcpu.lock.take() else {
            // It lost its CPU while it woke the next one.
            self.operation_done(cpu, id);
            self.left_section(cpu, id);
            return;
        };
        let reads = vcpu.reads;
        let this = &mut self.locks[lock];
        this.released_ns = self.now_ns;
        this.socket = self.cpus[cpu].socket;
        if reads {
            this.readers -= 1;
        } else {
            this.owner = None;
        }
        if self.locks[lock].kind == Kind::Blocking {
            // The sleeper is woken inside the section (`ecs-guest`), and may take this very CPU.
            self.offer_mutex(lock);
            if self.cpus[cpu].current != Some(id) {
                return;
            }
        }
        self.operation_done(cpu, id);
        match self.locks[lock].kind {
            Kind::Ticket | Kind::Queue => self.hand_over(lock),
            Kind::Blocking => {}
            _ => self.offer_all(lock),
        }
        self.left_section(cpu, id);
    }

    /// A ticket or queue lock goes to the next in line.
    fn hand_over(&mut self, lock: LockId) {
        let Some(next) = self.locks[lock].queue.pop_front() else {
            return;
        };
        self.locks[lock].owner = Some(next);
        if self.vcpus[next].place == Place::Running {
            let cpu = self.vcpus[next].cpu;
            self.take_from_queue(cpu, next, lock);
            self.schedule(cpu);
        }
    }

    /// Those that run see that a lock of readers and writers is open.
    fn offer_all(&mut self, lock: LockId) {
        while let Some(next) = self.locks[lock].queue.iter().copied().find(|&waiter| {
            let vcpu = &self.vcpus[waiter];
            vcpu.place == Place::Running && self.locks[lock].is_open_for(waiter, vcpu.reads)
        }) {
            let cpu = self.vcpus[next].cpu;
            self.take_from_queue(cpu, next, lock);
            self.schedule(cpu);
        }
    }

    /// A mutex goes to one that spins, or one that sleeps is woken to try.
    fn offer_mutex(&mut self, lock: LockId) {
        let of = |world: &Self, is: fn(&crate::world::Vcpu) -> bool| {
            let mut queue = world.locks[lock].queue.iter();
            queue.find(|&&waiter| is(&world.vcpus[waiter])).copied()
        };
        let spins = of(self, |vcpu| {
            vcpu.place == Place::Running && vcpu.phase == Phase::Spin
        });
        if let Some(next) = spins {
            let cpu = self.vcpus[next].cpu;
            self.take_from_queue(cpu, next, lock);
            self.schedule(cpu);
        } else if let Some(next) = of(self, |vcpu| vcpu.place == Place::Halted) {
            self.wake(next);
        }
    }

    fn resume_or_sleep(&mut self, cpu: CpuId, id: VcpuId) {
        let vcpu = &self.vcpus[id];
        match vcpu.lock {
            Some(lock) if self.locks[lock].is_open_for(id, false) => {
                self.take_from_queue(cpu, id, lock);
            }
            _ => self.fall_asleep(cpu, id),
        }
    }

    fn fall_asleep(&mut self, cpu: CpuId, id: VcpuId) {
        self.vcpus[id].phase = Phase::Asleep;
        self.set_phase_end(cpu, NEVER);
        if self.arm.steers() {
            self.ecs_blocked(cpu);
        } else {
            self.stock_blocked(cpu);
        }
    }

    // ---- calls ----

    /// A piece of the work between two calls is done.
    fn piece_done(&mut self, cpu: CpuId, id: VcpuId) {
        let vcpu = &mut self.vcpus[id];
        if vcpu.called {
            self.serve(cpu, id, NEVER);
            return;
        }
        if vcpu.pieces > 1 {
            vcpu.pieces -= 1;
            self.next_piece(cpu, id);
            return;
        }
        vcpu.answered = false;
        let target = self.next_of(id);
        self.vcpus[target].called = true;
        self.set_phase(cpu, id, Phase::Spin, NEVER);
        self.look_for_call(cpu, id);
        let there = &self.vcpus[target];
        if target != id && there.place == Place::Running && there.phase == Phase::Spin {
            let cpu = there.cpu;
            self.serve(cpu, target, NEVER);
            self.schedule(cpu);
        }
    }

    fn next_piece(&mut self, cpu: CpuId, id: VcpuId) {
        let left_ns = self.outside_ns(id) / u64::from(PIECES);
        self.set_phase(cpu, id, Phase::Outside, left_ns);
    }

    pub(crate) fn next_of(&self, id: VcpuId) -> VcpuId {
        let vcpu = &self.vcpus[id];
        let vm = &self.vms[vcpu.vm];
        VcpuId::of(vm.first.number() + (usize::from(vcpu.number) + 1) % vm.nr_vcpus)
    }

    fn caller_of(&self, id: VcpuId) -> VcpuId {
        let vcpu = &self.vcpus[id];
        let vm = &self.vms[vcpu.vm];
        let before = (usize::from(vcpu.number) + vm.nr_vcpus - 1) % vm.nr_vcpus;
        VcpuId::of(vm.first.number() + before)
    }

    /// A vCPU that waits for an answer serves a call first, or goes on if the answer is there.
    fn look_for_call(&mut self, cpu: CpuId, id: VcpuId) {
        let vcpu = &self.vcpus[id];
        if vcpu.called {
            self.serve(cpu, id, NEVER);
        } else if vcpu.answered {
            self.answered(cpu, id);
        } else {
            self.spin_on(cpu, id);
        }
    }

    fn serve(&mut self, cpu: CpuId, id: VcpuId, left_ns: u64) {
        let vcpu = &mut self.vcpus[id];
        vcpu.outer = Some((vcpu.phase, left_ns));
        let in_ns = self.vms[vcpu.vm].work.in_ns;
        self.cpus[cpu].ring_ns = NEVER;
        self.set_phase(cpu, id, Phase::Serve, in_ns);
    }

    fn served(&mut self, cpu: CpuId, id: VcpuId) {
        let vcpu = &mut self.vcpus[id];
        vcpu.called = false;
        let outer = vcpu.outer.take();
        let caller = self.caller_of(id);
        self.vcpus[caller].answered = true;
        match outer {
            Some((Phase::Spin, left_ns)) => {
                self.set_phase(cpu, id, Phase::Spin, left_ns);
                self.look_for_call(cpu, id);
            }
            // The piece of work had just ended.
            _ => {
                self.vcpus[id].phase = Phase::Outside;
                self.piece_done(cpu, id);
            }
        }
        let there = &self.vcpus[caller];
        if caller != id && there.place == Place::Running && there.phase == Phase::Spin {
            let cpu = there.cpu;
            self.answered(cpu, caller);
            self.schedule(cpu);
        }
        self.left_section(cpu, id);
    }

    fn answered(&mut self, cpu: CpuId, id: VcpuId) {
        let vcpu = &mut self.vcpus[id];
        vcpu.pieces = PIECES;
        let vm = vcpu.vm;
        self.vms[vm].tally.ops += 1;
        self.cpus[cpu].ring_ns = NEVER;
        self.next_piece(cpu, id);
    }

    // ---- what the host is told ----

    /// A section ended: the vCPU hands its CPU back if the host asked for it.
    fn left_section(&mut self, cpu: CpuId, id: VcpuId) {
        if !self.arm.steers() || self.cpus[cpu].current != Some(id) {
            return;
        }
        let id = self.vcpus[id].vm;
        let vm = &self.vms[id];
        let extended = self.cpus[cpu].turn.is_some_and(|turn| turn.is_extended());
        let dirty = self.asks_for_cpus(id);
        if vm.work.rings() && (extended || dirty) {
            self.ring(cpu);
        }
    }

    /// A vCPU begins to spin, or spins on: it rings when it has done so for a while without hope.
    fn spin_on(&mut self, cpu: CpuId, id: VcpuId) {
        let vm = self.vcpus[id].vm;
        let hopeless = self.vms[vm].work.rings() && self.asks_for_cpus(vm);
        let this = &mut self.cpus[cpu];
        this.ring_ns = if hopeless {
            this.since_ns.max(self.now_ns) + HOPELESS_AFTER_NS
        } else {
            NEVER
        };
    }

    /// Some vCPU of a VM has left the CPU in a section or queue: those of it that spin will ring.
    pub(crate) fn tell_spinners(&mut self, vm: crate::ids::VmId) {
        if !self.params.queue_rules {
            return;
        }
        for id in self.vms[vm].vcpus() {
            let vcpu = &self.vcpus[id];
            if vcpu.place == Place::Running && vcpu.phase == Phase::Spin {
                let cpu = vcpu.cpu;
                self.spin_on(cpu, id);
                self.schedule(cpu);
            }
        }
    }

    /// The vCPU on `cpu` rings its doorbell.
    pub(crate) fn ring(&mut self, cpu: CpuId) {
        let Some(id) = self.cpus[cpu].current else {
            return;
        };
        let vcpu = &self.vcpus[id];
        let again = vcpu.phase == Phase::Spin && self.asks_for_cpus(vcpu.vm);
        self.cpus[cpu].ring_ns = if again {
            self.now_ns + HOPELESS_AGAIN_NS
        } else {
            NEVER
        };
        self.rung(cpu);
    }
}
