//! A host with sched_ext and KVM: programs of this tree run in it, under its own scheduler and others.
//!
//! The host is emulated; absolute times mean nothing there.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss
)]

use std::path::PathBuf;
use std::time::Duration;

use ecs_tests::linux::side_by_side::{Arm, Load, Outcome, side_by_side};
use ecs_tests::linux::{Host, HostVm, Parts};
use ecs_tests::{parts, release_program, scx_program, skip, slow};

/// Time for a program that works a second.
const PATIENCE: Duration = Duration::from_secs(60);

/// A host with `vmm-ecs`.
fn host() -> Host {
    // As released: the embedded KVM guest cannot run code with debug checks.
    Host {
        programs: vec![release_program("vmm-ecs").unwrap()],
        ..Host::default()
    }
}

fn runs_our_programs(parts: &Parts, name: &str) {
    let kernel = parts.kernel(name).unwrap();
    HostVm::run(parts, &kernel, &host(), |host| {
        assert_eq!(host.sched_ext().unwrap(), "disabled");
        let check = host.sh_within("vmm-ecs check", PATIENCE).unwrap();
        println!("{check}");
        for (what, found) in [("kernel", kernel.version()), ("/dev/kvm", "a probe passed")] {
            let line = check.lines().find(|line| line.starts_with(what)).unwrap();
            let rest = line.trim_start_matches(what).trim();
            assert!(rest.starts_with("yes") && rest.contains(found), "{line}");
        }
        let load = Load {
            workload: "ticket",
            vcpus: 2,
            pcpus: "1",
            seconds: 2,
        };
        let outcomes = side_by_side(host, &[Arm::stock()], &load).unwrap();
        let [stock] = outcomes.as_slice() else {
            panic!("{outcomes:?}");
        };
        println!("{stock:?}");
        assert!(stock.vcpus_are.starts_with("kvm"), "{stock:?}");
        assert!(stock.ops_per_s.len() == 2 && stock.ops_per_s.iter().all(|&ops| ops > 0.0));
        // Four vCPUs that never sleep, on one CPU.
        assert!(stock.count("preemptions").unwrap() > 0, "{stock:?}");
    });
}

#[test]
fn a_host_runs_vms_on_its_own_scheduler() {
    let parts = parts!("a_host_runs_vms_on_its_own_scheduler", "7.3");
    runs_our_programs(&parts, "7.3");
}

#[test]
fn an_older_host_runs_vms_on_its_own_scheduler() {
    slow!("an_older_host_runs_vms_on_its_own_scheduler");
    let parts = parts!("an_older_host_runs_vms_on_its_own_scheduler", "7.2");
    runs_our_programs(&parts, "7.2");
}

#[test]
fn a_program_that_fails_or_hangs_is_told_so() {
    slow!("a_program_that_fails_or_hangs_is_told_so");
    let parts = parts!("a_program_that_fails_or_hangs_is_told_so", "7.3");
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host(), |host| {
        let (status, said) = host.try_sh("vmm-ecs demo --vms 0", PATIENCE).unwrap();
        assert!(
            status != 0 && said.contains("at least one VM"),
            "{status}: {said}"
        );
        // Every byte, and no more.
        host.sh("printf 'a\\r\\n\\000\\377' >/tmp/bytes").unwrap();
        assert_eq!(host.read_file("/tmp/bytes").unwrap(), b"a\r\n\0\xff");
        assert!(host.read_file("/tmp/none").is_err());
        for (kind, folder) in [
            ("cgroup2", "/sys/fs/cgroup"),
            ("bpf", "/sys/fs/bpf"),
            ("tracefs", "/sys/kernel/tracing"),
            ("debugfs", "/sys/kernel/debug"),
            ("tmpfs", "/dev/shm"),
        ] {
            host.sh(&format!("grep -q '^[^ ]* {folder} {kind} ' /proc/mounts"))
                .unwrap();
        }
        host.sh("ping -c 1 127.0.0.1").unwrap();
        let hung = host.sh_within("sleep 1000", Duration::from_secs(1));
        let said = format!("{:#}", hung.unwrap_err());
        assert!(said.contains("No answer within 1s"), "{said}");
    });
}

/// Loads of the comparison: with locks, more vCPUs than one CPU or two, and without locks.
const LOADS: [Load; 5] = [
    load("ticket", 2, "1"),
    load("ticket", 2, "0-1"),
    load("ticket", 4, "1"),
    load("ticket", 4, "0-1"),
    load("compute", 2, "0-1"),
];

const fn load(workload: &'static str, vcpus: usize, pcpus: &'static str) -> Load {
    Load {
        workload,
        vcpus,
        pcpus,
        seconds: 3,
    }
}

/// Our scheduler without a look into guests.
const PLAIN: &str = "plain";

/// Runs of what differs little.
const COMPUTE_RUNS: usize = 5;

fn print(load: &Load, outcomes: &[Outcome]) {
    for outcome in outcomes {
        let count = |name| outcome.count(name).unwrap();
        println!(
            "{} 2 VMs x {} on CPUs {}: {:<10} {:>9.0} ops/s {:.0?}, {} preemptions, {} in a section, \
             stalled {} ms, handed over in {:.1?} us, share off {:.2} %",
            load.workload,
            load.vcpus,
            load.pcpus,
            outcome.arm,
            outcome.total(),
            outcome.ops_per_s,
            count("preemptions"),
            count("critical_preemptions"),
            count("critical_stall_us") / 1000,
            outcome.handoff_us,
            outcome.share_deviation_percent.unwrap_or(f64::NAN),
        );
    }
}

/// The host's own scheduler, ours with and without a look into guests, and, where `ECS_SCX_LAVD` is a program of it, scx_lavd, which is
/// not of this tree and only compared with.
#[test]
fn schedulers_side_by_side() {
    slow!("schedulers_side_by_side");
    let parts = parts!("schedulers_side_by_side", "7.3");
    let ours = match scx_program().unwrap() {
        Ok(program) => program,
        Err(reason) => skip!("schedulers_side_by_side", "{reason}"),
    };
    let kernel = parts.kernel("7.3").unwrap();
    let mut host = Host {
        programs: vec![ours],
        // Where time goes by the instructions executed, scx_lavd does not come up within minutes.
        ..Host::default()
    };
    let mut arms = vec![Arm::stock()];
    match std::env::var_os("ECS_SCX_LAVD").map(PathBuf::from) {
        Some(lavd) => {
            host.programs.push(lavd);
            // It asks how the kernel was built.
            let config = format!("/boot/config-{}", kernel.version());
            host.files.push((kernel.config(), config));
            arms.push(Arm::of("scx_lavd", "scx_lavd"));
        }
        None => println!(
            "SKIPPED: schedulers_side_by_side with scx_lavd: ECS_SCX_LAVD names no program of it"
        ),
    }
    // Our own one without a look into guests is weighted virtual time, and no more.
    for (name, arm) in [(PLAIN, "rotate"), ("eCS", "ecs")] {
        arms.push(Arm {
            name: name.to_owned(),
            demo: format!("--arms {arm} --controller scx"),
            ..Arm::stock()
        });
    }
    HostVm::run(&parts, &kernel, &host, |host| {
        let run = |host: &mut HostVm, load| {
            let outcomes = side_by_side(host, &arms, load).unwrap();
            print(load, &outcomes);
            outcomes
        };
        for load in &LOADS {
            if load.workload == "compute" {
                // Small differences, on a machine whose speed is not its own.
                let runs: Vec<_> = (0..COMPUTE_RUNS).map(|_| run(host, load)).collect();
                let totals = |arm: usize| runs.iter().map(move |run| run[arm].total());
                let ecs = arms.len() - 1;
                for (other, arm) in arms.iter().enumerate().take(ecs) {
                    let ratios = totals(ecs).zip(totals(other));
                    let mut ratios: Vec<f64> = ratios.map(|(ecs, other)| ecs / other).collect();
                    ratios.sort_by(f64::total_cmp);
                    let ratio = ratios[COMPUTE_RUNS / 2];
                    println!(
                        "compute, eCS against {}: {ratio:.3}, of {ratios:.3?}",
                        arm.name
                    );
                    // The other one is a peer, not what a host had before.
                    assert!(other > 0 || ratio >= 0.95, "{ratio}: {}", arm.name);
                }
                continue;
            }
            let outcomes = run(host, load);
            let (ecs, others) = outcomes.split_last().unwrap();
            for other in others {
                let ratio = ecs.total() / other.total();
                // For each operation: who gets nothing done is not preempted in it either.
                let critical = |outcome: &Outcome| {
                    outcome.count("critical_preemptions").unwrap() as f64 / outcome.total()
                };
                assert!(ratio > 1.0, "{ratio}: {other:?} {ecs:?}");
                // Who looks into no guest counts none of them.
                if other.arm != PLAIN {
                    assert!(critical(ecs) < critical(other), "{other:?} {ecs:?}");
                }
            }
        }
    });
}
