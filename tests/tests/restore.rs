//! However the daemon ends, every vCPU thread is scheduled again as its VMM left it, and the VMs
//! run on.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use ecs_microvm::{VmConfig, VmReport, WorkloadKind};
use ecs_sched::sys::Tid;
use ecs_tests::process::{Signal, is_alive, is_stopped, signal, until};
use ecs_tests::scheduling::{Scheduling, policy};
use ecs_tests::{Daemon, Rig, TestVm, is_full, rig};

/// Time from the end of the daemon until every thread is put back.
const RESTORED_WITHIN: Duration = Duration::from_secs(1);
/// Silence of the daemon that its watchdog bears.
const WATCHDOG_BEARS: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(20);
const NAMES: [&str; 2] = ["lock", "sleep"];

/// Two VMs that were there before any daemon, and how their vCPU threads are scheduled: not as the
/// kernel or the daemon would by default.
struct Vms {
    vms: [TestVm; 2],
    original: Vec<(Tid, Scheduling)>,
}

impl Vms {
    fn start(rig: &Rig) -> Self {
        let [first, second] = rig.pcpus();
        let start = |name: &str, kind| {
            rig.vm(&VmConfig {
                // There is none yet.
                device_wait_ms: 1,
                ..rig.vm_config(name, kind)
            })
            .unwrap()
        };
        let mut vms = [
            start(NAMES[0], WorkloadKind::Ticket),
            start(NAMES[1], WorkloadKind::Blocking),
        ];
        let places: [&[u32]; 4] = [
            &[first, second],
            &[first, second],
            &[first],
            &[first, second],
        ];
        let tids: Vec<Tid> = vms.iter().flat_map(|vm| vm.vcpus().unwrap()).collect();
        assert_eq!(tids.len(), places.len());
        let original: Vec<(Tid, Scheduling)> = tids
            .into_iter()
            .zip(places)
            .map(|(tid, cpus)| (tid, Scheduling::give(tid, 3, cpus).unwrap()))
            .collect();
        for (tid, original) in &original {
            assert_eq!(
                (original.attr.policy, original.attr.nice),
                (policy::OTHER, 3),
                "thread {tid}"
            );
        }
        for vm in &mut vms {
            vm.go().unwrap();
        }
        Self { vms, original }
    }

    /// Threads that are not scheduled as they were, and how they are.
    fn changed(&self) -> Vec<String> {
        self.original
            .iter()
            .filter_map(|(tid, original)| {
                let now = Scheduling::of(*tid).unwrap();
                (now != *original).then(|| format!("thread {tid}: {now:?}, was {original:?}"))
            })
            .collect()
    }

    /// Waits until both VMs are registered and steered: each thread on one CPU, some of them seen
    /// in the real-time class and some in the idle class.
    fn wait_until_steered(&self, rig: &Rig) {
        for name in NAMES {
            rig.registered(name, 2).unwrap();
        }
        let mut seen = Vec::new();
        until("vCPUs in both classes", PATIENCE, || {
            let now: Vec<Scheduling> = self
                .original
                .iter()
                .map(|(tid, _)| Scheduling::of(*tid).unwrap())
                .collect();
            seen.extend(now.iter().map(|thread| thread.attr.policy));
            let bound = now.iter().all(|thread| thread.cpus.cpus().len() == 1);
            (bound && seen.contains(&policy::FIFO) && seen.contains(&policy::IDLE)).then_some(())
        })
        .unwrap();
        assert_eq!(
            Scheduling::of(self.original[2].0).unwrap().cpus,
            self.original[2].1.cpus,
            "a thread was moved to a CPU its VMM does not allow it"
        );
    }

    /// Waits until every thread is as it was; how long that took.
    fn wait_until_restored(&self, limit: Duration) -> Duration {
        let start = Instant::now();
        if let Err(error) = until("every thread put back", limit, || {
            self.changed().is_empty().then_some(())
        }) {
            panic!("{error}\n{}", self.changed().join("\n"));
        }
        start.elapsed()
    }

    fn wait_for_work(&self) {
        for vm in &self.vms {
            vm.wait_for_work().unwrap();
        }
    }

    /// Ends both VMs, which must have kept every promise of a lock. `daemons` served them, one after
    /// the other, and the guest registered with one of them at most.
    fn finish(mut self, daemons: u64) -> [VmReport; 2] {
        self.wait_for_work();
        self.vms.each_mut().map(|vm| {
            let report = vm.stop().unwrap();
            assert!(report.exclusion_held(), "{report:?}");
            assert_eq!(report.lost_wakeups, 0, "{report:?}");
            let device = report.device.clone().unwrap();
            // A daemon that resumes from its saved state steers before the front-end has connected
            // again, and is killed within 41 ms: on a busy machine some are gone by then.
            let connects = daemons.div_ceil(2)..=daemons;
            assert!(connects.contains(&device.nr_connects), "{device:?}");
            // None if the only daemon was killed before the last vCPU had its answer.
            assert!(device.nr_registrations <= 1, "{device:?}");
            report
        })
    }
}

fn start(rig: &Rig, vms: &Vms) -> Daemon {
    let daemon = rig.steer(&NAMES).unwrap();
    vms.wait_until_steered(rig);
    daemon
}

#[test]
fn sigkill_again_and_again() {
    let rig = rig!("sigkill_again_and_again");
    let vms = Vms::start(&rig);
    let kills = if is_full() { 100 } else { 10 };
    let mut longest = Duration::ZERO;
    for kill in 0..kills {
        let mut daemon = start(&rig, &vms);
        // Not always at the same moment of a slice, or of a beat.
        std::thread::sleep(Duration::from_millis(kill * 7 % 41));
        let start = Instant::now();
        daemon.signal(Signal::SIGKILL).unwrap();
        vms.wait_until_restored(RESTORED_WITHIN);
        longest = longest.max(start.elapsed());
        assert_eq!(daemon.wait().unwrap().signal(), Some(9));
        vms.wait_for_work();
    }
    println!("{kills} kills, every thread put back within {longest:?}");
    let [_, sleeper] = vms.finish(kills);
    assert!(sleeper.nr_halts > 0, "its waiters never slept: {sleeper:?}");
}

#[test]
fn sigterm_puts_everything_back_and_cleans_up() {
    let rig = rig!("sigterm_puts_everything_back_and_cleans_up");
    let vms = Vms::start(&rig);
    for _ in 0..3 {
        let mut daemon = start(&rig, &vms);
        let watchdog = daemon.watchdog().unwrap();
        daemon.signal(Signal::SIGTERM).unwrap();
        assert!(daemon.wait().unwrap().success(), "{}", daemon.said());
        // At once: the daemon did it itself.
        assert_eq!(vms.changed(), Vec::<String>::new());
        assert!(!is_alive(watchdog), "the watchdog outlives an orderly end");
        for socket in [
            rig.stats_socket(),
            rig.socket(NAMES[0]),
            rig.socket(NAMES[1]),
        ] {
            assert!(!socket.exists(), "{} is left behind", socket.display());
        }
        vms.wait_for_work();
    }
    vms.finish(3);
}

#[test]
fn another_watchdog_takes_over() {
    let rig = rig!("another_watchdog_takes_over");
    let vms = Vms::start(&rig);
    let mut daemon = start(&rig, &vms);
    let mut watchdog = daemon.watchdog().unwrap();
    for _ in 0..3 {
        signal(watchdog, Signal::SIGKILL).unwrap();
        watchdog = until("another watchdog", PATIENCE, || {
            daemon.watchdog().ok().filter(|&pid| pid != watchdog)
        })
        .unwrap();
    }
    assert!(daemon.is_alive().unwrap());
    vms.wait_until_steered(&rig);
    daemon.signal(Signal::SIGKILL).unwrap();
    vms.wait_until_restored(RESTORED_WITHIN);
    vms.finish(1);
}

#[test]
fn a_daemon_that_hangs_is_ended() {
    let rig = rig!("a_daemon_that_hangs_is_ended");
    let vms = Vms::start(&rig);
    let mut daemon = start(&rig, &vms);

    // A hiccup is none of it.
    daemon.signal(Signal::SIGSTOP).unwrap();
    std::thread::sleep(WATCHDOG_BEARS / 4);
    daemon.signal(Signal::SIGCONT).unwrap();
    vms.wait_until_steered(&rig);

    daemon.signal(Signal::SIGSTOP).unwrap();
    vms.wait_until_restored(WATCHDOG_BEARS + RESTORED_WITHIN);
    assert_eq!(daemon.wait().unwrap().signal(), Some(9));
    vms.finish(1);
}

/// Ends daemon and watchdog together: nobody is left to put anything back.
fn end_both(daemon: &mut Daemon) {
    let watchdog = daemon.watchdog().unwrap();
    // Or it would start another one.
    daemon.signal(Signal::SIGSTOP).unwrap();
    until("the daemon stopped", PATIENCE, || {
        is_stopped(daemon.pid()).then_some(())
    })
    .unwrap();
    signal(watchdog, Signal::SIGKILL).unwrap();
    until("the end of the watchdog", PATIENCE, || {
        (!is_alive(watchdog)).then_some(())
    })
    .unwrap();
    daemon.signal(Signal::SIGKILL).unwrap();
    daemon.wait().unwrap();
}

#[test]
fn restore_puts_back_what_nobody_else_did() {
    let rig = rig!("restore_puts_back_what_nobody_else_did");
    let vms = Vms::start(&rig);
    let mut daemon = start(&rig, &vms);
    end_both(&mut daemon);
    assert_eq!(
        vms.changed().len(),
        4,
        "nobody should have put anything back"
    );

    let journal = rig.dir().join("threads.journal");
    let mut restore = rig.command();
    restore.arg("restore").arg("--journal").arg(&journal);
    let output = restore.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "4 threads put back\n"
    );
    assert_eq!(vms.changed(), Vec::<String>::new());
    // A second time does no harm.
    assert!(restore.status().unwrap().success());
    assert_eq!(vms.changed(), Vec::<String>::new());
    vms.finish(1);
}

#[test]
fn the_next_daemon_puts_back_what_nobody_else_did() {
    let rig = rig!("the_next_daemon_puts_back_what_nobody_else_did");
    let vms = Vms::start(&rig);
    let mut daemon = start(&rig, &vms);
    end_both(&mut daemon);
    assert_eq!(
        vms.changed().len(),
        4,
        "nobody should have put anything back"
    );

    let mut daemon = start(&rig, &vms);
    daemon.signal(Signal::SIGTERM).unwrap();
    assert!(daemon.wait().unwrap().success(), "{}", daemon.said());
    assert_eq!(vms.changed(), Vec::<String>::new());
    vms.finish(2);
}
