//! Counts how often vCPU threads were preempted, from context-switch records of every CPU.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ecs_threads::perf::{PRIVILEGE, SwitchKind, SwitchRing};
use ecs_threads::threads::SchedStat;
use ecs_threads::{CpuSet, Tid};

/// What was counted since the rings were opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PerfTotals {
    /// Records read.
    pub records: u64,
    /// Records the kernel dropped.
    pub lost: u64,
    /// CPU time spent on it, ns.
    pub drain_ns: u64,
}

/// Empties the rings on a thread of its own. Dropping it ends the thread.
#[derive(Debug)]
pub(crate) struct Switches {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    counts: Mutex<Counts>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Counts {
    /// Preemptions of the threads that are watched.
    preemptions: HashMap<Tid, u64>,
    totals: PerfTotals,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        // Counts are whole after each statement: a panic elsewhere leaves nothing half done.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Switches {
    /// Opens a ring on every online CPU; a CPU that comes later is not seen.
    ///
    /// # Errors
    /// What is missing, for the operator.
    pub(crate) fn start(interval: Duration) -> Result<Self, String> {
        let online = CpuSet::online().map_err(|error| format!("Cannot read /sys: {error}"))?;
        let open = |&cpu: &u32| {
            SwitchRing::open(cpu).map_err(|error| {
                format!(
                    "Cannot read the context switches of CPU {cpu}: {error}; the exporter needs \
                     {PRIVILEGE}"
                )
            })
        };
        let rings = online
            .cpus()
            .iter()
            .map(open)
            .collect::<Result<Vec<_>, _>>()?;
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new()
            .name("ecs-switches".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || drain(&shared, rings, interval)
            })
            .map_err(|error| format!("Cannot start a thread: {error}"))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Counts these threads from now on, and forgets every other one.
    pub(crate) fn watch(&self, tids: impl Iterator<Item = Tid>) {
        let mut counts = self.shared.lock();
        let mut before = std::mem::take(&mut counts.preemptions);
        counts.preemptions = tids
            .map(|tid| (tid, before.remove(&tid).unwrap_or(0)))
            .collect();
    }

    /// Calls `read` with a look-up of preemptions by thread.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&HashMap<Tid, u64>) -> T) -> T {
        read(&self.shared.lock().preemptions)
    }

    /// Totals.
    pub(crate) fn totals(&self) -> PerfTotals {
        self.shared.lock().totals
    }
}

impl Drop for Switches {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

fn drain(shared: &Shared, mut rings: Vec<SwitchRing>, interval: Duration) {
    // Resolved when it is opened: this thread's own figures.
    let own = SchedStat::open(Path::new("/proc/thread-self")).ok();
    let mut counts = shared.lock();
    while !counts.stop {
        for ring in &mut rings {
            ring.drain(|switch| {
                if switch.kind == SwitchKind::Preempted
                    && let Some(count) = counts.preemptions.get_mut(&switch.tid)
                {
                    *count += 1;
                }
            });
        }
        counts.totals = PerfTotals {
            records: rings.iter().map(SwitchRing::records).sum(),
            lost: rings.iter().map(SwitchRing::lost).sum(),
            drain_ns: own
                .as_ref()
                .and_then(SchedStat::cpu_and_delay_ns)
                .map_or(0, |(cpu_ns, _)| cpu_ns),
        };
        let waited = shared.wake.wait_timeout(counts, interval);
        counts = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}
