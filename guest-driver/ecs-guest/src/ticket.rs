//! Ticket lock: first come, first served.

use crate::atomic::{AtomicU32, Ordering};
use crate::vcpu::{Annotate, Outer, WaitFor};

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
    /// An unlocked lock, for statics.
    #[cfg(not(test))]
    #[must_use]
    pub const fn new() -> Self {
        Self {
            next: AtomicU32::new(0),
            owner: AtomicU32::new(0),
            holder: AtomicU32::new(0),
        }
    }

    /// Takes the lock, spinning.
    pub fn lock<'l, A: Annotate>(&'l self, vcpu: &'l A) -> TicketGuard<'l, A> {
        let outer = vcpu.wait_enter();
        let ticket = self.next.fetch_add(1, Ordering::AcqRel);
        let wait = WaitFor {
            word: &self.owner,
            mask: u32::MAX,
            value: ticket,
            holder: 0,
        };
        let waited = !wait.ended();
        if waited {
            wait.spin_out(vcpu, &self.holder);
        }
        self.taken(vcpu, outer, ticket, waited)
    }

    /// Takes the lock if it is free at this instant.
    pub fn try_lock<'l, A: Annotate>(&'l self, vcpu: &'l A) -> Option<TicketGuard<'l, A>> {
        let outer = vcpu.wait_enter();
        // It is free when the ticket to be drawn next is the one to be served; that load also acquires
        // what the last holder released.
        let ticket = self.owner.load(Ordering::Acquire);
        let drawn = self.next.compare_exchange(
            ticket,
            ticket.wrapping_add(1),
            Ordering::AcqRel,
            Ordering::Relaxed,
        );
        if drawn.is_err() {
            vcpu.wait_end(outer);
            return None;
        }
        Some(self.taken(vcpu, outer, ticket, false))
    }

    /// The guard of a lock that this vCPU holds and whose guard was forgotten, for interfaces where
    /// locking and unlocking are calls apart.
    pub fn held<'l, A: Annotate>(&'l self, vcpu: &'l A) -> TicketGuard<'l, A> {
        TicketGuard {
            lock: self,
            vcpu,
            ticket: self.owner.load(Ordering::Relaxed),
            waited: false,
        }
    }

    fn taken<'l, A: Annotate>(
        &'l self,
        vcpu: &'l A,
        outer: Outer,
        ticket: u32,
        waited: bool,
    ) -> TicketGuard<'l, A> {
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
