//! A guest that sleeps and wakes up: every CPU is registered again, and what the host reads is true.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use ecs_tests::linux::cases::{PATIENCE, counter, judge, loaded, on_machines, said, with_relay};
use ecs_tests::linux::{Guest, Machine, Meddling, Truth, Watch};
use ecs_tests::process::until;
use ecs_tests::{parts, slow};

/// Time from waking up to the last registration.
const RETURN: Duration = Duration::from_secs(10);
/// Time a guest that is frozen has to fall asleep after its devices: nobody hears of that.
const DROWSY: Duration = Duration::from_secs(5);

/// Goes to sleep as `state` says, in the background.
fn fall_asleep(guest: &mut Guest, state: &str) {
    let sleep = format!("echo {state} >/sys/power/state; echo $? >/tmp/slept");
    guest
        .sh(&format!("rm -f /tmp/slept; (sleep 0.2; {sleep}) &"))
        .unwrap();
}

/// Times the guest has woken up from a sleep.
fn wakings(guest: &Guest) -> usize {
    guest.console().matches("PM: suspend exit").count()
}

/// Waits until the machine is suspended, and wakes it up; QEMU does so by itself now and then, which
/// is then returned as `false`.
fn wake_up(guest: &Guest, wakings_before: usize) -> bool {
    let asleep = until("the machine to be suspended", PATIENCE, || {
        let status = guest.monitor("query-status").ok()?;
        match status.get("status")?.as_str()? {
            "suspended" => Some(true),
            _ => (wakings(guest) > wakings_before).then_some(false),
        }
    });
    let asleep = asleep.unwrap_or_else(|error| panic!("{error:#}:\n{}", guest.console()));
    if asleep {
        guest.monitor("system_wakeup").unwrap();
    }
    asleep
}

/// Waits until it has slept well.
fn awake(guest: &mut Guest) {
    guest.hear_again().unwrap();
    let slept = guest.sh("while ! [ -s /tmp/slept ]; do sleep 0.1; done; cat /tmp/slept");
    assert_eq!(slept.unwrap().trim(), "0");
}

/// Sleeps, wakes up, and must be whole again.
fn sleep(watch: &Watch, guest: &mut Guest, truth: &Truth, state: &str) {
    let (registered, unregistered) = (counter(guest, "registered"), counter(guest, "unregistered"));
    let wakings_before = wakings(guest);
    // A serial line that may wake the guest up is not set up anew, as one without power must be.
    let wakes = if state == "freeze" {
        "enabled"
    } else {
        "disabled"
    };
    guest
        .sh(&format!("echo {wakes} >/sys/class/tty/ttyS1/power/wakeup"))
        .unwrap();
    fall_asleep(guest, state);
    // From when it took is known only where it was woken up from here.
    let start = if state == "mem" {
        wake_up(guest, wakings_before).then(Instant::now)
    } else {
        // What sleeps is not the host's to read: the driver has taken its lines back.
        watch.wait_for(&[], PATIENCE).unwrap();
        std::thread::sleep(DROWSY);
        assert_eq!(watch.registered(), Vec::<usize>::new());
        // What is sent to its shell wakes it up.
        let start = Instant::now();
        guest.hear_again().unwrap();
        Some(start)
    };
    watch.wait_for(&[0, 1, 2, 3], RETURN).unwrap();
    match start {
        Some(start) => println!("{state}: registered again after {:?}", start.elapsed()),
        None => println!("{state}: registered again; it woke up by itself"),
    }
    awake(guest);
    assert_eq!(wakings(guest), wakings_before + 1);
    assert_eq!(counter(guest, "registered"), registered + 4);
    assert_eq!(counter(guest, "unregistered"), unregistered + 4);
    judge(watch, guest, truth);
}

fn sleeps(name: &str, state: &str) {
    let parts = parts!(name);
    let machine = Machine {
        append: "no_console_suspend".to_owned(),
        ..Machine::default()
    };
    on_machines(&parts, &machine, |kernel, watch, guest| {
        let states = guest
            .sh("cat /sys/power/state /sys/power/mem_sleep")
            .unwrap();
        println!("Linux {}: {}", kernel.version(), states.replace('\n', "; "));
        let truth = loaded(watch, guest, "");
        let before = said(guest);
        for _ in 0..2 {
            sleep(watch, guest, &truth, state);
        }
        assert_eq!(said(guest), before, "it has nothing to say of that");
        guest.sh("rmmod virtio_ecs").unwrap();
        watch.wait_for(&[], PATIENCE).unwrap();
    });
}

#[test]
fn a_guest_suspended_to_memory_comes_back_whole() {
    sleeps("a_guest_suspended_to_memory_comes_back_whole", "mem");
}

#[test]
fn a_frozen_guest_comes_back_whole() {
    slow!("a_frozen_guest_comes_back_whole");
    sleeps("a_frozen_guest_comes_back_whole", "freeze");
}

#[test]
fn a_guest_sleeps_and_wakes_up_while_its_daemon_is_away() {
    let parts = parts!("a_guest_sleeps_and_wakes_up_while_its_daemon_is_away");
    slow!("a_guest_sleeps_and_wakes_up_while_its_daemon_is_away");
    with_relay(&parts, &Meddling::default(), |_, watch, relay, guest| {
        let truth = loaded(watch, guest, "ctrl_timeout_ms=200");
        let before = said(guest).len();
        watch.stop();
        fall_asleep(guest, "mem");
        wake_up(guest, 0);
        awake(guest);
        watch.start().unwrap();
        watch.wait_for(&[0, 1, 2, 3], PATIENCE).unwrap();
        judge(watch, guest, &truth);
        assert_eq!(relay.held(), 0, "it asked a device that was away");
        assert!(said(guest).len() <= before + 1, "{:?}", said(guest));
    });
}
