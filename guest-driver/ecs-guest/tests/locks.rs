//! The calls, waits and locks as a guest uses them, on real threads.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::thread;

use ecs_abi::*;
use ecs_guest::*;

#[derive(Default)]
struct Bell(AtomicU32);

impl Doorbell for Bell {
    fn ring(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Bell {
    fn rings(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Sleeping and waking with a condition variable, so that a lost wake-up hangs the test.
#[derive(Default)]
struct Sleepers {
    mutex: Mutex<()>,
    condvar: Condvar,
}

impl Halt for Sleepers {
    fn halt(&self, word: &AtomicU32, expected: u32) {
        let guard = self.mutex.lock().unwrap();
        if word.load(Ordering::SeqCst) == expected {
            drop(self.condvar.wait(guard).unwrap());
        }
    }
    fn wake(&self, _: &AtomicU32, nr: u32) {
        let _guard = self.mutex.lock().unwrap();
        for _ in 0..nr {
            self.condvar.notify_one();
        }
    }
}

fn lines(nr: usize) -> Vec<VcpuLines> {
    (0..nr).map(|_| VcpuLines::default()).collect()
}

fn vcpu<'a>(number: u32, lines: &'a [VcpuLines], bell: &'a Bell) -> Vcpu<'a, &'a Bell, OffsetMap> {
    Vcpu::new(number, lines, bell, OffsetMap(0), 10).unwrap()
}

/// Two vCPUs take a lock `ROUNDS` times each around a counter that is not atomic as a whole.
fn exclusion(lock: impl Fn(&dyn Fn(), u32, &[VcpuLines]) + Sync) {
    const ROUNDS: u64 = 2_000;
    let lines = lines(2);
    let counter = AtomicU64::new(0);
    thread::scope(|scope| {
        for number in 0..2 {
            let (lines, counter, lock) = (&lines, &counter, &lock);
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    lock(
                        &|| {
                            let line = &lines[number as usize].guest;
                            let open = line.np_count.load(Ordering::Relaxed)
                                + line.p_count.load(Ordering::Relaxed);
                            assert!(open <= 1);
                            let seen = counter.load(Ordering::Relaxed);
                            std::hint::spin_loop();
                            counter.store(seen + 1, Ordering::Relaxed);
                        },
                        number,
                        lines,
                    );
                }
            });
        }
    });
    assert_eq!(counter.load(Ordering::Relaxed), 2 * ROUNDS);
    for line in &lines {
        assert_eq!(line.guest.np_count.load(Ordering::Relaxed), 0);
        assert_eq!(line.guest.p_count.load(Ordering::Relaxed), 0);
        assert_eq!(
            line.guest.waiting.load(Ordering::Relaxed),
            VIRTIO_ECS_WAIT_NONE
        );
    }
}

#[test]
fn ticket_lock_excludes_with_and_without_annotation() {
    let (lock, bell) = (TicketLock::default(), Bell::default());
    exclusion(|section, number, lines| {
        let vcpu = vcpu(number, lines, &bell);
        let _guard = lock.lock(&vcpu);
        section();
    });
    exclusion(|section, number, _| {
        let vcpu = Unannotated {
            number,
            polls: false,
        };
        let _guard = lock.lock(&vcpu);
        section();
    });
}

#[test]
fn queue_lock_excludes() {
    let (lock, bell) = (QueueLock::<2>::default(), Bell::default());
    exclusion(|section, number, lines| {
        let vcpu = vcpu(number, lines, &bell);
        let _guard = lock.lock(&vcpu).unwrap();
        section();
    });
    assert!(
        lock.lock(&Unannotated {
            number: 2,
            polls: false
        })
        .is_none(),
        "a vCPU without a node"
    );
    assert!(
        lock.lock(&Unannotated {
            number: u32::MAX,
            polls: false
        })
        .is_none()
    );
}

#[test]
fn writers_exclude() {
    let (lock, bell) = (RwSpinLock::default(), Bell::default());
    exclusion(|section, number, lines| {
        let vcpu = vcpu(number, lines, &bell);
        let _guard = lock.write(&vcpu);
        section();
        drop(_guard);
        drop(lock.read(&vcpu));
    });
}

#[test]
fn readers_share() {
    let (lines, bell, lock) = (lines(2), Bell::default(), RwSpinLock::default());
    let (first, second) = (vcpu(0, &lines, &bell), vcpu(1, &lines, &bell));
    let held = lock.read(&first);
    let also = lock.read(&second);
    assert!(!held.waited() && !also.waited());
    assert_eq!(lines[1].guest.np_count.load(Ordering::Relaxed), 1);
}

#[test]
fn blocking_mutex_excludes_and_loses_no_wake_up() {
    let (lock, bell, sleepers) = (
        BlockingMutex::default(),
        Bell::default(),
        Sleepers::default(),
    );
    exclusion(|section, number, lines| {
        let vcpu = vcpu(number, lines, &bell);
        let _guard = lock.lock(&vcpu, &sleepers);
        section();
    });
}

#[test]
fn blocking_mutex_spins_first_where_the_host_says_that_it_pays() {
    let (lock, bell, sleepers) = (
        BlockingMutex::default(),
        Bell::default(),
        Sleepers::default(),
    );
    exclusion(|section, number, lines| {
        lines[number as usize]
            .host
            .heartbeat
            .store(1, Ordering::Relaxed);
        let vcpu = vcpu(number, lines, &bell);
        let _guard = lock.lock(&vcpu, &sleepers);
        section();
    });
    let lines = lines(2);
    let vcpu = vcpu(1, &lines, &bell);
    let spin = Spin::default();
    assert!(!vcpu.keep_spinning(&spin, 1), "no host, no hints");
    lines[1].host.heartbeat.store(1, Ordering::Relaxed);
    assert!(vcpu.keep_spinning(&spin, 1) && vcpu.keep_spinning(&spin, 0));
    lines[0].host.preempted.store(1, Ordering::Relaxed);
    assert!(!vcpu.keep_spinning(&spin, 1), "the holder is off the CPU");
    lines[1].host.overloaded.store(1, Ordering::Relaxed);
    assert!(
        !vcpu.keep_spinning(&spin, 0),
        "somebody else wants the pCPU"
    );
    lines[1].host.overloaded.store(0, Ordering::Relaxed);
    let mut long = Spin::default();
    while vcpu.keep_spinning(&long, 0) {
        vcpu.spin(&mut long);
    }
}

#[test]
fn counts_saturate_at_both_ends() {
    let (lines, bell) = (lines(1), Bell::default());
    let vcpu = vcpu(0, &lines, &bell);
    vcpu.deactivate_non_preemptable_ecs();
    vcpu.deactivate_preemptable_ecs();
    let line = &lines[0].guest;
    assert_eq!(line.np_count.load(Ordering::Relaxed), 0);
    assert_eq!(line.p_count.load(Ordering::Relaxed), 0);
    line.np_count.store(u32::MAX, Ordering::Relaxed);
    vcpu.activate_non_preemptable_ecs();
    assert_eq!(line.np_count.load(Ordering::Relaxed), u32::MAX);
}

#[test]
fn counts_are_a_depth_and_follow_the_task() {
    let (lines, bell) = (lines(1), Bell::default());
    let vcpu = vcpu(0, &lines, &bell);
    vcpu.activate_preemptable_ecs();
    vcpu.activate_preemptable_ecs();
    vcpu.deactivate_preemptable_ecs();
    let count = || lines[0].guest.p_count.load(Ordering::Relaxed);
    assert_eq!(count(), 1, "a nested unlock leaves the outer section open");
    let asleep = vcpu.switch_task(0);
    assert_eq!((asleep, count()), (1, 0));
    assert_eq!(vcpu.switch_task(asleep), 0);
    assert_eq!(count(), 1);
}

#[test]
fn a_waiter_describes_the_wait_and_hands_back_when_hopeless() {
    let (lines, bell, lock) = (lines(2), Bell::default(), TicketLock::default());
    lines[1]
        .host
        .r#yield
        .store(VIRTIO_ECS_YIELD_HOPELESS, Ordering::Relaxed);
    let holder = vcpu(0, &lines, &bell);
    let guard = lock.lock(&holder);
    thread::scope(|scope| {
        let (waiter_lines, waiter_bell, lock) = (&lines, &bell, &lock);
        let waiter = scope.spawn(move || {
            let vcpu = vcpu(1, waiter_lines, waiter_bell);
            lock.lock(&vcpu).waited()
        });
        let line = &lines[1].guest;
        while line.waiting.load(Ordering::Acquire) != VIRTIO_ECS_WAIT_SPIN || bell.rings() < 2 {
            thread::yield_now();
        }
        assert_eq!(line.wait_mask.load(Ordering::Relaxed), u64::from(u32::MAX));
        assert_eq!(
            line.wait_value.load(Ordering::Relaxed),
            1,
            "the second ticket"
        );
        assert_eq!(
            line.wait_holder.load(Ordering::Relaxed),
            1,
            "vCPU 0, plus one"
        );
        assert_eq!(line.wait_width.load(Ordering::Relaxed), VIRTIO_ECS_WIDTH_32);
        let owner_word = line.wait_addr.load(Ordering::Relaxed);
        let start = std::ptr::from_ref(lock).addr() as u64;
        assert!((start..start + size_of::<TicketLock>() as u64).contains(&owner_word));
        assert_eq!(
            line.np_count.load(Ordering::Relaxed),
            0,
            "a waiter holds nothing"
        );
        drop(guard);
        assert!(waiter.join().unwrap());
    });
}

#[test]
fn a_waiter_rings_before_it_halts_if_the_host_asks() {
    let (lines, bell) = (lines(1), Bell::default());
    let vcpu = vcpu(0, &lines, &bell);
    let word = AtomicU32::new(1);
    let outer = vcpu.wait_enter();
    let halt = || {
        vcpu.wait_retry();
        vcpu.wait_block(&WaitFor {
            word: &word,
            mask: u32::MAX,
            value: 0,
            holder: 2,
        });
    };
    let line = &lines[0];
    for other in [0, VIRTIO_ECS_YIELD_RELEASE, VIRTIO_ECS_YIELD_HOPELESS] {
        line.host.r#yield.store(other, Ordering::Relaxed);
        halt();
        assert_eq!(bell.rings(), 0, "not asked for: {other}");
    }
    line.host
        .r#yield
        .store(VIRTIO_ECS_YIELD_BLOCK, Ordering::Relaxed);
    halt();
    assert_eq!(bell.rings(), 1);
    assert_eq!(line.guest.handback.load(Ordering::Relaxed), 1);
    assert_eq!(
        line.guest.waiting.load(Ordering::Relaxed),
        VIRTIO_ECS_WAIT_BLOCK,
        "described before the bell rings: the host looks at once"
    );
    vcpu.wait_end(outer);
}

#[test]
fn an_interrupt_that_takes_a_lock_leaves_the_outer_wait_as_it_was() {
    let (lines, bell, lock) = (lines(1), Bell::default(), TicketLock::default());
    let vcpu = vcpu(0, &lines, &bell);
    let word = AtomicU32::new(0);
    let outer = vcpu.wait_enter();
    vcpu.wait_spin(&WaitFor {
        word: &word,
        mask: 0xff,
        value: 7,
        holder: 3,
    });
    drop(lock.lock(&vcpu));
    let line = &lines[0].guest;
    assert_eq!(line.waiting.load(Ordering::Relaxed), VIRTIO_ECS_WAIT_SPIN);
    assert_eq!(line.wait_mask.load(Ordering::Relaxed), 0xff);
    assert_eq!(line.wait_value.load(Ordering::Relaxed), 7);
    assert_eq!(line.wait_holder.load(Ordering::Relaxed), 3);
    vcpu.wait_end(outer);
    assert_eq!(line.waiting.load(Ordering::Relaxed), VIRTIO_ECS_WAIT_NONE);
}

#[test]
fn a_dead_host_stops_being_rung() {
    let (lines, bell) = (lines(1), Bell::default());
    lines[0]
        .host
        .r#yield
        .store(VIRTIO_ECS_YIELD_RELEASE, Ordering::Relaxed);
    lines[0].host.heartbeat.store(1, Ordering::Relaxed);
    let vcpu = vcpu(0, &lines, &bell);
    let sections = |nr| {
        for _ in 0..nr {
            vcpu.activate_non_preemptable_ecs();
            vcpu.deactivate_non_preemptable_ecs();
        }
    };
    sections(30_000);
    assert_eq!(bell.rings(), 10_000);
    lines[0].host.heartbeat.store(2, Ordering::Relaxed);
    sections(5);
    assert_eq!(bell.rings(), 10_005);
}

thread_local! {
    static NOW_US: Cell<u64> = const { Cell::new(0) };
}

#[test]
fn hints_of_a_host_that_is_gone_are_trusted_for_100_ms() {
    let (lines, bell, spin) = (lines(1), Bell::default(), Spin::default());
    let vcpu = vcpu(0, &lines, &bell).with_clock(Clock {
        ticks: || NOW_US.get(),
        per_us: 1,
    });
    let at = |now_us: u64, beat: u32| {
        NOW_US.set(now_us);
        lines[0].host.heartbeat.store(beat, Ordering::Relaxed);
        vcpu.keep_spinning(&spin, 0)
    };
    assert!(!at(1_000_000, 7), "nobody knows how old the first beat is");
    assert!(!at(1_010_000, 7));
    assert!(at(1_050_000, 8), "written after the look before");
    assert!(at(1_109_999, 8));
    assert!(!at(1_110_000, 8), "100 ms after that look");
    assert!(
        !at(2_000_000, 9),
        "a beat of some time within the last second"
    );
    assert!(at(2_040_000, 10) && at(2_130_000, 11) && at(2_220_000, 12));
}

#[test]
fn waiters_do_what_they_are_told_and_say_what_came_of_it() {
    let (lines, bell, sleepers) = (lines(2), Bell::default(), Sleepers::default());
    lines[0].host.heartbeat.store(1, Ordering::Relaxed);
    lines[0].host.overloaded.store(1, Ordering::Relaxed);
    let spin = Spin::default();
    let wise = vcpu(0, &lines, &bell);
    assert!(!wise.keep_spinning(&spin, 0));
    let polls = vcpu(0, &lines, &bell).with_waiters(Waiters::Poll);
    assert!(polls.keep_spinning(&spin, 0), "whoever wants the pCPU");
    lines[0].host.overloaded.store(0, Ordering::Relaxed);
    let halts = vcpu(0, &lines, &bell).with_waiters(Waiters::Halt);
    assert!(!halts.keep_spinning(&spin, 0), "although nobody does");

    // The lock is not released before its waiter has spun for longer than it may.
    let lock = BlockingMutex::default();
    let other = vcpu(1, &lines, &bell);
    let held = lock.lock(&other, &sleepers);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let vcpu = vcpu(0, &lines, &bell);
            drop(lock.lock(&vcpu, &sleepers));
        });
        let wasted = &lines[0].guest.polls_wasted;
        while wasted.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        drop(held);
    });
    let said = |word: &AtomicU32| word.load(Ordering::Relaxed);
    let line = &lines[0].guest;
    assert_eq!((said(&line.polls_paid), said(&line.polls_wasted)), (0, 1));
    assert!(said(&line.poll_us) >= 99, "{} us", said(&line.poll_us));
}

#[test]
fn host_hints_are_read_per_vcpu_and_unknown_vcpus_have_none() {
    let (lines, bell) = (lines(2), Bell::default());
    lines[1].host.preempted.store(1, Ordering::Relaxed);
    lines[1].host.overloaded.store(1, Ordering::Relaxed);
    let vcpu = vcpu(0, &lines, &bell);
    assert!(vcpu.is_vcpu_preempted(1) && vcpu.is_pcpu_overloaded(1));
    assert!(!vcpu.is_vcpu_preempted(0) && !vcpu.is_pcpu_overloaded(0));
    assert!(!vcpu.is_vcpu_preempted(2) && !vcpu.is_pcpu_overloaded(u32::MAX));
    assert!(Vcpu::new(2, &lines, &bell, OffsetMap(0), 10).is_none());
}
