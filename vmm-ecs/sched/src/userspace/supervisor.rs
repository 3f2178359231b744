//! Everything of the userspace controller that need not happen at once: finding vCPU threads,
//! adopting and releasing them, the books of entitlement, signs of life.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::agent::AgentHandle;
use super::mechanism::{Mechanism, PRIORITY_SUPERVISOR, Role};
use super::{Shared, Watchdog, spawn_watchdog};
use crate::entitle::Entitlement;
use crate::journal::Journal;
use crate::roster;
use crate::state::{State, Vcpu, VcpuId, VmSpec};
use crate::sys::{CpuSet, SchedAttr, now_ns};
use crate::threads::{VcpuThread, vcpu_threads};

/// Period of the supervisor: signs of life to watchdog and guests.
const BEAT: Duration = Duration::from_millis(20);
/// Beats between two looks for vCPU threads while a VM is complete, and while it is not.
const SCAN_BEATS: u32 = 25;
/// Beats between two bookings of entitlement.
const ENTITLE_BEATS: u32 = 50;

/// Beats in which every agent must look at least once.
const STALL_BEATS: u32 = 50;

/// What callers ask of the supervisor.
#[derive(Debug)]
pub(crate) enum Request {
    Update(Box<VmSpec>),
    Gone(String),
}

/// The supervisor's own state.
#[derive(Debug)]
pub(crate) struct Supervisor {
    pub(crate) shared: Arc<Shared>,
    pub(crate) agents: Vec<AgentHandle>,
    pub(crate) mechanism: Mechanism,
    pub(crate) journal: Journal,
    pub(crate) watchdog: Option<Watchdog>,
    pub(crate) watchdog_command: Option<Vec<String>>,
    /// Looks of each agent, last time all had looked.
    pub(crate) looks: Vec<u64>,
    pub(crate) stop: Arc<AtomicBool>,
}

impl Supervisor {
    pub(crate) fn run(mut self) {
        // Above the agents: it must get through on CPUs that vCPUs fill. Its work is bounded.
        if let Err(error) = SchedAttr::fifo(PRIORITY_SUPERVISOR).set(0) {
            tracing::warn!(%error, "The supervisor runs without a real-time class");
        }
        let mut entitlement = Entitlement::default();
        let mut beat = 0u32;
        while !self.stop.load(Ordering::Acquire) {
            std::thread::sleep(BEAT);
            beat = beat.wrapping_add(1);
            self.beat(beat);
            let requests = std::mem::take(&mut *self.shared.inbox.lock());
            for request in requests {
                match request {
                    Request::Update(spec) => self.update(*spec),
                    Request::Gone(name) => self.remove(&name),
                }
            }
            if beat.is_multiple_of(ENTITLE_BEATS) {
                entitlement.book(&mut self.shared.state.lock());
            }
            let incomplete = roster::is_incomplete(&self.shared.state.lock());
            if incomplete || beat.is_multiple_of(SCAN_BEATS) {
                self.scan();
            }
        }
        self.release_everything();
    }

    fn update(&mut self, spec: VmSpec) {
        let name = spec.name.clone();
        let known_pid = {
            let state = self.shared.state.lock();
            state
                .find(&name)
                .and_then(|vm| state.vm(vm))
                .map(|vm| vm.spec.pid)
        };
        match known_pid {
            Some(pid) if pid == spec.pid => {}
            Some(_) => self.remove(&name),
            None => tracing::info!(vm = name, pid = spec.pid, "Steering a VM"),
        }
        let old_bells = self.doorbells(&name);
        for agent in &self.agents {
            for bell in &old_bells {
                agent.poller.remove(bell.as_raw_fd());
            }
            for bell in spec.doorbells.iter().flatten() {
                if let Err(error) = agent.poller.add(bell.as_raw_fd(), 0) {
                    tracing::warn!(vm = name, %error, "Cannot listen to a doorbell");
                }
            }
        }
        let replaced = roster::update(&mut self.shared.state.lock(), spec);
        // What the spec replaces may unmap guest memory: outside the lock.
        drop(replaced);
        self.scan();
    }

    fn doorbells(&self, name: &str) -> Vec<Arc<std::os::fd::OwnedFd>> {
        let state = self.shared.state.lock();
        let vm = state.find(name).and_then(|vm| state.vm(vm));
        vm.map(|vm| vm.spec.doorbells.iter().flatten().cloned().collect())
            .unwrap_or_default()
    }

    /// Adopts the vCPU threads that have appeared, and lets go of those that are gone.
    fn scan(&mut self) {
        let processes = roster::processes(&self.shared.state.lock());
        for (vm, pid) in processes {
            let threads = vcpu_threads(pid).unwrap_or_default();
            let (gone, new) = {
                let state = self.shared.state.lock();
                (
                    roster::gone(&state, vm, &threads),
                    roster::new(&state, &threads),
                )
            };
            for id in gone {
                self.release(id);
            }
            for thread in new {
                self.adopt(vm, thread);
            }
        }
    }

    fn adopt(&mut self, vm: usize, thread: VcpuThread) {
        let VcpuThread { vcpu, tid } = thread;
        let record = match self.journal.note(tid) {
            Ok(record) => record.clone(),
            Err(error) => {
                tracing::warn!(tid, %error, "Leaving a vCPU thread alone");
                return;
            }
        };
        let place = {
            let state = self.shared.state.lock();
            place(&state, vm, &record.cpus)
        };
        let bound = place.and_then(|(index, cpu)| {
            let bound = CpuSet::new(vec![cpu])
                .bind(tid)
                .and_then(|()| self.mechanism.assign(tid, Role::Waiting));
            match bound {
                Ok(()) => Some(index),
                Err(error) => {
                    tracing::warn!(tid, %error, "Cannot steer a vCPU thread");
                    None
                }
            }
        });
        if bound.is_none() {
            self.journal.restore_one(tid);
        }
        let now = now_ns();
        let mut known = Vcpu::new(tid, now);
        known.pcpu = bound;
        known.role = bound.map(|_| Role::Waiting);
        known.original = Some(record.attr);
        let id = VcpuId {
            vm,
            vcpu: vcpu as usize,
        };
        roster::insert(&mut self.shared.state.lock(), id, known);
        tracing::info!(tid, vcpu, pcpu = ?bound, "Found a vCPU thread");
        if let Some(agent) = bound.and_then(|index| self.agents.get(index)) {
            agent.wake();
        }
    }

    /// Stops steering one vCPU and puts its thread back.
    fn release(&mut self, id: VcpuId) {
        let removed = roster::remove(&mut self.shared.state.lock(), id);
        let Some(vcpu) = removed else { return };
        self.journal.restore_one(vcpu.tid);
        if let Some(agent) = vcpu.pcpu.and_then(|index| self.agents.get(index)) {
            agent.wake();
        }
    }

    fn remove(&mut self, name: &str) {
        let Some(vm) = self.shared.state.lock().find(name) else {
            return;
        };
        for bell in self.doorbells(name) {
            for agent in &self.agents {
                agent.poller.remove(bell.as_raw_fd());
            }
        }
        self.release_vcpus(vm);
        let gone = {
            let mut state = self.shared.state.lock();
            state.vms.get_mut(vm).and_then(Option::take)
        };
        if let Some(mut gone) = gone {
            let forgiven_ns = gone.policy.ledger.forgive();
            tracing::info!(vm = name, forgiven_ns, "Steering a VM no longer");
        }
    }

    fn release_vcpus(&mut self, vm: usize) {
        let nr_vcpus = self
            .shared
            .state
            .lock()
            .vm(vm)
            .map_or(0, |vm| vm.vcpus.len());
        for vcpu in 0..nr_vcpus {
            self.release(VcpuId { vm, vcpu });
        }
    }

    fn release_everything(&mut self) {
        let nr_vms = self.shared.state.lock().vms.len();
        for vm in 0..nr_vms {
            self.release_vcpus(vm);
        }
        self.agents.clear();
        self.journal.restore_all();
        if let Some(mut watchdog) = self.watchdog.take() {
            drop(watchdog.pipe.take());
            // It ends at once: its pipe has ended and the journal is empty.
            let _ = watchdog.child.wait();
        }
    }

    /// Signs of life: to the guests, and to the watchdog as long as the agents work.
    fn beat(&mut self, beat: u32) {
        let agents_work = {
            let state = self.shared.state.lock();
            state.beat(beat);
            let looks: Vec<u64> = state.pcpus.iter().map(|pcpu| pcpu.looks).collect();
            let work = looks
                .iter()
                .zip(&self.looks)
                .all(|(now, before)| now != before);
            if work || beat.is_multiple_of(STALL_BEATS) {
                self.looks = looks;
            }
            work || !beat.is_multiple_of(STALL_BEATS)
        };
        if !agents_work {
            tracing::error!("An agent does not look any more: the watchdog will end the daemon");
            return;
        }
        let Some(watchdog) = &mut self.watchdog else {
            return;
        };
        let alive = watchdog
            .pipe
            .as_mut()
            .is_some_and(|pipe| pipe.write_all(b".").is_ok());
        if !alive {
            tracing::error!("The watchdog process is gone: starting another one");
            // Reaps the old one; it has ended, or the pipe would have taken the byte.
            let _ = watchdog.child.try_wait();
            self.watchdog = self
                .watchdog_command
                .as_deref()
                .and_then(|command| spawn_watchdog(command).ok());
        }
    }
}

/// The pCPU for one more vCPU of a VM: among those its affinity allows, the one with the least
/// weight on it, and then with the fewest vCPUs of the same VM.
fn place(state: &State, vm: usize, allowed: &CpuSet) -> Option<(usize, u32)> {
    state
        .pcpus
        .iter()
        .enumerate()
        .filter(|(_, pcpu)| allowed.contains(pcpu.cpu))
        .min_by_key(|(_, pcpu)| {
            let siblings = pcpu.members.iter().filter(|member| member.vm == vm).count();
            let weight: u64 = pcpu
                .members
                .iter()
                .filter_map(|member| state.vm(member.vm))
                .map(|vm| u64::from(vm.policy.ledger.weight()))
                .sum();
            (siblings, weight)
        })
        .map(|(index, pcpu)| (index, pcpu.cpu))
}
