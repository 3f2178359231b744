//! Mutex whose waiters sleep: a preemptable section.

use crate::atomic::{AtomicU32, Ordering};
use crate::vcpu::{Annotate, Outer, Spin, WaitFor};

const FREE: u32 = 0;
const LOCKED: u32 = 1;
/// Locked, and somebody may sleep.
const CONTENDED: u32 = 2;

/// How a vCPU sleeps for a word, and wakes those that do: a futex, or HLT and an interrupt.
pub trait Halt {
    /// Sleeps while `*word == expected`. The comparison and falling asleep are one step as seen by
    /// [`Halt::wake`]. May return early.
    fn halt(&self, word: &AtomicU32, expected: u32);
    /// Wakes up to `nr` vCPUs that sleep for `word`.
    fn wake(&self, word: &AtomicU32, nr: u32);
}

/// A mutex whose waiters spin while that is sensible, then sleep. All zero is unlocked.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct BlockingMutex {
    state: AtomicU32,
    /// vCPU that holds the lock, plus one; 0: none. A hint.
    holder: AtomicU32,
}

/// Unlocks when dropped.
#[derive(Debug)]
#[must_use = "the lock is released when the guard is dropped"]
pub struct BlockingGuard<'l, A: Annotate, H: Halt> {
    lock: &'l BlockingMutex,
    vcpu: &'l A,
    halt: &'l H,
    waited: bool,
}

impl BlockingMutex {
    /// An unlocked mutex, for statics.
    #[cfg(not(test))]
    #[must_use]
    pub const fn new() -> Self {
        Self {
            state: AtomicU32::new(FREE),
            holder: AtomicU32::new(0),
        }
    }

    /// Takes the lock; sleeps if it must.
    pub fn lock<'l, A: Annotate, H: Halt>(
        &'l self,
        vcpu: &'l A,
        halt: &'l H,
    ) -> BlockingGuard<'l, A, H> {
        let outer = vcpu.wait_enter();
        let waited = !self.grab();
        if waited && !self.spin(vcpu) {
            self.sleep(vcpu, halt);
        }
        self.taken(vcpu, halt, outer, waited)
    }

    /// Takes the lock if it is free at this instant. `halt` wakes those that come to wait for it.
    pub fn try_lock<'l, A: Annotate, H: Halt>(
        &'l self,
        vcpu: &'l A,
        halt: &'l H,
    ) -> Option<BlockingGuard<'l, A, H>> {
        let outer = vcpu.wait_enter();
        if !self.grab() {
            vcpu.wait_end(outer);
            return None;
        }
        Some(self.taken(vcpu, halt, outer, false))
    }

    /// The guard of a lock that the current task holds and whose guard was forgotten, for interfaces
    /// where locking and unlocking are calls apart.
    pub fn held<'l, A: Annotate, H: Halt>(
        &'l self,
        vcpu: &'l A,
        halt: &'l H,
    ) -> BlockingGuard<'l, A, H> {
        BlockingGuard {
            lock: self,
            vcpu,
            halt,
            waited: false,
        }
    }

    fn taken<'l, A: Annotate, H: Halt>(
        &'l self,
        vcpu: &'l A,
        halt: &'l H,
        outer: Outer,
        waited: bool,
    ) -> BlockingGuard<'l, A, H> {
        // At once: where entering costs a system call, others wait for it already.
        self.holder
            .store(vcpu.number().wrapping_add(1), Ordering::Relaxed);
        vcpu.enter_preemptable();
        vcpu.wait_end(outer);
        BlockingGuard {
            lock: self,
            vcpu,
            halt,
            waited,
        }
    }

    /// Whether some vCPU holds the lock, at this instant.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.state.load(Ordering::Acquire) != FREE
    }

    /// Takes the lock if it is free.
    fn grab(&self) -> bool {
        self.state
            .compare_exchange(FREE, LOCKED, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    fn wait(&self) -> WaitFor<'_> {
        let holder = self.holder.load(Ordering::Relaxed);
        WaitFor {
            word: &self.state,
            mask: u32::MAX,
            value: FREE,
            holder,
        }
    }

    /// Scheduling-aware spinning: for as long as the holder runs and nobody else wants this pCPU.
    /// Returns whether the lock was taken.
    fn spin<A: Annotate>(&self, vcpu: &A) -> bool {
        let mut spin = Spin::default();
        let mut wait = self.wait();
        if !vcpu.keep_spinning(&spin, wait.holder) {
            return false;
        }
        vcpu.wait_spin(&wait);
        while vcpu.keep_spinning(&spin, wait.holder) {
            if wait.ended() {
                vcpu.wait_retry();
                if self.grab() {
                    vcpu.spun(&spin, true);
                    return true;
                }
                wait = self.wait();
                vcpu.wait_spin(&wait);
            }
            if vcpu.spin(&mut spin) {
                wait.holder = self.holder.load(Ordering::Relaxed);
                vcpu.wait_holder(wait.holder);
            }
        }
        vcpu.spun(&spin, false);
        false
    }

    fn sleep<A: Annotate, H: Halt>(&self, vcpu: &A, halt: &H) {
        loop {
            vcpu.wait_retry();
            if self.state.swap(CONTENDED, Ordering::AcqRel) == FREE {
                return;
            }
            vcpu.wait_block(&self.wait());
            halt.halt(&self.state, CONTENDED);
        }
    }
}

impl<A: Annotate, H: Halt> BlockingGuard<'_, A, H> {
    /// Whether the lock was taken from another vCPU.
    #[must_use]
    pub fn waited(&self) -> bool {
        self.waited
    }
}

impl<A: Annotate, H: Halt> Drop for BlockingGuard<'_, A, H> {
    fn drop(&mut self) {
        self.lock.holder.store(0, Ordering::Relaxed);
        // The sleeper is woken inside the section: a vCPU that hands its pCPU back at the end of the
        // section leaves nobody asleep.
        if self.lock.state.swap(FREE, Ordering::AcqRel) == CONTENDED {
            self.halt.wake(&self.lock.state, 1);
        }
        self.vcpu.leave_preemptable();
    }
}
