//! Spinning readers-writer lock: readers are counted, a waiting writer keeps new readers out.

use crate::atomic::{AtomicU32, Ordering};
use crate::vcpu::{Annotate, Spin, WaitFor};

const WRITER: u32 = 1 << 31;
/// A writer waits: no new readers.
const PENDING: u32 = 1 << 30;
const READERS: u32 = PENDING - 1;

/// A spinning readers-writer lock. All zero is unlocked.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct RwSpinLock {
    state: AtomicU32,
    /// vCPU that holds the lock for writing, plus one; 0: none. A hint.
    writer: AtomicU32,
}

/// Unlocks when dropped.
#[derive(Debug)]
#[must_use = "the lock is released when the guard is dropped"]
pub struct ReadGuard<'l, A: Annotate> {
    lock: &'l RwSpinLock,
    vcpu: &'l A,
    waited: bool,
}

/// Unlocks when dropped.
#[derive(Debug)]
#[must_use = "the lock is released when the guard is dropped"]
pub struct WriteGuard<'l, A: Annotate> {
    lock: &'l RwSpinLock,
    vcpu: &'l A,
    waited: bool,
}

impl RwSpinLock {
    /// Takes the lock for reading, spinning.
    pub fn read<'l, A: Annotate>(&'l self, vcpu: &'l A) -> ReadGuard<'l, A> {
        let waited = self.acquire(vcpu, WRITER | PENDING, 0, |state| state + 1);
        ReadGuard {
            lock: self,
            vcpu,
            waited,
        }
    }

    /// Takes the lock for writing, spinning.
    pub fn write<'l, A: Annotate>(&'l self, vcpu: &'l A) -> WriteGuard<'l, A> {
        // Other waiting writers set PENDING again.
        let waited = self.acquire(vcpu, WRITER | READERS, PENDING, |_| WRITER);
        self.writer
            .store(vcpu.number().wrapping_add(1), Ordering::Relaxed);
        WriteGuard {
            lock: self,
            vcpu,
            waited,
        }
    }

    /// Whether some vCPU holds the lock, at this instant.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.state.load(Ordering::Acquire) & (WRITER | READERS) != 0
    }

    /// Waits until none of the bits of `against` is set, then swaps in `taken(state)`. While it
    /// waits, the bits of `announce` are set. Returns whether it had to wait.
    fn acquire<A: Annotate>(
        &self,
        vcpu: &A,
        against: u32,
        announce: u32,
        taken: impl Fn(u32) -> u32,
    ) -> bool {
        let outer = vcpu.wait_enter();
        let mut spin = Spin::default();
        let mut waited = false;
        loop {
            let state = self.state.load(Ordering::Relaxed);
            if state & against == 0 {
                if waited {
                    vcpu.wait_retry();
                }
                let order = (Ordering::AcqRel, Ordering::Relaxed);
                if self
                    .state
                    .compare_exchange(state, taken(state), order.0, order.1)
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
        vcpu.enter_non_preemptable();
        vcpu.wait_end(outer);
        waited
    }
}

impl<A: Annotate> ReadGuard<'_, A> {
    /// Whether the lock was taken from another vCPU.
    #[must_use]
    pub fn waited(&self) -> bool {
        self.waited
    }
}

impl<A: Annotate> WriteGuard<'_, A> {
    /// Whether the lock was taken from another vCPU.
    #[must_use]
    pub fn waited(&self) -> bool {
        self.waited
    }
}

impl<A: Annotate> Drop for ReadGuard<'_, A> {
    fn drop(&mut self) {
        self.lock.state.fetch_sub(1, Ordering::Release);
        self.vcpu.leave_non_preemptable();
    }
}

impl<A: Annotate> Drop for WriteGuard<'_, A> {
    fn drop(&mut self) {
        self.lock.writer.store(0, Ordering::Relaxed);
        self.lock.state.fetch_and(!WRITER, Ordering::Release);
        self.vcpu.leave_non_preemptable();
    }
}
