//! A small deterministic host: one or two pCPUs, a queue of runnable vCPUs, no noise. It drives
//! [`Turn`], [`pick`] and [`Ledger`](ecs_policy::Ledger) the way a controller does.

use super::{IN_SPINLOCK, OUTSIDE, new_vm};
use ecs_policy::{
    Candidate, CsSnapshot, Decision, Event, Input, Leave, Params, Queue, Rank, Turn, VcpuSet,
    VcpuState, Vm, is_urgent, pick, queue_of,
};

/// How often a running extension is polled, ns.
const POLL_NS: u64 = 50_000;
/// How often a vCPU is looked at inside its slice, for the sake of an urgent head, ns.
const SCAN_NS: u64 = 500_000;
/// Virtual time a VM may stand behind when it wakes, ns.
const SLACK_NS: u64 = 3_000_000;

/// What a vCPU does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Load {
    /// Always runnable, always with these hints.
    Always(CsSnapshot),
    /// Always runnable; of every `period_ns` of its CPU time it holds a spinlock for `inside_ns`.
    Locks { period_ns: u64, inside_ns: u64 },
    /// Every `period_ns` of real time, `work_ns` of CPU time fall due.
    Periodic { period_ns: u64, work_ns: u64 },
    /// Asleep with `before` in its slots until `at_ns`, then always runnable without hints.
    WakesAt { at_ns: u64, before: CsSnapshot },
    /// Always runnable; shows `before` until `at_ns` and nothing afterwards.
    LiesUntil { at_ns: u64, before: CsSnapshot },
}

impl Load {
    fn snapshot(&self, now_ns: u64, cpu_ns: u64) -> CsSnapshot {
        match *self {
            Self::Always(snap) => snap,
            Self::Locks {
                period_ns,
                inside_ns,
            } if cpu_ns % period_ns < inside_ns => IN_SPINLOCK,
            Self::WakesAt { at_ns, before } | Self::LiesUntil { at_ns, before } => {
                if now_ns < at_ns { before } else { OUTSIDE }
            }
            Self::Locks { .. } | Self::Periodic { .. } => OUTSIDE,
        }
    }

    /// CPU time until it sleeps, ns; zero if it has nothing to do now.
    fn work_ns(&self, now_ns: u64, cpu_ns: u64) -> u64 {
        match *self {
            Self::Periodic { period_ns, work_ns } => {
                ((now_ns / period_ns + 1) * work_ns).saturating_sub(cpu_ns)
            }
            Self::WakesAt { at_ns, .. } if now_ns < at_ns => 0,
            _ => u64::MAX,
        }
    }

    /// When it next has work, seen from a moment without work.
    fn wakes_ns(&self, now_ns: u64) -> u64 {
        match *self {
            Self::Periodic { period_ns, .. } => (now_ns / period_ns + 1) * period_ns,
            Self::WakesAt { at_ns, .. } => at_ns,
            _ => u64::MAX,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Asleep { until_ns: u64 },
    Runnable,
    Running,
}

struct SimVcpu {
    load: Load,
    at: At,
    state: VcpuState,
}

pub(crate) struct SimVm {
    pub(crate) vm: Vm,
    vcpus: Vec<SimVcpu>,
    active: bool,
}

struct OnCpu {
    vm: usize,
    vcpu: usize,
    turn: Turn,
    since_ns: u64,
    next_ns: u64,
}

#[derive(Default)]
struct Pcpu {
    on: Option<OnCpu>,
    /// Time taken back here, and from whom; the next VM to run gets it.
    bonus_ns: u64,
    bonus_from: usize,
}

/// The host.
pub(crate) struct Sim {
    pub(crate) params: Params,
    pub(crate) now_ns: u64,
    pub(crate) vms: Vec<SimVm>,
    pcpus: Vec<Pcpu>,
    vclock_ns: u64,
    /// pCPU time nobody used, ns.
    pub(crate) idle_ns: u64,
    /// Time taken back that was given to another VM, ns.
    pub(crate) passed_on_ns: u64,
}

impl Sim {
    /// `vms` gives each VM's weight and the load of each of its vCPUs.
    pub(crate) fn new(params: Params, nr_pcpus: usize, vms: &[(u32, Vec<Load>)]) -> Self {
        params.validate().unwrap();
        let vcpu = |load: &Load| SimVcpu {
            load: *load,
            at: At::Asleep { until_ns: 0 },
            state: VcpuState::default(),
        };
        Self {
            params,
            now_ns: 0,
            vms: vms
                .iter()
                .map(|(weight, loads)| SimVm {
                    vm: new_vm(*weight),
                    vcpus: loads.iter().map(vcpu).collect(),
                    active: false,
                })
                .collect(),
            pcpus: (0..nr_pcpus).map(|_| Pcpu::default()).collect(),
            vclock_ns: 0,
            idle_ns: 0,
            passed_on_ns: 0,
        }
    }

    /// CPU time each VM received so far, ns.
    pub(crate) fn received_ns(&self) -> Vec<u64> {
        self.vms.iter().map(|vm| vm.vm.ledger.cpu_ns()).collect()
    }

    /// Runs until `end_ns` and brings the books up to that moment.
    pub(crate) fn run_until(&mut self, end_ns: u64) {
        loop {
            self.wake_sleepers();
            for pcpu in 0..self.pcpus.len() {
                self.look(pcpu, self.now_ns >= end_ns);
            }
            if self.now_ns >= end_ns {
                return;
            }
            let next_ns = self.next_event_ns().clamp(self.now_ns + 1, end_ns);
            let idle = self.pcpus.iter().filter(|pcpu| pcpu.on.is_none()).count() as u64;
            self.idle_ns += idle * (next_ns - self.now_ns);
            self.now_ns = next_ns;
        }
    }

    fn next_event_ns(&self) -> u64 {
        let looks = self
            .pcpus
            .iter()
            .filter_map(|pcpu| pcpu.on.as_ref())
            .map(|on| on.next_ns);
        let wakes = self
            .vms
            .iter()
            .flat_map(|vm| &vm.vcpus)
            .filter_map(|vcpu| match vcpu.at {
                At::Asleep { until_ns } => Some(until_ns),
                At::Runnable | At::Running => None,
            });
        looks.chain(wakes).min().unwrap_or(u64::MAX)
    }

    fn wake_sleepers(&mut self) {
        let now_ns = self.now_ns;
        for vcpu in self.vms.iter_mut().flat_map(|vm| &mut vm.vcpus) {
            if matches!(vcpu.at, At::Asleep { until_ns } if until_ns <= now_ns) {
                vcpu.at = match vcpu.load.work_ns(now_ns, vcpu.state.cpu_ns) {
                    0 => At::Asleep {
                        until_ns: vcpu.load.wakes_ns(now_ns),
                    },
                    _ => At::Runnable,
                };
            }
        }
        self.keep_clock();
    }

    /// A VM is active while it runs or could make progress: a VM whose runnable vCPUs are all
    /// hopeless counts as idle, or it would save up a credit. The clock is the least virtual time
    /// of the active VMs and never runs back.
    fn keep_clock(&mut self) {
        let (slack_ns, clock_ns) = (SLACK_NS, self.vclock_ns);
        for index in 0..self.vms.len() {
            let active =
                (0..self.vms[index].vcpus.len()).any(|vcpu| match self.vms[index].vcpus[vcpu].at {
                    At::Running => true,
                    At::Runnable => self.queue(index, vcpu) != Queue::Hopeless,
                    At::Asleep { .. } => false,
                });
            let vm = &mut self.vms[index];
            if active && !vm.active {
                vm.vm.ledger.wake(clock_ns, slack_ns);
            }
            vm.active = active;
        }
        let least = self
            .vms
            .iter()
            .filter(|vm| vm.active)
            .map(|vm| vm.vm.ledger.vtime_ns())
            .min();
        self.vclock_ns = self.vclock_ns.max(least.unwrap_or(0));
    }

    fn snapshots(&self, vm: usize) -> Vec<CsSnapshot> {
        let vcpus = self.vms[vm].vcpus.iter();
        vcpus
            .map(|vcpu| vcpu.load.snapshot(self.now_ns, vcpu.state.cpu_ns))
            .collect()
    }

    fn queue(&self, vm: usize, vcpu: usize) -> Queue {
        let mut running = VcpuSet::default();
        for (index, vcpu) in self.vms[vm].vcpus.iter().enumerate() {
            if vcpu.at == At::Running {
                running.insert(index);
            }
        }
        queue_of(vcpu, &self.snapshots(vm), &running)
    }

    /// Every runnable vCPU that is not running, with its place.
    fn candidates(&self) -> Vec<(usize, usize, Candidate)> {
        let mut found = Vec::new();
        for (index, vm) in self.vms.iter().enumerate() {
            let snaps = self.snapshots(index);
            for (number, vcpu) in vm.vcpus.iter().enumerate() {
                if vcpu.at != At::Runnable {
                    continue;
                }
                let snap = snaps[number];
                let rank = match self.queue(index, number) {
                    Queue::Head => Rank::Head,
                    Queue::Hopeless => Rank::Hopeless,
                    _ if snap.holds() && !snap.spins() => Rank::Head,
                    _ => Rank::Ready,
                };
                found.push((
                    index,
                    number,
                    Candidate {
                        vm_vtime_ns: vm.vm.ledger.vtime_ns(),
                        vcpu_cpu_ns: vcpu.state.cpu_ns,
                        rank,
                    },
                ));
            }
        }
        found
    }

    fn look(&mut self, pcpu: usize, last: bool) {
        let due = self.pcpus[pcpu]
            .on
            .as_ref()
            .is_none_or(|on| last || on.next_ns <= self.now_ns);
        if !due {
            return;
        }
        if let Some(mut on) = self.pcpus[pcpu].on.take() {
            let ran_ns = self.now_ns - on.since_ns;
            on.since_ns = self.now_ns;
            let queue = self.queue(on.vm, on.vcpu);
            let candidates = self.candidates();
            let others = candidates.iter().any(|(.., c)| c.rank != Rank::Hopeless);
            let own_vtime_ns = self.vms[on.vm].vm.ledger.vtime_ns();
            let urgent = candidates
                .iter()
                .any(|(.., c)| c.rank == Rank::Head && is_urgent(c.vm_vtime_ns, own_vtime_ns));
            let vm = &mut self.vms[on.vm];
            let vcpu = &mut vm.vcpus[on.vcpu];
            vm.vm.ledger.charge(ran_ns);
            vcpu.state.cpu_ns += ran_ns;
            let work_ns = vcpu.load.work_ns(self.now_ns, vcpu.state.cpu_ns);
            let event = if work_ns == 0 {
                Event::Blocked
            } else {
                Event::Look
            };
            let snap = vcpu.load.snapshot(self.now_ns, vcpu.state.cpu_ns);
            let input = Input {
                event,
                ran_ns,
                snap,
                queue,
                others,
                urgent,
            };
            match on
                .turn
                .decide(&self.params, &mut vm.vm, &mut vcpu.state, &input)
            {
                Decision::Keep { for_ns } | Decision::Extend { for_ns, .. } => {
                    let poll_ns = if on.turn.is_extended() {
                        POLL_NS
                    } else {
                        SCAN_NS
                    };
                    on.next_ns = self.now_ns.saturating_add(for_ns.min(poll_ns).min(work_ns));
                    self.pcpus[pcpu].on = Some(on);
                }
                Decision::Renew => self.begin(pcpu, on.vm, on.vcpu),
                Decision::Leave(leave) => {
                    vcpu.at = match leave {
                        Leave::Blocked => At::Asleep {
                            until_ns: vcpu.load.wakes_ns(self.now_ns),
                        },
                        _ => At::Runnable,
                    };
                }
            }
        }
        if self.pcpus[pcpu].on.is_none() {
            self.keep_clock();
            let candidates = self.candidates();
            if let Some(chosen) = pick(candidates.iter().map(|(.., c)| *c), &self.params) {
                let (vm, vcpu, _) = candidates[chosen];
                self.begin(pcpu, vm, vcpu);
            }
        }
        for SimVm { vm, .. } in &self.vms {
            assert!(
                vm.ledger.debt_ns() <= self.params.budget_ns,
                "debt above the budget"
            );
            let ended: u64 = vm.counters.ended.iter().sum();
            let grants: u64 = vm.counters.grants.iter().sum();
            assert_eq!(
                grants,
                ended + vm.counters.running,
                "grants = ended + running"
            );
        }
    }

    fn begin(&mut self, pcpu: usize, vm: usize, vcpu: usize) {
        let place = &mut self.pcpus[pcpu];
        let bonus_ns = if place.bonus_from == vm {
            0
        } else {
            core::mem::take(&mut place.bonus_ns)
        };
        self.passed_on_ns += bonus_ns;
        let SimVm {
            vm: books, vcpus, ..
        } = &mut self.vms[vm];
        let SimVcpu { load, at, state } = &mut vcpus[vcpu];
        *at = At::Running;
        let work_ns = load.work_ns(self.now_ns, state.cpu_ns);
        let (turn, taken_ns) = Turn::start(&self.params, books, state, bonus_ns);
        if taken_ns > 0 {
            place.bonus_ns += taken_ns;
            place.bonus_from = vm;
        }
        let next_ns = self
            .now_ns
            .saturating_add(turn.left_ns().min(SCAN_NS).min(work_ns));
        place.on = Some(OnCpu {
            vm,
            vcpu,
            turn,
            since_ns: self.now_ns,
            next_ns,
        });
    }
}
