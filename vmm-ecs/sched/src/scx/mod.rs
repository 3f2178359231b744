//! The sched_ext controller: decides inside the kernel, on the vCPU's own CPU.
//!
//! # Problem
//! A decision from user space costs a switch to the thread that takes it, and a class above all
//! vCPUs. A scheduler in the kernel decides where the vCPU would lose its CPU.
//!
//! # Approach
//! `bpf/` is that scheduler, for the whole host. This side loads it (`kernel`), tells it which
//! threads are vCPUs and where their guests' words lie, and turns its books into statistics
//! (`books`). Hints are written into guests' host lines where they arise: the kernel pins those
//! pages of guest memory for the programs. This side takes no decision and no part in one: stopped or
//! slow, it delays none.
//!
//! # Invariants
//! When this controller goes, in whatever way, or the kernel ends the scheduler, the host's own
//! scheduler goes on. Of guest memory the programs write the host lines only.
//!
//! # What it does not do
//! It does not attach again once the kernel has ended the scheduler: the statistics say why.

mod books;
mod cgroup;
mod kernel;
pub(crate) mod named;
mod probe;
mod records;
mod sizes;
mod topology;

/// The loader that is generated from `bpf/`.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    missing_docs,
    unreachable_pub
)]
mod compiled {
    include!(concat!(env!("OUT_DIR"), "/ecs.skel.rs"));
}

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ecs_policy::Params;
use ecs_shm::SlotAddresses;
use ecs_stats::Snapshot;

pub use probe::probe;
pub use records::Record;
pub use sizes::ProgramSize;

use crate::pimutex::PiMutex;
use crate::state::{State, Vcpu, VcpuId, VmEntry, VmSpec};
use crate::sys::{CpuSet, membarrier_all, now_ns, thread_cpu_ns};
use crate::threads::vcpu_threads;
use crate::{Controller, Host, entitle, roster, stats};
use kernel::{MAX_REGIONS, MAX_VCPUS, MAX_VMS, Program, types};

/// Time between two signs of life to the guests.
const BEAT: Duration = Duration::from_millis(20);
/// Beats between two searches for vCPU threads while all are known.
const SCAN_BEATS: u32 = 25;
/// Beats between two bookings of entitlement, and two readings of cgroup weights.
const ENTITLE_BEATS: u32 = 50;

/// Why the controller cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ScxError {
    /// The kernel has no sched_ext.
    #[error("This kernel has no sched_ext (CONFIG_SCHED_CLASS_EXT)")]
    Missing,
    /// The kernel takes the programs not.
    #[error("The kernel refuses the scheduler: it needs root, or CAP_BPF and CAP_PERFMON")]
    Load(#[source] libbpf_rs::Error),
    /// The compiled object is not what it should be.
    #[error("The scheduler's object is broken: {0}")]
    Broken(&'static str),
    /// The kernel does not let it schedule.
    #[error("Cannot take over scheduling: is another sched_ext scheduler loaded?")]
    Attach(#[source] libbpf_rs::Error),
    /// A vCPU thread cannot be named to the programs.
    #[error("Cannot name a vCPU thread to the scheduler")]
    Thread(#[source] libbpf_rs::Error),
    /// The host's CPUs cannot be read.
    #[error("Cannot read which CPUs are online")]
    Online(#[source] std::io::Error),
    /// A vCPU thread has ended, or this kernel knows no descriptors of threads (Linux 6.9).
    #[error("Cannot open a vCPU thread")]
    NoThread(#[source] std::io::Error),
    /// The ring of records cannot be read.
    #[error("Cannot read what the scheduler recorded")]
    Records(#[source] libbpf_rs::Error),
    /// A thread cannot start.
    #[error("Cannot start a thread of the controller")]
    Spawn(#[source] std::io::Error),
}

impl ScxError {
    /// Whether another controller should be tried: this host does not have or allow this one.
    #[must_use]
    pub fn is_not_allowed(&self) -> bool {
        matches!(self, Self::Missing | Self::Load(_) | Self::Attach(_))
    }
}

/// What the operator may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScxConfig {
    /// Parameters of the policy.
    pub params: Params,
    /// Time between two looks at a vCPU in an extension or of a VM that waits for its own locks, ns.
    pub look_ns: u64,
    /// A hopeless spinner gives up its CPU before its slice ends.
    pub step_aside: bool,
    /// The vCPU that its siblings wait for runs first.
    pub head_first: bool,
    /// VMs that wait for their own locks run on few CPUs at a time.
    pub apart: bool,
    /// vCPUs stay near the cache, or the NUMA node, where they ran.
    pub near: bool,
    /// It schedules vCPUs alone, not the whole host, in a class below that of all other threads.
    /// Only to measure what that costs: threads stay in that class when this controller goes.
    pub partial: bool,
    /// Every operation on the books is recorded: [`ScxController::records`].
    pub record: bool,
    /// Time a runnable thread may wait until the kernel ends the scheduler, ms.
    pub timeout_ms: u32,
}

impl Default for ScxConfig {
    fn default() -> Self {
        Self {
            params: Params::default(),
            look_ns: 50_000,
            step_aside: true,
            head_first: true,
            apart: true,
            near: true,
            partial: false,
            record: false,
            timeout_ms: 10_000,
        }
    }
}

/// The controller.
#[derive(Debug)]
pub struct ScxController {
    inner: Arc<PiMutex<Inner>>,
    program: Arc<Program>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    host: Host,
}

/// What the threads share.
#[derive(Debug)]
struct Inner {
    state: State,
    /// The VM in each place: a new number for each newcomer.
    epochs: Vec<u32>,
    last_epoch: u32,
}

impl ScxController {
    /// Loads the scheduler and lets it take over the host.
    ///
    /// # Errors
    /// [`ScxError`].
    pub fn start(config: &ScxConfig) -> Result<Self, ScxError> {
        if !probe::has_sched_ext() {
            return Err(ScxError::Missing);
        }
        let online = CpuSet::online().map_err(ScxError::Online)?;
        let mut program = Program::load(config)?;
        program.attach()?;
        let program = Arc::new(program);
        let inner = Arc::new(PiMutex::new(Inner {
            state: State::new(config.params, online.cpus(), now_ns()),
            epochs: Vec::new(),
            last_epoch: 0,
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let mut controller = Self {
            inner: inner.clone(),
            program: program.clone(),
            stop: stop.clone(),
            threads: Vec::new(),
            host: Host::read("scx", if config.partial { "partial" } else { "full" }),
        };
        controller.spawn("ecs-scx", move || look_after(&inner, &program, &stop))?;
        Ok(controller)
    }

    /// The books of all VMs now, and every operation on them since the last call, or the start: those
    /// of the last microseconds may come with the next call. Nothing unless the configuration says
    /// `record`; to be called often enough for a ring of 16 MiB.
    ///
    /// # Errors
    /// The ring cannot be read.
    pub fn records(&self) -> Result<Vec<Record>, ScxError> {
        records::take(&self.program)
    }

    /// How long its programs are.
    #[must_use]
    pub fn programs(&self) -> Vec<ProgramSize> {
        self.program.sizes()
    }

    /// Operations that found no room in the ring.
    #[must_use]
    pub fn records_lost(&self) -> u64 {
        records::lost(&self.program)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), ScxError> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run);
        self.threads.push(thread.map_err(ScxError::Spawn)?);
        Ok(())
    }
}

impl Controller for ScxController {
    fn update(&self, vm: VmSpec) {
        let mut inner = self.inner.lock();
        let name = vm.name.clone();
        let is_new = inner.state.find(&name).is_none();
        let replaced = roster::update(&mut inner.state, vm);
        if let Some(index) = inner.state.find(&name) {
            if is_new {
                inner.welcome(index);
            }
            inner.publish(index, &self.program);
            inner.name_threads(index, &self.program);
        }
        drop(inner);
        if replaced.is_some() {
            wait_for_programs();
        }
        drop(replaced);
    }

    fn gone(&self, name: &str) {
        let mut inner = self.inner.lock();
        let Some(vm) = inner.state.find(name) else {
            return;
        };
        let nr_vcpus = inner.state.vm(vm).map_or(0, |vm| vm.vcpus.len());
        let vcpus: Vec<_> = (0..nr_vcpus)
            .filter_map(|vcpu| roster::remove(&mut inner.state, VcpuId { vm, vcpu }))
            .collect();
        for vcpu in &vcpus {
            self.program.remove_thread(vcpu.tid);
        }
        let entry = inner.state.vms.get_mut(vm).and_then(Option::take);
        self.program.set_vm(vm, &types::ecs_vm_config::default());
        for vcpu in 0..MAX_VCPUS {
            self.program
                .set_vcpu(vm, vcpu, &types::ecs_vcpu_config::default());
        }
        drop(inner);
        wait_for_programs();
        if let Some(entry) = &entry {
            for slots in entry.spec.slots.vcpus.iter().flatten() {
                slots.clear_hints();
            }
        }
        drop((vcpus, entry));
    }

    fn snapshot(&self) -> Snapshot {
        let mut inner = self.inner.lock();
        let Inner { state, epochs, .. } = &mut *inner;
        books::collect(state, &self.program, epochs);
        stats::snapshot(state, &self.host)
    }
}

impl Drop for ScxController {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            // A panic of the thread has been reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

impl Inner {
    /// A VM is new in its place.
    fn welcome(&mut self, vm: usize) {
        self.last_epoch = self.last_epoch.wrapping_add(1).max(1);
        if self.epochs.len() <= vm {
            self.epochs.resize(vm + 1, 0);
        }
        if let Some(epoch) = self.epochs.get_mut(vm) {
            *epoch = self.last_epoch;
        }
        if vm >= MAX_VMS {
            tracing::warn!(
                limit = MAX_VMS,
                "More VMs than the scheduler in the kernel knows: this one is scheduled as any \
                 other process"
            );
        }
    }

    /// Tells the programs all about a VM.
    fn publish(&self, index: usize, program: &Program) {
        self.publish_vm(index, program);
        let Some(vm) = self.state.vm(index) else {
            return;
        };
        for vcpu in 0..MAX_VCPUS {
            program.set_vcpu(index, vcpu, &vcpu_config_of(vm, vcpu));
        }
    }

    /// Tells the programs what changes about a VM without a word of its device: threads, weight.
    fn publish_vm(&self, index: usize, program: &Program) {
        let (Some(vm), Some(&epoch)) = (self.state.vm(index), self.epochs.get(index)) else {
            return;
        };
        program.set_nr_vms(self.state.vms.len());
        program.set_vm(index, &config_of(vm, epoch));
    }

    /// Names every vCPU thread of a VM to the programs, with its words.
    fn name_threads(&self, index: usize, program: &Program) {
        let Some(vm) = self.state.vm(index) else {
            return;
        };
        for (number, vcpu) in vm.vcpus.iter().enumerate() {
            let Some(vcpu) = vcpu else { continue };
            let name = |words| program.set_thread(vcpu.tid, index, number, words);
            let words = vcpu.slots.as_ref().map(|slots| slots.addresses());
            let Err(error) = name(words.unwrap_or_default()) else {
                continue;
            };
            let Err(error) = name(SlotAddresses::default()) else {
                tracing::warn!(
                    error = reasons(&error),
                    tid = vcpu.tid,
                    "The kernel cannot pin this vCPU's words, as of memory in a file system: it is \
                     read at the VMM's addresses, which costs more, and gets no hints"
                );
                continue;
            };
            tracing::warn!(
                error = reasons(&error),
                tid = vcpu.tid,
                "A vCPU goes without eCS"
            );
        }
    }

    /// Finds vCPU threads that came or went, and names them to the programs.
    fn scan(&mut self, program: &Program) {
        for (vm, pid) in roster::processes(&self.state) {
            let threads = vcpu_threads(pid).unwrap_or_default();
            for id in roster::gone(&self.state, vm, &threads) {
                if let Some(vcpu) = roster::remove(&mut self.state, id) {
                    program.remove_thread(vcpu.tid);
                }
            }
            let new = roster::new(&self.state, &threads);
            for thread in &new {
                let vcpu = thread.vcpu as usize;
                roster::insert(
                    &mut self.state,
                    VcpuId { vm, vcpu },
                    Vcpu::new(thread.tid, now_ns()),
                );
            }
            if !new.is_empty() {
                self.publish_vm(vm, program);
                self.name_threads(vm, program);
            }
        }
    }

    /// Tells the programs of weights that cgroups have now.
    fn publish_all(&mut self, program: &Program) {
        for index in 0..self.state.vms.len() {
            self.publish_vm(index, program);
        }
    }

    /// The kernel has ended the scheduler: what guests were told is true no more.
    fn end(&mut self, reason: String) {
        for vcpu in self.state.vms.iter().flatten().flat_map(|vm| &vm.vcpus) {
            if let Some(slots) = vcpu.as_ref().and_then(|vcpu| vcpu.slots.as_ref()) {
                slots.clear_hints();
            }
        }
        self.state.host.ended = Some(reason);
    }
}

fn config_of(vm: &VmEntry, epoch: u32) -> types::ecs_vm_config {
    let weight = u64::from(vm.spec.weight) * u64::from(cgroup::weight(vm.cgroup.as_deref()))
        / u64::from(ecs_policy::WEIGHT_DEFAULT);
    let mut config = types::ecs_vm_config {
        epoch,
        weight: u32::try_from(weight).unwrap_or(u32::MAX).clamp(
            *ecs_policy::WEIGHT_RANGE.start(),
            *ecs_policy::WEIGHT_RANGE.end(),
        ),
        enabled: u32::from(vm.spec.enabled),
        nr_vcpus: u32::try_from(vm.vcpus.len()).unwrap_or(u32::MAX),
        nr_regions: u32::try_from(vm.spec.regions.len().min(MAX_REGIONS)).unwrap_or(0),
        ..types::ecs_vm_config::default()
    };
    for (place, region) in config.regions.iter_mut().zip(&vm.spec.regions) {
        *place = types::ecs_region {
            gpa: region.gpa,
            len: region.len,
            user: region.userspace_addr,
        };
    }
    config
}

fn vcpu_config_of(vm: &VmEntry, vcpu: usize) -> types::ecs_vcpu_config {
    let Some(slots) = vm.spec.slots.get(vcpu) else {
        return types::ecs_vcpu_config::default();
    };
    // Where the VMM has it; the device has checked that it lies inside of one region.
    let user = |gpa: u64| {
        let regions = vm.spec.regions.iter();
        regions
            .filter(|region| gpa >= region.gpa && gpa - region.gpa < region.len)
            .map(|region| region.userspace_addr + (gpa - region.gpa))
            .next()
    };
    let registration = slots.registration();
    types::ecs_vcpu_config {
        guest_line: user(registration.guest_line).unwrap_or(0),
        word_addr: user(registration.word_addr).unwrap_or(0),
        word_format: registration.word_format,
        reserved: 0,
    }
}

fn reasons(error: &ScxError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// What is to be done at regular intervals.
fn look_after(inner: &PiMutex<Inner>, program: &Program, stop: &AtomicBool) {
    let mut beat = 0u32;
    let mut has_ended = false;
    while !stop.load(Ordering::Acquire) {
        thread::sleep(BEAT);
        beat = beat.wrapping_add(1);
        let mut inner = inner.lock();
        inner.state.beat(beat);
        if let Some(first) = inner.state.pcpus.first_mut() {
            first.agent_cpu_ns = thread_cpu_ns();
        }
        if roster::is_incomplete(&inner.state) || beat.is_multiple_of(SCAN_BEATS) {
            inner.scan(program);
        }
        if beat.is_multiple_of(ENTITLE_BEATS) {
            let Inner { state, epochs, .. } = &mut *inner;
            books::collect(state, program, epochs);
            entitle::book(state);
            inner.publish_all(program);
        }
        if let Some(ended) = program.ended().filter(|_| !has_ended) {
            has_ended = true;
            tracing::error!(
                kind = ended.kind,
                reason = ended.reason,
                "The kernel has ended the scheduler: the host schedules by itself, VMs run on"
            );
            inner.end(ended.reason);
        }
    }
}

/// Returns once no program can be at work any more with what it was told before.
pub(crate) fn wait_for_programs() {
    if let Err(error) = membarrier_all() {
        tracing::debug!(%error, "No barrier for all CPUs: waiting instead");
        thread::sleep(BEAT);
    }
}
