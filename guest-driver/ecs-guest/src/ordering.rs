//! Small programs under the model checker, interleaving by interleaving: what an observer on the host may
//! see of a vCPU that owns a lock, and what it may not.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use ecs_abi::{VIRTIO_ECS_WAIT_NONE, VIRTIO_ECS_WAIT_SPIN, VIRTIO_ECS_YIELD_RELEASE};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use std::vec::Vec;

use crate::*;

struct NoBell;
impl Doorbell for NoBell {
    fn ring(&self) {}
}

struct Bell(Arc<AtomicU32>);
impl Doorbell for Bell {
    fn ring(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
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

/// Runs a program in every interleaving with up to `switches` forced switches between threads, beside
/// those where a thread waits; without a bound the larger programs take hours.
fn model(switches: usize, program: impl Fn() + Sync + Send + 'static) {
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

fn check<L: Send + Sync + 'static>(
    make: impl Fn() -> L + Sync + Send + 'static,
    body: fn(&World<L>, u32),
) {
    model(1, move || {
        let world = World::new(make(), 2);
        let other = Arc::clone(&world);
        let other = thread::spawn(move || body(&other, 1));
        let observer = observe_last(&world, |world| world.observe(0));
        body(&world, 0);
        other.join().unwrap();
        observer.join().unwrap();
        assert_eq!(
            world.protected.load(Ordering::Relaxed),
            2,
            "mutual exclusion"
        );
        for lines in &world.lines {
            assert_eq!(lines.guest.np_count.load(Ordering::Relaxed), 0);
            assert_eq!(lines.guest.p_count.load(Ordering::Relaxed), 0);
            assert_eq!(
                lines.guest.waiting.load(Ordering::Relaxed),
                VIRTIO_ECS_WAIT_NONE
            );
        }
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
    model(1, || {
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

/// The strict form, from the lock's own words: from the very instruction that takes a free lock to
/// the one that releases it. There is one vCPU, which takes the lock once.
fn check_strictly<L: Send + Sync + 'static>(
    make: fn() -> L,
    is_locked: fn(&L) -> bool,
    take: fn(&L, &TestVcpu<'_>),
) {
    model(3, move || {
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
fn hand_back_rings_once_after_the_last_section_and_never_inside() {
    model(3, || {
        let rings = Arc::new(AtomicU32::new(0));
        let lines = [VcpuLines::default()];
        lines[0]
            .host
            .r#yield
            .store(VIRTIO_ECS_YIELD_RELEASE, Ordering::Relaxed);
        let vcpu = Vcpu::new(0, &lines, Bell(Arc::clone(&rings)), OffsetMap(0), 1).unwrap();
        vcpu.activate_preemptable_ecs();
        vcpu.activate_non_preemptable_ecs();
        vcpu.deactivate_non_preemptable_ecs();
        assert_eq!(rings.load(Ordering::Relaxed), 0);
        vcpu.deactivate_preemptable_ecs();
        assert_eq!(rings.load(Ordering::Relaxed), 1);
        assert_eq!(lines[0].guest.handback.load(Ordering::Relaxed), 1);
    });
}
