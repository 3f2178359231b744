//! Sections of a process, with the device of the guest's driver and without it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ecs_guest::user::{
    Futex, Section, Spins, UserError, UserMutex, UserThread, available, is_pcpu_overloaded,
    is_vcpu_preempted, spins,
};
use ecs_guest::{CurrentHalt, CurrentVcpu, EcsBlockingMutex, Halt};
use rustix::thread::{CpuSet, sched_setaffinity};

/// The driver bounds the sections of a process, so tests that open some take turns.
static TURN: Mutex<()> = Mutex::new(());

/// Whether this machine is a guest with the device; says that `name` is skipped if not.
fn device_or_skip(name: &str) -> bool {
    available()
        .inspect_err(|error| println!("SKIPPED: {name}: {error}"))
        .is_ok()
}

#[test]
fn the_lack_of_the_device_is_named_and_harmless() {
    let _turn = TURN.lock();
    if !Path::new("/dev/virtio_ecs").exists() {
        assert!(matches!(available(), Err(UserError::Absent)));
        assert!(!Section::enter().announced());
    }
}

#[test]
fn a_mutex_excludes_and_loses_no_wake_up() {
    static SUM: UserMutex<u64> = UserMutex::new(0);
    let _turn = TURN.lock();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    *SUM.lock() += 1;
                }
            });
        }
    });
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _guard = SUM.lock();
        std::panic::resume_unwind(Box::new("inside the section"));
    }));
    assert!(panicked.is_err());
    assert_eq!(*SUM.try_lock().unwrap(), 40_000);
}

#[test]
fn sections_nest_and_end_with_the_outermost() {
    if !device_or_skip("sections_nest_and_end_with_the_outermost") {
        return;
    }
    let _turn = TURN.lock();
    let outer = Section::enter();
    let inner = Section::enter();
    assert!(outer.announced() && inner.announced());
    drop(outer);
    drop(inner);
    assert!(Section::enter().announced(), "the first one has ended");
}

#[test]
fn sections_beyond_the_bound_are_not_announced_and_do_no_harm() {
    const THREADS: usize = 64;
    if !device_or_skip("sections_beyond_the_bound_are_not_announced_and_do_no_harm") {
        return;
    }
    let _turn = TURN.lock();
    let bound = std::fs::read_to_string("/sys/module/virtio_ecs/parameters/user_max").unwrap();
    let bound: usize = bound.trim().parse().unwrap();
    let all_in = Barrier::new(THREADS);
    let announced = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let section = Section::enter();
                announced.fetch_add(section.announced().into(), Ordering::Relaxed);
                all_in.wait();
            });
        }
    });
    assert_eq!(announced.into_inner(), THREADS.min(bound));
    assert!(Section::enter().announced(), "there is room again");
}

/// What a host that lives says of every CPU: `free`, `overloaded`, `preempted`; empty: no host lives.
/// Whoever starts this program in a guest knows.
fn host_says() -> String {
    std::env::var("ECS_HOST_SAYS").unwrap_or_default()
}

/// Time for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn what_the_host_says_is_heard() {
    let _turn = TURN.lock();
    let says = host_says();
    let wanted = (says == "preempted", says == "overloaded");
    // No word is the answer also where nobody listens: some looks are to be sure.
    let (start, mut looks) = (Instant::now(), 0);
    loop {
        let heard = (is_vcpu_preempted(1), is_pcpu_overloaded(1));
        assert!(heard == (false, false) || heard == wanted, "{heard:?}");
        looks += 1;
        if heard == wanted && looks > 20 {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "{wanted:?} is not heard");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(!is_vcpu_preempted(u32::MAX) && !is_pcpu_overloaded(u32::MAX));
}

/// The threads of a process, whose sleeps are counted.
struct Counted;

static SLEEPS: AtomicU64 = AtomicU64::new(0);

impl CurrentVcpu for Counted {
    type Vcpu = UserThread;
    fn with<R>(call: impl FnOnce(&UserThread) -> R) -> R {
        call(&UserThread)
    }
}

impl CurrentHalt for Counted {
    type Halt = Counted;
    fn halt() -> &'static Counted {
        &Counted
    }
}

impl Halt for Counted {
    fn halt(&self, word: &AtomicU32, expected: u32) {
        SLEEPS.fetch_add(1, Ordering::Relaxed);
        Futex.halt(word, expected);
    }
    fn wake(&self, word: &AtomicU32, nr: u32) {
        Futex.wake(word, nr);
    }
}

/// Stays on `cpu`, if there is one of that number.
fn settle(cpu: usize) {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    let _ = sched_setaffinity(None, &cpus);
}

fn work(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[test]
fn a_waiter_goes_by_what_the_host_says() {
    const MANY: u64 = 200;
    static MUTEX: EcsBlockingMutex<Counted, u64> = EcsBlockingMutex::new(0);
    let _turn = TURN.lock();
    let says = host_says();
    let (paid, wasted) = (AtomicU64::new(0), AtomicU64::new(0));
    let over = AtomicBool::new(false);
    let start = Instant::now();
    thread::scope(|scope| {
        for cpu in 0..2 {
            let (paid, wasted, over) = (&paid, &wasted, &over);
            scope.spawn(move || {
                settle(cpu);
                while !over.load(Ordering::Relaxed) {
                    let before = spins();
                    let mut sum = MUTEX.lock();
                    let Spins { paid: p, wasted: w } = spins();
                    *sum += 1;
                    work(Duration::from_micros(5));
                    drop(sum);
                    paid.fetch_add(p - before.paid, Ordering::Relaxed);
                    wasted.fetch_add(w - before.wasted, Ordering::Relaxed);
                    work(Duration::from_micros(5));
                }
            });
        }
        let enough = || {
            let (paid, sleeps) = (paid.load(Ordering::Relaxed), SLEEPS.load(Ordering::Relaxed));
            if says == "free" {
                paid > MANY.max(sleeps)
            } else {
                sleeps > MANY
            }
        };
        while !enough() && start.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(10));
        }
        over.store(true, Ordering::Relaxed);
    });
    let locked = *MUTEX.lock();
    let (paid, wasted) = (paid.into_inner(), wasted.into_inner());
    let sleeps = SLEEPS.load(Ordering::Relaxed);
    println!(
        "host says {says:?}: {locked} locks, {paid} spins paid, {wasted} wasted, {sleeps} sleeps"
    );
    match says.as_str() {
        "free" => assert!(paid > MANY && paid > sleeps),
        // Whose vCPU the holder has is unknown for some instructions of each lock and unlock.
        "preempted" => assert!(sleeps > MANY && paid + wasted < sleeps / 2),
        _ => assert!(sleeps > MANY && paid + wasted == 0),
    }
}
