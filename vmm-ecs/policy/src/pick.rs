//! Which vCPU runs next on a pCPU.

use crate::params::Params;
use crate::queue::Queue;
use crate::snapshot::CsSnapshot;

/// How much running a vCPU helps its VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rank {
    /// Others wait for it: it holds a lock, or its wait has ended.
    Head,
    /// Ordinary work.
    Ready,
    /// It would only spin.
    Hopeless,
}

impl Rank {
    /// Rank of a vCPU by its snapshot and its place in its lock queue.
    #[must_use]
    pub fn of(snap: &CsSnapshot, queue: Queue, params: &Params) -> Self {
        match queue {
            _ if !params.queue_rules => Self::Ready,
            Queue::Hopeless => Self::Hopeless,
            Queue::Head => Self::Head,
            Queue::NotWaiting if snap.holds() => Self::Head,
            Queue::NotWaiting | Queue::HeadRuns | Queue::Unknown => Self::Ready,
        }
    }
}

/// A runnable vCPU that is not running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Virtual time of its VM, ns.
    pub vm_vtime_ns: u64,
    /// CPU time of the vCPU itself, ns: evens out the vCPUs of one VM.
    pub vcpu_cpu_ns: u64,
    /// How much running it helps.
    pub rank: Rank,
}

/// Virtual time by which a head may come before its turn, ns.
fn boost_ns(params: &Params) -> u64 {
    2 * params.slice_ns
}

/// Whether a head whose queue stands still may take the pCPU before the slice of the vCPU on it
/// ends: as long as its VM is not ahead of the other one in virtual time. Within one VM it always
/// may.
#[must_use]
pub fn is_urgent(head_vtime_ns: u64, current_vtime_ns: u64) -> bool {
    head_vtime_ns <= current_vtime_ns
}

/// Index of the candidate to run next; `None` without candidates.
///
/// The VM with the least virtual time comes first. A head may come before its time, at most two
/// slices of virtual time, so that lock queues drain and fairness stays bounded. A hopeless spinner
/// runs only where nobody else can.
#[must_use]
pub fn pick(candidates: impl Iterator<Item = Candidate>, params: &Params) -> Option<usize> {
    let boost = boost_ns(params);
    candidates
        .enumerate()
        .min_by_key(|(_, candidate)| {
            let vtime = u128::from(candidate.vm_vtime_ns);
            match candidate.rank {
                // The others are set back, so that nothing is subtracted below zero.
                Rank::Head => (false, vtime, candidate.vcpu_cpu_ns),
                Rank::Ready => (false, vtime + u128::from(boost), candidate.vcpu_cpu_ns),
                Rank::Hopeless => (true, vtime, candidate.vcpu_cpu_ns),
            }
        })
        .map(|(index, _)| index)
}
