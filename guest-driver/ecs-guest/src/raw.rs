//! The locks behind the interface of the crate `lock_api`: they own what they protect, and find the
//! vCPU on their own.
//!
//! The interface has no place for a vCPU, so it is a type parameter: [`CurrentVcpu`] knows which one
//! runs this code. Guards do not leave their thread, and lower the count however it leaves the section,
//! unwinding included.
#![expect(
    unsafe_code,
    reason = "lock_api trusts its raw locks to exclude, and says so with unsafe traits"
)]

use core::marker::PhantomData;
use core::mem::forget;

use lock_api::{GuardNoSend, RawMutex, RawRwLock, RawRwLockDowngrade, RawRwLockUpgrade};

use crate::blocking::{BlockingMutex, Halt};
use crate::queue::QueueLock;
use crate::rw::{ReadGuard, RwSpinLock, UpgradableGuard, WriteGuard};
use crate::ticket::TicketLock;
use crate::vcpu::Annotate;

/// Finds the vCPU that runs the calling code.
///
/// ```
/// use ecs_guest::{CurrentVcpu, EcsMutex, Unannotated};
///
/// /// A guest of one vCPU that tells the host nothing yet.
/// struct Only;
///
/// impl CurrentVcpu for Only {
///     type Vcpu = Unannotated;
///     fn with<R>(call: impl FnOnce(&Unannotated) -> R) -> R {
///         call(&Unannotated { number: 0, polls: false })
///     }
/// }
///
/// static RUNS: EcsMutex<Only, u32> = EcsMutex::new(0);
/// *RUNS.lock() += 1;
/// ```
pub trait CurrentVcpu {
    /// Handle of a vCPU.
    type Vcpu: Annotate;
    /// Calls `call` with the handle of the current vCPU, and returns what it returns. The code inside
    /// must not be moved to another vCPU, unless the handle moves with it.
    fn with<R>(call: impl FnOnce(&Self::Vcpu) -> R) -> R;
}

/// How a task of this guest sleeps and wakes others.
pub trait CurrentHalt: CurrentVcpu {
    /// Sleeps and wakes.
    type Halt: Halt + 'static;
    /// The same for all vCPUs.
    fn halt() -> &'static Self::Halt;
}

/// vCPU numbers that tell vCPUs apart, for locks that keep a place for each.
///
/// # Safety
/// From the beginning of locking to the end of unlocking, [`CurrentVcpu::with`] gives a caller the same
/// number, and gives it to nobody else who uses the same lock: no code that runs at the same time, and
/// no interrupt handler on the same vCPU.
pub unsafe trait DistinctVcpus: CurrentVcpu {}

/// Mutex that spins and serves in order: a non-preemptable section.
pub type EcsMutex<C, T> = lock_api::Mutex<RawEcsMutex<TicketLock, C>, T>;
/// The same with a queue of `N` places, for vCPUs `0..N`. Locking panics on a vCPU without a place.
pub type EcsQueueMutex<C, const N: usize, T> = lock_api::Mutex<RawEcsMutex<QueueLock<N>, C>, T>;
/// Mutex whose waiters sleep: a preemptable section.
pub type EcsBlockingMutex<C, T> = lock_api::Mutex<RawEcsMutex<BlockingMutex, C>, T>;
/// Spinning readers-writer lock, with upgradable readers and downgrading: non-preemptable sections.
pub type EcsRwLock<C, T> = lock_api::RwLock<RawEcsRwLock<C>, T>;

mod sealed {
    use super::CurrentVcpu;

    /// A lock that at most one vCPU has, as calls without guards.
    pub trait Exclusive<C: CurrentVcpu> {
        const UNLOCKED: Self;
        fn lock(&self, vcpu: &C::Vcpu);
        fn try_lock(&self, vcpu: &C::Vcpu) -> bool;
        /// Only by the vCPU that holds the lock.
        fn unlock(&self, vcpu: &C::Vcpu);
        fn is_locked(&self) -> bool;
    }
}
use sealed::Exclusive;

impl<C: CurrentVcpu> Exclusive<C> for TicketLock {
    const UNLOCKED: Self = Self::new();
    fn lock(&self, vcpu: &C::Vcpu) {
        forget(self.lock(vcpu));
    }
    fn try_lock(&self, vcpu: &C::Vcpu) -> bool {
        self.try_lock(vcpu).map(forget).is_some()
    }
    fn unlock(&self, vcpu: &C::Vcpu) {
        drop(self.held(vcpu));
    }
    fn is_locked(&self) -> bool {
        self.is_locked()
    }
}

impl<C: DistinctVcpus, const N: usize> Exclusive<C> for QueueLock<N> {
    const UNLOCKED: Self = Self::new();
    fn lock(&self, vcpu: &C::Vcpu) {
        let guard = self.lock(vcpu);
        assert!(
            guard.is_some(),
            "The lock has {N} places: none for vCPU {}",
            vcpu.number()
        );
        forget(guard);
    }
    fn try_lock(&self, vcpu: &C::Vcpu) -> bool {
        self.try_lock(vcpu).map(forget).is_some()
    }
    fn unlock(&self, vcpu: &C::Vcpu) {
        drop(self.held(vcpu));
    }
    fn is_locked(&self) -> bool {
        self.is_locked()
    }
}

impl<C: CurrentHalt> Exclusive<C> for BlockingMutex {
    const UNLOCKED: Self = Self::new();
    fn lock(&self, vcpu: &C::Vcpu) {
        forget(self.lock(vcpu, C::halt()));
    }
    fn try_lock(&self, vcpu: &C::Vcpu) -> bool {
        self.try_lock(vcpu, C::halt()).map(forget).is_some()
    }
    fn unlock(&self, vcpu: &C::Vcpu) {
        drop(self.held(vcpu, C::halt()));
    }
    fn is_locked(&self) -> bool {
        self.is_locked()
    }
}

/// What [`EcsMutex`] and its like are made of: the lock `L`, taken by the vCPU that `C` finds.
#[derive(Debug)]
pub struct RawEcsMutex<L, C> {
    lock: L,
    current: PhantomData<fn() -> C>,
}

// SAFETY: each L lets one vCPU in at a time until it is unlocked: the model checker says so
// (`ordering.rs`). Whose number the unlocking vCPU has matters to the queue lock only, and DistinctVcpus
// answers for that. Guards are dropped by the thread that locked (GuardNoSend).
unsafe impl<L: Exclusive<C>, C: CurrentVcpu> RawMutex for RawEcsMutex<L, C> {
    const INIT: Self = Self {
        lock: L::UNLOCKED,
        current: PhantomData,
    };

    type GuardMarker = GuardNoSend;

    fn lock(&self) {
        C::with(|vcpu| self.lock.lock(vcpu));
    }

    fn try_lock(&self) -> bool {
        C::with(|vcpu| self.lock.try_lock(vcpu))
    }

    unsafe fn unlock(&self) {
        C::with(|vcpu| self.lock.unlock(vcpu));
    }

    fn is_locked(&self) -> bool {
        self.lock.is_locked()
    }
}

/// What [`EcsRwLock`] is made of.
#[derive(Debug)]
pub struct RawEcsRwLock<C> {
    lock: RwSpinLock,
    current: PhantomData<fn() -> C>,
}

// SAFETY: RwSpinLock keeps a writer alone and its number of readers never overflows; it does not look at
// vCPU numbers other than as hints. Guards are dropped by the thread that locked (GuardNoSend).
unsafe impl<C: CurrentVcpu> RawRwLock for RawEcsRwLock<C> {
    const INIT: Self = Self {
        lock: RwSpinLock::new(),
        current: PhantomData,
    };

    type GuardMarker = GuardNoSend;

    fn lock_shared(&self) {
        C::with(|vcpu| forget(self.lock.read(vcpu)));
    }

    fn try_lock_shared(&self) -> bool {
        C::with(|vcpu| self.lock.try_read(vcpu).map(forget).is_some())
    }

    unsafe fn unlock_shared(&self) {
        C::with(|vcpu| drop::<ReadGuard<'_, _>>(self.lock.held(vcpu)));
    }

    fn lock_exclusive(&self) {
        C::with(|vcpu| forget(self.lock.write(vcpu)));
    }

    fn try_lock_exclusive(&self) -> bool {
        C::with(|vcpu| self.lock.try_write(vcpu).map(forget).is_some())
    }

    unsafe fn unlock_exclusive(&self) {
        C::with(|vcpu| drop::<WriteGuard<'_, _>>(self.lock.held(vcpu)));
    }

    fn is_locked(&self) -> bool {
        self.lock.is_locked()
    }

    fn is_locked_exclusive(&self) -> bool {
        self.lock.is_write_locked()
    }
}

/// Calls `change`, which must not unwind: of a hold that has half changed its kind, lock_api would
/// release the old one. A panic while panicking aborts.
fn whole<R>(change: impl FnOnce() -> R) -> R {
    struct Abort;
    impl Drop for Abort {
        fn drop(&mut self) {
            panic!("Panic while a hold changed its kind");
        }
    }
    let abort = Abort;
    let result = change();
    forget(abort);
    result
}

// SAFETY: a downgraded hold keeps writers out without a gap.
unsafe impl<C: CurrentVcpu> RawRwLockDowngrade for RawEcsRwLock<C> {
    unsafe fn downgrade(&self) {
        whole(|| {
            C::with(|vcpu| {
                let writer: WriteGuard<'_, _> = self.lock.held(vcpu);
                forget(writer.downgrade());
            });
        });
    }
}

// SAFETY: there is one upgradable hold at a time, beside readers only, and it becomes the writer without
// a gap, once the readers have left.
unsafe impl<C: CurrentVcpu> RawRwLockUpgrade for RawEcsRwLock<C> {
    fn lock_upgradable(&self) {
        C::with(|vcpu| forget(self.lock.upgradable(vcpu)));
    }

    fn try_lock_upgradable(&self) -> bool {
        C::with(|vcpu| self.lock.try_upgradable(vcpu).map(forget).is_some())
    }

    unsafe fn unlock_upgradable(&self) {
        C::with(|vcpu| drop::<UpgradableGuard<'_, _>>(self.lock.held(vcpu)));
    }

    unsafe fn upgrade(&self) {
        whole(|| {
            C::with(|vcpu| {
                let reader: UpgradableGuard<'_, _> = self.lock.held(vcpu);
                forget(reader.upgrade());
            });
        });
    }

    unsafe fn try_upgrade(&self) -> bool {
        whole(|| {
            C::with(|vcpu| {
                let reader: UpgradableGuard<'_, _> = self.lock.held(vcpu);
                match reader.try_upgrade() {
                    Ok(writer) => {
                        forget(writer);
                        true
                    }
                    Err(reader) => {
                        forget(reader);
                        false
                    }
                }
            })
        })
    }
}
