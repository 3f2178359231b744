//! A guest kernel that looks on, with KASAN, lockdep, kmemleak and KUnit, finds nothing wrong with the
//! driver: not in its own cases, not in any workload, not over thousands of cycles.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use ecs_tests::linux::cycles::{loads, registrations};
use ecs_tests::linux::{Guest, Kernel, Machine, Parts, Tally, Truth, Watch};
use ecs_tests::process::until;
use ecs_tests::{parts, root, skip, slow};

/// Time for what the driver does by itself, once a second, on a very slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Cycles of the slow cases: each takes seconds on this kernel. The stock kernels do a thousand.
const CYCLES: usize = 100;

/// Boots the debug kernel, runs a case, and asks it for everything it has against it.
fn looked_on(parts: &Parts, kernel: &Kernel, cpus: usize, case: impl FnOnce(&Watch, &mut Guest)) {
    let machine = Machine {
        cpus,
        memory: 512,
        patience: 10,
        append: "rcupdate.rcu_expedited=1".to_owned(),
        ..Machine::default()
    };
    let watch = Watch::new().unwrap();
    let mut guest = Guest::boot(parts, kernel, &machine, watch.socket()).unwrap();
    // What the kernel itself lost while it booted.
    scan(&mut guest);
    guest.sh("echo clear >/sys/kernel/debug/kmemleak").unwrap();
    case(&watch, &mut guest);
    assert_eq!(scan(&mut guest), "", "kmemleak");
    // First: they say why lockdep gave up, if it did.
    assert_eq!(guest.complaints(), Vec::<String>::new());
    let lockdep = guest.sh("grep debug_locks /proc/lockdep_stats").unwrap();
    assert!(
        lockdep.trim().ends_with('1'),
        "lockdep gave up: {lockdep}\n{}",
        guest.console()
    );
    assert_eq!(watch.faults(), 0);
}

/// What kmemleak holds for lost: it looks at what is older than five seconds, and twice, because a
/// pointer may be in a register the first time.
fn scan(guest: &mut Guest) -> String {
    let file = "/sys/kernel/debug/kmemleak";
    guest
        .sh(&format!(
            "sleep 6; echo scan >{file}; sleep 1; echo scan >{file}; cat {file}"
        ))
        .unwrap()
}

macro_rules! debug_kernel {
    ($name:expr, $parts:expr) => {
        match $parts.debug_kernel() {
            Ok(kernel) => kernel,
            Err(reason) => skip!($name, "{reason}"),
        }
    };
}

/// The words between `before` and `after` in a source of the test modules, one a line.
fn named(file: &str, before: &str, after: &str) -> Vec<String> {
    let source = root().join("guest-driver/module/tests").join(file);
    let source = fs::read_to_string(source).unwrap();
    let names = source.lines().filter_map(|line| {
        let (name, _) = line.trim().strip_prefix(before)?.split_once(after)?;
        Some(name.to_owned())
    });
    names.collect()
}

/// Cases of a KTAP report, and whether each passed.
fn cases(report: &str) -> BTreeMap<String, bool> {
    let lines = report.lines().filter_map(|line| {
        let line = line.trim();
        let (passed, rest) = match line.strip_prefix("not ok ") {
            Some(rest) => (false, rest),
            None => (true, line.strip_prefix("ok ")?),
        };
        // Also "ok 1 name # SKIP reason", which is no pass.
        let (_, name) = rest.split_once(' ')?;
        let (name, skipped) = match name.split_once(" #") {
            Some((name, _)) => (name, true),
            None => (name, false),
        };
        Some((name.to_owned(), passed && !skipped))
    });
    lines.collect()
}

#[test]
fn every_kunit_case_passes() {
    slow!("every_kunit_case_passes");
    const NAME: &str = "every_kunit_case_passes";
    let parts = parts!(NAME);
    let kernel = debug_kernel!(NAME, parts);
    let wanted = named("ecs_kunit.c", "KUNIT_CASE(", ")");
    assert!(wanted.len() >= 5, "{wanted:?}");
    looked_on(&parts, &kernel, 2, |_, guest| {
        guest.sh("insmod /ecs_kunit.ko").unwrap();
        let report = guest
            .sh("cat /sys/kernel/debug/kunit/virtio_ecs/results")
            .unwrap();
        println!("{report}");
        let mut passed = cases(&report);
        assert_eq!(passed.remove("virtio_ecs"), Some(true), "{report}");
        assert_eq!(passed.len(), wanted.len(), "{report}");
        for name in wanted {
            assert_eq!(passed.get(&name), Some(&true), "{name}: {report}");
        }
        guest.sh("rmmod ecs_kunit").unwrap();
    });
}

#[test]
fn no_workload_makes_it_complain() {
    const NAME: &str = "no_workload_makes_it_complain";
    let parts = parts!(NAME);
    slow!(NAME);
    let kernel = debug_kernel!(NAME, parts);
    let works = named("work.c", "{ \"", "\"");
    assert!(works.len() > 20, "{works:?}");
    looked_on(&parts, &kernel, 4, |watch, guest| {
        for sections in ["off", "contended", "all"] {
            guest
                .load_driver(&format!("sections={sections} user_sections=1"))
                .unwrap();
            watch.wait_for(&[0, 1, 2, 3], PATIENCE).unwrap();
            let truth = Truth::load(guest).unwrap();
            for work in &works {
                let work = format!("{work} cpu=0,1,2 ms=1500 hold_us=50 gap_us=50");
                let some = |tally: &Tally| tally.away + tally.np + tally.p + tally.waiting > 0;
                let tally = watch.judge(guest, &truth, &work, some).unwrap();
                assert_eq!(tally.np_missed, 0, "{work}: {tally:?}");
            }
            guest.sh("rmmod ecs_test virtio_ecs").unwrap();
            // A function that cannot be probed is said so.
            let console = guest.console();
            assert!(!console.contains("not shown"), "{console}");
            println!("sections={sections}: {} workloads", works.len());
        }
    });
}

/// Polls that have met work, all CPUs.
fn paid(watch: &Watch) -> u32 {
    let polls = watch.registered().into_iter();
    polls
        .filter_map(|cpu| Some(watch.polls(cpu)?.paid))
        .fold(0, u32::wrapping_add)
}

#[test]
fn idle_polls_make_it_complain_of_nothing() {
    const NAME: &str = "idle_polls_make_it_complain_of_nothing";
    const LOADS: u32 = 5;
    let parts = parts!(NAME);
    slow!(NAME);
    let kernel = debug_kernel!(NAME, parts);
    looked_on(&parts, &kernel, 2, |watch, guest| {
        let heart = watch.beat();
        guest.sh("insmod /ecs_test.ko").unwrap();
        for _ in 0..LOADS {
            let work = "pingpong cpu=0,1 ms=60000 hold_us=0 gap_us=0";
            let dir = Truth::DIR;
            guest
                .sh(&format!("echo 1 >{dir}/stop; echo {work} >{dir}/run"))
                .unwrap();
            guest
                .load_driver("idle_poll_us=10000 ctrl_timeout_ms=10000")
                .unwrap();
            watch.wait_for(&[0, 1], PATIENCE).unwrap();
            until("polls", PATIENCE, || (paid(watch) > 50).then_some(())).unwrap();
            let cpu1 = "/sys/devices/system/cpu/cpu1/online";
            guest
                .sh(&format!(
                    "echo 1 >{dir}/stop; echo 0 >{cpu1}; echo 1 >{cpu1}"
                ))
                .unwrap();
            guest.sh("rmmod virtio_ecs").unwrap();
        }
        drop(heart);
        guest.sh("rmmod ecs_test").unwrap();
        println!("{LOADS} loads under polls");
    });
}

#[test]
fn a_hundred_loads_lose_nothing() {
    const NAME: &str = "a_hundred_loads_lose_nothing";
    let parts = parts!(NAME);
    slow!(NAME);
    let kernel = debug_kernel!(NAME, parts);
    looked_on(&parts, &kernel, 2, |watch, guest| {
        loads(watch, guest, "0,1", CYCLES);
    });
}

#[test]
fn a_hundred_registrations_lose_nothing() {
    const NAME: &str = "a_hundred_registrations_lose_nothing";
    let parts = parts!(NAME);
    slow!(NAME);
    let kernel = debug_kernel!(NAME, parts);
    looked_on(&parts, &kernel, 2, |watch, guest| {
        registrations(watch, guest, CYCLES);
    });
}
