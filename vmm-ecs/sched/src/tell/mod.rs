//! Hints for guests the moment they change, beside any scheduler.
//!
//! # Problem
//! A controller that looks now and then writes `preempted` and `overloaded` late: a guest polls on
//! while somebody waits for its pCPU, or halts while nobody does.
//!
//! # Approach
//! `bpf/tell.bpf.c` hangs on the host's context switches and wake-ups and writes both words there.
//! The kernel pins the pages of the host lines. Needs the feature `scx`, for its tool chain, and a
//! kernel that lets tracing programs write pinned pages (Linux 6.13, BTF, fair group scheduling);
//! without, the controllers write the hints when they look.
//!
//! # What it does not do
//! It steers nothing. The controller in the kernel does without: it tells guests itself.

use std::sync::Arc;

use ecs_shm::SlotAddresses;

use crate::state::VcpuId;
use crate::sys::Tid;
use programs::Programs;

#[cfg(feature = "scx")]
mod programs;
#[cfg(not(feature = "scx"))]
#[path = "absent.rs"]
mod programs;

/// How the threads of this process look at vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Looks {
    /// From above: a vCPU makes way for them, for microseconds, and they tell its guest themselves if
    /// they keep it off the CPU.
    FromAbove,
    /// They run like any other thread.
    Beside,
}

/// Programs that tell guests.
#[derive(Debug)]
pub(crate) struct Teller {
    programs: Programs,
    looks: Looks,
}

/// A vCPU whose guest is told, until this is dropped.
#[derive(Debug)]
pub(crate) struct Told {
    teller: Arc<Teller>,
    tid: Tid,
    index: usize,
    /// What those before it in its place left behind, ns.
    base_ns: u64,
}

impl Teller {
    /// Starts telling, if this host can.
    pub(crate) fn start(looks: Looks) -> Option<Arc<Self>> {
        match Programs::start(looks) {
            Ok(programs) => Some(Arc::new(Self { programs, looks })),
            Err(why) => {
                tracing::info!(
                    why,
                    "Guests are told of preempted vCPUs and overloaded CPUs at each look only"
                );
                None
            }
        }
    }

    /// Names the thread of a vCPU, whose guest has shown no words yet.
    pub(crate) fn name(self: &Arc<Self>, id: VcpuId, tid: Tid) -> Option<Told> {
        let first = id.vm.checked_mul(ecs_policy::MAX_VCPUS)?;
        let index = first.checked_add(id.vcpu)?;
        let told = Told {
            teller: self.clone(),
            tid,
            index,
            base_ns: self.programs.overloaded_ns(index)?,
        };
        told.show(SlotAddresses::default());
        Some(told)
    }

    /// Says whether this process makes vCPUs wait on a CPU beside the one that runs: the programs
    /// cannot tell those from whom nobody needs to make way for.
    pub(crate) fn crowd(&self, cpu: u32, crowded: bool) {
        self.programs.crowd(cpu, crowded);
    }

    /// Returns once no program can be at work any more with what it was told before.
    pub(crate) fn settle(&self) {
        self.programs.settle();
    }
}

impl Told {
    /// Says where this process has the guest's words.
    pub(crate) fn show(&self, words: SlotAddresses) {
        let programs = &self.teller.programs;
        if let Err(why) = programs.show(self.tid, self.index, words) {
            // A thread may end at any moment.
            tracing::debug!(why, tid = self.tid, "A vCPU is told nothing");
        }
    }

    /// Whether nobody else needs to say who is preempted.
    pub(crate) fn knows_preempted(&self) -> bool {
        self.teller.looks == Looks::Beside
    }

    /// Time the vCPU ran while its pCPU had more to do, up to its last switch, ns.
    pub(crate) fn overloaded_ns(&self) -> u64 {
        let now_ns = self.teller.programs.overloaded_ns(self.index);
        now_ns.unwrap_or(0).saturating_sub(self.base_ns)
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.teller.programs.remove(self.tid);
    }
}
