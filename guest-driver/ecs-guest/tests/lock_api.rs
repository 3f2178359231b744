//! The locks behind the interface of `lock_api`, on real threads: each thread is a vCPU.
#![expect(
    unsafe_code,
    reason = "the test promises that its threads have numbers of their own"
)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::cell::OnceCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, LazyLock, Mutex};
use std::thread;

use ecs_abi::VIRTIO_ECS_WAIT_NONE;
use ecs_guest::*;
use lock_api::{RawMutex, RwLockUpgradableReadGuard, RwLockWriteGuard};

const VCPUS: usize = 64;
static LINES: LazyLock<[VcpuLines; VCPUS]> =
    LazyLock::new(|| std::array::from_fn(|_| VcpuLines::default()));

struct NoBell;
impl Doorbell for NoBell {
    fn ring(&self) {}
}

type ThisVcpu = Vcpu<'static, NoBell, OffsetMap>;

/// Threads are vCPUs, numbered as they come.
struct Threads;

thread_local! {
    static VCPU: OnceCell<ThisVcpu> = const { OnceCell::new() };
}

impl CurrentVcpu for Threads {
    type Vcpu = ThisVcpu;
    fn with<R>(call: impl FnOnce(&ThisVcpu) -> R) -> R {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        VCPU.with(|vcpu| {
            call(vcpu.get_or_init(|| {
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                Vcpu::new(number, &*LINES, NoBell, OffsetMap(0), 10).unwrap()
            }))
        })
    }
}

// SAFETY: a thread keeps its number, no other thread ever has it, and there are no signal handlers.
unsafe impl DistinctVcpus for Threads {}

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
    fn wake(&self, _: &AtomicU32, _: u32) {
        let _guard = self.mutex.lock().unwrap();
        self.condvar.notify_all();
    }
}

impl CurrentHalt for Threads {
    type Halt = Sleepers;
    fn halt() -> &'static Sleepers {
        static SLEEPERS: LazyLock<Sleepers> = LazyLock::new(Sleepers::default);
        &SLEEPERS
    }
}

/// What this thread's vCPU shows: non-preemptable and preemptable sections, and its wait.
fn shown() -> (u32, u32, u32) {
    Threads::with(|vcpu| {
        let line = &LINES[vcpu.number() as usize].guest;
        let [np_count, p_count, waiting] =
            [&line.np_count, &line.p_count, &line.waiting].map(|word| word.load(Ordering::Relaxed));
        (np_count, p_count, waiting)
    })
}

const NOTHING: (u32, u32, u32) = (0, 0, VIRTIO_ECS_WAIT_NONE);
const NON_PREEMPTABLE: (u32, u32, u32) = (1, 0, VIRTIO_ECS_WAIT_NONE);
const PREEMPTABLE: (u32, u32, u32) = (0, 1, VIRTIO_ECS_WAIT_NONE);

/// A mutex excludes and counts, whichever way it is taken and left.
fn check<R: RawMutex + Sync>(held: (u32, u32, u32)) {
    const THREADS: u64 = 3;
    const ROUNDS: u64 = 1_000;
    let mutex = lock_api::Mutex::<R, u64>::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    let tried = (round % 2 == 0).then(|| mutex.try_lock()).flatten();
                    if tried.is_none() {
                        assert_eq!(shown(), NOTHING, "a try that fails counts nothing");
                    }
                    let mut guard = tried.unwrap_or_else(|| mutex.lock());
                    assert_eq!(shown(), held);
                    *guard += 1;
                    drop(guard);
                    assert_eq!(shown(), NOTHING);
                }
            });
        }
    });
    assert!(!mutex.is_locked());

    let guard = mutex.lock();
    assert!(mutex.is_locked());
    thread::scope(|scope| {
        scope.spawn(|| {
            assert!(mutex.try_lock().is_none());
            assert_eq!(shown(), NOTHING, "a try that fails counts nothing");
        });
    });
    assert!(mutex.try_lock().is_none(), "not by its holder either");
    assert_eq!(shown(), held);
    drop(guard);

    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _guard = mutex.lock();
        assert_eq!(shown(), held);
        std::panic::resume_unwind(Box::new("inside the section"));
    }));
    assert!(panicked.is_err());
    assert_eq!(shown(), NOTHING, "unwinding leaves the section");
    assert_eq!(*mutex.try_lock().unwrap(), THREADS * ROUNDS);
}

#[test]
fn a_mutex_counts_while_it_is_held() {
    check::<RawEcsMutex<TicketLock, Threads>>(NON_PREEMPTABLE);
}

#[test]
fn a_queue_mutex_counts_while_it_is_held() {
    check::<RawEcsMutex<QueueLock<VCPUS>, Threads>>(NON_PREEMPTABLE);
}

#[test]
fn a_blocking_mutex_counts_while_it_is_held() {
    check::<RawEcsMutex<BlockingMutex, Threads>>(PREEMPTABLE);
}

#[test]
fn a_writer_excludes_like_a_mutex() {
    static SUM: EcsRwLock<Threads, (u64, u64)> = EcsRwLock::new((0, 0));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..1_000 {
                    let mut sum = SUM.write();
                    assert_eq!(shown(), NON_PREEMPTABLE);
                    sum.0 += 1;
                    sum.1 += 1;
                    let sum = RwLockWriteGuard::downgrade(sum);
                    assert_eq!(shown(), NON_PREEMPTABLE);
                    assert_eq!(sum.0, sum.1);
                    drop(sum);
                    assert_eq!(shown(), NOTHING);

                    let sum = SUM.upgradable_read();
                    let before = sum.0;
                    let mut sum = RwLockUpgradableReadGuard::upgrade(sum);
                    assert_eq!(shown(), NON_PREEMPTABLE);
                    assert_eq!(sum.0, before, "nobody wrote in between");
                    sum.0 += 1;
                    sum.1 += 1;
                    drop(sum);
                    assert_eq!(shown(), NOTHING);

                    let sum = SUM.read();
                    assert_eq!(sum.0, sum.1);
                }
            });
        }
    });
    assert_eq!(*SUM.read(), (6_000, 6_000));
    assert_eq!(shown(), NOTHING);
}

#[test]
fn holds_of_a_rwlock_stand_against_each_other() {
    let lock = EcsRwLock::<Threads, ()>::new(());
    {
        let _reader = lock.read();
        let upgradable = lock.try_upgradable_read().unwrap();
        assert_eq!(shown(), (2, 0, VIRTIO_ECS_WAIT_NONE));
        assert!(lock.try_write().is_none());
        assert!(lock.try_upgradable_read().is_none(), "one at a time");
        assert!(lock.try_read().is_some());
        let upgradable = RwLockUpgradableReadGuard::try_upgrade(upgradable);
        assert!(upgradable.is_err(), "there is another reader");
        assert!(lock.is_locked() && !lock.is_locked_exclusive());
        assert_eq!(shown(), (2, 0, VIRTIO_ECS_WAIT_NONE));
    }
    assert_eq!(shown(), NOTHING);
    let upgradable = lock.upgradable_read();
    let writer = RwLockUpgradableReadGuard::try_upgrade(upgradable);
    assert!(writer.is_ok() && lock.is_locked_exclusive());
    assert!(lock.try_read().is_none());
    assert_eq!(shown(), NON_PREEMPTABLE);
    drop(writer);
    assert!(!lock.is_locked());
    assert_eq!(shown(), NOTHING);
}

#[test]
fn unwinding_leaves_a_rwlock() {
    let lock = EcsRwLock::<Threads, ()>::new(());
    for exclusive in [false, true] {
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _guards = if exclusive {
                (None, Some(lock.write()))
            } else {
                (Some(lock.read()), None)
            };
            std::panic::resume_unwind(Box::new("inside the section"));
        }));
        assert!(panicked.is_err());
        assert!(!lock.is_locked());
        assert_eq!(shown(), NOTHING);
    }
}

#[test]
#[should_panic(expected = "The lock has 0 places")]
fn a_vcpu_without_a_place_cannot_lock() {
    let mutex = EcsQueueMutex::<Threads, 0, ()>::new(());
    assert!(mutex.try_lock().is_none());
    drop(mutex.lock());
}
