//! Slice extension policy and fairness ledger of eCS.
//!
//! # Problem
//! A host that preempts a vCPU inside a critical section stalls the whole VM; a host that lets
//! guests ask for more time is robbed. Both decisions must be taken in well under a microsecond,
//! in a daemon, in a BPF program and in a simulator, and must be the same in all of them.
//!
//! # Approach
//! [`Turn::decide`] is the decision at every event of a pCPU, a function of the event, the
//! [`CsSnapshot`] of the vCPU, its place in the lock queue ([`queue_of`]) and the VM's books
//! ([`Ledger`]). [`pick`] names the vCPU that runs next. Time is an argument.
//!
//! # Invariants
//! No clock, no I/O, no allocation, integers only, no panic on any input. One extension a slice,
//! never longer than [`Params::extension_ns`]; `debt = extension - penalty - forgiven`, never above
//! the budget; every nanosecond that runs is in some VM's virtual time.
//!
//! # What it does not do
//! It reads no guest memory, steers no thread, and knows nothing of weights' origin.
#![no_std]
#![forbid(unsafe_code)]

mod epoch;
mod fair;
mod ledger;
pub mod pace;
mod params;
mod patience;
mod pick;
mod queue;
mod snapshot;
mod turn;

pub use epoch::{aligned_slice_ns, even_vtime_ns, latin_distance};
pub use fair::{Claim, split_fairly};
pub use ledger::{Books, Ledger};
pub use params::{BadParam, Params, WEIGHT_DEFAULT, WEIGHT_RANGE};
pub use patience::Patience;
pub use pick::{Candidate, Rank, is_urgent, pick};
pub use queue::{MAX_VCPUS, Queue, VcpuSet, is_dirty, queue_of};
pub use snapshot::{CsSnapshot, Wait};
pub use turn::{
    Counters, Decision, Denial, Event, Input, Leave, Outcome, Section, Turn, VcpuState, Vm,
};
