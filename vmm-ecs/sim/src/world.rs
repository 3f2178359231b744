//! The host while it is simulated: its state, the loop over events, and who is on which CPU.
//!
//! A CPU has up to three events ahead: the running vCPU's phase ends ([`crate::guest`]), the vCPU rings
//! its doorbell, or the host looks (a tick of [`crate::stock`], a look of [`crate::ecs`]). The
//! earliest is its leaf in the [`Clock`].

use ecs_policy::{Ledger, Params, Patience, Section, Turn, VcpuSet, VcpuState, Vm as Books};

use crate::clock::{Clock, NEVER};
use crate::ecs::Steering;
use crate::fair::Entity;
use crate::guest::{Lock, Phase, Work};
use crate::histogram::Histogram;
use crate::ids::{CpuId, LockId, Table, VcpuId, VmId};
use crate::observed::Watch;
use crate::report::Tally;
use crate::rng::Rng;
use crate::scenario::{Arm, HostSection, Scenario, ScenarioError, StockSection};
use crate::stock::StockCpu;

/// Whether a vCPU runs, could run, or sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Running,
    Waiting,
    Halted,
}

/// A vCPU.
#[derive(Debug)]
pub(crate) struct Vcpu {
    pub(crate) vm: VmId,
    /// Its number in its VM.
    pub(crate) number: u16,
    /// The CPU it is bound to, or ran on last.
    pub(crate) cpu: CpuId,
    pub(crate) place: Place,
    /// When it got or left a CPU, or fell asleep or woke up, ns.
    pub(crate) since_ns: u64,
    pub(crate) phase: Phase,
    /// CPU time the phase still takes while it is off the CPU, ns; [`NEVER`] if it waits.
    pub(crate) left_ns: u64,
    /// What an interrupt interrupted.
    pub(crate) outer: Option<(Phase, u64)>,
    /// `irq`: a call has come in; its own call was answered; pieces of work left before its next call.
    pub(crate) called: bool,
    pub(crate) answered: bool,
    pub(crate) pieces: u8,
    /// Whether its section only reads.
    pub(crate) reads: bool,
    pub(crate) lock: Option<LockId>,
    pub(crate) policy: VcpuState,
    /// Nobody listens to its doorbell until then, ns.
    pub(crate) muted_until_ns: u64,
    /// What the stock scheduler knows of it.
    pub(crate) fair: Entity,
    /// It left the CPU inside a section, then.
    pub(crate) critical_since_ns: Option<u64>,
    /// The observer saw that it left the CPU then, and in what.
    pub(crate) seen_critical: Option<(u64, Section)>,
}

/// A VM.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) work: Work,
    pub(crate) first: VcpuId,
    pub(crate) nr_vcpus: usize,
    pub(crate) first_lock: LockId,
    /// CPUs its vCPUs may use; `None`: all.
    pub(crate) allowed: Option<Vec<CpuId>>,
    pub(crate) books: Books,
    pub(crate) running: VcpuSet,
    pub(crate) nr_awake: usize,
    /// vCPUs off the CPU that hold a lock or stand in a queue: [`ecs_policy::is_dirty`], kept as a
    /// count. Only a change of who runs changes it: the words of a vCPU off the CPU stand still.
    pub(crate) nr_dirty: usize,
    /// Turns for which it still counts as lock-bound.
    pub(crate) lock_bound: u32,
    /// One of its vCPUs stepped aside for a head that is off the CPU.
    pub(crate) stuck: bool,
    /// Whether its spinners stay.
    pub(crate) patience: Patience,
    pub(crate) tally: Tally,
}

impl Vm {
    /// Its vCPUs.
    pub(crate) fn vcpus(&self) -> impl Iterator<Item = VcpuId> + use<> {
        use crate::ids::Id;
        let first = self.first.number();
        (first..first + self.nr_vcpus).map(VcpuId::of)
    }
}

/// A CPU.
#[derive(Debug)]
pub(crate) struct Cpu {
    pub(crate) socket: usize,
    pub(crate) current: Option<VcpuId>,
    /// Since when the time of the current vCPU, or of idling, is not booked yet, ns. Lies ahead while
    /// the host itself runs.
    pub(crate) since_ns: u64,
    pub(crate) phase_end_ns: u64,
    pub(crate) ring_ns: u64,
    pub(crate) host_ns: u64,
    /// vCPUs bound here (eCS), or here now (stock), running or not, awake or not.
    pub(crate) members: Vec<VcpuId>,
    pub(crate) stock: StockCpu,
    pub(crate) turn: Option<Turn>,
    /// CPU time of the current vCPU that its turn does not know yet, ns.
    pub(crate) turn_ran_ns: u64,
    /// Time the VM before paid back, for the next VM's turn, ns.
    pub(crate) bonus_ns: u64,
    /// Slice ends in a row that met no section.
    pub(crate) quiet_turns: u32,
    /// Rings of this turn that changed nothing.
    pub(crate) vain_rings: u32,
    pub(crate) idle_ns: u64,
    pub(crate) host_ran_ns: u64,
}

/// The whole host.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now_ns: u64,
    pub(crate) arm: Arm,
    pub(crate) params: Params,
    pub(crate) host: HostSection,
    pub(crate) stock: StockSection,
    pub(crate) tick_ns: u64,
    pub(crate) tick_jitter_ns: u64,
    pub(crate) stock_slice_ns: u64,
    pub(crate) clock: Clock,
    pub(crate) rng: Rng,
    pub(crate) cpus: Table<CpuId, Cpu>,
    pub(crate) vms: Table<VmId, Vm>,
    pub(crate) vcpus: Table<VcpuId, Vcpu>,
    pub(crate) locks: Table<LockId, Lock>,
    pub(crate) handoffs: Histogram,
    pub(crate) nr_events: u64,
    /// Awake vCPUs without a CPU.
    pub(crate) nr_waiting: usize,
    pub(crate) steering: Steering,
    pub(crate) watch: Watch,
}

impl World {
    /// The host of a scenario under one arm, at time 0, every vCPU awake and nowhere yet.
    pub(crate) fn build(scenario: &Scenario, arm: Arm, seed: u64) -> Result<Self, ScenarioError> {
        scenario.check()?;
        let host = scenario.host.clone();
        let mut world = Self {
            now_ns: 0,
            arm,
            params: scenario.params(arm),
            stock: scenario.stock.clone(),
            tick_ns: scenario.stock.tick_us * 1000,
            tick_jitter_ns: scenario.stock.tick_jitter_us * 1000,
            stock_slice_ns: scenario.stock.slice_us * 1000,
            clock: Clock::new(scenario.nr_cpus()),
            rng: Rng::new(seed),
            cpus: Table::new(),
            vms: Table::new(),
            vcpus: Table::new(),
            locks: Table::new(),
            handoffs: Histogram::new(),
            nr_events: 0,
            nr_waiting: 0,
            steering: Steering::default(),
            watch: Watch::default(),
            host,
        };
        for cpu in 0..scenario.nr_cpus() {
            world.cpus.push(Cpu::new(cpu / world.host.cores.max(1)));
        }
        for (index, section) in scenario.vms.iter().enumerate() {
            let cpus = section.cpus(index, scenario.nr_cpus())?;
            for _ in 0..section.count {
                world.add_vm(section, &cpus);
            }
        }
        if !arm.steers() {
            world.stock_settle();
        }
        Ok(world)
    }

    fn add_vm(&mut self, section: &crate::scenario::VmSection, cpus: &[usize]) {
        use crate::ids::Id;
        let allowed: Vec<CpuId> = cpus.iter().map(|&cpu| CpuId::of(cpu)).collect();
        let first_lock = LockId::of(self.locks.len());
        for _ in 0..section.workload.locks {
            self.locks.push(Lock::new(section.workload.kind));
        }
        let vm = self.vms.push(Vm {
            work: Work::new(section, self.host.slowdown_pct),
            first: VcpuId::of(self.vcpus.len()),
            nr_vcpus: section.vcpus,
            first_lock,
            allowed: section.pcpus.is_some().then(|| allowed.clone()),
            books: Books {
                ledger: Ledger::new(section.weight, 0),
                counters: ecs_policy::Counters::default(),
                enabled: true,
            },
            running: VcpuSet::default(),
            nr_awake: section.vcpus,
            nr_dirty: 0,
            lock_bound: 0,
            stuck: false,
            patience: Patience::default(),
            tally: Tally::default(),
        });
        let placed = self.vcpus.len();
        for number in 0..section.vcpus {
            let cpu = self.least_loaded(&allowed, vm, placed);
            // Nobody starts in step with another.
            let left_ns = self.rng.below(self.vms[vm].work.out_ns + 1);
            let vruntime_ns = i64::try_from(self.rng.below(100_000)).unwrap_or(0);
            let vcpu = self.vcpus.push(Vcpu {
                vm,
                number: u16::try_from(number).unwrap_or(u16::MAX),
                cpu,
                place: Place::Waiting,
                since_ns: 0,
                phase: Phase::Outside,
                left_ns,
                outer: None,
                called: false,
                answered: false,
                pieces: 0,
                reads: false,
                lock: None,
                policy: VcpuState::default(),
                muted_until_ns: 0,
                fair: Entity::new(vruntime_ns, self.stock_slice_ns, section.weight),
                critical_since_ns: None,
                seen_critical: None,
            });
            self.cpus[cpu].members.push(vcpu);
            self.nr_waiting += 1;
            self.vms[vm].nr_dirty += usize::from(self.is_dirt(vcpu));
        }
    }

    /// The CPU for one more vCPU of a VM, as the daemon chooses: the one with the fewest vCPUs of the
    /// same VM, then with the least weight.
    fn least_loaded(&self, allowed: &[CpuId], vm: VmId, placed: usize) -> CpuId {
        use crate::ids::Id;
        let load = |cpu: &&CpuId| {
            let members = &self.cpus[**cpu].members;
            let of_same = |member: &&VcpuId| member.number() >= placed;
            let weight = |member: &VcpuId| {
                let vm = self.vcpus[*member].vm;
                u64::from(self.vms[vm].books.ledger.weight())
            };
            let siblings = members.iter().rev().take_while(of_same).count();
            (siblings, members.iter().map(weight).sum::<u64>())
        };
        debug_assert!(self.vms.len() > vm.number());
        allowed
            .iter()
            .min_by_key(load)
            .copied()
            .unwrap_or(CpuId::of(0))
    }

    /// Gives every CPU its first vCPU.
    pub(crate) fn start(&mut self) {
        for cpu in self.cpus.ids() {
            if self.arm.steers() {
                self.fill(cpu);
            } else {
                self.stock_begin(cpu);
            }
            self.schedule(cpu);
        }
    }

    /// Runs every event before `end_ns`, and books all time up to there.
    pub(crate) fn run_until(&mut self, end_ns: u64) {
        loop {
            let (time_ns, cpu) = self.clock.first();
            if time_ns >= end_ns {
                break;
            }
            debug_assert!(time_ns >= self.now_ns, "time goes forward");
            self.now_ns = time_ns;
            self.nr_events += 1;
            let this = &self.cpus[cpu];
            if this.phase_end_ns <= this.ring_ns.min(this.host_ns) {
                self.guest_event(cpu);
            } else if this.ring_ns <= this.host_ns {
                self.ring(cpu);
            } else if self.arm.steers() {
                self.timer(cpu);
            } else {
                self.stock_event(cpu);
            }
            self.schedule(cpu);
        }
        self.now_ns = end_ns;
        for cpu in self.cpus.ids() {
            self.book(cpu);
        }
    }

    /// Puts a CPU's next event on the clock.
    #[inline]
    pub(crate) fn schedule(&mut self, cpu: CpuId) {
        let this = &self.cpus[cpu];
        let next_ns = this.phase_end_ns.min(this.ring_ns).min(this.host_ns);
        self.clock.set(cpu, next_ns);
    }

    // ---- accounting ----

    /// Books what a CPU did up to now.
    pub(crate) fn book(&mut self, cpu: CpuId) {
        let this = &mut self.cpus[cpu];
        let ran_ns = self.now_ns.saturating_sub(this.since_ns);
        if ran_ns == 0 {
            return;
        }
        this.since_ns = self.now_ns;
        let Some(current) = this.current else {
            let thread = this.stock.running;
            if let Some(thread) = thread.and_then(|index| this.stock.threads.get_mut(index)) {
                this.host_ran_ns += ran_ns;
                thread.ran(ran_ns);
            } else {
                this.idle_ns += ran_ns;
            }
            return;
        };
        this.turn_ran_ns += ran_ns;
        let vcpu = &mut self.vcpus[current];
        vcpu.policy.cpu_ns += ran_ns;
        let ledger = &mut self.vms[vcpu.vm].books.ledger;
        ledger.charge(ran_ns);
        vcpu.fair.ran(ran_ns);
    }

    /// The host itself runs on a CPU for `cost_ns`; the current vCPU stands still. Time up to now is
    /// booked.
    pub(crate) fn delay(&mut self, cpu: CpuId, cost_ns: u64) {
        let this = &mut self.cpus[cpu];
        if this.current.is_none() {
            return;
        }
        this.since_ns = this.since_ns.max(self.now_ns) + cost_ns;
        this.host_ran_ns += cost_ns;
        if this.phase_end_ns != NEVER {
            this.phase_end_ns = this.phase_end_ns.saturating_add(cost_ns);
        }
    }

    /// Sets how much CPU time the phase of the current vCPU takes from now on.
    #[inline]
    pub(crate) fn set_phase_end(&mut self, cpu: CpuId, left_ns: u64) {
        let this = &mut self.cpus[cpu];
        this.phase_end_ns = if left_ns == NEVER {
            NEVER
        } else {
            this.since_ns.max(self.now_ns) + left_ns
        };
    }

    // ---- who is on the CPU ----

    /// Puts a waiting vCPU on an empty CPU. It runs once the host has spent `cost_ns` on it.
    pub(crate) fn switch_in(&mut self, cpu: CpuId, id: VcpuId, cost_ns: u64) {
        self.book(cpu);
        self.nr_waiting -= 1;
        let was_dirty = self.is_dirt(id);
        let vcpu = &mut self.vcpus[id];
        debug_assert_eq!(vcpu.place, Place::Waiting);
        let waited_ns = self.now_ns - vcpu.since_ns;
        vcpu.place = Place::Running;
        vcpu.since_ns = self.now_ns;
        let stalled_ns = vcpu
            .critical_since_ns
            .take()
            .map(|since| self.now_ns - since);
        let left_ns = vcpu.left_ns;
        let number = usize::from(vcpu.number);
        let vm = &mut self.vms[vcpu.vm];
        vm.running.insert(number);
        vm.nr_dirty -= usize::from(was_dirty);
        vm.tally.delay_ns += waited_ns;
        vm.tally.stall_ns += stalled_ns.unwrap_or(0);
        let this = &mut self.cpus[cpu];
        debug_assert!(this.current.is_none());
        this.current = Some(id);
        this.turn_ran_ns = 0;
        this.phase_end_ns = NEVER;
        self.delay(cpu, cost_ns);
        self.set_phase_end(cpu, left_ns);
        self.resume(cpu, id);
    }

    /// Takes the current vCPU off its CPU, to wait or to sleep.
    pub(crate) fn switch_out(&mut self, cpu: CpuId, place: Place) {
        self.book(cpu);
        let this = &mut self.cpus[cpu];
        let Some(id) = this.current.take() else {
            return;
        };
        // Host time that was to come is not spent: the next vCPU has its own.
        let unspent_ns = this.since_ns - self.now_ns;
        this.host_ran_ns -= unspent_ns;
        this.since_ns = self.now_ns;
        let left_ns = match this.phase_end_ns {
            NEVER => NEVER,
            end_ns => end_ns - unspent_ns - self.now_ns,
        };
        this.phase_end_ns = NEVER;
        this.ring_ns = NEVER;
        let vcpu = &mut self.vcpus[id];
        vcpu.left_ns = left_ns;
        vcpu.place = place;
        vcpu.since_ns = self.now_ns;
        let number = usize::from(vcpu.number);
        let vm = &mut self.vms[vcpu.vm];
        vm.running.remove(number);
        match place {
            Place::Halted => vm.nr_awake -= 1,
            _ => self.nr_waiting += 1,
        }
        if self.is_dirt(id) {
            let vm = self.vcpus[id].vm;
            self.vms[vm].nr_dirty += 1;
            if self.vms[vm].nr_dirty == 1 {
                self.tell_spinners(vm);
            }
        }
    }

    /// Counts that the current vCPU is about to lose its CPU against its will.
    pub(crate) fn count_preemption(&mut self, id: VcpuId) {
        let class = self.critical_class(id);
        let vcpu = &mut self.vcpus[id];
        let tally = &mut self.vms[vcpu.vm].tally;
        tally.preemptions += 1;
        if let Some(class) = class {
            tally.count_critical(class);
            vcpu.critical_since_ns = Some(self.now_ns);
        }
    }

    /// Wakes a halted vCPU.
    pub(crate) fn wake(&mut self, id: VcpuId) {
        let vcpu = &mut self.vcpus[id];
        if vcpu.place != Place::Halted {
            return;
        }
        vcpu.place = Place::Waiting;
        vcpu.since_ns = self.now_ns;
        let vm = vcpu.vm;
        self.vms[vm].nr_awake += 1;
        self.vms[vm].tally.wakeups += 1;
        self.nr_waiting += 1;
        if self.arm.steers() {
            self.ecs_woken(id);
        } else {
            self.stock_woken(id);
        }
    }
}

impl Cpu {
    fn new(socket: usize) -> Self {
        Self {
            socket,
            current: None,
            since_ns: 0,
            phase_end_ns: NEVER,
            ring_ns: NEVER,
            host_ns: NEVER,
            members: Vec::new(),
            stock: StockCpu::default(),
            turn: None,
            turn_ran_ns: 0,
            bonus_ns: 0,
            quiet_turns: 0,
            vain_rings: 0,
            idle_ns: 0,
            host_ran_ns: 0,
        }
    }
}
