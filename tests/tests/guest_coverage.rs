//! What the driver shows on each preemption model, what of user space, and what it hands on of the
//! host's hints: the table of docs/guest-driver.md, row by row.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

use std::time::{Duration, Instant};

use ecs_tests::cc::Compiler;
use ecs_tests::linux::cases::{PATIENCE, loaded, on_every_kernel, on_machines, said};
use ecs_tests::linux::{Guest, Machine, Tally, Truth, Watch};
use ecs_tests::process::until;
use ecs_tests::{parts, skip, slow, static_test};

/// Every class that a CPU's own word or the driver shows without a miss.
const SHOWN: [&str; 8] = [
    "spin", "spin_irq", "spin_bh", "rw_read", "rw_write", "irq", "softirq", "nmi",
];

#[test]
fn each_class_is_shown_on_each_preemption_model() {
    const NAME: &str = "each_class_is_shown_on_each_preemption_model";
    let parts = parts!(NAME);
    slow!(NAME);
    for model in ["none", "voluntary", "full", "lazy"] {
        let machine = Machine {
            append: format!("preempt={model}"),
            ..Machine::default()
        };
        on_machines(&parts, &machine, |kernel, watch, guest| {
            let version = kernel.version();
            if !guest
                .console()
                .contains(&format!("Dynamic Preempt: {model}"))
            {
                println!("Linux {version} has no preemption model {model}");
                return;
            }
            let truth = loaded(watch, guest, "sections=all");
            let says = "none or voluntary, with PREEMPT_COUNT: spinlocks are shown";
            let weak = matches!(model, "none" | "voluntary");
            let said = said(guest);
            assert_eq!(
                said.iter().any(|line| line.contains(says)),
                weak,
                "{said:?}"
            );
            let mut judge = |work: &str, enough: fn(&Tally) -> bool| {
                let work = format!("{work} cpu=1 ms=700 hold_us=50 gap_us=50");
                watch.judge(guest, &truth, &work, enough).unwrap()
            };
            let mut reads = 0;
            for work in SHOWN {
                let tally = judge(work, |tally| tally.np > 1_000);
                assert_eq!(tally.np_missed, 0, "preempt={model}, {work}: {tally:?}");
                reads += tally.np;
            }
            for work in ["mutex", "rwsem_read", "rwsem_write"] {
                let tally = judge(work, |tally| tally.p > 5_000);
                let missed = tally.p_missed as f64 / tally.p as f64;
                assert!(missed < 0.001, "preempt={model}, {work}: {tally:?}");
                reads += tally.p;
            }
            // These kernels have PREEMPT_RCU, whatever the model: a reader raises nothing.
            let rcu = judge("rcu", |tally| tally.rcu > 5_000);
            let shown = rcu.rcu_shown as f64 / rcu.rcu as f64;
            println!(
                "Linux {version}, preempt={model}: {reads} reads of eleven classes; of RCU readers \
                 {:.2} % show a section, an interrupt's",
                shown * 100.0
            );
            assert!(shown < 0.2, "preempt={model}: {rcu:?}");
        });
    }
}

/// Share of the reads of a CPU, over half a second, that show a preemptable section.
fn share(watch: &Watch, cpu: usize) -> f64 {
    let slots = watch.slots(cpu).unwrap();
    let end = Instant::now() + Duration::from_millis(500);
    let (mut all, mut shown) = (0, 0);
    while Instant::now() < end {
        all += 1;
        let snap = slots.read();
        shown += u64::from(snap.preemptable && !snap.idle);
    }
    shown as f64 / f64::from(all)
}

/// Waits until the share of each CPU is as `wanted` says.
fn wait_for_shares(watch: &Watch, what: &str, wanted: impl Fn(&[f64]) -> bool) {
    let mut last = Vec::new();
    until(what, PATIENCE, || {
        last = (0..4).map(|cpu| share(watch, cpu)).collect();
        wanted(&last).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}: {last:?}"));
}

#[test]
fn the_section_of_a_process_follows_it() {
    const NAME: &str = "the_section_of_a_process_follows_it";
    let parts = parts!(NAME);
    let compiler = match Compiler::c("cc") {
        Ok(compiler) => compiler,
        Err(reason) => skip!(NAME, "no C compiler: {reason}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let machine = Machine {
        programs: vec![compiler.guest_program("hostile", dir.path()).unwrap()],
        ..Machine::default()
    };
    on_machines(&parts, &machine, |kernel, watch, guest| {
        guest.load_driver("sections=off user_sections=1").unwrap();
        watch.wait_for(&[0, 1, 2, 3], PATIENCE).unwrap();
        guest
            .sh("taskset 2 /bin/hostile spin >/dev/null & echo $! >/tmp/pid")
            .unwrap();
        let nowhere = |shares: &[f64]| shares.iter().all(|&share| share == 0.0);
        let on = |cpu: usize| {
            move |shares: &[f64]| {
                let mut shares = shares.iter().enumerate();
                shares.all(|(nr, &share)| if nr == cpu { share > 0.9 } else { share == 0.0 })
            }
        };
        wait_for_shares(watch, "the section on CPU 1", on(1));
        guest.sh("taskset -p 4 $(cat /tmp/pid)").unwrap();
        wait_for_shares(watch, "the section on CPU 2", on(2));
        guest.sh("kill -STOP $(cat /tmp/pid)").unwrap();
        wait_for_shares(watch, "no section of a stopped process", nowhere);
        guest.sh("kill -CONT $(cat /tmp/pid)").unwrap();
        wait_for_shares(watch, "the section again", on(2));
        guest.sh("kill -KILL $(cat /tmp/pid)").unwrap();
        wait_for_shares(watch, "no section of a dead process", nowhere);
        println!("Linux {}: on CPU 1, 2, stopped, 2, dead", kernel.version());
    });
}

/// What the driver's two calls answer for a CPU.
fn hints(guest: &mut Guest, cpu: usize) -> String {
    let text = guest.sh(&format!("cat {}/hints", Truth::DIR)).unwrap();
    let line = text.lines().nth(cpu).unwrap();
    line.split_once(' ').unwrap().1.to_owned()
}

#[test]
fn hints_of_a_living_host_reach_other_modules() {
    let parts = parts!("hints_of_a_living_host_reach_other_modules");
    on_every_kernel(&parts, |_, watch, guest| {
        loaded(watch, guest, "");
        let slots = watch.slots(1).unwrap();
        let answers = |guest: &mut Guest, what: &str, alive: bool| {
            let heart = alive.then(|| watch.beat());
            until(what, PATIENCE, || (hints(guest, 1) == what).then_some(())).unwrap();
            drop(heart);
            assert_eq!(hints(guest, 0), "0 0", "another CPU's");
        };
        slots.set_preempted(true);
        answers(guest, "1 0", true);
        slots.set_preempted(false);
        slots.set_overloaded(true);
        answers(guest, "0 1", true);
        // A host that is gone cannot take back what it said.
        answers(guest, "0 0", false);
        answers(guest, "0 1", true);
        slots.clear_hints();
        answers(guest, "0 0", true);
    });
}

/// Has a host that lives say of every CPU that it is `preempted`, and its pCPU `overloaded`.
fn say(watch: &Watch, preempted: bool, overloaded: bool) {
    for cpu in 0..4 {
        let slots = watch.slots(cpu).unwrap();
        slots.set_preempted(preempted);
        slots.set_overloaded(overloaded);
    }
}

#[test]
fn processes_read_what_the_host_says_and_wait_by_it() {
    const NAME: &str = "processes_read_what_the_host_says_and_wait_by_it";
    let parts = parts!(NAME);
    let compiler = match Compiler::c("cc") {
        Ok(compiler) => compiler,
        Err(reason) => skip!(NAME, "no C compiler: {reason}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let user = static_test("ecs-guest", "user").unwrap();
    let name = user.file_name().unwrap().to_str().unwrap().to_owned();
    let machine = Machine {
        programs: vec![
            compiler.guest_program("hostile", dir.path()).unwrap(),
            user.clone(),
        ],
        ..Machine::default()
    };
    on_machines(&parts, &machine, |kernel, watch, guest| {
        guest.load_driver("sections=off user_sections=1").unwrap();
        watch.wait_for(&[0, 1, 2, 3], PATIENCE).unwrap();
        let hints = |guest: &mut Guest| guest.sh("/bin/hostile hints").unwrap();
        assert_eq!(hints(guest), "silent\n0 0 0\n1 0 0\n2 0 0\n3 0 0\n");
        let heart = watch.beat();
        watch.slots(1).unwrap().set_preempted(true);
        watch.slots(2).unwrap().set_overloaded(true);
        assert_eq!(hints(guest), "alive\n0 0 0\n1 1 0\n2 0 1\n3 0 0\n");

        let threads = |guest: &mut Guest, says: &str| {
            let run = format!("/bin/{name} --show-output --test-threads 1 the_host_says");
            let said = guest.sh(&format!("ECS_HOST_SAYS={says} {run}")).unwrap();
            assert!(said.contains("2 passed"), "{said}");
            let line = said.lines().find(|line| line.starts_with("host says"));
            println!("Linux {}: {}", kernel.version(), line.unwrap());
        };
        for (says, preempted, overloaded) in [
            ("free", false, false),
            ("overloaded", false, true),
            ("preempted", true, false),
        ] {
            say(watch, preempted, overloaded);
            threads(guest, says);
        }
        // A host that is gone cannot take back what it said.
        drop(heart);
        threads(guest, "");

        // The mapping keeps the driver; nothing else of that process does.
        say(watch, false, false);
        guest
            .sh("/bin/hostile map >/tmp/said & echo $! >/tmp/pid")
            .unwrap();
        guest
            .sh("until grep -q in /tmp/said; do sleep 0.1; done")
            .unwrap();
        guest.sh("! rmmod virtio_ecs").unwrap();
        guest.sh("kill -KILL $(cat /tmp/pid)").unwrap();
        guest
            .sh("until rmmod virtio_ecs; do sleep 0.1; done")
            .unwrap();
    });
}
