//! A VM from start to report.

use std::error::Error as _;
use std::io;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use ecs_guest::VcpuLines;

use crate::config::{ConfigError, Kind, VmConfig};
use crate::frontend::Frontend;
use crate::kvm::{self, KvmError, KvmVm};
use crate::machine::Machine;
use crate::report::{DeviceReport, KindUsed, Progress, VmReport, handoff};
use crate::workload::{guest_code, index_of, waiters_code};
use crate::{sys, threads, work};

/// How long vCPUs may take to stop.
const STOP_TIME: Duration = Duration::from_secs(10);

/// A VM cannot start, or came to grief.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The configuration makes no sense.
    #[error("Cannot run this VM: {0}")]
    Config(#[from] ConfigError),
    /// No memory or doorbells.
    #[error("Cannot make the VM's memory and doorbells")]
    Machine(#[source] io::Error),
    /// The KVM guest failed.
    #[error("The KVM guest failed: use threads, or kind auto")]
    Kvm(#[source] KvmError),
    /// No thread.
    #[error("Cannot start a thread")]
    Thread(#[source] io::Error),
    /// The kernel refuses the CPU set.
    #[error("vCPU {vcpu} cannot run on CPUs {cpus:?}: list CPUs that exist and are allowed")]
    Affinity {
        /// vCPU.
        vcpu: u32,
        /// CPUs asked for.
        cpus: Vec<u32>,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel gives no cookie.
    #[error(
        "Cannot keep the VM's cores to itself: the kernel needs CONFIG_SCHED_CORE, and CPUs that share cores"
    )]
    CoreScheduling(#[source] io::Error),
    /// A vCPU does not stop.
    #[error("vCPU {0} did not stop within {STOP_TIME:?}")]
    Stuck(usize),
    /// A vCPU thread panicked.
    #[error("vCPU {0} panicked")]
    Panicked(usize),
    /// Standard input or output failed.
    #[error("Cannot talk to the parent process")]
    Parent(#[source] io::Error),
}

/// Where vCPU threads wait for the start.
#[derive(Debug, Default)]
struct StartGate {
    state: Mutex<Phase>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Wait,
    Go,
    Cancelled,
}

impl StartGate {
    fn set(&self, phase: Phase) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = phase;
        self.changed.notify_all();
    }

    fn wait(&self) -> Phase {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |phase: &mut Phase| *phase == Phase::Wait;
        *self
            .changed
            .wait_while(state, waiting)
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A vCPU's thread, as the VMM sees it.
#[derive(Debug)]
struct VcpuThread {
    handle: Option<JoinHandle<Result<(), VmError>>>,
    clock: Arc<CpuClock>,
}

/// CPU time of a vCPU thread: read from outside while it lives, left behind when it ends.
#[derive(Debug, Default)]
struct CpuClock {
    tid: AtomicI32,
    final_ns: AtomicU64,
    base_ns: AtomicU64,
}

impl CpuClock {
    fn total_ns(&self) -> u64 {
        match self.final_ns.load(Ordering::Acquire) {
            0 => sys::thread_cpu_ns(self.tid.load(Ordering::Acquire)).unwrap_or(0),
            ns => ns,
        }
    }

    fn used_ns(&self) -> u64 {
        self.total_ns()
            .saturating_sub(self.base_ns.load(Ordering::Relaxed))
    }
}

/// A running VM.
#[derive(Debug)]
pub struct Vm {
    config: VmConfig,
    machine: Arc<Machine>,
    threads: Vec<VcpuThread>,
    gate: Arc<StartGate>,
    frontend: Option<Frontend>,
    kind: KindUsed,
    why: String,
    iterations_per_us: f64,
    started: Option<(Instant, u64)>,
}

/// Which kind to run, and why.
fn choose(config: &VmConfig) -> Result<(KindUsed, String), VmError> {
    if config.kind == Kind::Thread {
        return Ok((KindUsed::Thread, "asked for".to_owned()));
    }
    match (kvm::probe(&config.workload), config.kind) {
        (Ok(()), Kind::Kvm) => Ok((KindUsed::Kvm, "asked for, and a probe passed".to_owned())),
        (Ok(()), _) => Ok((KindUsed::Kvm, "a probe of /dev/kvm passed".to_owned())),
        (Err(error), Kind::Kvm) => Err(VmError::Kvm(error)),
        (Err(error), _) => {
            let cause = error
                .source()
                .map(|cause| format!(": {cause}"))
                .unwrap_or_default();
            Ok((KindUsed::Thread, format!("{error}{cause}")))
        }
    }
}

impl Vm {
    /// Makes the VM: vCPU threads exist and wait, and the front-end connects in the background.
    ///
    /// # Errors
    /// A configuration out of range, a kind of VM or a CPU set this machine does not have, or no
    /// resources.
    pub fn new(config: VmConfig) -> Result<Self, VmError> {
        config.check()?;
        let (kind, why) = choose(&config)?;
        let nr_vcpus = config.vcpus as usize;
        let machine = Machine::new(nr_vcpus).map_err(VmError::Machine)?;
        let iterations_per_us = config.iterations_per_us.unwrap_or_else(work::calibrate);
        fill_control(&machine, &config, iterations_per_us);
        let mut vm = Self {
            machine,
            threads: Vec::with_capacity(nr_vcpus),
            gate: Arc::default(),
            frontend: None,
            kind,
            why,
            iterations_per_us,
            started: None,
            config,
        };
        vm.spawn_vcpus()?;
        if let Some(socket) = vm.config.socket.clone() {
            let frontend = Frontend::spawn(socket, Arc::clone(&vm.machine));
            vm.frontend = Some(frontend.map_err(VmError::Thread)?);
        }
        Ok(vm)
    }

    fn spawn_vcpus(&mut self) -> Result<(), VmError> {
        let guest = match self.kind {
            KindUsed::Kvm => {
                kvm::register_kick().map_err(VmError::Thread)?;
                let vm = KvmVm::new(Arc::clone(&self.machine)).map_err(VmError::Kvm)?;
                Some(Arc::new(vm))
            }
            KindUsed::Thread => None,
        };
        let (report, ready) = std::sync::mpsc::channel();
        for number in 0..self.config.vcpus {
            let clock = Arc::new(CpuClock::default());
            let vcpu = match &guest {
                Some(vm) => {
                    let fd = vm.create_vcpu(number as usize).map_err(VmError::Kvm)?;
                    Some((Arc::clone(vm), fd))
                }
                None => None,
            };
            let machine = Arc::clone(&self.machine);
            let gate = Arc::clone(&self.gate);
            let report = report.clone();
            let thread_clock = Arc::clone(&clock);
            let cpus = self.cpus_of(number);
            let body = move || {
                thread_clock.tid.store(sys::gettid(), Ordering::Release);
                let pinned = if cpus.is_empty() {
                    Ok(())
                } else {
                    sys::set_affinity(&cpus)
                };
                let pinned = pinned.map_err(|source| VmError::Affinity {
                    vcpu: number,
                    cpus,
                    source,
                });
                // The receiver is gone only if another vCPU has failed already.
                let _ = report.send(pinned);
                drop(report);
                if gate.wait() == Phase::Cancelled {
                    return Ok(());
                }
                let result = match vcpu {
                    Some((vm, mut fd)) => vm.run(&mut fd, number as usize).map_err(VmError::Kvm),
                    None => {
                        threads::run(&machine, number);
                        Ok(())
                    }
                };
                let tid = thread_clock.tid.load(Ordering::Relaxed);
                let used = sys::thread_cpu_ns(tid).unwrap_or(0);
                thread_clock.final_ns.store(used, Ordering::Release);
                result
            };
            let handle = Builder::new()
                .name(format!("vcpu{number}"))
                .spawn(body)
                .map_err(VmError::Thread)?;
            self.threads.push(VcpuThread {
                handle: Some(handle),
                clock,
            });
        }
        drop(report);
        ready.iter().collect()
    }

    fn cpus_of(&self, vcpu: u32) -> Vec<u32> {
        let cpus = &self.config.cpus;
        if self.config.pin {
            cpus.iter()
                .cycle()
                .nth(vcpu as usize)
                .copied()
                .into_iter()
                .collect()
        } else {
            cpus.clone()
        }
    }

    /// How the vCPUs run.
    #[must_use]
    pub fn kind(&self) -> KindUsed {
        self.kind
    }

    /// Why the vCPUs run that way.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Waits until the device has every vCPU, at most for `timeout`. True at once without a device.
    #[must_use]
    pub fn wait_for_device(&self, timeout: Duration) -> bool {
        let Some(frontend) = &self.frontend else {
            return true;
        };
        let deadline = Instant::now() + timeout;
        while !frontend.report().registered {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    /// What became of the device; `None` without one.
    #[must_use]
    pub fn device(&self) -> Option<DeviceReport> {
        self.frontend.as_ref().map(Frontend::report)
    }

    /// The lines of a vCPU, which its guest and the host write while this is looked at.
    #[must_use]
    pub fn lines(&self, vcpu: usize) -> Option<&VcpuLines> {
        let lines = &self.machine.ram.shared().lines;
        lines.get(vcpu).filter(|_| vcpu < self.machine.nr_vcpus)
    }

    /// Starts the work.
    pub fn go(&mut self) {
        for thread in &self.threads {
            thread
                .clock
                .base_ns
                .store(thread.clock.total_ns(), Ordering::Relaxed);
        }
        self.started = Some((Instant::now(), work::ticks()));
        self.gate.set(Phase::Go);
    }

    /// Where the work stands.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let elapsed = self
            .started
            .map_or(Duration::ZERO, |(start, _)| start.elapsed());
        Progress {
            t_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX),
            ops: self.ops(),
            cpu_ns: self
                .threads
                .iter()
                .map(|thread| thread.clock.used_ns())
                .collect(),
        }
    }

    /// Whether a vCPU has ended by itself: the guest failed.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        let ended =
            |thread: &VcpuThread| thread.handle.as_ref().is_none_or(JoinHandle::is_finished);
        self.threads.iter().any(ended)
    }

    fn ops(&self) -> Vec<u64> {
        let vcpus = self
            .machine
            .ram
            .shared()
            .vcpus
            .iter()
            .take(self.machine.nr_vcpus);
        vcpus.map(|vcpu| vcpu.ops.load(Ordering::Relaxed)).collect()
    }

    /// Stops the work and says what was done.
    ///
    /// # Errors
    /// A guest that failed, or a vCPU that does not stop.
    pub fn finish(mut self) -> Result<VmReport, VmError> {
        let progress = self.progress();
        let (start, start_ticks) = self
            .started
            .unwrap_or_else(|| (Instant::now(), work::ticks()));
        let elapsed = start.elapsed();
        let ticks = work::ticks().saturating_sub(start_ticks).max(1);
        self.machine
            .ram
            .shared()
            .control
            .stop
            .store(1, Ordering::Release);
        self.gate.set(if self.started.is_some() {
            Phase::Go
        } else {
            Phase::Cancelled
        });
        self.join()?;
        let device = self.device();
        drop(self.frontend.take());

        let shared = self.machine.ram.shared();
        let vcpus = || shared.vcpus.iter().take(self.machine.nr_vcpus);
        let sum = |of: fn(&crate::shared::PerVcpu) -> &AtomicU64| {
            vcpus()
                .map(|vcpu| of(vcpu).load(Ordering::Relaxed))
                .sum::<u64>()
        };
        let irq = self.config.workload.kind == crate::config::WorkloadKind::Irq;
        #[expect(clippy::cast_precision_loss, reason = "a rate exact to a per mille")]
        let ns_per_tick = elapsed.as_nanos() as f64 / ticks as f64;
        Ok(VmReport {
            r#final: true,
            ops: progress.ops,
            cpu_ns: progress.cpu_ns,
            elapsed_ns: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
            kind_used: self.kind,
            why: std::mem::take(&mut self.why),
            lost_wakeups: self.machine.sleepers.lost_wakeups.load(Ordering::Relaxed),
            nr_halts: self.machine.sleepers.nr_halts.load(Ordering::Relaxed),
            handoff: handoff(shared, self.machine.nr_vcpus, ns_per_tick),
            // A call is protected by having one server only.
            protected: if irq {
                sum(|vcpu| &vcpu.served)
            } else {
                shared.protected.changes.load(Ordering::Relaxed)
            },
            expected: sum(|vcpu| &vcpu.changes),
            torn_reads: sum(|vcpu| &vcpu.torn_reads),
            handbacks: shared
                .lines
                .iter()
                .take(self.machine.nr_vcpus)
                .map(|lines| lines.guest.handback.load(Ordering::Relaxed))
                .collect(),
            iterations_per_us: self.iterations_per_us,
            device,
            name: std::mem::take(&mut self.config.name),
        })
    }

    /// Joins every vCPU thread; what sleeps is woken, what hangs in KVM is taken out of it.
    fn join(&mut self) -> Result<(), VmError> {
        let deadline = Instant::now() + STOP_TIME;
        let mut first_error = None;
        for vcpu in 0..self.threads.len() {
            let Some(handle) = self
                .threads
                .get_mut(vcpu)
                .and_then(|thread| thread.handle.take())
            else {
                continue;
            };
            while !handle.is_finished() {
                self.machine.wake_all();
                if Instant::now() >= deadline || first_error.is_some() {
                    self.machine.abort.store(true, Ordering::Release);
                    kvm::kick(&handle);
                    if self.kind == KindUsed::Thread || Instant::now() >= deadline + STOP_TIME {
                        return Err(VmError::Stuck(vcpu));
                    }
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            let result = handle.join().unwrap_or(Err(VmError::Panicked(vcpu)));
            if let Err(error) = result {
                first_error.get_or_insert(error);
            }
        }
        let aborted = self.machine.abort.load(Ordering::Acquire);
        first_error.map_or(
            if aborted {
                Err(VmError::Stuck(0))
            } else {
                Ok(())
            },
            Err,
        )
    }
}

impl Drop for Vm {
    /// A VM that is dropped without a report, as after an error, leaves no thread behind.
    fn drop(&mut self) {
        self.machine
            .ram
            .shared()
            .control
            .stop
            .store(1, Ordering::Release);
        self.gate.set(if self.started.is_some() {
            Phase::Go
        } else {
            Phase::Cancelled
        });
        // Whatever is still wrong was reported, or nobody asked.
        let _ = self.join();
    }
}

fn fill_control(machine: &Machine, config: &VmConfig, iterations_per_us: f64) {
    let control = &machine.ram.shared().control;
    let workload = &config.workload;
    let set = |word: &std::sync::atomic::AtomicU32, value| word.store(value, Ordering::Relaxed);
    set(&control.vcpus, config.vcpus);
    set(&control.workload, index_of(workload.kind));
    set(&control.read_pct, u32::from(workload.read_pct));
    set(&control.annotate, u32::from(config.annotate));
    set(&control.waiters, waiters_code(config.waiters));
    set(&control.ticks_per_us, work::ticks_per_us());
    set(&control.guest, guest_code(config.guest));
    set(&control.pauses_per_us, work::pauses_per_us());
    let iterations = |us| work::iterations(us, iterations_per_us);
    control
        .in_iterations
        .store(iterations(workload.in_us), Ordering::Relaxed);
    control
        .out_iterations
        .store(iterations(workload.out_us), Ordering::Relaxed);
}
