//! Small programs under the model checker: what an observer on the host may see of a vCPU that owns a
//! lock, and what it may not.
//!
//! | programs | locks | interleavings |
//! |---|---|---|
//! | one vCPU and the host | all, taken, tried, upgraded, downgraded; waits; hand-back | every one |
//! | two vCPUs and the host | all, taken | every one with 1 forced switch |
//! | two vCPUs | all tried; upgrades, downgrades | every one with up to 3 forced switches |
//! | three vCPUs, asleep | the mutex: no wake-up is lost | every one with up to 2 forced switches |
//!
//! Switches where a thread waits are not counted.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use ecs_abi::{VIRTIO_ECS_WAIT_NONE, VIRTIO_ECS_WAIT_SPIN};
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use std::vec::Vec;

use crate::*;

mod line;

#[derive(Debug)]
struct NoBell;
impl Doorbell for NoBell {
    fn ring(&self) {}
}

/// Sleeping as the checker knows it: look again later.
struct Yield;
impl Halt for Yield {
    fn halt(&self, word: &AtomicU32, expected: u32) {
        if word.load(Ordering::Acquire) == expected {
            thread::yield_now();
        }
    }
    fn wake(&self, _: &AtomicU32, _: u32) {}
}

const IN: u32 = 1;
const OUT: u32 = 2;

struct World<L> {
    lock: L,
    lines: Vec<VcpuLines>,
    /// What each vCPU does according to itself: 0 before, IN while it owns the lock, OUT after.
    ghosts: Vec<AtomicU32>,
    protected: AtomicU32,
}

type TestVcpu<'a> = Vcpu<'a, NoBell, OffsetMap>;

impl<L> World<L> {
    fn new(lock: L, vcpus: usize) -> Arc<Self> {
        Arc::new(Self {
            lock,
            lines: (0..vcpus).map(|_| VcpuLines::default()).collect(),
            ghosts: (0..vcpus).map(|_| AtomicU32::new(0)).collect(),
            protected: AtomicU32::new(0),
        })
    }

    fn vcpu(&self, number: u32) -> TestVcpu<'_> {
        Vcpu::new(number, &self.lines, NoBell, OffsetMap(0), 1).unwrap()
    }

    /// The inside of the critical section of vCPU `number`.
    fn section(&self, number: u32) {
        let ghost = &self.ghosts[number as usize];
        ghost.store(IN, Ordering::Release);
        let seen = self.protected.load(Ordering::Relaxed);
        self.protected.store(seen + 1, Ordering::Relaxed);
        ghost.store(OUT, Ordering::Relaxed);
    }

    /// After all sections: each counted, and all lines at rest.
    fn judge(&self) {
        let done = |ghost: &&AtomicU32| ghost.load(Ordering::Relaxed) == OUT;
        let sections = self.ghosts.iter().filter(done).count();
        let counted = self.protected.load(Ordering::Relaxed) as usize;
        assert_eq!(counted, sections, "mutual exclusion");
        for VcpuLines { guest, .. } in &self.lines {
            assert_eq!(guest.np_count.load(Ordering::Relaxed), 0);
            assert_eq!(guest.p_count.load(Ordering::Relaxed), 0);
            let waiting = guest.waiting.load(Ordering::Relaxed);
            assert_eq!(waiting, VIRTIO_ECS_WAIT_NONE);
        }
    }

    /// Reads the line as the host does, `waiting` first, and judges it.
    fn observe(&self, number: usize) {
        let before = self.ghosts[number].load(Ordering::Acquire);
        let line = &self.lines[number].guest;
        let waiting = line.waiting.load(Ordering::Acquire);
        if waiting == VIRTIO_ECS_WAIT_SPIN {
            assert_ne!(
                line.wait_mask.load(Ordering::Acquire),
                0,
                "descriptor after SPIN"
            );
        }
        let counts = line.np_count.load(Ordering::Acquire) + line.p_count.load(Ordering::Acquire);
        let after = self.ghosts[number].load(Ordering::Acquire);
        if before == IN && after == IN {
            assert!(
                counts > 0 || waiting != VIRTIO_ECS_WAIT_NONE,
                "vCPU {number} owns the lock and shows nothing"
            );
        }
    }
}

/// Runs a program of two threads in every interleaving.
fn model(program: impl Fn() + Sync + Send + 'static) {
    loom::model::Builder::new().check(program);
}

/// Runs a larger program in every interleaving with up to `switches` forced switches between threads,
/// beside those where a thread waits; without a bound it would take hours.
fn model_within(switches: usize, program: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(switches);
    builder.check(program);
}

/// Starts the observer. It must not run before what it observes in the checker's first execution: of
/// the loads before a compare-and-swap the checker remembers the last one only, and would miss that
/// the observer's and the lock's own conflict with it.
fn observe_last<L: Send + Sync + 'static>(
    world: &Arc<World<L>>,
    observe: impl FnOnce(&World<L>) + Send + 'static,
) -> thread::JoinHandle<()> {
    let world = Arc::clone(world);
    thread::spawn(move || observe(&world))
}

/// Two vCPUs run `body` once each, and the observer looks at the first of them once.
fn check<L: Send + Sync + 'static>(
    make: impl Fn() -> L + Sync + Send + 'static,
    body: fn(&World<L>, u32),
) {
    model_within(1, move || {
        let world = World::new(make(), 2);
        let other = Arc::clone(&world);
        let other = thread::spawn(move || body(&other, 1));
        let observer = observe_last(&world, |world| world.observe(0));
        body(&world, 0);
        other.join().unwrap();
        observer.join().unwrap();
        world.judge();
    });
}

/// The same with more switches, and nobody who looks.
fn check_exclusion<L: Send + Sync + 'static>(
    make: impl Fn() -> L + Sync + Send + 'static,
    body: fn(&World<L>, u32),
) {
    model_within(3, move || {
        let world = World::new(make(), 2);
        let other = Arc::clone(&world);
        let other = thread::spawn(move || body(&other, 1));
        body(&world, 0);
        other.join().unwrap();
        world.judge();
    });
}

#[test]
fn ticket_owner_is_never_unseen() {
    check(TicketLock::default, |world, number| {
        let vcpu = world.vcpu(number);
        let guard = world.lock.lock(&vcpu);
        world.section(number);
        drop(guard);
    });
}

#[test]
fn queue_owner_is_never_unseen() {
    check(QueueLock::<2>::default, |world, number| {
        let vcpu = world.vcpu(number);
        let guard = world.lock.lock(&vcpu).unwrap();
        world.section(number);
        drop(guard);
    });
}

#[test]
fn writer_is_never_unseen() {
    check(RwSpinLock::default, |world, number| {
        let vcpu = world.vcpu(number);
        let guard = world.lock.write(&vcpu);
        world.section(number);
        drop(guard);
    });
}

#[test]
fn reader_is_never_unseen_and_keeps_the_writer_out() {
    model_within(1, || {
        let world = World::new(RwSpinLock::default(), 2);
        let writer = Arc::clone(&world);
        let writer = thread::spawn(move || {
            let vcpu = writer.vcpu(1);
            let guard = writer.lock.write(&vcpu);
            writer.section(1);
            drop(guard);
        });
        let observer = observe_last(&world, |world| world.observe(0));
        let vcpu = world.vcpu(0);
        let guard = world.lock.read(&vcpu);
        world.ghosts[0].store(IN, Ordering::Release);
        let first = world.protected.load(Ordering::Relaxed);
        let second = world.protected.load(Ordering::Relaxed);
        assert_eq!(first, second, "a writer was let in");
        world.ghosts[0].store(OUT, Ordering::Relaxed);
        drop(guard);
        writer.join().unwrap();
        observer.join().unwrap();
    });
}

#[test]
fn mutex_owner_is_never_unseen() {
    check(BlockingMutex::default, |world, number| {
        let vcpu = world.vcpu(number);
        let guard = world.lock.lock(&vcpu, &Yield);
        world.section(number);
        drop(guard);
    });
}

#[test]
fn a_tried_ticket_is_a_lock() {
    check_exclusion(TicketLock::default, |world, number| {
        let vcpu = world.vcpu(number);
        if let Some(_guard) = world.lock.try_lock(&vcpu) {
            world.section(number);
        }
    });
}

#[test]
fn a_tried_queue_is_a_lock() {
    check_exclusion(QueueLock::<2>::default, |world, number| {
        let vcpu = world.vcpu(number);
        // One tries, the other one takes its place behind it.
        let guard = if number == 0 {
            world.lock.try_lock(&vcpu)
        } else {
            world.lock.lock(&vcpu)
        };
        if let Some(_guard) = guard {
            world.section(number);
            assert!(world.lock.try_lock(&vcpu).is_none());
        }
    });
}

#[test]
fn a_tried_mutex_is_a_lock() {
    check_exclusion(BlockingMutex::default, |world, number| {
        let vcpu = world.vcpu(number);
        if let Some(_guard) = world.lock.try_lock(&vcpu, &Yield) {
            world.section(number);
        }
    });
}

#[test]
fn a_tried_writer_is_alone() {
    check_exclusion(RwSpinLock::default, |world, number| {
        let vcpu = world.vcpu(number);
        if let Some(_guard) = world.lock.try_write(&vcpu) {
            world.section(number);
        }
    });
}

#[test]
fn nobody_writes_between_reading_and_upgrading() {
    check_exclusion(RwSpinLock::default, |world, number| {
        let vcpu = world.vcpu(number);
        let guard = if number == 0 {
            let reader = world.lock.upgradable(&vcpu);
            let seen = world.protected.load(Ordering::Relaxed);
            let writer = reader.upgrade();
            assert_eq!(
                world.protected.load(Ordering::Relaxed),
                seen,
                "a writer was let in"
            );
            writer
        } else {
            world.lock.write(&vcpu)
        };
        world.section(number);
        drop(guard);
    });
}

#[test]
fn nobody_writes_between_downgrading_and_leaving() {
    check_exclusion(RwSpinLock::default, |world, number| {
        let vcpu = world.vcpu(number);
        let writer = world.lock.write(&vcpu);
        world.section(number);
        if number == 0 {
            let seen = world.protected.load(Ordering::Relaxed);
            let reader = writer.downgrade();
            assert_eq!(
                world.protected.load(Ordering::Relaxed),
                seen,
                "a writer was let in"
            );
            drop(reader);
        }
    });
}

#[test]
fn readers_let_in_by_downgrading_see_what_was_written() {
    model_within(3, || {
        let world = World::new(RwSpinLock::default(), 2);
        let vcpu = world.vcpu(0);
        let writer = world.lock.write(&vcpu);
        let other = Arc::clone(&world);
        let other = thread::spawn(move || {
            let vcpu = other.vcpu(1);
            let _guard = other.lock.read(&vcpu);
            assert_eq!(other.protected.load(Ordering::Relaxed), 1);
        });
        world.protected.store(1, Ordering::Relaxed);
        let reader = writer.downgrade();
        other.join().unwrap();
        drop(reader);
    });
}

/// Sleeping for real: a lost wake-up is a deadlock, which the checker reports.
#[derive(Default)]
struct Sleepers {
    mutex: Mutex<()>,
    condvar: Condvar,
}

impl Halt for Sleepers {
    fn halt(&self, word: &AtomicU32, expected: u32) {
        let guard = self.mutex.lock().unwrap();
        if word.load(Ordering::Acquire) == expected {
            drop(self.condvar.wait(guard).unwrap());
        }
    }
    fn wake(&self, _: &AtomicU32, _: u32) {
        let _guard = self.mutex.lock().unwrap();
        self.condvar.notify_one();
    }
}

#[test]
fn mutex_loses_no_wake_up() {
    model_within(2, || {
        let world = World::new((BlockingMutex::default(), Sleepers::default()), 3);
        let body = |world: &World<(BlockingMutex, Sleepers)>, number| {
            let vcpu = world.vcpu(number);
            let _guard = world.lock.0.lock(&vcpu, &world.lock.1);
            world.section(number);
        };
        let others: Vec<_> = [1, 2]
            .into_iter()
            .map(|number| {
                let world = Arc::clone(&world);
                thread::spawn(move || body(&world, number))
            })
            .collect();
        body(&world, 0);
        for other in others {
            other.join().unwrap();
        }
        world.judge();
    });
}

/// The strict form, from the lock's own words: from the very instruction that takes a free lock to
/// the one that releases it. There is one vCPU, which takes the lock once.
fn check_strictly<L: Send + Sync + 'static>(
    make: fn() -> L,
    is_locked: fn(&L) -> bool,
    take: fn(&L, &TestVcpu<'_>),
) {
    model(move || {
        let world = World::new(make(), 1);
        let observer = observe_last(&world, move |world| {
            let before = is_locked(&world.lock);
            let line = &world.lines[0].guest;
            let waiting = line.waiting.load(Ordering::Acquire);
            let counts =
                line.np_count.load(Ordering::Acquire) + line.p_count.load(Ordering::Acquire);
            if before && is_locked(&world.lock) {
                let shown = counts > 0 || waiting != VIRTIO_ECS_WAIT_NONE;
                assert!(shown, "owns the lock, shows nothing");
            }
        });
        take(&world.lock, &world.vcpu(0));
        observer.join().unwrap();
    });
}

#[test]
fn ticket_shows_from_first_to_last() {
    check_strictly(TicketLock::default, TicketLock::is_locked, |lock, vcpu| {
        drop(lock.lock(vcpu));
    });
}

#[test]
fn queue_shows_from_first_to_last() {
    check_strictly(
        QueueLock::<1>::default,
        QueueLock::is_locked,
        |lock, vcpu| {
            drop(lock.lock(vcpu));
        },
    );
}

#[test]
fn writer_shows_from_first_to_last() {
    check_strictly(RwSpinLock::default, RwSpinLock::is_locked, |lock, vcpu| {
        drop(lock.write(vcpu));
    });
}

#[test]
fn reader_shows_from_first_to_last() {
    check_strictly(RwSpinLock::default, RwSpinLock::is_locked, |lock, vcpu| {
        drop(lock.read(vcpu));
    });
}

#[test]
fn mutex_shows_from_first_to_last() {
    check_strictly(
        BlockingMutex::default,
        BlockingMutex::is_locked,
        |lock, vcpu| {
            drop(lock.lock(vcpu, &Yield));
        },
    );
}

#[test]
fn tried_locks_show_from_first_to_last() {
    check_strictly(TicketLock::default, TicketLock::is_locked, |lock, vcpu| {
        drop(lock.try_lock(vcpu));
    });
    check_strictly(
        QueueLock::<1>::default,
        QueueLock::is_locked,
        |lock, vcpu| {
            drop(lock.try_lock(vcpu));
        },
    );
    check_strictly(
        BlockingMutex::default,
        BlockingMutex::is_locked,
        |lock, vcpu| {
            drop(lock.try_lock(vcpu, &Yield));
        },
    );
    check_strictly(RwSpinLock::default, RwSpinLock::is_locked, |lock, vcpu| {
        drop(lock.try_write(vcpu));
    });
    check_strictly(RwSpinLock::default, RwSpinLock::is_locked, |lock, vcpu| {
        drop(lock.try_read(vcpu));
    });
}

#[test]
fn downgrading_shows_from_first_to_last() {
    check_strictly(RwSpinLock::default, RwSpinLock::is_locked, |lock, vcpu| {
        drop(lock.write(vcpu).downgrade());
    });
}

#[test]
fn upgrading_shows_from_first_to_last() {
    check_strictly(RwSpinLock::default, RwSpinLock::is_locked, |lock, vcpu| {
        drop(lock.upgradable(vcpu).upgrade());
    });
}
