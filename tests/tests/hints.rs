//! What the host tells a guest: how soon it is told, and what the guest does when nobody tells it
//! any more.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ecs_microvm::{Vm, VmConfig, Workload, WorkloadKind};
use ecs_tests::process::until;
use ecs_tests::scheduling::bind_to;
use ecs_tests::{Rig, rig, scx_program};
use nix::sys::signal::Signal;
use vmm_sys_util::eventfd::EventFd;

const PATIENCE: Duration = Duration::from_secs(20);
/// Changes measured.
const CHANGES: usize = 101;
/// Longest a hint may take in the median.
const SOON: Duration = Duration::from_micros(100);
/// Longest a guest may believe a host that is gone, and what reading from outside adds.
const BELIEVED: Duration = Duration::from_millis(100);
const SLACK: Duration = Duration::from_millis(20);

fn vm(rig: &Rig, vcpus: u32, cpus: &[u32], workload: WorkloadKind) -> Vm {
    let config = VmConfig {
        socket: Some(rig.socket("vm1")),
        duration_ms: 600_000,
        cpus: cpus.to_vec(),
        pin: true,
        device_wait_ms: 20_000,
        ..VmConfig::new("vm1", vcpus, Workload::new(workload, 5.0, 5.0))
    };
    let mut vm = Vm::new(config).unwrap();
    assert!(vm.wait_for_device(PATIENCE), "{:?}", vm.device());
    until("the daemon to find the vCPUs", PATIENCE, || {
        let stats = rig.snapshot().ok()?;
        let found = &stats.vms.first()?.vcpus;
        (found.len() == vcpus as usize).then_some(())
    })
    .unwrap();
    vm.go();
    vm
}

/// A thread that sleeps on a CPU, and has a little to do there when it is woken.
struct Neighbour {
    bell: EventFd,
    stop: AtomicBool,
    runs: AtomicU32,
    /// Times it found the vCPU, whose CPU it had taken, told as preempted.
    told: AtomicU32,
}

impl Neighbour {
    fn live(&self, cpu: u32, preempted: &AtomicU32) {
        bind_to(cpu).unwrap();
        while self.bell.read().is_ok() && !self.stop.load(Ordering::Relaxed) {
            let told = preempted.load(Ordering::Relaxed) != 0;
            self.told.fetch_add(u32::from(told), Ordering::Relaxed);
            let start = Instant::now();
            while start.elapsed() < Duration::from_micros(30) {
                std::hint::spin_loop();
            }
            self.runs.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Time from `start` until the hint has the value.
fn told(hint: &AtomicU32, value: bool, start: Instant, limit: Duration) -> Option<Duration> {
    while (hint.load(Ordering::Relaxed) != 0) != value {
        if start.elapsed() > limit {
            return None;
        }
        std::hint::spin_loop();
    }
    Some(start.elapsed())
}

/// The middle, and the ninth of ten.
fn quantiles(mut of: Vec<Duration>) -> (Duration, Duration) {
    of.sort_unstable();
    (of[of.len() / 2], of[of.len() * 9 / 10])
}

/// Wakes a neighbour of a vCPU, again and again; returns how long after that its guest had the news, and
/// the part of the neighbour's runs in which the vCPU was told as preempted; or why the kernel does
/// not tell.
fn changes(rig: &Rig, controller: &str) -> Result<(Vec<Duration>, f64), String> {
    let daemon = rig
        .serve(&rig.config(&format!("controller = \"{controller}\""), &["vm1"]))
        .unwrap();
    let [cpu, other] = rig.pcpus();
    let vm = vm(rig, 1, &[cpu], WorkloadKind::Compute);
    let host = &vm.lines(0).unwrap().host;
    let neighbour = Neighbour {
        bell: EventFd::new(0).unwrap(),
        stop: AtomicBool::new(false),
        runs: AtomicU32::new(0),
        told: AtomicU32::new(0),
    };
    bind_to(other).unwrap();
    let mut waits = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| neighbour.live(cpu, &host.preempted));
        for turn in 0..CHANGES {
            // Not in step with what looks at regular intervals.
            thread::sleep(Duration::from_micros(2_000 + 997 * (turn as u64 % 7)));
            if told(&host.overloaded, false, Instant::now(), PATIENCE).is_none() {
                break;
            }
            let runs = neighbour.runs.load(Ordering::Relaxed);
            let woken = Instant::now();
            neighbour.bell.write(1).unwrap();
            let limit = Duration::from_millis(100);
            waits.extend(told(&host.overloaded, true, woken, limit));
            until("the neighbour to run", PATIENCE, || {
                (neighbour.runs.load(Ordering::Relaxed) != runs).then_some(())
            })
            .unwrap();
        }
        neighbour.stop.store(true, Ordering::Relaxed);
        neighbour.bell.write(1).unwrap();
    });
    let runs = f64::from(neighbour.runs.load(Ordering::Relaxed).max(1));
    let told = f64::from(neighbour.told.load(Ordering::Relaxed)) / runs;
    vm.finish().unwrap();
    let said = daemon.said();
    if said.contains("at each look only") {
        return Err(said);
    }
    Ok((waits, told))
}

#[test]
fn a_guest_is_told_at_once_that_its_cpu_is_wanted() {
    let name = "a_guest_is_told_at_once_that_its_cpu_is_wanted";
    let rig = rig!(name);
    if let Err(reason) = scx_program().unwrap() {
        ecs_tests::skip!(name, "{reason}");
    }
    for controller in ["observe", "userspace"] {
        let (waits, told) = match changes(&rig, controller) {
            Ok(found) => found,
            Err(said) => ecs_tests::skip!(name, "this kernel does not take the programs: {said}"),
        };
        assert!(
            waits.len() > CHANGES / 2,
            "{controller}: {} told",
            waits.len()
        );
        let nr = waits.len();
        let (half, most) = quantiles(waits);
        println!(
            "{controller}: told {nr} of {CHANGES} times that the CPU is wanted, after {half:?} in the \
             median, {most:?} in 90 %; preempted told in {:.0} % of the neighbour's runs",
            told * 100.0
        );
        assert!(half < SOON, "{controller}: {half:?}");
        if controller == "observe" {
            assert!(told > 0.9, "{controller}: {told}");
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
