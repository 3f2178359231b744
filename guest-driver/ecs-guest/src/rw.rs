//! Spinning readers-writer lock: readers are counted, a waiting writer keeps new readers out.

use core::mem::forget;

use crate::atomic::{AtomicU32, Ordering};
use crate::vcpu::{Annotate, Outer, Spin, WaitFor};

const WRITER: u32 = 1 << 31;
/// A writer waits: no new readers.
const PENDING: u32 = 1 << 30;
/// A reader that may become the writer: at most one, beside any number of readers.
const UPGRADER: u32 = 1 << 29;
const READER: u32 = 1;
/// Number of readers.
const READERS: u32 = UPGRADER - 1;
/// Highest bit of that number: then no more readers, so that it never overflows.
const FULL: u32 = 1 << 28;

/// A spinning readers-writer lock. All zero is unlocked.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct RwSpinLock {
    state: AtomicU32,
    /// vCPU that holds the lock for writing, plus one; 0: none. A hint.
    writer: AtomicU32,
}

/// A hold on the lock; unlocks when dropped. `HELD` is its part of the lock's state.
#[derive(Debug)]
#[must_use = "the lock is released when the guard is dropped"]
pub struct RwGuard<'l, A: Annotate, const HELD: u32> {
    lock: &'l RwSpinLock,
    vcpu: &'l A,
    waited: bool,
}

/// Hold of one of many readers.
pub type ReadGuard<'l, A> = RwGuard<'l, A, READER>;
/// Hold of the writer.
pub type WriteGuard<'l, A> = RwGuard<'l, A, WRITER>;
/// Hold of the one reader that may become the writer.
pub type UpgradableGuard<'l, A> = RwGuard<'l, A, UPGRADER>;

/// How a kind of hold is taken.
#[derive(Clone, Copy)]
struct Claim {
    /// Bits of the state that stand against it.
    against: u32,
    /// Bits that are set while it waits.
    announce: u32,
    /// Bits that stay when it is taken, beside the hold itself.
    keep: u32,
}

const READ: Claim = Claim {
    against: WRITER | PENDING | FULL,
    announce: 0,
    keep: u32::MAX,
};
const UPGRADABLE: Claim = Claim {
    against: READ.against | UPGRADER,
    ..READ
};
const WRITE: Claim = Claim {
    against: WRITER | UPGRADER | READERS,
    announce: PENDING,
    // Other waiting writers announce themselves again.
    keep: 0,
};
/// By the upgradable reader, whose own bit goes.
const UPGRADE: Claim = Claim {
    against: READERS,
    ..WRITE
};

impl RwSpinLock {
    /// An unlocked lock, for statics.
    #[cfg(not(test))]
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: AtomicU32::new(0),
            writer: AtomicU32::new(0),
        }
    }

    /// Takes the lock for reading, spinning.
    pub fn read<'l, A: Annotate>(&'l self, vcpu: &'l A) -> ReadGuard<'l, A> {
        self.acquire(vcpu, READ)
    }

    /// Takes the lock for writing, spinning.
    pub fn write<'l, A: Annotate>(&'l self, vcpu: &'l A) -> WriteGuard<'l, A> {
        self.acquire(vcpu, WRITE)
    }

    /// Takes the lock for reading, spinning; one such reader at a time, which may become the writer.
    pub fn upgradable<'l, A: Annotate>(&'l self, vcpu: &'l A) -> UpgradableGuard<'l, A> {
        self.acquire(vcpu, UPGRADABLE)
    }

    /// Takes the lock for reading if neither a writer nor a waiting one is there at this instant.
    pub fn try_read<'l, A: Annotate>(&'l self, vcpu: &'l A) -> Option<ReadGuard<'l, A>> {
        self.try_acquire(vcpu, READ)
    }

    /// Takes the lock for writing if it is free at this instant.
    pub fn try_write<'l, A: Annotate>(&'l self, vcpu: &'l A) -> Option<WriteGuard<'l, A>> {
        self.try_acquire(vcpu, WRITE)
    }

    /// As [`RwSpinLock::upgradable`], if that needs no wait at this instant.
    pub fn try_upgradable<'l, A: Annotate>(
        &'l self,
        vcpu: &'l A,
    ) -> Option<UpgradableGuard<'l, A>> {
        self.try_acquire(vcpu, UPGRADABLE)
    }

    /// The guard of a hold of this vCPU whose guard was forgotten, for interfaces where locking and
    /// unlocking are calls apart.
    pub fn held<'l, A: Annotate, const HELD: u32>(&'l self, vcpu: &'l A) -> RwGuard<'l, A, HELD> {
        RwGuard {
            lock: self,
            vcpu,
            waited: false,
        }
    }

    /// Whether some vCPU holds the lock, at this instant.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.state.load(Ordering::Acquire) & WRITE.against != 0
    }

    /// Whether some vCPU holds the lock for writing, at this instant.
    #[must_use]
    pub fn is_write_locked(&self) -> bool {
        self.state.load(Ordering::Acquire) & WRITER != 0
    }

    fn acquire<'l, A: Annotate, const HELD: u32>(
        &'l self,
        vcpu: &'l A,
        claim: Claim,
    ) -> RwGuard<'l, A, HELD> {
        let Claim {
            against,
            announce,
            keep,
        } = claim;
        let outer = vcpu.wait_enter();
        let mut spin = Spin::default();
        let mut waited = false;
        loop {
            let state = self.state.load(Ordering::Relaxed);
            if state & against == 0 {
                if waited {
                    vcpu.wait_retry();
                }
                let taken = (state & keep) + HELD;
                let order = (Ordering::AcqRel, Ordering::Relaxed);
                if self
                    .state
                    .compare_exchange(state, taken, order.0, order.1)
                    .is_ok()
                {
                    break;
                }
                continue;
            }
            waited = true;
            if announce != 0 && state & announce == 0 {
                self.state.fetch_or(announce, Ordering::Relaxed);
            }
            let holder = self.writer.load(Ordering::Relaxed);
            let wait = WaitFor {
                word: &self.state,
                mask: against,
                value: 0,
                holder,
            };
            vcpu.wait_spin(&wait);
            loop {
                if wait.ended() {
                    break;
                }
                if vcpu.spin(&mut spin) {
                    vcpu.wait_holder(self.writer.load(Ordering::Relaxed));
                }
                // The writer that got the lock cleared the announcement.
                let state = self.state.load(Ordering::Relaxed);
                if announce != 0 && state & announce == 0 && state & against != 0 {
                    self.state.fetch_or(announce, Ordering::Relaxed);
                }
            }
        }
        self.taken(vcpu, outer, waited)
    }

    fn try_acquire<'l, A: Annotate, const HELD: u32>(
        &'l self,
        vcpu: &'l A,
        claim: Claim,
    ) -> Option<RwGuard<'l, A, HELD>> {
        let outer = vcpu.wait_enter();
        let taken = self
            .state
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |state| {
                (state & claim.against == 0).then_some((state & claim.keep) + HELD)
            });
        if taken.is_err() {
            vcpu.wait_end(outer);
            return None;
        }
        Some(self.taken(vcpu, outer, false))
    }

    fn taken<'l, A: Annotate, const HELD: u32>(
        &'l self,
        vcpu: &'l A,
        outer: Outer,
        waited: bool,
    ) -> RwGuard<'l, A, HELD> {
        vcpu.enter_non_preemptable();
        vcpu.wait_end(outer);
        if HELD == WRITER {
            self.writer
                .store(vcpu.number().wrapping_add(1), Ordering::Relaxed);
        }
        RwGuard {
            lock: self,
            vcpu,
            waited,
        }
    }
}

impl<A: Annotate, const HELD: u32> RwGuard<'_, A, HELD> {
    /// Whether the lock was taken from another vCPU.
    #[must_use]
    pub fn waited(&self) -> bool {
        self.waited
    }
}

impl<'l, A: Annotate> WriteGuard<'l, A> {
    /// Lets other readers in and reads on.
    pub fn downgrade(self) -> ReadGuard<'l, A> {
        self.lock.writer.store(0, Ordering::Relaxed);
        self.lock
            .state
            .fetch_sub(WRITER - READER, Ordering::Release);
        let read = RwGuard {
            lock: self.lock,
            vcpu: self.vcpu,
            waited: self.waited,
        };
        forget(self);
        read
    }
}

impl<'l, A: Annotate> UpgradableGuard<'l, A> {
    /// Waits for the other readers to leave, and writes. Nobody writes in between.
    pub fn upgrade(self) -> WriteGuard<'l, A> {
        let write = self.lock.acquire(self.vcpu, UPGRADE);
        self.became_writer();
        write
    }

    /// As [`RwGuard::upgrade`], if that needs no wait at this instant.
    ///
    /// # Errors
    /// The guard itself, if there are other readers.
    pub fn try_upgrade(self) -> Result<WriteGuard<'l, A>, Self> {
        match self.lock.try_acquire(self.vcpu, UPGRADE) {
            Some(write) => {
                self.became_writer();
                Ok(write)
            }
            None => Err(self),
        }
    }

    /// The writer's section has begun inside that of this hold, whose part of the state has gone.
    fn became_writer(self) {
        self.vcpu.leave_non_preemptable();
        forget(self);
    }
}

impl<A: Annotate, const HELD: u32> Drop for RwGuard<'_, A, HELD> {
    fn drop(&mut self) {
        if HELD == WRITER {
            self.lock.writer.store(0, Ordering::Relaxed);
        }
        self.lock.state.fetch_sub(HELD, Ordering::Release);
        self.vcpu.leave_non_preemptable();
    }
}
