//! A guest kernel that looks on, with KASAN, lockdep, kmemleak and KUnit, finds nothing wrong with the
//! driver: not in its own cases, not in any workload, not over thousands of cycles.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use ecs_tests::linux::cases::counter;
use ecs_tests::linux::{Guest, Kernel, Machine, Parts, Tally, Truth, Watch};
use ecs_tests::{parts, root, skip, slow};

/// Time for what the driver does by itself, once a second, on a very slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Cycles of the slow cases, and how many of them a load of the guest outlasts.
const CYCLES: usize = 1000;
const AT_ONCE: usize = 50;

/// Boots the debug kernel, runs a case, and asks it for everything it has against it.
fn looked_on(parts: &Parts, kernel: &Kernel, cpus: usize, case: impl FnOnce(&Watch, &mut Guest)) {
    // On a busy host its timer may seem not to work while it boots.
    let machine = Machine {
        cpus,
        memory: 512,
        patience: 10,
        append: "rcupdate.rcu_expedited=1 no_timer_check".to_owned(),
        ..Machine::default()
    };
    let watch = Watch::new().unwrap();
    let mut guest = Guest::boot(parts, kernel, &machine, watch.socket()).unwrap();
    // What the kernel itself lost while it booted.
    scan(&mut guest);
    guest.sh("echo clear >/sys/kernel/debug/kmemleak").unwrap();
    case(&watch, &mut guest);
    assert_eq!(scan(&mut guest), "", "kmemleak");
    let lockdep = guest.sh("grep debug_locks /proc/lockdep_stats").unwrap();
    assert!(lockdep.trim().ends_with('1'), "lockdep gave up: {lockdep}");
    assert_eq!(guest.complaints(), Vec::<String>::new());
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

/// Runs a shell command of the guest `cycles` times in batches, and says how long it took.
fn cycle(guest: &mut Guest, what: &str, cycles: usize, mut command: impl FnMut(usize) -> String) {
    const BATCH: usize = 5;
    let start = Instant::now();
    for from in (0..cycles).step_by(BATCH) {
        let batch: Vec<String> = (from..cycles.min(from + BATCH)).map(&mut command).collect();
        guest.sh(&batch.join(" && ")).unwrap();
    }
    let took = start.elapsed();
    println!(
        "{cycles} times {what}: {took:.0?}, {:.0?} each",
        took / u32::try_from(cycles).unwrap()
    );
}

/// Keeps threads busy with mutexes for as long as a workload may last.
fn load(guest: &mut Guest, cpus: &str) {
    let dir = Truth::DIR;
    let work = format!("echo mutex cpu={cpus} ms=60000 hold_us=20 gap_us=200");
    guest
        .sh(&format!("echo 1 >{dir}/stop; {work} >{dir}/run"))
        .unwrap();
}

#[test]
fn a_thousand_loads_lose_nothing() {
    const NAME: &str = "a_thousand_loads_lose_nothing";
    let parts = parts!(NAME);
    slow!(NAME);
    let kernel = debug_kernel!(NAME, parts);
    looked_on(&parts, &kernel, 2, |watch, guest| {
        guest.sh("insmod /ecs_test.ko").unwrap();
        for _ in 0..CYCLES / AT_ONCE {
            load(guest, "0,1");
            cycle(guest, "loaded and unloaded", AT_ONCE, |cycle| {
                let sections = ["off", "contended", "all"][cycle % 3];
                let parameters = format!("sections={sections}");
                format!("{} && rmmod virtio_ecs", Guest::insmod(&parameters))
            });
            assert_eq!(watch.registered(), Vec::<usize>::new());
        }
        guest.sh("rmmod ecs_test").unwrap();
    });
}

#[test]
fn a_thousand_registrations_lose_nothing() {
    const NAME: &str = "a_thousand_registrations_lose_nothing";
    let parts = parts!(NAME);
    slow!(NAME);
    let kernel = debug_kernel!(NAME, parts);
    looked_on(&parts, &kernel, 2, |watch, guest| {
        guest.load_driver("sections=contended").unwrap();
        watch.wait_for(&[0, 1], PATIENCE).unwrap();
        guest.sh("insmod /ecs_test.ko").unwrap();
        for _ in 0..CYCLES / AT_ONCE {
            load(guest, "0");
            cycle(guest, "taken offline and online", AT_ONCE, |_| {
                let online = "/sys/devices/system/cpu/cpu1/online";
                format!("echo 0 >{online} && echo 1 >{online}")
            });
            watch.wait_for(&[0, 1], PATIENCE).unwrap();
        }
        for count in ["registered", "unregistered"] {
            assert!(counter(guest, count) >= CYCLES as u64, "{count}");
        }
        guest.sh("rmmod ecs_test virtio_ecs").unwrap();
        watch.wait_for(&[], PATIENCE).unwrap();
    });
}
