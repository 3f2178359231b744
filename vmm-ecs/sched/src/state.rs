//! What a controller knows of the VMs it serves: shared by its threads, behind one lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ecs_policy::{
    CsSnapshot, Ledger, Params, Patience, Queue, Section, Turn, VcpuSet, VcpuState, Vm, Wait,
    is_dirty, queue_of,
};
use ecs_shm::{UserRegion, VcpuSlots, VmSlots};
use ecs_stats::{Histogram, Polls};
use std::os::fd::OwnedFd;

use crate::sys::{CpuSet, SchedAttr, Tid};
use crate::tell::{Teller, Told};
use crate::threads::ThreadStat;
use crate::userspace::{Request, Role};

/// A VM as the daemon hands it to a controller, at every change again.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// Name, unique on the host.
    pub name: String,
    /// Process id of the VMM.
    pub pid: u32,
    /// CPU weight, 100 is the default.
    pub weight: u32,
    /// Whether it may have extensions.
    pub enabled: bool,
    /// What its guest registered.
    pub slots: Arc<VmSlots>,
    /// Doorbells; the one at index `n` rings for every vCPU with `vcpu % doorbells.len() == n`.
    pub doorbells: Vec<Option<Arc<OwnedFd>>>,
    /// Generation of its device.
    pub generation: u32,
    /// Where its memory lies in the VMM's process, for who reads it there.
    pub regions: Vec<UserRegion>,
}

/// Whether a vCPU runs, could run, or sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Running,
    Waiting,
    Blocked,
}

/// One vCPU of one VM.
#[derive(Debug)]
pub(crate) struct Vcpu {
    pub(crate) tid: Tid,
    pub(crate) stat: Option<ThreadStat>,
    /// How its VMM scheduled it.
    pub(crate) original: Option<SchedAttr>,
    /// CPUs its VMM lets it run on.
    pub(crate) allowed: CpuSet,
    /// Index of another pCPU where it is parked for a moment.
    pub(crate) parked: Option<usize>,
    /// Index of the pCPU it is bound to; `None` where nothing steers it.
    pub(crate) pcpu: Option<usize>,
    pub(crate) policy: VcpuState,
    pub(crate) slots: Option<Arc<VcpuSlots>>,
    /// Its guest is told by programs in the kernel, not at each look.
    pub(crate) told: Option<Told>,
    pub(crate) status: Status,
    /// When it last got or left a CPU, ns.
    pub(crate) since_ns: u64,
    /// The controller took it off the CPU, not the kernel.
    pub(crate) ordered_off: bool,
    /// It has run since its slots were read last.
    pub(crate) stale: bool,
    /// CPU time since the controller last looked, ns.
    pub(crate) turn_ran_ns: u64,
    /// It left the CPU inside a critical section: when, ns, and in which.
    pub(crate) critical_since: Option<(u64, Section)>,
    /// `VIRTIO_ECS_YIELD_*` last told to the guest.
    pub(crate) yield_bits: u32,
    pub(crate) overloaded: bool,
    /// Others could run on its pCPU when it was last looked at.
    pub(crate) crowded: bool,
    /// An extension of it runs.
    pub(crate) extended: bool,
    /// What its last extension protected, the index of the histogram.
    pub(crate) extended_section: usize,
    /// What its scheduling class makes it now.
    pub(crate) role: Option<Role>,
    pub(crate) preemptions: u64,
    pub(crate) critical_preemptions: u64,
    pub(crate) grants: u64,
    /// Last reading of the kernel's counters: CPU and delay, ns.
    pub(crate) kernel_ns: (u64, u64),
    /// Last reading of what the guest counts: [`VcpuSlots::polls`].
    pub(crate) polls: [u32; 3],
}

impl Vcpu {
    pub(crate) fn new(tid: Tid, now_ns: u64) -> Self {
        let stat = ThreadStat::open(tid).ok();
        let kernel_ns = stat
            .as_ref()
            .and_then(ThreadStat::cpu_and_delay_ns)
            .unwrap_or_default();
        Self {
            tid,
            stat,
            original: None,
            allowed: CpuSet::default(),
            parked: None,
            pcpu: None,
            policy: VcpuState::default(),
            slots: None,
            told: None,
            status: Status::Blocked,
            since_ns: now_ns,
            ordered_off: false,
            stale: true,
            turn_ran_ns: 0,
            critical_since: None,
            yield_bits: 0,
            overloaded: false,
            crowded: false,
            extended: false,
            extended_section: 0,
            role: None,
            preemptions: 0,
            critical_preemptions: 0,
            grants: 0,
            kernel_ns,
            polls: [0; 3],
        }
    }

    /// Tells the guest what it should do at its next release or in its next wait.
    pub(crate) fn tell_yield(&mut self, bits: u32) {
        if self.yield_bits != bits {
            self.yield_bits = bits;
            if let Some(slots) = &self.slots {
                slots.set_yield(bits);
            }
        }
    }

    pub(crate) fn tell_preempted(&self, preempted: bool) {
        if self.told.as_ref().is_some_and(Told::knows_preempted) {
            return;
        }
        if let Some(slots) = &self.slots {
            slots.set_preempted(preempted);
        }
    }

    pub(crate) fn tell_overloaded(&mut self, overloaded: bool) {
        if self.told.is_none() && self.overloaded != overloaded {
            self.overloaded = overloaded;
            if let Some(slots) = &self.slots {
                slots.set_overloaded(overloaded);
            }
        }
    }
}

/// One VM.
#[derive(Debug)]
pub(crate) struct VmEntry {
    pub(crate) spec: VmSpec,
    pub(crate) cgroup: Option<String>,
    pub(crate) policy: Vm,
    pub(crate) vcpus: Vec<Option<Vcpu>>,
    pub(crate) running: VcpuSet,
    /// Turns for which it still counts as lock-bound.
    pub(crate) lock_bound: u32,
    /// One of its vCPUs stepped aside for a head that is off the CPU.
    pub(crate) stuck: bool,
    /// Whether its spinners stay.
    pub(crate) patience: Patience,
    /// Its spinners stay, as `patience` had it at the last look.
    pub(crate) patient: bool,
    /// What each vCPU was doing when it was read last. The words of a vCPU stand still while it is
    /// off the CPU: only what it waits for can change then.
    pub(crate) snaps: Vec<CsSnapshot>,
    pub(crate) preemptions: u64,
    /// Critical preemptions: denied, expired, by the host.
    pub(crate) critical: [u64; 3],
    pub(crate) stall_ns: u64,
    pub(crate) fair_ns: u64,
    pub(crate) cpu_ns: u64,
    pub(crate) delay_ns: u64,
    pub(crate) wakeups: u64,
    /// Time its vCPUs ran on overloaded pCPUs, but for what those say that are told ([`Told`]), ns.
    pub(crate) overloaded_ns: u64,
    pub(crate) polls: Polls,
    /// Reads by programs in the kernel that made no sense.
    pub(crate) kernel_faults: u64,
}

impl VmEntry {
    /// Place of one of its vCPUs in its lock queue, if `running` were on their pCPUs.
    pub(crate) fn place_of(&self, vcpu: usize, running: &VcpuSet) -> Queue {
        let queue = queue_of(vcpu, &self.snaps, running);
        if self.patient {
            queue.together()
        } else {
            queue
        }
    }

    /// Whether its vCPUs should give their pCPUs back where they leave a section, for one that is off the
    /// CPU in a queue.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.patient && is_dirty(&self.snaps, &self.running)
    }

    pub(crate) fn new(spec: VmSpec, vclock_ns: u64) -> Self {
        let policy = Vm {
            ledger: Ledger::new(spec.weight, vclock_ns),
            counters: ecs_policy::Counters::default(),
            enabled: spec.enabled,
        };
        Self {
            cgroup: cgroup_of(spec.pid),
            spec,
            policy,
            vcpus: Vec::new(),
            running: VcpuSet::default(),
            lock_bound: 0,
            stuck: false,
            patience: Patience::default(),
            patient: false,
            snaps: Vec::new(),
            preemptions: 0,
            critical: [0; 3],
            stall_ns: 0,
            fair_ns: 0,
            cpu_ns: 0,
            delay_ns: 0,
            wakeups: 0,
            overloaded_ns: 0,
            polls: Polls::default(),
            kernel_faults: 0,
        }
    }

    /// Books what the guest says of its polls since the last time, `interval_ns` ago: no vCPU polls
    /// longer than that, nor more than once a microsecond.
    pub(crate) fn book_polls(&mut self, interval_ns: u64) {
        let most = interval_ns / 1000;
        for vcpu in self.vcpus.iter_mut().flatten() {
            let Some(slots) = &vcpu.slots else { continue };
            let now = slots.polls();
            let before = std::mem::replace(&mut vcpu.polls, now);
            let [mut paid, mut wasted, mut us] = [0; 3];
            for (more, (now, before)) in [&mut paid, &mut wasted, &mut us]
                .into_iter()
                .zip(now.into_iter().zip(before))
            {
                *more = u64::from(now.wrapping_sub(before)).min(most);
            }
            self.polls.paid += paid;
            self.polls.wasted += wasted;
            self.polls.ns += us * 1000;
        }
    }

    /// Time its vCPUs ran on overloaded pCPUs, ns.
    pub(crate) fn overloaded_ns(&self) -> u64 {
        let told = self
            .vcpus
            .iter()
            .flatten()
            .filter_map(|vcpu| vcpu.told.as_ref());
        self.overloaded_ns + told.map(Told::overloaded_ns).sum::<u64>()
    }

    pub(crate) fn vcpu(&self, index: usize) -> Option<&Vcpu> {
        self.vcpus.get(index)?.as_ref()
    }

    pub(crate) fn vcpu_mut(&mut self, index: usize) -> Option<&mut Vcpu> {
        self.vcpus.get_mut(index)?.as_mut()
    }

    /// Reads the slots of every vCPU into `snaps`.
    pub(crate) fn read(&mut self) {
        self.snaps.clear();
        self.snaps.extend(self.vcpus.iter().map(|vcpu| {
            vcpu.as_ref()
                .and_then(|vcpu| vcpu.slots.as_ref())
                .map_or_else(CsSnapshot::default, |slots| slots.read())
        }));
    }

    /// Reads the slots of one vCPU, if what is known of it may have changed.
    pub(crate) fn refresh(&mut self, index: usize) {
        if self.snaps.len() < self.vcpus.len() {
            self.snaps.resize(self.vcpus.len(), CsSnapshot::default());
        }
        let (Some(Some(vcpu)), Some(snap)) = (self.vcpus.get_mut(index), self.snaps.get_mut(index))
        else {
            return;
        };
        if vcpu.stale || snap.wait != Wait::None {
            vcpu.stale = false;
            *snap = vcpu
                .slots
                .as_ref()
                .map_or_else(CsSnapshot::default, |slots| slots.read());
        }
    }

    /// Last snapshot of one vCPU.
    pub(crate) fn snap(&self, index: usize) -> CsSnapshot {
        self.snaps.get(index).copied().unwrap_or_default()
    }

    /// Takes over what the guest registered; returns what it replaces, to be dropped elsewhere.
    pub(crate) fn set_spec(&mut self, spec: VmSpec) -> VmSpec {
        self.policy.enabled = spec.enabled;
        if self.policy.ledger.weight() != spec.weight {
            self.policy.ledger.set_weight(spec.weight);
        }
        let old = std::mem::replace(&mut self.spec, spec);
        self.link_slots();
        old
    }

    /// Stops touching guest memory; returns what may have to be unmapped, elsewhere.
    pub(crate) fn forget_slots(&mut self) -> Arc<VmSlots> {
        let slots = std::mem::take(&mut self.spec.slots);
        self.link_slots();
        slots
    }

    /// Gives each known vCPU thread its slots.
    pub(crate) fn link_slots(&mut self) {
        let slots = &self.spec.slots;
        for (index, vcpu) in self.vcpus.iter_mut().enumerate() {
            if let Some(vcpu) = vcpu {
                vcpu.slots = slots.get(index).cloned();
                // What it counted for others is no news.
                vcpu.polls = vcpu.slots.as_ref().map_or([0; 3], |slots| slots.polls());
                if let Some(told) = &vcpu.told {
                    let words = vcpu.slots.as_ref().map(|slots| slots.addresses());
                    told.show(words.unwrap_or_default());
                }
                // Unknown to the new slots: told again at the next change.
                vcpu.yield_bits = 0;
                vcpu.overloaded = false;
                vcpu.stale = true;
            }
        }
    }
}

/// Names a vCPU: index of the VM, number of the vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VcpuId {
    pub(crate) vm: usize,
    pub(crate) vcpu: usize,
}

impl VcpuId {
    /// As a number that names it.
    pub(crate) fn key(self) -> u64 {
        (self.vm as u64) << 32 | self.vcpu as u64
    }

    /// Back from its number.
    pub(crate) fn from_key(key: u64) -> Self {
        let half = |bits: u64| usize::try_from(bits & 0xffff_ffff).unwrap_or(usize::MAX);
        Self {
            vm: half(key >> 32),
            vcpu: half(key),
        }
    }
}

/// One managed pCPU.
#[derive(Debug)]
pub(crate) struct Pcpu {
    pub(crate) cpu: u32,
    pub(crate) members: Vec<VcpuId>,
    pub(crate) current: Option<VcpuId>,
    pub(crate) turn: Option<Turn>,
    /// Time the VM before paid back, for the next VM's turn.
    pub(crate) bonus_ns: u64,
    /// Slice ends in a row that met no critical section.
    pub(crate) quiet_turns: u32,
    /// Rings since the turn began that changed nothing.
    pub(crate) vain_rings: u32,
    /// Its vCPUs are scheduled as their VMMs left them: no guest here uses locks.
    pub(crate) released: bool,
    /// The thread that had the CPU last, beside the controller's own.
    pub(crate) last_tid: Tid,
    /// The vCPU that had the CPU last.
    pub(crate) last: Option<VcpuId>,
    /// Time threads that are no vCPUs ran in the window, ns, and when the one that runs began to.
    pub(crate) host_ran_ns: u64,
    pub(crate) host_since_ns: u64,
    /// They filled the last window.
    pub(crate) host_busy: bool,
    /// vCPUs of other pCPUs parked here.
    pub(crate) lodgers: u32,
    /// The controller makes vCPUs wait here beside the one that runs, as the teller knows it.
    pub(crate) crowded: bool,
    /// When the fair window that runs opened; `None` outside of one.
    pub(crate) window_since_ns: Option<u64>,
    pub(crate) window_closed_ns: u64,
    /// The agent's own CPU time, ns.
    pub(crate) agent_cpu_ns: u64,
    /// Times the agent looked: a sign of life.
    pub(crate) looks: u64,
    pub(crate) perf_records: u64,
    pub(crate) perf_lost: u64,
}

impl Pcpu {
    pub(crate) fn new(cpu: u32, now_ns: u64) -> Self {
        Self {
            cpu,
            members: Vec::new(),
            current: None,
            turn: None,
            bonus_ns: 0,
            quiet_turns: 0,
            vain_rings: 0,
            released: false,
            last_tid: 0,
            last: None,
            host_ran_ns: 0,
            host_since_ns: 0,
            host_busy: false,
            lodgers: 0,
            crowded: false,
            window_since_ns: None,
            window_closed_ns: now_ns,
            agent_cpu_ns: 0,
            looks: 0,
            perf_records: 0,
            perf_lost: 0,
        }
    }
}

/// Totals of the host.
#[derive(Debug, Default)]
pub(crate) struct HostCounters {
    pub(crate) rotations: u64,
    pub(crate) doorbells: u64,
    /// See [`ecs_stats::HostStats::directed_yields`].
    pub(crate) directed_yields: u64,
    pub(crate) migrations: u64,
    pub(crate) far_migrations: u64,
    pub(crate) extension: [Histogram; 3],
    /// The longest extension, ns; 0 where it is not kept.
    pub(crate) extension_max_ns: u64,
    pub(crate) critical_stall: [Histogram; 3],
    pub(crate) decision: Histogram,
    /// Why nothing steers any more.
    pub(crate) ended: Option<String>,
}

/// Everything behind the lock.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) params: Params,
    pub(crate) vms: Vec<Option<VmEntry>>,
    pub(crate) by_tid: HashMap<Tid, VcpuId>,
    pub(crate) pcpus: Vec<Pcpu>,
    /// Doorbells that ring too often, as VM and pCPU: not listened to until the next beat.
    pub(crate) mutes: Vec<VcpuId>,
    /// What the supervisor is asked to do next, by VM: only the last word about each matters.
    pub(crate) requests: BTreeMap<String, Request>,
    /// pCPUs whose agents should look at once.
    pub(crate) kicks: Vec<usize>,
    pub(crate) host: HostCounters,
    /// When received and entitled time were booked last.
    pub(crate) booked_ns: u64,
    /// What tells guests between looks, where there is something.
    pub(crate) teller: Option<Arc<Teller>>,
}

impl State {
    pub(crate) fn new(params: Params, cpus: &[u32], now_ns: u64) -> Self {
        Self {
            params,
            vms: Vec::new(),
            by_tid: HashMap::new(),
            pcpus: cpus.iter().map(|&cpu| Pcpu::new(cpu, now_ns)).collect(),
            mutes: Vec::new(),
            requests: BTreeMap::new(),
            kicks: Vec::new(),
            host: HostCounters::default(),
            booked_ns: now_ns,
            teller: None,
        }
    }

    pub(crate) fn vm(&self, index: usize) -> Option<&VmEntry> {
        self.vms.get(index)?.as_ref()
    }

    pub(crate) fn vm_mut(&mut self, index: usize) -> Option<&mut VmEntry> {
        self.vms.get_mut(index)?.as_mut()
    }

    /// Least virtual time of the VMs with work, but for one; `None` if there is no other.
    pub(crate) fn vclock_ns(&self, except: Option<usize>) -> Option<u64> {
        let active = |vm: &VmEntry| {
            vm.vcpus
                .iter()
                .flatten()
                .any(|vcpu| vcpu.status != Status::Blocked)
        };
        self.vms
            .iter()
            .enumerate()
            .filter(|(index, _)| Some(*index) != except)
            .filter_map(|(_, vm)| vm.as_ref())
            .filter(|vm| active(vm))
            .map(|vm| vm.policy.ledger.vtime_ns())
            .min()
    }

    /// A VM may stand at most so many slices of virtual time behind the others: time that it did not
    /// use, asleep or spinning without hope, is no credit.
    pub(crate) fn forgo_credit(&mut self, vm: usize, slices: u64) {
        let slice_ns = self.params.slice_ns;
        let Some(vclock_ns) = self.vclock_ns(Some(vm)) else {
            return;
        };
        if let Some(vm) = self.vm_mut(vm) {
            let ledger = &mut vm.policy.ledger;
            ledger.wake(vclock_ns, slices * slice_ns);
            vm.patience.stands(ledger.vtime_ns(), vclock_ns, slice_ns);
        }
    }

    /// A VM begins a turn on a pCPU: no other one may wait for it there for ever. pCPUs of unequal load
    /// have virtual times of unequal speed.
    pub(crate) fn rein(&mut self, pcpu: usize, first: usize) {
        let Some(first_ns) = self.vm(first).map(|vm| vm.policy.ledger.vtime_ns()) else {
            return;
        };
        let Self {
            pcpus, vms, params, ..
        } = self;
        let Some(pcpu) = pcpus.get(pcpu) else {
            return;
        };
        for id in pcpu.members.iter().filter(|id| id.vm != first) {
            let Some(vm) = vms.get_mut(id.vm).and_then(Option::as_mut) else {
                continue;
            };
            if vm
                .vcpu(id.vcpu)
                .is_some_and(|vcpu| vcpu.status == Status::Waiting)
            {
                let nr_vcpus = vm.vcpus.len() as u64;
                vm.policy.ledger.rein(first_ns, nr_vcpus, params);
            }
        }
    }

    /// Whether vCPUs are made to wait on a pCPU beside the one that runs.
    pub(crate) fn tell_crowded(&mut self, pcpu: usize, crowded: bool) {
        let Some(pcpu) = self.pcpus.get_mut(pcpu) else {
            return;
        };
        if let Some(teller) = self.teller.as_ref().filter(|_| pcpu.crowded != crowded) {
            pcpu.crowded = crowded;
            teller.crowd(pcpu.cpu, crowded);
        }
    }

    /// Shows every guest that the host is alive.
    pub(crate) fn beat(&self, beat: u32) {
        for vm in self.vms.iter().flatten() {
            // Those whose threads were not found, too.
            for slots in vm.spec.slots.vcpus.iter().flatten() {
                slots.set_heartbeat(vm.spec.generation, beat);
            }
        }
    }

    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.vms
            .iter()
            .position(|vm| vm.as_ref().is_some_and(|vm| vm.spec.name == name))
    }

    pub(crate) fn vcpu(&self, id: VcpuId) -> Option<&Vcpu> {
        self.vm(id.vm)?.vcpu(id.vcpu)
    }

    pub(crate) fn vcpu_mut(&mut self, id: VcpuId) -> Option<&mut Vcpu> {
        self.vm_mut(id.vm)?.vcpu_mut(id.vcpu)
    }
}

/// The cgroup v2 path of a process.
fn cgroup_of(pid: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(str::to_owned)
}
