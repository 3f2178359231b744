//! Every Cloud Hypervisor VM on this host, with no help from vmm-ecs.
//!
//! # Approach
//! Processes are found in /proc by `comm`, their vCPU threads by name; `schedstat` is read through
//! descriptors that stay open, since opening is most of the cost. A thread list is read again only
//! when the number of threads has changed.
//!
//! # Invariants
//! Sums never go back while a VM lives: what a thread that ended had used is kept.

mod api;
mod hardware;
pub(crate) mod process;
mod switches;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ecs_threads::threads::{SchedStat, VcpuThread, vcpu_threads_in};
use ecs_threads::{CpuSet, Tid};
use tracing::{info, warn};

use crate::config::HostConfig;
use api::ApiCache;
use hardware::ThreadCounters;
use process::{Facts, ProcessId, start_and_threads};
use switches::Switches;

pub use switches::PerfTotals;

/// Why the host collector failed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// /proc cannot be listed.
    #[error("Cannot list {path}; is /proc mounted?")]
    Proc {
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Descriptors ran out.
    #[error("No file descriptors left for vCPU threads; raise LimitNOFILE")]
    Descriptors,
}

/// What the host collector saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostReading {
    /// CPUs that are online.
    pub cpus: usize,
    /// Kernel release.
    pub kernel: String,
    /// VMs, by process id.
    pub vms: Vec<HostVm>,
}

/// A VM as /proc, perf and its VMM's API show it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostVm {
    /// Name made from sockets, cgroup or UUID; not always unique.
    pub name: String,
    /// Process id of the VMM.
    pub pid: u32,
    /// UUID.
    pub uuid: Option<String>,
    /// cgroup v2 path.
    pub cgroup: Option<String>,
    /// API socket.
    pub api_socket: Option<String>,
    /// Whether the API answered; `None` if it was not asked.
    pub api_up: Option<bool>,
    /// CPU time of the vCPU threads, ns.
    pub cpu_ns: u64,
    /// Time vCPUs were runnable but not running, ns.
    pub delay_ns: u64,
    /// Preemptions since the exporter first saw the VM; `None` without context-switch records.
    pub preemptions: Option<u64>,
    /// Cycles and instructions since then; `None` without counters.
    pub cycles_and_instructions: Option<(u64, u64)>,
    /// vCPUs, by number.
    pub vcpus: Vec<HostVcpu>,
}

/// A vCPU thread.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostVcpu {
    /// vCPU number.
    pub vcpu: u32,
    /// CPU time, ns.
    pub cpu_ns: u64,
    /// Time runnable but not running, ns.
    pub delay_ns: u64,
    /// Preemptions; `None` without context-switch records.
    pub preemptions: Option<u64>,
}

/// Reads the host; keeps descriptors between two reads.
#[derive(Debug)]
pub struct HostCollector {
    config: HostConfig,
    processes: Mutex<HashMap<u32, Process>>,
    switches: Option<Result<Switches, String>>,
    hardware: Option<Result<bool, String>>,
    api: ApiCache,
}

impl HostCollector {
    /// Opens what is shared by all VMs. What is missing is told by [`HostCollector::perf`] and
    /// [`HostCollector::hardware`].
    #[must_use]
    pub fn new(config: HostConfig) -> Self {
        let switches = config.perf.map(Switches::start);
        if let Some(Err(problem)) = &switches {
            warn!(problem, "No preemptions are counted");
        }
        let hardware = config.hardware.then(|| {
            hardware::is_present().map_err(|error| {
                format!("Cannot use performance counters: {error}; give the exporter CAP_PERFMON")
            })
        });
        match &hardware {
            Some(Ok(false)) => info!("This machine has no counters for cycles and instructions"),
            Some(Err(problem)) => warn!(problem, "No cycles and instructions are counted"),
            _ => {}
        }
        Self {
            config,
            processes: Mutex::default(),
            switches,
            hardware,
            api: ApiCache::default(),
        }
    }

    /// What it was made from.
    #[must_use]
    pub fn config(&self) -> &HostConfig {
        &self.config
    }

    /// Totals of the context-switch records, `None` if they are switched off.
    #[must_use]
    pub fn perf(&self) -> Option<Result<PerfTotals, String>> {
        let switches = self.switches.as_ref()?;
        Some(
            switches
                .as_ref()
                .map(Switches::totals)
                .map_err(Clone::clone),
        )
    }

    /// Whether cycles and instructions are counted; `None` if switched off or not there to be had.
    #[must_use]
    pub fn hardware(&self) -> Option<Result<(), String>> {
        match self.hardware.as_ref()? {
            Ok(true) => Some(Ok(())),
            Ok(false) => None,
            Err(problem) => Some(Err(problem.clone())),
        }
    }

    /// Asks every VMM's API once, if that is switched on. Finds the VMs first.
    ///
    /// # Errors
    /// [`HostError`].
    pub async fn refresh_api(self: Arc<Self>) -> Result<(), HostError> {
        let Some(api) = self.config.api else {
            return Ok(());
        };
        let finder = Arc::clone(&self);
        let find = tokio::task::spawn_blocking(move || {
            let mut processes = finder.lock();
            finder.find(&mut processes)?;
            let socket = |process: &Process| Some((process.id, process.facts.api_socket.clone()?));
            Ok(processes.values().filter_map(socket).collect())
        });
        // It fails when the runtime ends or the panic hook has spoken: nothing is left to do.
        let vmms = find.await.unwrap_or_else(|_| Ok(Vec::new()))?;
        self.api.refresh(vmms, api.timeout).await;
        Ok(())
    }

    /// Reads every VM.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn read(&self) -> Result<HostReading, HostError> {
        let mut processes = self.lock();
        self.find(&mut processes)?;
        let count = matches!(self.hardware, Some(Ok(true)));
        for process in processes.values_mut() {
            process.update(&self.config.proc, count)?;
        }
        let switches = self
            .switches
            .as_ref()
            .and_then(|result| result.as_ref().ok());
        if let Some(switches) = switches {
            switches.watch(processes.values().flat_map(Process::tids));
            switches.read(|counts| {
                for process in processes.values_mut() {
                    process.take_preemptions(counts);
                }
            });
        }
        let mut vms: Vec<HostVm> = processes
            .values()
            .map(|process| self.vm(process, switches.is_some(), count))
            .collect();
        vms.sort_by_key(|vm| vm.pid);
        let release = self.config.proc.join("sys/kernel/osrelease");
        Ok(HostReading {
            cpus: CpuSet::online().map_or(0, |online| online.cpus().len()),
            kernel: std::fs::read_to_string(release)
                .unwrap_or_default()
                .trim()
                .to_owned(),
            vms,
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Process>> {
        // Each entry is whole after each statement.
        self.processes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds processes that have come, drops those that are gone.
    fn find(&self, processes: &mut HashMap<u32, Process>) -> Result<(), HostError> {
        let proc = &self.config.proc;
        let error = |source| HostError::Proc {
            path: proc.clone(),
            source,
        };
        let mut found = HashMap::with_capacity(processes.len());
        for entry in std::fs::read_dir(proc).map_err(error)? {
            let name = entry.map_err(error)?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
                continue;
            };
            let folder = proc.join(name);
            let known = processes.remove(&pid);
            if known.is_none() && !self.is_vmm(&folder) {
                continue;
            }
            // A process that ends while we look is no error.
            let Ok((start, threads)) = start_and_threads(&folder) else {
                continue;
            };
            let id = ProcessId { pid, start };
            let process = match known {
                Some(known) if known.id == id => known,
                _ if self.is_vmm(&folder) => Process::new(id, Facts::read(&folder, pid)),
                _ => continue,
            };
            found.insert(
                pid,
                Process {
                    threads_now: threads,
                    ..process
                },
            );
        }
        *processes = found;
        Ok(())
    }

    fn is_vmm(&self, folder: &Path) -> bool {
        std::fs::read_to_string(folder.join("comm"))
            .is_ok_and(|comm| self.config.process.is_match(comm.trim_end()))
    }

    fn vm(&self, process: &Process, perf: bool, hardware: bool) -> HostVm {
        let Facts {
            name,
            uuid,
            api_socket,
            cgroup,
        } = process.facts.clone();
        let api = self.api.get(process.id);
        let total = process.total();
        HostVm {
            name,
            pid: process.id.pid,
            api_up: api.as_ref().map(|api| api.up),
            uuid: api.and_then(|api| api.uuid).or(uuid),
            cgroup,
            api_socket: api_socket.map(|path| path.to_string_lossy().into_owned()),
            cpu_ns: total.cpu_ns,
            delay_ns: total.delay_ns,
            preemptions: perf.then_some(total.preemptions),
            cycles_and_instructions: hardware.then_some((total.cycles, total.instructions)),
            vcpus: process
                .threads
                .iter()
                .map(|(&vcpu, thread)| HostVcpu {
                    vcpu,
                    cpu_ns: thread.used.cpu_ns,
                    delay_ns: thread.used.delay_ns,
                    preemptions: perf.then_some(thread.used.preemptions),
                })
                .collect(),
        }
    }
}

/// What a thread has used, or several together.
#[derive(Debug, Clone, Copy, Default)]
struct Used {
    cpu_ns: u64,
    delay_ns: u64,
    preemptions: u64,
    cycles: u64,
    instructions: u64,
}

impl Used {
    fn plus(self, other: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns + other.cpu_ns,
            delay_ns: self.delay_ns + other.delay_ns,
            preemptions: self.preemptions + other.preemptions,
            cycles: self.cycles + other.cycles,
            instructions: self.instructions + other.instructions,
        }
    }
}

#[derive(Debug)]
struct Process {
    id: ProcessId,
    facts: Facts,
    /// Threads when the list was read last, and in the look before: a new thread gets its name a
    /// moment after it starts, so a list counts only once the number has stood still.
    threads_listed: [u64; 2],
    threads_now: u64,
    /// By vCPU number.
    threads: BTreeMap<u32, Thread>,
    /// What threads that have ended had used.
    ended: Used,
}

#[derive(Debug)]
struct Thread {
    tid: Tid,
    stat: SchedStat,
    counters: Option<ThreadCounters>,
    used: Used,
    alive: bool,
}

impl Process {
    fn new(id: ProcessId, facts: Facts) -> Self {
        Self {
            id,
            facts,
            threads_listed: [0; 2],
            threads_now: 0,
            threads: BTreeMap::new(),
            ended: Used::default(),
        }
    }

    fn tids(&self) -> impl Iterator<Item = Tid> {
        self.threads.values().map(|thread| thread.tid)
    }

    fn total(&self) -> Used {
        let threads = self.threads.values().map(|thread| thread.used);
        threads.fold(self.ended, Used::plus)
    }

    /// Reads every thread, and the list of them if it may have changed.
    fn update(&mut self, proc: &Path, count: bool) -> Result<(), HostError> {
        if self.threads_listed != [self.threads_now; 2] {
            self.list(proc, count)?;
        }
        for thread in self.threads.values_mut() {
            thread.read();
        }
        if self.threads.values().any(|thread| !thread.alive) {
            // One ended and another took its place in the number.
            self.list(proc, count)?;
        }
        Ok(())
    }

    fn list(&mut self, proc: &Path, count: bool) -> Result<(), HostError> {
        let folder = proc.join(self.id.pid.to_string());
        // A process that has just ended has no threads any more; it is dropped at the next look.
        let found = vcpu_threads_in(&folder).unwrap_or_default();
        let mut before = std::mem::take(&mut self.threads);
        for VcpuThread { vcpu, tid } in found {
            let thread = match before.remove(&vcpu) {
                Some(thread) if thread.tid == tid && thread.alive => Some(thread),
                replaced => {
                    self.ended = replaced.map_or(self.ended, |gone| self.ended.plus(gone.used));
                    Thread::open(&folder, tid, count)?
                }
            };
            self.threads.extend(thread.map(|thread| (vcpu, thread)));
        }
        let gone = before.into_values().map(|thread| thread.used);
        self.ended = gone.fold(self.ended, Used::plus);
        let [_, last] = self.threads_listed;
        self.threads_listed = [last, self.threads_now];
        Ok(())
    }

    fn take_preemptions(&mut self, counts: &HashMap<Tid, u64>) {
        for thread in self.threads.values_mut() {
            thread.used.preemptions = counts.get(&thread.tid).copied().unwrap_or_default();
        }
    }
}

impl Thread {
    /// `None` if the thread is gone.
    fn open(process: &Path, tid: Tid, count: bool) -> Result<Option<Self>, HostError> {
        let stat = match SchedStat::open(&process.join(format!("task/{tid}"))) {
            Ok(stat) => stat,
            Err(error) if is_out_of_descriptors(&error) => return Err(HostError::Descriptors),
            Err(_) => return Ok(None),
        };
        let counters = match count.then(|| ThreadCounters::open(tid)) {
            Some(Err(error)) if is_out_of_descriptors(&error) => {
                return Err(HostError::Descriptors);
            }
            counters => counters.and_then(Result::ok),
        };
        let mut thread = Self {
            tid,
            stat,
            counters,
            used: Used::default(),
            alive: true,
        };
        thread.read();
        Ok(Some(thread))
    }

    fn read(&mut self) {
        match self.stat.cpu_and_delay_ns() {
            Some((cpu_ns, delay_ns)) => (self.used.cpu_ns, self.used.delay_ns) = (cpu_ns, delay_ns),
            None => self.alive = false,
        }
        if let Some(counts) = self.counters.as_mut().and_then(ThreadCounters::read) {
            (self.used.cycles, self.used.instructions) = counts;
        }
    }
}

/// `EMFILE` and `ENFILE`, for which the standard library has no kind.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24))
}
