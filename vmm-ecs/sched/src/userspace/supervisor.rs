//! Everything of the userspace controller that need not happen at once: finding vCPU threads,
//! adopting and releasing them, the books of entitlement, signs of life.

use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::agent::AgentHandle;
use super::mechanism::{Mechanism, PRIORITY_SUPERVISOR, Role};
use super::{Shared, Watchdog, spawn_watchdog};
use crate::entitle;
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
    Gone,
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
    /// Doorbells listened to: VM, pCPU of the agent.
    pub(crate) bells: Vec<(usize, usize, Arc<OwnedFd>)>,
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
        let mut beat = 0u32;
        while !self.stop.load(Ordering::Acquire) {
            std::thread::sleep(BEAT);
            beat = beat.wrapping_add(1);
            self.beat(beat);
            let requests = std::mem::take(&mut self.shared.state.lock().requests);
            for (name, request) in requests {
                match request {
                    Request::Update(spec) => self.update(*spec),
                    Request::Gone => self.remove(&name),
                }
            }
            self.unmute();
            if beat.is_multiple_of(ENTITLE_BEATS) {
                entitle::book(&mut self.shared.state.lock());
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
        let other_process = {
            let state = self.shared.state.lock();
            let known = state.find(&name).and_then(|vm| state.vm(vm));
            known.is_some_and(|vm| vm.spec.pid != spec.pid)
        };
        if other_process {
            self.remove(&name);
        }
        let pid = spec.pid;
        let is_new = {
            let mut state = self.shared.state.lock();
            if state.requests.contains_key(&name) {
                // Outdated: what has come since may be that the guest's memory is to be let go of.
                return;
            }
            // What is new about a known one has been taken over already, at once.
            let is_new = state.find(&name).is_none();
            if is_new {
                roster::update(&mut state, spec);
            }
            is_new
        };
        if is_new {
            tracing::info!(vm = name, pid, "Steering a VM");
        }
        self.scan();
        let vm = self.shared.state.lock().find(&name);
        if let Some(vm) = vm {
            self.link_bells(vm);
        }
    }

    /// Makes each agent listen to the doorbells of the vCPUs it steers, and to no others: a guest
    /// can only ring where it runs.
    fn link_bells(&mut self, vm: usize) {
        self.unlink_bells(vm);
        let wanted: Vec<(usize, u64, Arc<OwnedFd>)> = {
            let state = self.shared.state.lock();
            let Some(entry) = state.vm(vm) else { return };
            let bells = &entry.spec.doorbells;
            entry
                .vcpus
                .iter()
                .enumerate()
                .filter_map(|(vcpu, known)| {
                    let pcpu = known.as_ref()?.pcpu?;
                    let bell = bells.get(vcpu.checked_rem(bells.len())?)?.clone()?;
                    Some((pcpu, VcpuId { vm, vcpu }.key(), bell))
                })
                .collect()
        };
        for (pcpu, key, bell) in wanted {
            let Some(agent) = self.agents.get(pcpu) else {
                continue;
            };
            match agent.poller.add(bell.as_raw_fd(), key) {
                Ok(()) => self.bells.push((vm, pcpu, bell)),
                // Two vCPUs of one pCPU share this doorbell.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => tracing::warn!(vm, %error, "Cannot listen to a doorbell"),
            }
        }
    }

    fn unlink_bells(&mut self, vm: usize) {
        for (_, pcpu, bell) in self.bells.extract_if(.., |(owner, ..)| *owner == vm) {
            if let Some(agent) = self.agents.get(pcpu) {
                agent.poller.remove(bell.as_raw_fd());
            }
        }
    }

    /// Listens again to doorbells that rang in vain too often during the last beat.
    fn unmute(&mut self) {
        let mut muted: Vec<usize> = {
            let mut state = self.shared.state.lock();
            std::mem::take(&mut state.mutes)
                .iter()
                .map(|id| id.vm)
                .collect()
        };
        muted.sort_unstable();
        muted.dedup();
        for vm in muted {
            self.link_bells(vm);
        }
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
            let changed = !(gone.is_empty() && new.is_empty());
            for id in gone {
                self.release(id);
            }
            for thread in new {
                self.adopt(vm, thread);
            }
            if changed {
                self.link_bells(vm);
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
        known.allowed = record.cpus;
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
        self.unlink_bells(vm);
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
