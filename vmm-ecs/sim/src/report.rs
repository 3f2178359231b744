//! What one run gave.

use ecs_policy::{Claim, split_fairly};
use serde::{Deserialize, Serialize};

use crate::ids::VmId;
use crate::observed::Observed;
use crate::scenario::Arm;
use crate::world::{Place, World};

/// What a vCPU was preempted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Holder,
    Reader,
    Interrupt,
    Waiter,
}

/// Counters of one VM, as things are, whatever its guest says; they only grow.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    pub(crate) ops: u64,
    pub(crate) preemptions: u64,
    pub(crate) wakeups: u64,
    pub(crate) stall_ns: u64,
    pub(crate) delay_ns: u64,
    pub(crate) cpu_ns: u64,
    critical: [u64; 4],
}

impl Tally {
    fn critical(&self, class: Class) -> u64 {
        self.critical.get(class as usize).copied().unwrap_or(0)
    }

    pub(crate) fn count_critical(&mut self, class: Class) {
        if let Some(count) = self.critical.get_mut(class as usize) {
            *count += 1;
        }
    }
}

/// Preemptions that held others up, by what they met (docs/principles.md), and wake-ups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Critical {
    /// The holder of a lock: lock-holder preemption, LHP.
    pub holder: u64,
    /// A reader: RP.
    pub reader: u64,
    /// A vCPU in interrupt context: ICP.
    pub interrupt: u64,
    /// A spinning waiter that owns its lock already, or is next while the owner runs: LWP.
    pub waiter: u64,
    /// Wake-ups of blocked waiters: BWW. No preemptions; not in [`Critical::preemptions`].
    pub wakeups: u64,
}

impl Critical {
    /// Critical preemptions of all classes.
    #[must_use]
    pub fn preemptions(&self) -> u64 {
        self.holder + self.reader + self.interrupt + self.waiter
    }

    fn add(&mut self, other: &Self) {
        self.holder += other.holder;
        self.reader += other.reader;
        self.interrupt += other.interrupt;
        self.waiter += other.waiter;
        self.wakeups += other.wakeups;
    }
}

/// What the policy counted and booked for one VM, warm-up included, so that its identities hold:
/// `grants = yielded + expired + revoked + aborted + running`, and
/// `extension = penalty + forgiven + debt`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Slice ends that met a section.
    pub requests: u64,
    /// Extensions granted.
    pub grants: u64,
    /// Extensions refused.
    pub denials: u64,
    /// Extensions ended by the guest in time: avoided preemptions.
    pub yielded: u64,
    /// Extensions ended by the hard stop.
    pub expired: u64,
    /// Extensions taken back.
    pub revoked: u64,
    /// Extensions ended by sleep, or because nobody else wanted the CPU any more.
    pub aborted: u64,
    /// Extensions running at the end.
    pub running: u64,
    /// Times a hopeless spinner stepped aside.
    pub stepped_aside: u64,
    /// Times a vCPU handed its CPU back.
    pub handed_back: u64,
    /// CPU time inside extensions, ns: what was charged.
    pub extension_ns: u64,
    /// CPU time taken back, ns: what was repaid.
    pub penalty_ns: u64,
    /// Extension time written off, ns.
    pub forgiven_ns: u64,
    /// Extension time not yet taken back, ns.
    pub debt_ns: u64,
}

impl Policy {
    fn of(world: &World, vm: VmId) -> Self {
        let books = &world.vms[vm].books;
        let (counters, ledger) = (&books.counters, &books.ledger);
        let [yielded, expired, revoked, aborted] = counters.ended;
        Self {
            requests: counters.requests,
            grants: counters.grants.iter().sum(),
            denials: counters.denials.iter().sum(),
            yielded,
            expired,
            revoked,
            aborted,
            running: counters.running,
            stepped_aside: counters.stepped_aside,
            handed_back: counters.handed_back,
            extension_ns: ledger.extension_ns(),
            penalty_ns: ledger.penalty_ns(),
            forgiven_ns: ledger.forgiven_ns(),
            debt_ns: ledger.debt_ns(),
        }
    }

    fn add(&mut self, other: &Self) {
        for (sum, value) in [
            (&mut self.requests, other.requests),
            (&mut self.grants, other.grants),
            (&mut self.denials, other.denials),
            (&mut self.yielded, other.yielded),
            (&mut self.expired, other.expired),
            (&mut self.revoked, other.revoked),
            (&mut self.aborted, other.aborted),
            (&mut self.running, other.running),
            (&mut self.stepped_aside, other.stepped_aside),
            (&mut self.handed_back, other.handed_back),
            (&mut self.extension_ns, other.extension_ns),
            (&mut self.penalty_ns, other.penalty_ns),
            (&mut self.forgiven_ns, other.forgiven_ns),
            (&mut self.debt_ns, other.debt_ns),
        ] {
            *sum += value;
        }
    }
}

/// One VM of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmReport {
    /// Index of its `[[vm]]` section's VMs, counted through all sections.
    pub vm: usize,
    /// Operations done (sections, calls, or pieces of computation).
    pub ops: u64,
    /// Operations a second of simulated time.
    pub ops_per_s: f64,
    /// CPU time received, ns.
    pub cpu_ns: u64,
    /// CPU time it was entitled to by weight and demand on the whole host, ns.
    pub entitled_ns: u64,
    /// Time its vCPUs were runnable without a CPU, ns.
    pub delay_ns: u64,
    /// Time its vCPUs were without a CPU in a section, or with a lock they did not know of, ns.
    pub stall_ns: u64,
    /// Times a vCPU lost its CPU though it had work.
    pub preemptions: u64,
    /// Those that held others up.
    pub critical: Critical,
    /// What the policy did.
    pub policy: Policy,
}

impl VmReport {
    /// CPU time received, away from what it was entitled to, percent; above 0 is too much.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
    pub fn off_percent(&self) -> f64 {
        if self.entitled_ns == 0 {
            return 0.0;
        }
        (self.cpu_ns as f64 / self.entitled_ns as f64 - 1.0) * 100.0
    }
}

/// How long released locks took to their next owner, where that one waited, us; exact to 3 %.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Handoff {
    /// Hand-overs.
    pub nr: u64,
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// 99.9th percentile.
    pub p999_us: f64,
}

/// One run of one arm. Same scenario, arm and seed: the same report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Arm.
    pub arm: Arm,
    /// Seed.
    pub seed: u64,
    /// Simulated time that was measured, ns.
    pub duration_ns: u64,
    /// Events simulated, warm-up included.
    pub nr_events: u64,
    /// Operations a second, all VMs together.
    pub ops_per_s: f64,
    /// CPU time of all VMs, ns; with the next two it is CPUs x duration, exactly.
    pub cpu_ns: u64,
    /// Time CPUs spent on switching and on the controller, ns.
    pub host_ns: u64,
    /// Time CPUs were idle, ns.
    pub idle_ns: u64,
    /// Preemptions of all VMs.
    pub preemptions: u64,
    /// Those that held others up.
    pub critical: Critical,
    /// Time without a CPU in a section, all VMs, ns.
    pub stall_ns: u64,
    /// What the daemon would have counted in observe mode.
    #[serde(default)]
    pub observed: Observed,
    /// What the policy did, all VMs.
    pub policy: Policy,
    /// Largest deviation of a VM's CPU time from its entitlement, percent of that. Means little where
    /// VMs are bound to parts of the host: entitlement is of the whole of it.
    pub share_deviation_percent: f64,
    /// Hand-overs of locks.
    pub handoff: Handoff,
    /// The VMs.
    pub vms: Vec<VmReport>,
}

/// Counters at the end of the warm-up.
pub(crate) struct Baseline {
    at_ns: u64,
    vms: Vec<Tally>,
    cpus_ns: (u64, u64),
    observed: Observed,
}

impl World {
    /// What a VM's counters are now, vCPUs that wait included.
    fn tally(&self, vm: VmId) -> Tally {
        let mut tally = self.vms[vm].tally;
        tally.cpu_ns = self.vms[vm].books.ledger.cpu_ns();
        for id in self.vms[vm].vcpus() {
            let vcpu = &self.vcpus[id];
            if vcpu.place == Place::Waiting {
                tally.delay_ns += self.now_ns - vcpu.since_ns;
            }
            if let Some(since_ns) = vcpu.critical_since_ns {
                tally.stall_ns += self.now_ns - since_ns;
            }
        }
        tally
    }

    /// Time CPUs spent on the host's own work, and idle, up to now, ns.
    fn cpus_ns(&self) -> (u64, u64) {
        let mut sum = (0, 0);
        for cpu in self.cpus.iter() {
            // A switch or look may reach beyond now.
            sum.0 += cpu.host_ran_ns - cpu.since_ns.saturating_sub(self.now_ns);
            sum.1 += cpu.idle_ns;
        }
        sum
    }

    /// Ends the warm-up.
    pub(crate) fn baseline(&mut self) -> Baseline {
        self.handoffs.clear();
        Baseline {
            at_ns: self.now_ns,
            vms: self.vms.ids().map(|vm| self.tally(vm)).collect(),
            cpus_ns: self.cpus_ns(),
            observed: self.watch.counts,
        }
    }

    /// What happened since the warm-up.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(crate) fn report(&self, seed: u64, before: &Baseline) -> Report {
        let duration_ns = self.now_ns - before.at_ns;
        let per_s = |count: u64| count as f64 * 1e9 / duration_ns as f64;
        let mut claims = Vec::new();
        let mut vms = Vec::new();
        let (mut critical, mut policy) = (Critical::default(), Policy::default());
        for ((vm, before), index) in self.vms.ids().zip(&before.vms).zip(0..) {
            let now = self.tally(vm);
            let grown = |field: fn(&Tally) -> u64| field(&now) - field(before);
            let report = VmReport {
                vm: index,
                ops: grown(|tally| tally.ops),
                ops_per_s: per_s(grown(|tally| tally.ops)),
                cpu_ns: grown(|tally| tally.cpu_ns),
                entitled_ns: 0,
                delay_ns: grown(|tally| tally.delay_ns),
                stall_ns: grown(|tally| tally.stall_ns),
                preemptions: grown(|tally| tally.preemptions),
                critical: Critical {
                    holder: grown(|tally| tally.critical(Class::Holder)),
                    reader: grown(|tally| tally.critical(Class::Reader)),
                    interrupt: grown(|tally| tally.critical(Class::Interrupt)),
                    waiter: grown(|tally| tally.critical(Class::Waiter)),
                    wakeups: grown(|tally| tally.wakeups),
                },
                policy: Policy::of(self, vm),
            };
            claims.push(Claim {
                weight: self.vms[vm].books.ledger.weight(),
                demand_ns: report.cpu_ns + report.delay_ns,
                entitled_ns: 0,
            });
            critical.add(&report.critical);
            policy.add(&report.policy);
            vms.push(report);
        }
        let cpu_ns = vms.iter().map(|vm| vm.cpu_ns).sum();
        split_fairly(cpu_ns, &mut claims);
        for (vm, claim) in vms.iter_mut().zip(claims) {
            vm.entitled_ns = claim.entitled_ns;
        }
        let (host_ns, idle_ns) = self.cpus_ns();
        let off = vms.iter().map(|vm| vm.off_percent().abs());
        let us = |per_mille| self.handoffs.quantile_ns(per_mille) as f64 / 1e3;
        Report {
            arm: self.arm,
            seed,
            duration_ns,
            nr_events: self.nr_events,
            ops_per_s: per_s(vms.iter().map(|vm| vm.ops).sum()),
            cpu_ns,
            host_ns: host_ns - before.cpus_ns.0,
            idle_ns: idle_ns - before.cpus_ns.1,
            preemptions: vms.iter().map(|vm| vm.preemptions).sum(),
            critical,
            stall_ns: vms.iter().map(|vm| vm.stall_ns).sum(),
            observed: self.watch.counts.since(&before.observed),
            policy,
            share_deviation_percent: off.fold(0.0, f64::max),
            handoff: Handoff {
                nr: self.handoffs.total(),
                p50_us: us(500),
                p99_us: us(990),
                p999_us: us(999),
            },
            vms,
        }
    }
}
