//! A stock Linux kernel with our driver: what the host reads is true, whatever the guest does.
//!
//! Every case runs on two Debian kernels under emulation; absolute times mean nothing there.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use ecs_tests::linux::cases::{KERNELS, PATIENCE, counter, loaded, on_every_kernel, on_machines};
use ecs_tests::linux::cycles::{loads, registrations};
use ecs_tests::linux::{Guest, Machine, Tally, Truth, Watch};
use ecs_tests::process::until;
use ecs_tests::{parts, slow, static_test};

/// Share of `part` in `whole`.
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// Reads outside of sections that showed one, where nothing was disabled: fewer than 0.1 %.
fn assert_quiet_outside(tally: &Tally, what: &str) {
    assert!(
        ratio(tally.outside_wrong, tally.outside) < 0.001,
        "{what}: {tally:?}"
    );
}

#[test]
fn non_preemptable_sections_are_never_missed() {
    let parts = parts!("non_preemptable_sections_are_never_missed");
    on_every_kernel(&parts, |kernel, watch, guest| {
        let truth = loaded(watch, guest, "sections=all");
        let mut sum = 0;
        for (work, wanted) in [
            ("irq cpu=1", 20_000),
            ("softirq cpu=1", 20_000),
            ("nmi cpu=1", 20_000),
            ("api_np cpu=1,2", 50_000),
            ("spin_irq cpu=1,2", 50_000),
            ("spin_bh cpu=1,2", 50_000),
            ("spin_nested cpu=1", 50_000),
            ("rw_read cpu=0,1", 50_000),
            ("rw_write cpu=0,1,2", 50_000),
            ("spin cpu=1", 800_000),
        ] {
            let work = format!("{work} ms=1000 hold_us=30 gap_us=60");
            let enough = |tally: &Tally| tally.np > wanted;
            let tally = watch.judge(guest, &truth, &work, enough).unwrap();
            assert_eq!(tally.np_missed, 0, "{work}: {tally:?}");
            assert_quiet_outside(&tally, &work);
            sum += tally.np;
        }
        println!(
            "Linux {}: {sum} reads inside non-preemptable sections, none missed",
            kernel.version()
        );
        assert!(sum > 1_000_000, "only {sum} reads");
    });
}

#[test]
fn an_idle_cpu_is_in_no_section() {
    let parts = parts!("an_idle_cpu_is_in_no_section");
    on_every_kernel(&parts, |kernel, watch, guest| {
        let truth = loaded(watch, guest, "");
        let work = "idle cpu=0,1,2,3 ms=2000 hold_us=1000 gap_us=100";
        let enough = |tally: &Tally| tally.outside > 300_000;
        let tally = watch.judge(guest, &truth, work, enough).unwrap();
        println!(
            "Linux {}: {} reads asleep or outside, {} showed a section although nothing was disabled; \
             {:.2} % with interrupts",
            kernel.version(),
            tally.outside,
            tally.outside_wrong,
            ratio(tally.away_inside, tally.away) * 100.0
        );
        assert_quiet_outside(&tally, work);
        // With interrupts and the kernel's own threads; without the idle hint it is nine in ten.
        assert!(ratio(tally.away_inside, tally.away) < 0.1, "{tally:?}");
    });
}

#[test]
fn a_spinning_waiter_is_no_holder_and_says_what_it_waits_for() {
    let parts = parts!("a_spinning_waiter_is_no_holder_and_says_what_it_waits_for");
    on_every_kernel(&parts, |kernel, watch, guest| {
        let truth = loaded(watch, guest, "");
        // Three CPUs: the first waiter of a queued spinlock spins before it says so.
        for work in ["spin cpu=0,1,2", "spin_bh cpu=0,1,2", "rw_write cpu=0,1,2"] {
            let work = format!("{work} ms=1500 hold_us=50 gap_us=5");
            let enough = |tally: &Tally| tally.waiting > 50_000 && tally.descriptors > 20_000;
            let tally = watch.judge(guest, &truth, &work, enough).unwrap();
            println!(
                "Linux {}: {work}: {} reads of waiters, {:.1} % seen to wait, {:.1} % taken for holders, \
                 {:.2} % of {} descriptors of another lock",
                kernel.version(),
                tally.waiting,
                ratio(tally.waits_seen, tally.waiting) * 100.0,
                ratio(tally.waiter_as_holder, tally.waiting) * 100.0,
                ratio(tally.descriptors_wrong, tally.descriptors) * 100.0,
                tally.descriptors,
            );
            assert!(
                ratio(tally.waits_seen, tally.waiting) > 0.5,
                "{work}: {tally:?}"
            );
            assert!(
                ratio(tally.descriptors_wrong, tally.descriptors) < 0.02,
                "{work}: {tally:?}"
            );
        }
    });
}

#[test]
fn preemptable_sections_follow_their_task() {
    let parts = parts!("preemptable_sections_follow_their_task");
    on_every_kernel(&parts, |kernel, watch, guest| {
        let truth = loaded(watch, guest, "sections=all");
        let mut sum = Tally::default();
        for work in [
            "mutex cpu=1,2",
            "mutex_interruptible cpu=1,2",
            "mutex_killable cpu=1,2",
            "mutex_trylock cpu=1,2",
            "mutex_nested cpu=1,2",
            "rwsem_read cpu=1,2",
            "rwsem_write cpu=1,2",
            "rwsem_trylock cpu=1,2",
            "rwsem_downgrade cpu=1,2",
            "sleep_mutex cpu=1,2",
            "migrate_mutex cpu=1,2,3",
            "api_p cpu=1,2",
        ] {
            let work = format!("{work} ms=700 hold_us=100 gap_us=100");
            // A holder that sleeps is nobody's running task.
            let sleeps = work.starts_with("sleep");
            let enough = |tally: &Tally| sleeps || tally.p > 20_000;
            let tally = watch.judge(guest, &truth, &work, enough).unwrap();
            // Now and then the guest itself runs another task than the holder, which is in none.
            assert!(ratio(tally.p_missed, tally.p) < 0.001, "{work}: {tally:?}");
            assert_quiet_outside(&tally, &work);
            sum.p += tally.p;
            sum.p_missed += tally.p_missed;
        }
        guest.sh("rmmod ecs_test").unwrap();
        let left = counter(guest, "tasks");
        println!(
            "Linux {}: {} reads of holders of a mutex or rwsem, {} missed; {left} tasks still \
             counted as holders",
            kernel.version(),
            sum.p,
            sum.p_missed
        );
        // What the kernel itself holds at this moment, but no leak of thousands of operations.
        assert!(left < 8, "{left} tasks are still holders");
    });
}

#[test]
fn contended_mutexes_show_their_holder() {
    let parts = parts!("contended_mutexes_show_their_holder");
    on_every_kernel(&parts, |kernel, watch, guest| {
        let truth = loaded(watch, guest, "sections=contended");
        let work = "mutex cpu=0,1,2 ms=2000 hold_us=500 gap_us=50";
        let enough = |tally: &Tally| tally.p > 20_000;
        let tally = watch.judge(guest, &truth, work, enough).unwrap();
        println!(
            "Linux {}: sections=contended: {:.1} % of reads showed the running holder",
            kernel.version(),
            100.0 - ratio(tally.p_missed, tally.p) * 100.0
        );
        assert!(ratio(tally.p_missed, tally.p) < 0.5, "{tally:?}");
    });
}

#[test]
fn cpus_come_and_go() {
    let parts = parts!("cpus_come_and_go");
    on_every_kernel(&parts, |_, watch, guest| {
        loaded(watch, guest, "");
        for _ in 0..3 {
            guest
                .sh("echo 0 >/sys/devices/system/cpu/cpu3/online")
                .unwrap();
            watch.wait_for(&[0, 1, 2], PATIENCE).unwrap();
            guest
                .sh("echo 1 >/sys/devices/system/cpu/cpu3/online")
                .unwrap();
            watch.wait_for(&[0, 1, 2, 3], PATIENCE).unwrap();
        }
        guest.sh("rmmod virtio_ecs").unwrap();
        watch.wait_for(&[], PATIENCE).unwrap();
    });
}

/// Most the kernel's memory may grow over many cycles.
const GROWN_KB: i64 = 2048;

/// A machine that does not wait for the kernel's grace periods, which load makes long.
fn expedited(cpus: usize) -> Machine {
    Machine {
        cpus,
        append: "rcupdate.rcu_expedited=1".to_owned(),
        ..Machine::default()
    }
}

#[test]
fn it_loads_and_unloads_under_load() {
    let parts = parts!("it_loads_and_unloads_under_load");
    on_machines(&parts, &expedited(4), |_, watch, guest| {
        let grown = loads(watch, guest, "0,1,2", 20);
        assert!(grown < GROWN_KB, "{grown} kB");
    });
}

const CYCLES: usize = 1000;

#[test]
fn a_thousand_loads_leave_nothing_behind() {
    let parts = parts!("a_thousand_loads_leave_nothing_behind");
    slow!("a_thousand_loads_leave_nothing_behind");
    // One CPU, where the emulator makes no mistakes with patched code.
    on_machines(&parts, &expedited(1), |_, watch, guest| {
        let grown = loads(watch, guest, "0", CYCLES);
        assert!(grown < GROWN_KB, "{grown} kB");
    });
}

#[test]
fn a_thousand_registrations_leave_nothing_behind() {
    let parts = parts!("a_thousand_registrations_leave_nothing_behind");
    slow!("a_thousand_registrations_leave_nothing_behind");
    on_machines(&parts, &expedited(2), |_, watch, guest| {
        let grown = registrations(watch, guest, CYCLES);
        assert!(grown < GROWN_KB, "{grown} kB");
    });
}

#[test]
fn what_the_device_has_lost_is_registered_again() {
    let parts = parts!("what_the_device_has_lost_is_registered_again");
    on_every_kernel(&parts, |_, watch, guest| {
        let truth = loaded(watch, guest, "");
        for _ in 0..3 {
            let before: Vec<_> = (0..4).map(|cpu| watch.slots(cpu).unwrap()).collect();
            watch.forget();
            let is_new = |cpu: usize| {
                let now = watch.slots(cpu);
                now.is_some_and(|now| !Arc::ptr_eq(&now, &before[cpu]))
            };
            until("new registrations", PATIENCE, || {
                (0..4).all(is_new).then_some(())
            })
            .unwrap();
            let work = "spin cpu=1,2 ms=300 hold_us=20 gap_us=20";
            let enough = |tally: &Tally| tally.np > 1000;
            let tally = watch.judge(guest, &truth, work, enough).unwrap();
            assert_eq!(tally.np_missed, 0, "{tally:?}");
        }
    });
}

/// Figures of the test module's benchmark: ns for each operation.
fn bench(guest: &mut Guest) -> BTreeMap<String, f64> {
    let text = guest.sh(&format!("cat {}/bench", Truth::DIR)).unwrap();
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

const LOCKS: [&str; 7] = [
    "spin",
    "spin_irq",
    "rw_read",
    "rw_write",
    "mutex",
    "rwsem_read",
    "rwsem_write",
];

/// The figures once they stay: a kernel that has just booted, or patched itself, still has to do with
/// other things.
fn settled(guest: &mut Guest) -> BTreeMap<String, f64> {
    let mut before = bench(guest);
    for _ in 0..20 {
        let now = bench(guest);
        let same = |lock: &&str| (now[*lock] - before[*lock]).abs() <= 0.002 * before[*lock];
        if LOCKS.iter().all(same) {
            return now;
        }
        before = now;
        guest.sh("sleep 1").unwrap();
    }
    println!("The figures do not settle: {before:?}");
    before
}

#[test]
fn uncontended_locks_cost_no_instruction_more() {
    let parts = parts!("uncontended_locks_cost_no_instruction_more");
    let machine = Machine {
        cpus: 1,
        count_instructions: true,
        ..Machine::default()
    };
    for name in KERNELS {
        let kernel = parts.kernel(name).unwrap();
        let watch = Watch::new().unwrap();
        let mut guest = Guest::boot(&parts, &kernel, &machine, watch.socket()).unwrap();
        guest.sh("insmod /ecs_test.ko").unwrap();
        let without = settled(&mut guest);
        let mut with = BTreeMap::new();
        for sections in ["contended", "all"] {
            guest.load_driver(&format!("sections={sections}")).unwrap();
            watch.wait_for(&[0], PATIENCE).unwrap();
            with.insert(sections, settled(&mut guest));
            guest.sh("rmmod virtio_ecs").unwrap();
        }
        let again = settled(&mut guest);
        println!(
            "Linux {}, instructions for each lock and unlock:",
            kernel.version()
        );
        for (lock, before) in &without {
            println!(
                "  {lock}: without {before}, contended {}, all {}, unloaded {}",
                with["contended"][lock], with["all"][lock], again[lock]
            );
        }
        for lock in LOCKS {
            let (before, after) = (without[lock], with["contended"][lock]);
            assert!(
                after <= before * 1.005,
                "{lock}: {before} without, {after} with"
            );
        }
    }
}

#[test]
fn processes_of_the_guest_announce_their_sections() {
    let parts = parts!("processes_of_the_guest_announce_their_sections");
    let program = static_test("ecs-guest", "user").unwrap();
    let machine = Machine {
        programs: vec![program.clone()],
        ..Machine::default()
    };
    let name = program.file_name().unwrap().to_str().unwrap();
    for kernel in KERNELS {
        let kernel = parts.kernel(kernel).unwrap();
        let watch = Watch::new().unwrap();
        let mut guest = Guest::boot(&parts, &kernel, &machine, watch.socket()).unwrap();
        guest.load_driver("user_sections=1").unwrap();
        watch.wait_for(&[0, 1, 2, 3], PATIENCE).unwrap();
        let said = guest.sh(&format!("/bin/{name} --show-output")).unwrap();
        assert!(!said.contains("SKIPPED"), "{said}");
        assert_eq!(counter(&mut guest, "tasks"), 0);
        assert_eq!(guest.complaints(), Vec::<String>::new(), "{kernel:?}");
    }
}
