//! An idle CPU of a guest with our driver polls for work while its pCPU is free and its host lives,
//! and halts otherwise; and it leaves idle alone where somebody else has it.
//!
//! The host is this test: it writes heartbeats and `overloaded`, and reads what the guest counts.
//! Polls are allowed to be long here, because an emulated CPU wakes another one in milliseconds.
#![allow(clippy::unwrap_used)]

use std::thread::sleep;
use std::time::{Duration, Instant};

use ecs_tests::linux::cases::{PATIENCE, loaded, on_every_kernel, on_machines, said};
use ecs_tests::linux::{Guest, Machine, Polls, Truth, Watch};
use ecs_tests::process::until;
use ecs_tests::{parts, slow};

/// Parameters: the longest polls there are, and time for a device that shares a busy machine.
const LONG_POLLS: &str = "idle_poll_us=10000 ctrl_timeout_ms=10000";
/// The CPUs that play ping-pong.
const PLAYERS: [usize; 2] = [0, 1];
/// What `docs/abi.md` allows a guest to believe a host that is gone.
const BELIEF: Duration = Duration::from_millis(100);
/// Time from the end of the last poll to its count being seen here: an emulated CPU may stand still
/// for it on a busy machine.
const SLACK: Duration = Duration::from_millis(500);

/// Has two CPUs wait for each other, for as long as a workload may last; again if it is over.
fn play(guest: &mut Guest) {
    let work = "echo pingpong cpu=0,1 ms=60000 hold_us=0 gap_us=0";
    let dir = Truth::DIR;
    guest
        .sh(&format!("echo 1 >{dir}/stop; {work} >{dir}/run"))
        .unwrap();
}

/// Turns played so far.
fn turns(guest: &mut Guest) -> u64 {
    let result = guest.sh(&format!("cat {}/result", Truth::DIR)).unwrap();
    let turns = result.split_whitespace().nth(1).unwrap();
    turns.parse().unwrap()
}

/// What the players say of their polls.
fn polls(watch: &Watch) -> [Polls; 2] {
    PLAYERS.map(|cpu| watch.polls(cpu).unwrap())
}

fn paid(watch: &Watch) -> u32 {
    polls(watch)
        .iter()
        .fold(0, |sum, polls| sum.wrapping_add(polls.paid))
}

/// Waits until many more polls have met work.
fn they_poll(watch: &Watch, what: &str) {
    const MANY: u32 = 200;
    let before = paid(watch);
    until(what, PATIENCE, || {
        (paid(watch).wrapping_sub(before) > MANY).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}: {:?}", polls(watch)));
}

/// Nobody polls for a while, and the game goes on.
fn they_play_without(watch: &Watch, guest: &mut Guest, what: &str) {
    let (before, so_far) = (polls(watch), turns(guest));
    sleep(Duration::from_secs(1));
    until(what, PATIENCE, || (turns(guest) > so_far + 2).then_some(())).unwrap();
    assert_eq!(polls(watch), before, "{what}");
}

#[test]
fn an_idle_cpu_polls_while_its_pcpu_is_free_and_its_host_lives() {
    let parts = parts!("an_idle_cpu_polls_while_its_pcpu_is_free_and_its_host_lives");
    on_every_kernel(&parts, |kernel, watch, guest| {
        let version = kernel.version();
        loaded(watch, guest, LONG_POLLS);
        let driver = guest
            .sh("cat /sys/devices/system/cpu/cpuidle/current_driver")
            .unwrap();
        assert_eq!(driver.trim(), "virtio_ecs");
        let log = said(guest);
        let says = "idle CPUs poll up to 10000 us while their pCPU is free";
        assert!(log.iter().any(|line| line.contains(says)), "{log:?}");

        play(guest);
        they_play_without(watch, guest, "a game while no host lives");
        let heart = watch.beat();
        they_poll(watch, "polls of a free pCPU");

        play(guest);
        let overload = |overloaded| {
            for cpu in PLAYERS {
                watch.slots(cpu).unwrap().set_overloaded(overloaded);
            }
        };
        overload(true);
        // A poll that was under way.
        sleep(SLACK);
        they_play_without(watch, guest, "a game on a pCPU that is not free");
        overload(false);
        they_poll(watch, "polls of a pCPU that is free again");

        play(guest);
        they_poll(watch, "polls before the host goes");
        let last_beat = heart.stop().unwrap();
        let (mut before, mut last_poll) = (polls(watch), last_beat);
        while last_beat.elapsed() < Duration::from_secs(3) {
            let now = polls(watch);
            if now != before {
                (before, last_poll) = (now, Instant::now());
            }
            sleep(Duration::from_millis(1));
        }
        let belief = last_poll.duration_since(last_beat);
        assert!(belief < BELIEF + SLACK, "Linux {version}: {belief:?}");
        they_play_without(watch, guest, "a game while the host is gone");
        println!("Linux {version}: the last poll was counted {belief:?} after the last heartbeat");

        let _heart = watch.beat();
        they_poll(watch, "polls for a host that is back");
        play(guest);
        guest.sh(&format!("echo 1 >{}/stop", Truth::DIR)).unwrap();
        let cpu1 = "/sys/devices/system/cpu/cpu1";
        guest
            .sh(&format!("echo 0 >{cpu1}/online && ! [ -e {cpu1}/cpuidle ]"))
            .unwrap();
        guest
            .sh(&format!(
                "echo 1 >{cpu1}/online && cat {cpu1}/cpuidle/state1/name"
            ))
            .unwrap();
        watch.wait_for(&[0, 1, 2, 3], PATIENCE).unwrap();
        play(guest);
        they_poll(watch, "polls of a CPU that was away");
        println!("Linux {version}: {:?}", polls(watch));

        guest.sh("rmmod virtio_ecs").unwrap();
        watch.wait_for(&[], PATIENCE).unwrap();
        let driver = guest
            .sh("cat /sys/devices/system/cpu/cpuidle/current_driver")
            .unwrap();
        assert_eq!(driver.trim(), "none");
    });
}

/// Loads the driver, which must leave idle alone and say why, and unloads it.
fn leaves_idle_alone(guest: &mut Guest, parameters: &str, why: &str) {
    let before = said(guest).len();
    guest.load_driver(parameters).unwrap();
    let driver = guest
        .sh("cat /sys/devices/system/cpu/cpuidle/current_driver")
        .unwrap();
    assert_ne!(driver.trim(), "virtio_ecs", "{parameters}: {why}");
    let log = said(guest).split_off(before);
    let says = format!("idle CPUs do not poll for us: {why}");
    let times = log.iter().filter(|line| line.contains(&says)).count();
    assert_eq!(times, 1, "{says}: {log:?}");
    guest.sh("rmmod virtio_ecs").unwrap();
}

#[test]
fn a_kernel_that_polls_already_is_left_alone() {
    let parts = parts!("a_kernel_that_polls_already_is_left_alone");
    let machine = Machine {
        append: "idle=poll".to_owned(),
        cpus: 2,
        ..Machine::default()
    };
    on_machines(&parts, &machine, |_, _, guest| {
        leaves_idle_alone(guest, "", "the kernel was started with idle=");
        leaves_idle_alone(guest, "idle=off", "idle=off");
        let (status, _) = guest
            .try_sh(&Guest::insmod("idle=always"), PATIENCE)
            .unwrap();
        assert_ne!(status, 0, "it loads with idle=always");
    });
}

#[test]
fn a_guest_with_mwait_is_left_alone() {
    let parts = parts!("a_guest_with_mwait_is_left_alone");
    let machine = Machine {
        mwait: true,
        cpus: 2,
        ..Machine::default()
    };
    on_machines(&parts, &machine, |_, _, guest| {
        leaves_idle_alone(guest, "", "this guest has MWAIT");
    });
}

#[test]
fn the_driver_comes_and_goes_while_cpus_poll() {
    const NAME: &str = "the_driver_comes_and_goes_while_cpus_poll";
    const CYCLES: u32 = 20;
    let parts = parts!(NAME);
    slow!(NAME);
    let machine = Machine {
        cpus: 2,
        ..Machine::default()
    };
    on_machines(&parts, &machine, |kernel, watch, guest| {
        guest.sh("insmod /ecs_test.ko").unwrap();
        let _heart = watch.beat();
        let start = Instant::now();
        for _ in 0..CYCLES {
            play(guest);
            guest.load_driver(LONG_POLLS).unwrap();
            watch.wait_for(&PLAYERS, PATIENCE).unwrap();
            they_poll(watch, "polls before the driver goes");
            guest.sh("rmmod virtio_ecs").unwrap();
            assert_eq!(watch.registered(), Vec::<usize>::new());
            let so_far = turns(guest);
            until("the game to go on", PATIENCE, || {
                (turns(guest) > so_far + 2).then_some(())
            })
            .unwrap();
        }
        println!(
            "Linux {}: loaded and unloaded {CYCLES} times under polls in {:.0?}",
            kernel.version(),
            start.elapsed()
        );
    });
}

#[test]
fn a_game_with_and_without_polls() {
    const NAME: &str = "a_game_with_and_without_polls";
    const SECONDS: u32 = 2;
    let parts = parts!(NAME);
    slow!(NAME);
    on_every_kernel(&parts, |kernel, watch, guest| {
        loaded(watch, guest, LONG_POLLS);
        let _heart = watch.beat();
        let dir = Truth::DIR;
        let mut rate = |us: u32| {
            let work = format!("pingpong cpu=0,1 ms={}000 hold_us=0 gap_us=0", SECONDS);
            let run = format!(
                "echo {us} >/sys/module/virtio_ecs/parameters/idle_poll_us; \
                 echo {work} >{dir}/run; \
                 while [ \"$(cat {dir}/run)\" != idle ]; do sleep 0.2; done"
            );
            guest.sh(&run).unwrap();
            // A round is a turn of each.
            let rate = turns(guest) as f64 / 2.0 / f64::from(SECONDS);
            assert!(rate > 0.0, "idle_poll_us={us}");
            rate
        };
        for us in [200, 10_000] {
            let (with, without) = (rate(us), rate(0));
            println!(
                "Linux {}, idle_poll_us={us}: {with:.0} rounds/s, {without:.0} without polls, \
                 ratio {:.2}",
                kernel.version(),
                with / without
            );
        }
    });
}
