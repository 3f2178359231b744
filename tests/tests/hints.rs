//! What the host tells a guest: how soon it is told, and what the guest does when nobody tells it
//! any more.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ecs_microvm::{Vm, WorkloadKind};
use ecs_tests::hints::{self, CHANGES, Heard};
use ecs_tests::process::until;
use ecs_tests::{Rig, rig, scx_program};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(20);
/// Longest a hint may take in the median.
const SOON: Duration = Duration::from_micros(100);
/// Longest a guest may believe a host that is gone, and what reading from outside adds.
const BELIEVED: Duration = Duration::from_millis(100);
const SLACK: Duration = Duration::from_millis(20);

fn vm(rig: &Rig, vcpus: u32, cpus: &[u32], workload: WorkloadKind) -> Vm {
    hints::vm(
        &rig.socket("vm1"),
        &rig.stats_socket(),
        vcpus,
        cpus,
        workload,
    )
    .unwrap()
}

/// What a guest hears of a neighbour; or why the kernel does not tell.
fn changes(rig: &Rig, controller: &str) -> Result<Heard, String> {
    let daemon = rig
        .serve(&rig.config(&format!("controller = \"{controller}\""), &["vm1"]))
        .unwrap();
    let [cpu, other] = rig.pcpus();
    let vm = vm(rig, 1, &[cpu], WorkloadKind::Compute);
    let heard = hints::of_a_neighbour(vm, cpu, other).unwrap();
    let said = daemon.said();
    if said.contains("at each look only") {
        return Err(said);
    }
    Ok(heard)
}

#[test]
fn a_guest_is_told_at_once_that_its_cpu_is_wanted() {
    let name = "a_guest_is_told_at_once_that_its_cpu_is_wanted";
    let rig = rig!(name);
    if let Err(reason) = scx_program().unwrap() {
        ecs_tests::skip!(name, "{reason}");
    }
    for controller in ["observe", "userspace"] {
        let heard = match changes(&rig, controller) {
            Ok(heard) => heard,
            Err(said) => ecs_tests::skip!(name, "this kernel does not take the programs: {said}"),
        };
        println!("{controller}: {}", heard.summary());
        assert!(heard.waits.len() > CHANGES / 2, "{controller}: {heard:?}");
        let (half, _) = heard.quantiles().unwrap();
        assert!(half < SOON, "{controller}: {half:?}");
        if controller == "observe" {
            assert!(heard.preempted > 0.9, "{controller}: {heard:?}");
        }
    }
}

#[test]
fn a_guest_of_a_dead_host_halts_as_a_stock_guest_does() {
    let rig = rig!("a_guest_of_a_dead_host_halts_as_a_stock_guest_does");
    for (controller, signal) in [
        ("observe", Signal::SIGKILL),
        ("userspace", Signal::SIGKILL),
        ("observe", Signal::SIGSTOP),
    ] {
        let config = rig.config(&format!("controller = \"{controller}\""), &["vm1"]);
        let mut daemon = rig.serve(&config).unwrap();
        let vm = vm(&rig, 2, &rig.pcpus(), WorkloadKind::Blocking);
        let polled = || {
            let paid = |vcpu| vm.lines(vcpu).map(|lines| &lines.guest.polls_paid);
            (0..2)
                .filter_map(paid)
                .map(|paid| paid.load(Ordering::Relaxed))
                .sum::<u32>()
        };
        until("polls", PATIENCE, || (polled() > 1_000).then_some(())).unwrap();
        until("the daemon to count them", PATIENCE, || {
            let stats = rig.snapshot().ok()?;
            let vm = stats.vms.first()?;
            (vm.polls.paid > 1_000 && vm.polls.ns > 0 && vm.wakeups > 0).then_some(())
        })
        .unwrap();
        daemon.signal(signal).unwrap();
        let died = Instant::now();
        let last = AtomicU64::new(0);
        let mut before = polled();
        while died.elapsed() < Duration::from_millis(500) {
            thread::sleep(Duration::from_millis(1));
            let now = polled();
            if now != before {
                before = now;
                let us = u64::try_from(died.elapsed().as_micros()).unwrap();
                last.store(us, Ordering::Relaxed);
            }
        }
        let last = Duration::from_micros(last.into_inner());
        let ops = || vm.progress().ops.iter().sum::<u64>();
        let then = ops();
        until("the guest to go on", PATIENCE, || {
            (ops() > then + 100).then_some(())
        })
        .unwrap();
        println!("{controller}, {signal}: the guest polled for {last:?} more, then halted");
        assert!(last < BELIEVED + SLACK, "{controller}, {signal}: {last:?}");
        if signal == Signal::SIGSTOP {
            daemon.signal(Signal::SIGCONT).unwrap();
            let then = polled();
            until("polls again", PATIENCE, || {
                (polled() > then + 100).then_some(())
            })
            .unwrap();
            daemon.signal(Signal::SIGKILL).unwrap();
        }
        vm.finish().unwrap();
    }
}
