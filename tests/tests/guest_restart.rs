//! A guest whose daemon is killed, stays away, forgets, hangs or is another one: every CPU is
//! registered again by itself, what the host reads is true, and the guest's log stays quiet.
//!
//! QEMU is connected through a relay, which connects again as Cloud Hypervisor does.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ecs_tests::linux::cases::{PATIENCE, counter, judge, loaded, on_devices, said, with_relay};
use ecs_tests::linux::{Guest, Kernel, Machine, Meddling, Parts, Relay, Truth, Watch};
use ecs_tests::process::{Signal, until};
use ecs_tests::{Daemon, Rig, parts, rig, slow};

/// Time within which every CPU is registered again once the daemon listens. The relay connects every
/// 0.1 s, and the driver looks once a second: three seconds, on a machine that does nothing else.
const RETURN: Duration = Duration::from_secs(10);
/// Queues for two doorbells, as the rig configures them.
const QUEUES: usize = 4;

/// A daemon that observes, on a rig.
struct Host<'a> {
    rig: &'a Rig,
    daemon: Option<Daemon>,
    relay: Relay,
}

impl<'a> Host<'a> {
    fn new(rig: &'a Rig) -> Self {
        let relay = Relay::new(&rig.socket(Watch::VM)).unwrap();
        let mut host = Self {
            rig,
            daemon: None,
            relay,
        };
        // What the guest before this one registered is not its business.
        host.forget();
        host.start();
        host
    }

    fn start(&mut self) {
        let config = self.rig.config("controller = \"observe\"", &[Watch::VM]);
        self.daemon = Some(self.rig.serve(&config).unwrap());
    }

    fn signal(&mut self, signal: Signal) {
        self.daemon.as_mut().unwrap().signal(signal).unwrap();
    }

    /// Kills the daemon, and waits for its end.
    fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let mut daemon = self.daemon.take().unwrap();
        daemon.wait().unwrap();
    }

    /// Removes what the daemon has saved; returns whether there was any.
    fn forget(&self) -> bool {
        fs::remove_file(self.state()).is_ok()
    }

    fn state(&self) -> PathBuf {
        self.rig.dir().join(format!("{}.state", Watch::VM))
    }
}

/// Heartbeats in the lines of each CPU.
fn heartbeats(guest: &mut Guest) -> Vec<u32> {
    let cpus = guest.sh("cat /sys/kernel/debug/virtio_ecs/cpus").unwrap();
    let beat = |line: &str| {
        let mut words = line.split(' ');
        words
            .find_map(|word| word.strip_prefix("heartbeat="))?
            .parse()
            .ok()
    };
    cpus.lines().filter_map(beat).collect()
}

/// Waits until the daemon writes to the lines of every CPU, which it does for those that are
/// registered.
fn all_alive(guest: &mut Guest, limit: Duration) -> Duration {
    let start = Instant::now();
    let before = heartbeats(guest);
    assert_eq!(before.len(), 4);
    until("the heartbeat of every CPU", limit, || {
        let now = heartbeats(guest);
        let mut both = now.iter().zip(&before);
        both.all(|(now, before)| now != before).then_some(())
    })
    .unwrap();
    start.elapsed()
}

/// Lets the guest work without end, until [`rest`].
fn work(guest: &mut Guest, what: &str) {
    let work = format!("{what} ms=60000 hold_us=30 gap_us=30");
    guest
        .sh(&format!("echo {work} >{}/run", Truth::DIR))
        .unwrap();
}

fn rest(guest: &mut Guest) {
    guest.sh(&format!("echo 1 >{}/stop", Truth::DIR)).unwrap();
}

/// Boots every kernel with the real daemon behind a relay, the driver loaded and every CPU alive;
/// after the case, the log must have no more than one line about it.
fn with_daemon(parts: &Parts, rig: &Rig, case: impl Fn(&Kernel, &mut Host<'_>, &mut Guest)) {
    let machine = Machine {
        queues: QUEUES,
        ..Machine::default()
    };
    let socket = |host: &Host<'_>| host.relay.socket().to_owned();
    on_devices(
        parts,
        &machine,
        || Host::new(rig),
        socket,
        |kernel, host, guest| {
            guest.load_driver("ctrl_timeout_ms=200").unwrap();
            guest.sh("insmod /ecs_test.ko").unwrap();
            all_alive(guest, PATIENCE);
            case(kernel, host, guest);
            // What unloading leaves with a device that is away is another matter.
            let about =
                |line: &String| line.contains("the device") && !line.contains("left behind");
            let said: Vec<_> = said(guest).into_iter().filter(about).collect();
            assert!(said.len() <= 1, "Linux {}: {said:?}", kernel.version());
            assert_eq!(
                host.relay.held(),
                0,
                "the driver asked a device that was away"
            );
            // Nor has the host anything to say against a driver without doorbells.
            let said = host.daemon.as_ref().unwrap().said();
            assert!(!said.contains("Doorbell queues"), "{said}");
        },
    );
}

/// Lets our own device take over from the daemon with what that had saved, and judges what it reads.
fn truth_holds(host: &mut Host<'_>, guest: &mut Guest) {
    let truth = Truth::find(guest).unwrap();
    host.kill();
    let watch = Watch::taking_over(host.rig.dir()).unwrap();
    host.relay.turn_to(watch.socket());
    watch.wait_for(&[0, 1, 2, 3], RETURN).unwrap();
    judge(&watch, guest, &truth);
    drop(watch);
    host.relay.turn_to(&host.rig.socket(Watch::VM));
    host.start();
    all_alive(guest, RETURN);
}

#[test]
fn a_daemon_killed_under_load_goes_on_where_it_was() {
    let name = "a_daemon_killed_under_load_goes_on_where_it_was";
    let (parts, rig) = (parts!(name), rig!(name));
    with_daemon(&parts, &rig, |kernel, host, guest| {
        let registered = counter(guest, "registered");
        work(guest, "mutex cpu=0,1,2,3");
        host.kill();
        host.start();
        let took = all_alive(guest, RETURN);
        // Twenty times in a row, as fast as it starts.
        for kill in 0..20 {
            let connects = host.relay.connects();
            host.kill();
            host.start();
            if kill % 2 == 0 {
                host.relay.wait_for_more_than(connects, RETURN).unwrap();
            }
        }
        let last = all_alive(guest, RETURN);
        rest(guest);
        println!(
            "Linux {}: alive {took:?} after a kill, {last:?} after the last of twenty in a row",
            kernel.version()
        );
        // The daemon had saved it all: the guest was not asked.
        assert_eq!(counter(guest, "registered"), registered);
        truth_holds(host, guest);
        assert_eq!(counter(guest, "registered"), registered);
    });
}

#[test]
fn a_daemon_that_stays_away_or_forgets_costs_nothing_but_the_hints() {
    let name = "a_daemon_that_stays_away_or_forgets_costs_nothing_but_the_hints";
    let (parts, rig) = (parts!(name), rig!(name));
    slow!(name);
    with_daemon(&parts, &rig, |kernel, host, guest| {
        work(guest, "spin cpu=0,1,2,3");
        host.kill();
        guest.sh("sleep 5").unwrap();
        host.start();
        let took = all_alive(guest, RETURN);
        // Now with its state lost, while it is killed or away.
        let mut times = vec![took];
        for away in ["true", "sleep 3"] {
            let registered = counter(guest, "registered");
            host.kill();
            assert!(host.forget(), "nothing was saved");
            guest.sh(away).unwrap();
            host.start();
            until("new registrations", RETURN, || {
                (counter(guest, "registered") >= registered + 4).then_some(())
            })
            .unwrap();
            times.push(all_alive(guest, RETURN));
        }
        rest(guest);
        println!("Linux {}: alive after {times:?}", kernel.version());
        truth_holds(host, guest);
    });
}

#[test]
fn the_driver_goes_while_its_daemon_is_away() {
    let name = "the_driver_goes_while_its_daemon_is_away";
    let (parts, rig) = (parts!(name), rig!(name));
    slow!(name);
    with_daemon(&parts, &rig, |kernel, host, guest| {
        let unload = |guest: &mut Guest| {
            let start = Instant::now();
            guest.sh("rmmod virtio_ecs").unwrap();
            start.elapsed()
        };
        work(guest, "mutex cpu=0,1,2,3");
        let usual = unload(guest);
        guest.load_driver("ctrl_timeout_ms=200").unwrap();
        all_alive(guest, RETURN);
        host.kill();
        let away = unload(guest);
        rest(guest);
        println!(
            "Linux {}: unloaded in {usual:?}, and in {away:?} without a daemon",
            kernel.version()
        );
        assert!(away < PATIENCE, "{away:?}");
        // Loading reads config space: a VMM whose daemon is not back yet would stand still for it.
        let connects = host.relay.connects();
        host.start();
        host.relay.wait_for_more_than(connects, RETURN).unwrap();
        guest.load_driver("").unwrap();
        all_alive(guest, RETURN);
        truth_holds(host, guest);
    });
}

#[test]
fn a_daemon_that_hangs_is_only_silent() {
    let name = "a_daemon_that_hangs_is_only_silent";
    let (parts, rig) = (parts!(name), rig!(name));
    slow!(name);
    with_daemon(&parts, &rig, |kernel, host, guest| {
        let registered = counter(guest, "registered");
        // Its watchdog would end it, and it would come back no more.
        let watchdog = host.daemon.as_ref().unwrap().watchdog().ok();
        println!("Linux {}: watchdog {watchdog:?}", kernel.version());
        work(guest, "mutex cpu=0,1,2,3");
        host.signal(Signal::SIGSTOP);
        guest.sh("sleep 1").unwrap();
        let before = heartbeats(guest);
        guest.sh("sleep 0.3").unwrap();
        assert_eq!(heartbeats(guest), before);
        host.signal(Signal::SIGCONT);
        all_alive(guest, RETURN);
        rest(guest);
        assert_eq!(counter(guest, "registered"), registered);
        truth_holds(host, guest);
    });
}

#[test]
fn what_the_host_reads_is_true_after_each_restart() {
    let parts = parts!("what_the_host_reads_is_true_after_each_restart");
    slow!("what_the_host_reads_is_true_after_each_restart");
    with_relay(&parts, &Meddling::default(), |_, watch, relay, guest| {
        let truth = loaded(watch, guest, "ctrl_timeout_ms=200");
        let before = said(guest).len();
        for _ in 0..3 {
            watch.stop();
            guest.sh("sleep 1").unwrap();
            watch.start().unwrap();
            watch.wait_for(&[0, 1, 2, 3], RETURN).unwrap();
            judge(watch, guest, &truth);
        }
        assert!(said(guest).len() <= before + 1, "{:?}", said(guest));
        assert_eq!(relay.held(), 0);
    });
}

#[test]
fn a_guest_that_is_moved_registers_with_its_new_host() {
    let parts = parts!("a_guest_that_is_moved_registers_with_its_new_host");
    slow!("a_guest_that_is_moved_registers_with_its_new_host");
    with_relay(&parts, &Meddling::default(), |_, watch, relay, guest| {
        let truth = loaded(watch, guest, "");
        let generation = watch.generation();
        for _ in 0..3 {
            // Another daemon, which knows nothing of this guest: another generation.
            let other = Watch::new().unwrap();
            guest.pause().unwrap();
            relay.turn_to(other.socket());
            guest.resume().unwrap();
            other.wait_for(&[0, 1, 2, 3], RETURN).unwrap();
            assert_ne!(other.generation(), generation);
            judge(&other, guest, &truth);
            // And home again, where it is a stranger by now.
            relay.turn_to(watch.socket());
            watch.wait_for(&[0, 1, 2, 3], RETURN).unwrap();
            judge(watch, guest, &truth);
        }
        assert_eq!(relay.held(), 0);
    });
}
