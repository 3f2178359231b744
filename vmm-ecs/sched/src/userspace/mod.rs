//! The userspace controller: steers vCPU threads on kernels without sched_ext.
//!
//! # Problem
//! The kernel preempts a vCPU whenever its slice is over, whatever its guest is doing, and offers
//! no hook to ask for a moment more.
//!
//! # Approach
//! The controller takes the rotation away from the kernel. Each vCPU is bound to one managed pCPU,
//! and on each pCPU a real-time *agent* decides whose turn it is: the kernel's scheduling classes
//! merely carry its decision out ([`Mechanism`]). The agent runs on the pCPU it decides about, so
//! at every decision the vCPU is off the CPU and its words stand still: no race between reading
//! them and acting. It sleeps until the slice ends, the hard stop of an extension comes, or a
//! guest rings its doorbell. A *supervisor* thread finds vCPU threads as they come and go, keeps
//! the books that need no hurry, and feeds the watchdog process.
//!
//! # Invariants
//! A thread is steered only after the journal knows how to put it back. At most one vCPU of a pCPU
//! is in a real-time class (mechanism `rt`), at a priority below every kernel thread of such a
//! class. Whoever waits for the lock lends its priority to the owner.
//!
//! # What it does not do
//! It moves no vCPU between pCPUs while it runs, and steers no thread that is not a vCPU.

mod agent;
mod apart;
mod mechanism;
mod release;
mod role;
mod step;
mod supervisor;
mod window;

use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::process::{Child, ChildStdin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use ecs_policy::{BadParam, Params};
use ecs_stats::Snapshot;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use mechanism::Mechanism;
pub(crate) use mechanism::{PRIORITY_WATCHDOG, Role};

use crate::journal::{Journal, JournalError};
use crate::pimutex::PiMutex;
use crate::state::{State, VmSpec};
use crate::stats;
use crate::sys::{CpuSet, now_ns};
use crate::tell::{Looks, Teller};
use crate::{Controller, Host};
use agent::AgentHandle;
pub(crate) use supervisor::Request;
use supervisor::Supervisor;

/// Why the controller cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A parameter is out of range.
    #[error("Bad parameter: {0}")]
    Params(#[from] BadParam),
    /// A CPU of the list does not exist or is not online.
    #[error("CPU {cpu} is not online (online: {online}): correct the list of pCPUs")]
    NoSuchCpu {
        /// The CPU.
        cpu: u32,
        /// CPUs that are.
        online: CpuSet,
    },
    /// No CPU is to be managed.
    #[error("The list of pCPUs is empty: name at least one")]
    NoCpus,
    /// Another controller manages the CPU.
    #[error(
        "Cannot claim CPU {cpu} in {CLAIMS}: if another vmm-ecs manages it, stop that one, or give \
         each its own list of pCPUs; otherwise run as root"
    )]
    CpuTaken {
        /// The CPU.
        cpu: u32,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The host's CPUs cannot be read.
    #[error("Cannot read which CPUs are online")]
    Online(#[source] std::io::Error),
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// An agent cannot start.
    #[error(
        "Cannot start the agent of CPU {cpu}: it needs CAP_SYS_NICE (SCHED_FIFO), CAP_PERFMON \
         (context-switch records, with kernel.perf_event_paranoid of 2 or less) and CAP_SYS_PTRACE \
         (whether a vCPU sleeps); run as root or with these, or use the observe controller"
    )]
    Agent {
        /// The CPU.
        cpu: u32,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The watchdog cannot start.
    #[error("Cannot start the watchdog process {program}")]
    Watchdog {
        /// What was to be run.
        program: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The supervisor cannot start.
    #[error("Cannot start the supervisor thread")]
    Supervisor(#[source] std::io::Error),
}

impl StartError {
    /// Whether this process may not steer here, as opposed to a mistake or a conflict.
    #[must_use]
    pub fn is_not_allowed(&self) -> bool {
        match self {
            Self::Agent { .. } => true,
            Self::CpuTaken { source, .. } => source.kind() != std::io::ErrorKind::AddrInUse,
            _ => false,
        }
    }
}

/// What the controller needs to know at its start.
#[derive(Debug, Clone)]
pub struct UserspaceConfig {
    /// Policy.
    pub params: Params,
    /// CPUs it manages; vCPU threads are bound to them.
    pub pcpus: CpuSet,
    /// How it steers.
    pub mechanism: Mechanism,
    /// Where the journal is kept; one journal a set of pCPUs.
    pub journal: PathBuf,
    /// Command of the watchdog process (program and arguments), which must call
    /// [`crate::journal::watch`] on its standard input; `None` runs without one.
    pub watchdog: Option<Vec<String>>,
}

/// What agents, supervisor and callers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) state: PiMutex<State>,
    pub(crate) teller: Option<Arc<Teller>>,
    /// Makes the agent of a pCPU look.
    pub(crate) wakes: Vec<EventFd>,
}

impl Shared {
    /// Returns once nobody touches words that the state does not know any more.
    pub(crate) fn settle(&self) {
        if let Some(teller) = &self.teller {
            teller.settle();
        }
    }

    /// Makes the agent of a pCPU look now.
    pub(crate) fn wake(&self, pcpu: usize) {
        if let Some(wake) = self.wakes.get(pcpu) {
            // A full eventfd wakes all the same.
            let _ = wake.write(1);
        }
    }
}

impl<T> std::fmt::Debug for PiMutex<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PiMutex")
    }
}

/// The controller.
#[derive(Debug)]
pub struct UserspaceController {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    supervisor: Option<JoinHandle<()>>,
    host: Host,
    /// Keeps other controllers off the same CPUs.
    _claims: Vec<File>,
}

/// Where CPUs are claimed: one place for every daemon of the host, that only root can write to.
const CLAIMS: &str = "/run/vmm-ecs";

/// Claims a CPU for this process: a lock that the kernel frees with the process.
fn claim(cpu: u32) -> std::io::Result<File> {
    std::fs::create_dir_all(CLAIMS)?;
    let file = File::create(format!("{CLAIMS}/cpu{cpu}.lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(std::io::ErrorKind::AddrInUse.into()),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

impl UserspaceController {
    /// Starts the watchdog, one agent a pCPU, and the supervisor.
    ///
    /// # Errors
    /// [`StartError`]; nothing is changed on the host then.
    pub fn start(config: UserspaceConfig) -> Result<Self, StartError> {
        config.params.validate()?;
        let online = CpuSet::online().map_err(StartError::Online)?;
        if config.pcpus.cpus().is_empty() {
            return Err(StartError::NoCpus);
        }
        if let Some(&cpu) = config
            .pcpus
            .cpus()
            .iter()
            .find(|&&cpu| !online.contains(cpu))
        {
            return Err(StartError::NoSuchCpu { cpu, online });
        }
        let claims = config
            .pcpus
            .cpus()
            .iter()
            .map(|&cpu| claim(cpu).map_err(|source| StartError::CpuTaken { cpu, source }))
            .collect::<Result<Vec<_>, _>>()?;
        let journal = Journal::open(&config.journal)?;
        let watchdog = config.watchdog.as_deref().map(spawn_watchdog).transpose()?;
        let wakes = config
            .pcpus
            .cpus()
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK));
        let wakes = wakes
            .collect::<Result<Vec<_>, _>>()
            .map_err(StartError::Supervisor)?;
        let mut state = State::new(config.params, config.pcpus.cpus(), now_ns());
        state.teller = Teller::start(Looks::FromAbove);
        let teller = state.teller.clone();
        let shared = Arc::new(Shared {
            state: PiMutex::new(state),
            teller,
            wakes,
        });
        let agents = (0..)
            .zip(config.pcpus.cpus())
            .map(|(index, &cpu)| {
                AgentHandle::start(shared.clone(), index, cpu, config.mechanism)
                    .map_err(|source| StartError::Agent { cpu, source })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let stop = Arc::new(AtomicBool::new(false));
        let supervisor = Supervisor {
            shared: shared.clone(),
            agents,
            mechanism: config.mechanism,
            journal,
            watchdog,
            watchdog_command: config.watchdog,
            bells: Vec::new(),
            looks: Vec::new(),
            stop: stop.clone(),
        };
        let thread = thread::Builder::new()
            .name("ecs-supervisor".to_owned())
            .spawn(move || supervisor.run())
            .map_err(StartError::Supervisor)?;
        let host = Host::read("userspace", config.mechanism.name());
        Ok(Self {
            shared,
            stop,
            supervisor: Some(thread),
            host,
            _claims: claims,
        })
    }
}

impl Controller for UserspaceController {
    fn update(&self, vm: VmSpec) {
        let replaced = {
            let mut state = self.shared.state.lock();
            let known = state.find(&vm.name).and_then(|index| state.vm_mut(index));
            let replaced = known
                .filter(|known| known.spec.pid == vm.pid)
                .map(|known| known.set_spec(vm.clone()));
            let name = vm.name.clone();
            state.requests.insert(name, Request::Update(Box::new(vm)));
            replaced
        };
        // What the spec replaces may unmap guest memory: outside the lock.
        if replaced.is_some() {
            self.shared.settle();
        }
        drop(replaced);
    }

    fn gone(&self, name: &str) {
        let slots = {
            let mut state = self.shared.state.lock();
            let known = state.find(name).and_then(|index| state.vm_mut(index));
            let slots = known.map(|known| known.forget_slots());
            state.requests.insert(name.to_owned(), Request::Gone);
            slots
        };
        if slots.is_some() {
            self.shared.settle();
        }
        drop(slots);
    }

    fn snapshot(&self) -> Snapshot {
        stats::snapshot(&mut self.shared.state.lock(), &self.host)
    }
}

impl Drop for UserspaceController {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.supervisor.take() {
            // A panic of the supervisor has been reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

/// The watchdog process and the pipe that tells it we live.
#[derive(Debug)]
pub(crate) struct Watchdog {
    pub(crate) child: Child,
    pub(crate) pipe: Option<ChildStdin>,
}

pub(crate) fn spawn_watchdog(command: &[String]) -> Result<Watchdog, StartError> {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    let (program, arguments) = command
        .split_first()
        .map_or(("", command), |(p, a)| (p.as_str(), a));
    // A process group of its own: what ends the daemon's group must not end the watchdog.
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(|source| StartError::Watchdog {
            program: program.to_owned(),
            source,
        })?;
    let pipe = child.stdin.take();
    Ok(Watchdog { child, pipe })
}
