//! Ticket lock: first come, first served.

use crate::atomic::{AtomicU32, Ordering};
use crate::vcpu::{Annotate, Spin, WaitFor};

/// A ticket lock. All zero is unlocked.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct TicketLock {
    next: AtomicU32,
    owner: AtomicU32,
    /// vCPU that holds the lock, plus one. A hint: written after the lock is taken.
    holder: AtomicU32,
}

/// Unlocks when dropped.
#[derive(Debug)]
#[must_use = "the lock is released when the guard is dropped"]
pub struct TicketGuard<'l, A: Annotate> {
    lock: &'l TicketLock,
    vcpu: &'l A,
    ticket: u32,
    waited: bool,
}

impl TicketLock {
    /// Takes the lock, spinning.
    pub fn lock<'l, A: Annotate>(&'l self, vcpu: &'l A) -> TicketGuard<'l, A> {
        let outer = vcpu.wait_enter();
        let ticket = self.next.fetch_add(1, Ordering::AcqRel);
        let mut wait = WaitFor {
            word: &self.owner,
            mask: u32::MAX,
            value: ticket,
            holder: 0,
        };
        let waited = !wait.ended();
        if waited {
            wait.holder = self.holder.load(Ordering::Relaxed);
            vcpu.wait_spin(&wait);
            let mut spin = Spin::default();
            while !wait.ended() {
                if vcpu.spin(&mut spin) {
                    vcpu.wait_holder(self.holder.load(Ordering::Relaxed));
                }
            }
        }
        vcpu.enter_non_preemptable();
        vcpu.wait_end(outer);
        self.holder
            .store(vcpu.number().wrapping_add(1), Ordering::Relaxed);
        TicketGuard {
            lock: self,
            vcpu,
            ticket,
            waited,
        }
    }

    /// Whether some vCPU holds the lock or waits for it, at this instant.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.next.load(Ordering::Acquire) != self.owner.load(Ordering::Acquire)
    }
}

impl<A: Annotate> TicketGuard<'_, A> {
    /// Whether the lock was taken from another vCPU.
    #[must_use]
    pub fn waited(&self) -> bool {
        self.waited
    }
}

impl<A: Annotate> Drop for TicketGuard<'_, A> {
    fn drop(&mut self) {
        self.lock
            .owner
            .store(self.ticket.wrapping_add(1), Ordering::Release);
        self.vcpu.leave_non_preemptable();
    }
}
