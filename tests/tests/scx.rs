//! The controller in the kernel, on a real kernel with sched_ext and real KVM vCPUs.
//!
//! The host is emulated and counts instructions: its time is the emulator's, whatever else this
//! machine does, so that the figures of a run can be asserted.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss
)]

use ecs_tests::linux::HostVm;
use ecs_tests::linux::side_by_side::{Arm, Load, Outcome, side_by_side};
use ecs_tests::{scx_host, slow};

/// Length of a tick of the host, us: HZ is 250.
const TICK_US: u64 = 4000;
/// Hard stop of an extension by default, us.
const HARD_STOP_US: u64 = 1000;

fn ours() -> Arm {
    Arm {
        name: "eCS".to_owned(),
        demo: "--arms ecs --controller scx".to_owned(),
        ..Arm::stock()
    }
}

/// An arm with other words for the demo.
fn ours_with(words: &str) -> Arm {
    let demo = format!("{} {words}", ours().demo);
    Arm { demo, ..ours() }
}

/// Every extension has one outcome, every request one answer; some of each may still run.
fn assert_identities(outcome: &Outcome) {
    const RUNNING: u64 = 4;
    let count = |name: &str| outcome.count(name).unwrap();
    let answers = count("grants") + count("denials");
    assert!(
        count("requests").abs_diff(answers) <= RUNNING,
        "{outcome:?}"
    );
    let outcomes = count("yielded") + count("expired") + count("revoked") + count("aborted");
    assert!(count("grants").abs_diff(outcomes) <= RUNNING, "{outcome:?}");
}

fn say(load: &Load, outcome: &Outcome) {
    let count = |name: &str| outcome.count(name).unwrap();
    println!(
        "2 VMs x {} {} on CPUs {}, {}: {:.0} ops/s, {} preemptions, {} in a section; {} requests, \
         {} granted, {} yielded, {} expired; longest extension {} us; share off {:.3} %",
        load.vcpus,
        load.workload,
        load.pcpus,
        outcome.arm,
        outcome.total(),
        count("preemptions"),
        count("critical_preemptions"),
        count("requests"),
        count("grants"),
        count("yielded"),
        count("expired"),
        outcome.extension_max_us,
        outcome.share_deviation_percent.unwrap_or(f64::NAN),
    );
}

#[test]
fn vcpus_are_not_preempted_inside_sections() {
    let (parts, host) = scx_host!("vcpus_are_not_preempted_inside_sections", "7.3");
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        for (vcpus, pcpus) in [(2, "0"), (2, "0-1"), (4, "0"), (4, "0-1")] {
            let load = Load {
                workload: "ticket",
                vcpus,
                pcpus,
                seconds: 2,
            };
            let outcomes = side_by_side(host, &[Arm::stock(), ours()], &load).unwrap();
            let [stock, ecs] = outcomes.as_slice() else {
                panic!("{outcomes:?}");
            };
            say(&load, stock);
            say(&load, ecs);
            assert!(ecs.vcpus_are.starts_with("kvm"), "{ecs:?}");
            assert_identities(ecs);
            let count = |name: &str| ecs.count(name).unwrap();
            assert!(count("requests") > 100, "too little competition: {ecs:?}");
            // Of all that would have been preemptions inside a section.
            let avoided =
                count("yielded") as f64 / (count("yielded") + count("critical_preemptions")) as f64;
            assert!(avoided >= 0.99, "{avoided}: {ecs:?}");
            assert!(
                ecs.extension_max_us <= HARD_STOP_US + TICK_US,
                "{} us",
                ecs.extension_max_us
            );
            assert!(ecs.total() > stock.total(), "{stock:?} {ecs:?}");
            if vcpus == 4 {
                // The convoy.
                assert!(ecs.total() > 20.0 * stock.total(), "{stock:?} {ecs:?}");
            }
        }
    });
}

#[test]
fn shares_hold_whatever_a_guest_says() {
    slow!("shares_hold_whatever_a_guest_says");
    let (parts, host) = scx_host!("shares_hold_whatever_a_guest_says", "7.3");
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        let load = |workload, seconds| Load {
            workload,
            vcpus: 2,
            pcpus: "0-1",
            seconds,
        };
        for (workload, words, most_percent) in [
            ("ticket", "", 0.5),
            ("ticket", "--weights 100,300", 1.0),
            ("ticket", "--pinning 1", 0.5),
            ("ticket", "--unhinted 1", 0.5),
        ] {
            let load = load(workload, 10);
            let outcome = &side_by_side(host, &[ours_with(words)], &load).unwrap()[0];
            println!("{words}:");
            say(&load, outcome);
            assert_identities(outcome);
            let off = outcome.share_deviation_percent.unwrap();
            assert!(off <= most_percent, "{words}: {off} %");
        }
        // Without locks there is nothing to gain, and little may be lost.
        let load = load("compute", 5);
        let outcomes = side_by_side(host, &[Arm::stock(), ours()], &load).unwrap();
        say(&load, &outcomes[0]);
        say(&load, &outcomes[1]);
        assert!(
            outcomes[1].total() >= 0.97 * outcomes[0].total(),
            "{outcomes:?}"
        );
    });
}

/// Our class only for vCPUs, which then ranks below that of all other threads.
fn partial() -> Arm {
    Arm {
        name: "eCS, partial mode".to_owned(),
        ..ours_with("--policy 'partial = true'")
    }
}

/// Why the scheduler takes over the whole host: what is left for vCPUs beside other threads.
#[test]
fn vcpus_alone_in_a_class_below_all_others_get_what_is_left() {
    let name = "vcpus_alone_in_a_class_below_all_others_get_what_is_left";
    slow!(name);
    let (parts, host) = scx_host!(name, "7.3");
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        let server = "/sys/kernel/debug/sched/ext_server/cpu0";
        let server = host.sh(&format!("cat {server}/runtime {server}/period"));
        println!("The kernel keeps for the class, ns of ns: {server:?}");
        let mut hogs = String::new();
        for hogged in [false, true] {
            if hogged {
                // Of the least weight: the daemon, whose programs the kernel verifies first, has to start.
                let busy = "sh -c 'while :; do :; done' >/dev/null 2>&1 & echo $!";
                let light = "cd /sys/fs/cgroup; echo +cpu >cgroup.subtree_control; mkdir light; \
                             echo 1 >light/cpu.weight; echo 0 >light/cgroup.procs";
                hogs = host
                    .sh(&format!("({light}; taskset 1 {busy}; taskset 2 {busy})"))
                    .unwrap()
                    .replace('\n', " ");
            }
            for vcpus in [2, 4] {
                let load = Load {
                    workload: "ticket",
                    vcpus,
                    pcpus: "0-1",
                    seconds: 3,
                };
                let arms = [Arm::stock(), partial(), ours()];
                let outcomes = side_by_side(host, &arms, &load).unwrap();
                for outcome in &outcomes {
                    println!(
                        "{} hogs: VMs had {:.3} CPUs",
                        if hogged { 2 } else { 0 },
                        outcome.cpus
                    );
                    say(&load, outcome);
                }
                let [_, partial, full] = outcomes.as_slice() else {
                    panic!("{outcomes:?}");
                };
                if hogged {
                    assert!(full.total() > 2.0 * partial.total(), "{outcomes:?}");
                    assert!(full.cpus > 1.85, "more than the busy threads: {full:?}");
                }
            }
        }
        host.sh(&format!("kill {hogs}")).unwrap();
    });
}

/// Whose turn it is, virtual time says; which of its vCPUs comes, also on which node it ran.
#[test]
fn vcpus_stay_near_where_they_ran() {
    let name = "vcpus_stay_near_where_they_ran";
    slow!(name);
    let (parts, mut host) = scx_host!(name, "7.3");
    (host.cpus, host.nodes) = (4, 2);
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        let nodes = host
            .sh("cat /sys/devices/system/node/node*/cpulist")
            .unwrap();
        assert_eq!(nodes.trim(), "0-1\n2-3");
        for workload in ["compute", "ticket"] {
            let load = Load {
                workload,
                vcpus: 4,
                pcpus: "0-3",
                seconds: 2,
            };
            let arms = [ours_with(" --policy 'near = false'"), ours()];
            let outcomes = side_by_side(host, &arms, &load).unwrap();
            let mut far = Vec::new();
            for outcome in &outcomes {
                say(&load, outcome);
                let moves = ["migrations", "far_migrations"].map(|of| outcome.count(of).unwrap());
                println!("moved to another CPU, and to another node: {moves:?}");
                far.push(moves[1]);
            }
            assert!(far[1] * 4 < far[0] * 3, "{workload}: {far:?}");
        }
    });
}

/// What each rule of the lock queue is worth, one at a time and together.
#[test]
fn each_queue_rule_is_worth_something() {
    slow!("each_queue_rule_is_worth_something");
    let (parts, host) = scx_host!("each_queue_rule_is_worth_something", "7.3");
    let kernel = parts.kernel("7.3").unwrap();
    let off = |rules: &[&str]| {
        let rules = rules
            .iter()
            .map(|rule| format!(" --policy '{rule} = false'"));
        ours_with(&rules.collect::<String>())
    };
    let arms = [
        Arm::stock(),
        Arm {
            name: "extensions only".to_owned(),
            demo: "--arms holder-only --controller scx".to_owned(),
            ..Arm::stock()
        },
        Arm {
            name: "step aside only".to_owned(),
            ..off(&["head_first", "apart"])
        },
        Arm {
            name: "no step aside".to_owned(),
            ..off(&["step_aside"])
        },
        Arm {
            name: "no head first".to_owned(),
            ..off(&["head_first"])
        },
        Arm {
            name: "not apart".to_owned(),
            ..off(&["apart"])
        },
        ours(),
    ];
    HostVm::run(&parts, &kernel, &host, |host| {
        for vcpus in [2, 4] {
            let load = Load {
                workload: "ticket",
                vcpus,
                pcpus: "0-1",
                seconds: 3,
            };
            let outcomes = side_by_side(host, &arms, &load).unwrap();
            for outcome in &outcomes {
                say(&load, outcome);
            }
            let most = outcomes.last().unwrap().total();
            assert!(most > outcomes[0].total() && most > outcomes[1].total());
        }
    });
}
