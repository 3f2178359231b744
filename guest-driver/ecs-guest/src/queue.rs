//! Queue lock (MCS): each vCPU spins on a word of its own.

use crate::atomic::{AtomicU32, Ordering, pause};
use crate::vcpu::{Annotate, Outer, WaitFor};

const WAITING: u32 = 0;
const GRANTED: u32 = 1;

/// A vCPU's place in the queue of one lock.
#[repr(C, align(64))]
#[derive(Debug, Default)]
struct Node {
    granted: AtomicU32,
    /// vCPU that comes next, plus one.
    next: AtomicU32,
}

impl Node {
    fn reset(&self) {
        self.granted.store(WAITING, Ordering::Relaxed);
        self.next.store(0, Ordering::Relaxed);
    }
}

/// A queue lock for vCPUs `0..N`. All zero is unlocked.
///
/// There is one node a vCPU, so a vCPU must not take the same lock twice.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct QueueLock<const N: usize> {
    /// Last vCPU in the queue, plus one.
    tail: AtomicU32,
    /// vCPU that holds the lock, plus one. A hint: written after the lock is taken.
    holder: AtomicU32,
    nodes: [Node; N],
}

/// Unlocks when dropped.
#[derive(Debug)]
#[must_use = "the lock is released when the guard is dropped"]
pub struct QueueGuard<'l, A: Annotate> {
    tail: &'l AtomicU32,
    node: &'l Node,
    nodes: &'l [Node],
    vcpu: &'l A,
    waited: bool,
}

impl<const N: usize> Default for QueueLock<N> {
    fn default() -> Self {
        Self {
            tail: AtomicU32::new(0),
            holder: AtomicU32::new(0),
            nodes: core::array::from_fn(|_| Node::default()),
        }
    }
}

/// Node of the vCPU whose number plus one is `place`.
fn node_at(nodes: &[Node], place: u32) -> Option<&Node> {
    nodes.get(usize::try_from(place.checked_sub(1)?).ok()?)
}

impl<const N: usize> QueueLock<N> {
    /// An unlocked lock, for statics.
    #[cfg(not(test))]
    #[must_use]
    pub const fn new() -> Self {
        Self {
            tail: AtomicU32::new(0),
            holder: AtomicU32::new(0),
            nodes: [const {
                Node {
                    granted: AtomicU32::new(WAITING),
                    next: AtomicU32::new(0),
                }
            }; N],
        }
    }

    /// Takes the lock, spinning; `None` for a vCPU without a node.
    pub fn lock<'l, A: Annotate>(&'l self, vcpu: &'l A) -> Option<QueueGuard<'l, A>> {
        let (me, node) = self.place(vcpu)?;
        node.reset();
        let outer = vcpu.wait_enter();
        let before = self.tail.swap(me, Ordering::AcqRel);
        let ahead = node_at(&self.nodes, before);
        if let Some(ahead) = ahead {
            ahead.next.store(me, Ordering::Release);
            let wait = WaitFor {
                word: &node.granted,
                mask: u32::MAX,
                value: GRANTED,
                holder: 0,
            };
            wait.spin_out(vcpu, &self.holder);
        }
        Some(self.taken(vcpu, outer, me, node, ahead.is_some()))
    }

    /// Takes the lock if it is free at this instant; `None` also for a vCPU without a node.
    pub fn try_lock<'l, A: Annotate>(&'l self, vcpu: &'l A) -> Option<QueueGuard<'l, A>> {
        let (me, node) = self.place(vcpu)?;
        // In a queue, this vCPU's node belongs to whoever stands behind it.
        if self.is_locked() {
            return None;
        }
        node.reset();
        let outer = vcpu.wait_enter();
        let joined = self
            .tail
            .compare_exchange(0, me, Ordering::AcqRel, Ordering::Relaxed);
        if joined.is_err() {
            vcpu.wait_end(outer);
            return None;
        }
        Some(self.taken(vcpu, outer, me, node, false))
    }

    /// The guard of a lock that this vCPU holds and whose guard was forgotten, for interfaces where
    /// locking and unlocking are calls apart. `None` for a vCPU without a node.
    pub fn held<'l, A: Annotate>(&'l self, vcpu: &'l A) -> Option<QueueGuard<'l, A>> {
        let (_, node) = self.place(vcpu)?;
        Some(self.guard(vcpu, node, false))
    }

    /// Number plus one, and node, of a vCPU.
    fn place<A: Annotate>(&self, vcpu: &A) -> Option<(u32, &Node)> {
        let me = vcpu.number().checked_add(1)?;
        Some((me, node_at(&self.nodes, me)?))
    }

    fn taken<'l, A: Annotate>(
        &'l self,
        vcpu: &'l A,
        outer: Outer,
        me: u32,
        node: &'l Node,
        waited: bool,
    ) -> QueueGuard<'l, A> {
        vcpu.enter_non_preemptable();
        vcpu.wait_end(outer);
        self.holder.store(me, Ordering::Relaxed);
        self.guard(vcpu, node, waited)
    }

    fn guard<'l, A: Annotate>(
        &'l self,
        vcpu: &'l A,
        node: &'l Node,
        waited: bool,
    ) -> QueueGuard<'l, A> {
        QueueGuard {
            tail: &self.tail,
            node,
            nodes: &self.nodes,
            vcpu,
            waited,
        }
    }

    /// Whether some vCPU holds the lock or waits for it, at this instant.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.tail.load(Ordering::Acquire) != 0
    }
}

impl<A: Annotate> QueueGuard<'_, A> {
    /// Whether the lock was taken from another vCPU.
    #[must_use]
    pub fn waited(&self) -> bool {
        self.waited
    }

    fn unlock(&self) {
        let me = self.vcpu.number().wrapping_add(1);
        let mut next = self.node.next.load(Ordering::Acquire);
        if next == 0 {
            if self
                .tail
                .compare_exchange(me, 0, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
            {
                return;
            }
            // A successor has taken its place and is about to say so.
            loop {
                next = self.node.next.load(Ordering::Acquire);
                if next != 0 {
                    break;
                }
                pause();
            }
        }
        if let Some(successor) = node_at(self.nodes, next) {
            successor.granted.store(GRANTED, Ordering::Release);
        }
    }
}

impl<A: Annotate> Drop for QueueGuard<'_, A> {
    fn drop(&mut self) {
        self.unlock();
        self.vcpu.leave_non_preemptable();
    }
}
