//! One agent a managed pCPU: a thread bound to it, above every vCPU, asleep nearly all the time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use super::Shared;
use super::mechanism::{Mechanism, PRIORITY_AGENT};
use super::step::{Look, step};
use crate::perf::SwitchRing;
use crate::state::{State, VcpuId};
use crate::sys::{CpuSet, Poller, SchedAttr, gettid, now_ns, thread_cpu_ns};
use std::os::fd::{AsRawFd, OwnedFd};

/// Key of the agent's own wake-up in its poller; doorbells have smaller ones.
const WAKE: u64 = u64::MAX;
/// The agent's CPU time is read every so many looks.
const CPU_TIME_EVERY: u64 = 64;

/// What other threads need of an agent.
#[derive(Debug)]
pub(crate) struct AgentHandle {
    pub(crate) poller: Arc<Poller>,
    shared: Arc<Shared>,
    index: usize,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl AgentHandle {
    /// Starts the agent of pCPU number `index` of the state.
    pub(crate) fn start(
        shared: Arc<Shared>,
        index: usize,
        cpu: u32,
        mechanism: Mechanism,
    ) -> io::Result<Self> {
        let mut ring = SwitchRing::open(cpu)?;
        let poller = Arc::new(Poller::new()?);
        if let Some(wake) = shared.wakes.get(index) {
            poller.add(wake.as_raw_fd(), WAKE)?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let (started, has_started) = std::sync::mpsc::channel();
        let thread = thread::Builder::new()
            .name(format!("ecs-agent{cpu}"))
            .spawn({
                let (poller, stop, shared) = (poller.clone(), stop.clone(), shared.clone());
                move || {
                    let ready = CpuSet::new(vec![cpu])
                        .bind(0)
                        .and_then(|()| SchedAttr::fifo(PRIORITY_AGENT).set(0));
                    let ok = ready.is_ok();
                    // The receiver waits for exactly this message.
                    let _ = started.send(ready);
                    if ok {
                        run(&shared, index, mechanism, &poller, &mut ring, &stop);
                    }
                }
            })?;
        has_started.recv().map_err(io::Error::other)??;
        Ok(Self {
            poller,
            shared,
            index,
            stop,
            thread: Some(thread),
        })
    }

    /// Makes the agent look now.
    pub(crate) fn wake(&self) {
        self.shared.wake(self.index);
    }
}

impl Drop for AgentHandle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of the agent has been reported by the panic hook already.
            let _ = thread.join();
        }
    }
}

fn run(
    shared: &Shared,
    index: usize,
    mechanism: Mechanism,
    poller: &Poller,
    ring: &mut SwitchRing,
    stop: &AtomicBool,
) {
    let agent = gettid();
    let mut switches = Vec::with_capacity(1024);
    let mut wait_ns = 0;
    let mut looks = 0u64;
    let mut kicks = Vec::new();
    let mut rung = Vec::new();
    while !stop.load(Ordering::Acquire) {
        rung.clear();
        rung.extend(
            poller
                .wait(wait_ns)
                .filter(|&key| key != WAKE)
                .map(VcpuId::from_key),
        );
        switches.clear();
        ring.drain(|switch| switches.push(switch));
        let look = Look {
            pcpu: index,
            mechanism,
            agent,
            now_ns: now_ns(),
            rung: &rung,
            switches: &switches,
        };
        let mut state = shared.state.lock();
        wait_ns = step(&mut state, &look);
        std::mem::swap(&mut kicks, &mut state.kicks);
        state.host.doorbells += rung.len() as u64;
        for bell in muted_bells(&state, &rung) {
            poller.remove(bell.as_raw_fd());
        }
        looks += 1;
        if looks.is_multiple_of(CPU_TIME_EVERY)
            && let Some(pcpu) = state.pcpus.get_mut(index)
        {
            pcpu.agent_cpu_ns = thread_cpu_ns();
            pcpu.perf_records = ring.records();
            pcpu.perf_lost = ring.lost();
        }
        drop(state);
        for pcpu in kicks.drain(..) {
            shared.wake(pcpu);
        }
    }
}

/// Doorbells among those that rang which are not to be listened to any more.
fn muted_bells<'a>(
    state: &'a State,
    rung: &'a [VcpuId],
) -> impl Iterator<Item = &'a Arc<OwnedFd>> + 'a {
    rung.iter()
        .filter(|id| state.mutes.contains(id))
        .filter_map(|id| {
            let bells = &state.vm(id.vm)?.spec.doorbells;
            bells.get(id.vcpu.checked_rem(bells.len())?)?.as_ref()
        })
}
