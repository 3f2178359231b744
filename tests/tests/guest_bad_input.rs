//! What the driver meets that it should not: devices that lie, never answer or die, and processes
//! that mean no good. The guest says so once, and runs on.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use ecs_tests::cc::Compiler;
use ecs_tests::linux::cases::{
    PATIENCE, counter, loaded, on_every_kernel, on_machines, said, with_relay,
};
use ecs_tests::linux::{Garbage, Guest, Machine, Meddling, Parts, Relay, Watch};
use ecs_tests::process::until;
use ecs_tests::{parts, skip, slow};

/// Takes a CPU off and puts it back.
fn replug(guest: &mut Guest) {
    for online in [0, 1] {
        let file = "/sys/devices/system/cpu/cpu3/online";
        guest.sh(&format!("echo {online} >{file}")).unwrap();
    }
}

/// Lines of the kernel's log with `words` in them.
fn lines_with(guest: &Guest, words: &str) -> usize {
    let console = guest.console();
    console.lines().filter(|line| line.contains(words)).count()
}

#[test]
fn a_device_that_dies_costs_a_time_out_and_no_more() {
    let parts = parts!("a_device_that_dies_costs_a_time_out_and_no_more");
    on_every_kernel(&parts, |_, watch, guest| {
        loaded(watch, guest, "ctrl_timeout_ms=200");
        watch.stop();
        let start = Instant::now();
        replug(guest);
        guest.sh("rmmod virtio_ecs").unwrap();
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        assert!(
            lines_with(guest, "does not answer") <= 1,
            "{:?}",
            said(guest)
        );
        guest.sh("true").unwrap();
    });
}

/// Boots each kernel with a device that misbehaves, and loads the driver; the kernel must say so
/// once, in the words of `says`, and the guest runs on.
fn misbehaving(
    parts: &Parts,
    meddling: &Meddling,
    says: &str,
    check: impl Fn(&Watch, &Relay, &mut Guest),
) {
    with_relay(parts, meddling, |_, watch, relay, guest| {
        guest.load_driver("ctrl_timeout_ms=200").unwrap();
        let start = Instant::now();
        check(watch, relay, guest);
        guest.sh("rmmod virtio_ecs").unwrap();
        assert!(start.elapsed() < 2 * PATIENCE, "{:?}", start.elapsed());
        assert_eq!(lines_with(guest, says), 1, "{:?}", said(guest));
    });
}

fn nobody(watch: &Watch, _: &Relay, _: &mut Guest) {
    assert_eq!(watch.registered(), Vec::<usize>::new());
}

fn config(offset: usize, value: &[u8]) -> Meddling {
    Meddling {
        config: vec![(offset, value.to_vec())],
        ..Meddling::default()
    }
}

#[test]
fn a_device_of_another_kind_or_version_is_left_alone() {
    let parts = parts!("a_device_of_another_kind_or_version_is_left_alone");
    misbehaving(&parts, &config(0, b"evil"), "magic", nobody);
    // version_min and version_max
    misbehaving(&parts, &config(4, &[9, 0, 9, 0]), "versions 9 to 9", nobody);
    // line_size
    misbehaving(&parts, &config(20, &[32, 0]), "lines of 64 bytes", nobody);
}

#[test]
fn cpus_beyond_what_the_device_serves_run_without() {
    let parts = parts!("cpus_beyond_what_the_device_serves_run_without");
    let two = config(16, &[2, 0, 0, 0]);
    misbehaving(&parts, &two, "serves CPUs below 2", |watch, _, _| {
        watch.wait_for(&[0, 1], PATIENCE).unwrap();
    });
}

#[test]
fn a_device_that_never_answers_is_given_up() {
    let parts = parts!("a_device_that_never_answers_is_given_up");
    let meddling = Meddling {
        deaf: Some(0),
        ..Meddling::default()
    };
    misbehaving(
        &parts,
        &meddling,
        "does not answer",
        |watch, relay, guest| {
            until("a kick", PATIENCE, || relay.was_kicked(0).then_some(())).unwrap();
            assert_eq!(watch.registered(), Vec::<usize>::new());
            replug(guest);
        },
    );
}

/// A device that answers so: the driver says that once, and registers nothing.
fn not_believed(parts: &Parts, bytes: &[u8], length: u32, off_by: u32, says: &str) {
    let meddling = Meddling {
        deaf: Some(0),
        garbage: Some(Garbage {
            bytes: bytes.to_vec(),
            length,
            off_by,
        }),
        ..Meddling::default()
    };
    misbehaving(parts, &meddling, says, |watch, _, guest| {
        replug(guest);
        // Tried again once a second, and not said again.
        guest.sh("sleep 3").unwrap();
        assert_eq!(watch.registered(), Vec::<usize>::new());
        assert_eq!(counter(guest, "registered"), 0);
    });
}

const NO_SENSE: &str = "answers make no sense";

#[test]
fn a_device_that_answers_garbage_is_not_believed() {
    let parts = parts!("a_device_that_answers_garbage_is_not_believed");
    // A length that is a negative number.
    not_believed(&parts, &[0xff; 32], u32::MAX, 0, NO_SENSE);
}

#[test]
fn no_other_garbage_is_believed() {
    let parts = parts!("no_other_garbage_is_believed");
    slow!("no_other_garbage_is_believed");
    not_believed(&parts, &[0xa5; 32], 32, 0, NO_SENSE);
    not_believed(&parts, &[], 0, 0, NO_SENSE);
    // A length that is an error of the driver's own.
    not_believed(&parts, &[0xff; 32], 0xffff_fff0, 0, NO_SENSE);
    // A buffer the guest never gave.
    let broken = "has broken its control queue";
    not_believed(&parts, &[0; 32], 32, 77, broken);
}

#[test]
fn a_hostile_process_gets_nothing() {
    let name = "a_hostile_process_gets_nothing";
    let parts = parts!(name);
    let compiler = match Compiler::c("cc") {
        Ok(compiler) => compiler,
        Err(reason) => skip!(name, "no C compiler: {reason}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let program = compiler.guest_program("hostile", dir.path()).unwrap();
    let machine = Machine {
        programs: vec![program],
        ..Machine::default()
    };
    on_machines(&parts, &machine, |kernel, watch, guest| {
        guest.load_driver("user_sections=1").unwrap();
        watch.wait_for(&[0, 1, 2, 3], PATIENCE).unwrap();
        let before = said(guest);
        let report = guest.sh("/bin/hostile").unwrap();
        println!("Linux {}: {}", kernel.version(), report.trim());
        assert!(report.ends_with("harmless\n"), "{report}");
        assert_eq!(counter(guest, "tasks"), 0);
        assert!(said(guest).len() <= before.len() + 1, "{:?}", said(guest));
        // Unloading waits for nobody: no file is left open.
        guest.sh("rmmod virtio_ecs").unwrap();
    });
}
