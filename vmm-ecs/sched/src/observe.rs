//! The observer: steers nothing, counts what the host's own scheduler does to vCPUs.
//!
//! # Approach
//! Context-switch records say who was preempted, and when. At each look (1 ms apart) a vCPU that
//! is still off the CPU shows, frozen, what it was doing when it lost it. A vCPU that came back
//! before the look is counted as preempted, but not classified: the count of critical preemptions
//! is a lower bound.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ecs_policy::Params;
use ecs_stats::Snapshot;

use crate::accounting::account;
use crate::perf::{PRIVILEGE, Switch, SwitchRing};
use crate::pimutex::PiMutex;
use crate::roster;
use crate::state::{State, Vcpu, VcpuId, VmSpec};
use crate::sys::{CpuSet, gettid, now_ns, thread_cpu_ns};
use crate::tell::{Looks, Teller};
use crate::threads::vcpu_threads;
use crate::{Controller, Host, entitle, stats};

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(1);
/// Looks between two signs of life to the guests.
const BEAT_LOOKS: u32 = 20;
/// Looks between two searches for vCPU threads while all are known.
const SCAN_LOOKS: u32 = 500;
/// Looks between two bookings of entitlement.
const ENTITLE_LOOKS: u32 = 1000;

/// Why the observer cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The host's CPUs cannot be read.
    #[error("Cannot read which CPUs are online")]
    Online(#[source] std::io::Error),
    /// The kernel gives no context-switch records.
    #[error(
        "Cannot read the context switches of CPU {cpu}: it needs {}",
        PRIVILEGE
    )]
    Perf {
        /// The CPU.
        cpu: u32,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The observing thread cannot start.
    #[error("Cannot start the observing thread")]
    Thread(#[source] std::io::Error),
}

/// The observer.
#[derive(Debug)]
pub struct Observer {
    state: Arc<PiMutex<State>>,
    teller: Option<Arc<Teller>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    host: Host,
}

impl Observer {
    /// Starts observing every online CPU.
    ///
    /// # Errors
    /// [`ObserveError`].
    pub fn start(params: Params) -> Result<Self, ObserveError> {
        let online = CpuSet::online().map_err(ObserveError::Online)?;
        let rings = online
            .cpus()
            .iter()
            .map(|&cpu| SwitchRing::open(cpu).map_err(|source| ObserveError::Perf { cpu, source }))
            .collect::<Result<Vec<_>, _>>()?;
        let mut state = State::new(params, online.cpus(), now_ns());
        state.teller = Teller::start(Looks::Beside);
        let teller = state.teller.clone();
        let state = Arc::new(PiMutex::new(state));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::Builder::new()
            .name("ecs-observer".to_owned())
            .spawn({
                let (state, stop) = (state.clone(), stop.clone());
                move || observe(&state, rings, &stop)
            })
            .map_err(ObserveError::Thread)?;
        Ok(Self {
            state,
            teller,
            stop,
            thread: Some(thread),
            host: Host::read("observe", ""),
        })
    }
}

impl Observer {
    /// Returns once nobody touches words that the state does not know any more.
    fn settle(&self) {
        if let Some(teller) = &self.teller {
            teller.settle();
        }
    }
}

impl Controller for Observer {
    fn update(&self, vm: VmSpec) {
        let replaced = roster::update(&mut self.state.lock(), vm);
        self.settle();
        drop(replaced);
    }

    fn gone(&self, name: &str) {
        let mut state = self.state.lock();
        let Some(vm) = state.find(name) else { return };
        let nr_vcpus = state.vm(vm).map_or(0, |vm| vm.vcpus.len());
        let vcpus: Vec<_> = (0..nr_vcpus)
            .map(|vcpu| roster::remove(&mut state, VcpuId { vm, vcpu }))
            .collect();
        let entry = state.vms.get_mut(vm).and_then(Option::take);
        drop(state);
        self.settle();
        drop((vcpus, entry));
    }

    fn snapshot(&self) -> Snapshot {
        stats::snapshot(&mut self.state.lock(), &self.host)
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

fn observe(state: &PiMutex<State>, mut rings: Vec<SwitchRing>, stop: &AtomicBool) {
    let ours = gettid();
    let mut switches: Vec<(usize, Switch)> = Vec::new();
    let mut look = 0u32;
    while !stop.load(Ordering::Acquire) {
        thread::sleep(LOOK);
        look = look.wrapping_add(1);
        switches.clear();
        for (index, ring) in rings.iter_mut().enumerate() {
            ring.drain(|switch| switches.push((index, switch)));
        }
        // A thread that moved between CPUs left one before it came to the other.
        switches.sort_by_key(|(_, switch)| switch.time_ns);
        let mut state = state.lock();
        account(&mut state, switches.iter().copied(), ours);
        if look.is_multiple_of(BEAT_LOOKS) {
            state.beat(look);
            count_own_costs(&mut state, &rings);
        }
        if look.is_multiple_of(ENTITLE_LOOKS) {
            entitle::book(&mut state);
        }
        let every = if roster::is_incomplete(&state) {
            BEAT_LOOKS
        } else {
            SCAN_LOOKS
        };
        if look.is_multiple_of(every) {
            scan(&mut state);
        }
    }
}

fn count_own_costs(state: &mut State, rings: &[SwitchRing]) {
    for (pcpu, ring) in state.pcpus.iter_mut().zip(rings) {
        pcpu.perf_records = ring.records();
        pcpu.perf_lost = ring.lost();
    }
    if let Some(first) = state.pcpus.first_mut() {
        first.agent_cpu_ns = thread_cpu_ns();
    }
}

fn scan(state: &mut State) {
    for (vm, pid) in roster::processes(state) {
        let threads = vcpu_threads(pid).unwrap_or_default();
        for id in roster::gone(state, vm, &threads) {
            roster::remove(state, id);
        }
        for thread in roster::new(state, &threads) {
            let id = VcpuId {
                vm,
                vcpu: thread.vcpu as usize,
            };
            roster::insert(state, id, Vcpu::new(thread.tid, now_ns()));
        }
    }
}
