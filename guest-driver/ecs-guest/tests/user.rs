//! Sections of a process, with the device of the guest's driver and without it.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;

use ecs_guest::user::{Section, UserError, UserMutex, available};

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
