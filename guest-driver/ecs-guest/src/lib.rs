//! The six eCS calls, and locks annotated with them, for guests that are not Linux: unikernels,
//! user-space guests, the embedded VMs of `ecs-microvm`.
//!
//! # Problem
//! A host that takes a vCPU off its pCPU inside a critical section stops every other vCPU that needs
//! the lock. The guest knows when that would hurt; the host decides when it happens.
//!
//! # Approach
//! Each vCPU owns one guest-written line and reads one host-written line ([`VcpuLines`], the ABI's
//! layout). [`Vcpu`] is the handle of one vCPU on its lines: the six calls of the eCS paper, the
//! wait descriptor, and the hand-back of the pCPU by doorbell. The locks take the handle as an
//! argument, through the trait [`Annotate`], so that the same code also runs without annotation
//! ([`Unannotated`]) and the cost of both can be compared.
//!
//! # Invariants
//! - Only vCPU `n` writes the guest line of vCPU `n`: plain loads and stores, no locked instruction,
//!   no fence beyond acquire and release.
//! - A count is raised before the release of the wait that covered the acquisition, and lowered after
//!   the unlock is visible. `waiting` is set to ENTER before a ticket or queue place is taken, and the
//!   descriptor is filled in before `waiting` says SPIN or BLOCK. So no observer sees a vCPU that owns
//!   a lock, counts nothing and waits for nothing. A model checker says so, for every lock and every
//!   way to take it; `ordering.rs` lists which interleavings it goes through.
//! - Counts saturate: they neither wrap nor fall below zero.
//! - What the host writes is a hint. A wrong or stale host line costs time, never exclusion: the
//!   doorbell falls silent when the host's heartbeat stops.
//!
//! # Features
//! - `lock_api`: `EcsMutex<C, T>`, `EcsQueueMutex`, `EcsBlockingMutex` and `EcsRwLock` own what they
//!   protect and find the vCPU on their own, by the trait `CurrentVcpu`.
//! - `user`: sections of Linux processes, by `/dev/virtio_ecs` of the guest's driver, the host's hints by
//!   the same way, and `UserMutex<T>`, whose waiters spin by those hints. Needs std. A process without the
//!   device runs on unannotated, and its waiters sleep.
//!
//! Both have unsafe code in one file each; without them there is none.
//!
//! # What it does not do
//! It registers nothing: the driver of the virtio device does. Without `lock_api` the locks own no
//! data. It does not order the read of `yield` after an unlock: a request that arrives within the same
//! few nanoseconds is seen at the next release, or not at all, and the host's hard stop covers that.
#![no_std]
#![cfg_attr(not(feature = "lock_api"), forbid(unsafe_code))]
#![deny(unsafe_code)]

#[cfg(any(test, feature = "user"))]
extern crate std;

/// Atomics of the target; under test those of the model checker.
mod atomic {
    #[cfg(not(test))]
    pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
    #[cfg(test)]
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    /// One turn of a spin loop.
    #[cfg(not(test))]
    pub(crate) fn pause() {
        core::hint::spin_loop();
    }
    #[cfg(test)]
    pub(crate) fn pause() {
        loom::thread::yield_now();
    }
}

mod blocking;
#[cfg(all(feature = "user", target_os = "linux"))]
#[cfg_attr(
    test,
    expect(dead_code, unreachable_pub, reason = "its user is not there")
)]
mod device;
#[cfg(all(feature = "user", target_os = "linux"))]
mod hints;
mod line;
#[cfg(test)]
mod ordering;
mod queue;
// Not under the checker, whose atomics make no constants.
#[cfg(all(feature = "lock_api", not(test)))]
mod raw;
mod rw;
mod ticket;
#[cfg(all(feature = "user", target_os = "linux", not(test)))]
pub mod user;
mod vcpu;

pub use blocking::{BlockingGuard, BlockingMutex, Halt};
pub use line::{GuestLine, HostLine, VcpuLines};
pub use queue::{QueueGuard, QueueLock};
#[cfg(all(feature = "lock_api", not(test)))]
pub use raw::{
    CurrentHalt, CurrentVcpu, DistinctVcpus, EcsBlockingMutex, EcsMutex, EcsQueueMutex, EcsRwLock,
    RawEcsMutex, RawEcsRwLock,
};
pub use rw::{ReadGuard, RwGuard, RwSpinLock, UpgradableGuard, WriteGuard};
pub use ticket::{TicketGuard, TicketLock};
pub use vcpu::{
    AddressMap, Annotate, Clock, Doorbell, OffsetMap, Outer, Spin, Unannotated, Vcpu, WaitFor,
    Waiters,
};
