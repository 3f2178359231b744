//! The driver comes and goes, and CPUs do, again and again under load.
//!
//! The load takes a mutex thousands of times a second on each CPU and sleeps while it holds it, as an
//! ordinary task: it has half of a CPU at most. A real-time one has all of a CPU that a busy machine
//! slows down, and the cycles stand still.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::time::{Duration, Instant};

use super::cases::counter;
use super::{Guest, Truth, Watch};

/// Time for the last registration, on a very slow machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// The device shares a busy machine with the guest: a late answer would leave lines behind.
const PARAMETERS: &str = "ctrl_timeout_ms=10000";

/// Loads and unloads the driver under load of `cpus`; returns by how many kB the kernel's memory has
/// grown since the tenth time.
///
/// # Panics
/// If a cycle fails, or CPUs are still registered after it.
pub fn loads(watch: &Watch, guest: &mut Guest, cpus: &str, cycles: usize) -> i64 {
    guest.sh("insmod /ecs_test.ko").unwrap();
    let what = "loaded and unloaded";
    let grown = repeat(guest, what, cpus, cycles, |guest, cycle| {
        let sections = ["off", "contended", "all"][cycle % 3];
        let insmod = Guest::insmod(&format!("sections={sections} {PARAMETERS}"));
        guest.sh(&format!("{insmod} && rmmod virtio_ecs")).unwrap();
        assert_eq!(watch.registered(), Vec::<usize>::new());
    });
    guest.sh("rmmod ecs_test").unwrap();
    grown
}

/// Takes the second of two CPUs off and puts it back, which unregisters and registers it, under load
/// of the first; returns by how many kB the kernel's memory has grown since the tenth time.
///
/// # Panics
/// If a cycle fails, or one of them was not registered.
pub fn registrations(watch: &Watch, guest: &mut Guest, cycles: usize) -> i64 {
    guest.load_driver(PARAMETERS).unwrap();
    watch.wait_for(&[0, 1], PATIENCE).unwrap();
    guest.sh("insmod /ecs_test.ko").unwrap();
    let what = "unregistered and registered";
    let grown = repeat(guest, what, "0", cycles, |guest, _| {
        let online = "/sys/devices/system/cpu/cpu1/online";
        guest
            .sh(&format!("echo 0 >{online} && echo 1 >{online}"))
            .unwrap();
        assert_eq!(watch.registered(), [0, 1]);
    });
    for count in ["registered", "unregistered"] {
        assert!(counter(guest, count) >= cycles as u64, "{count}");
    }
    guest.sh("rmmod ecs_test virtio_ecs").unwrap();
    watch.wait_for(&[], PATIENCE).unwrap();
    grown
}

/// Runs one cycle after the other, each under load from its begin to its end, and says how long it
/// took.
fn repeat(
    guest: &mut Guest,
    what: &str,
    cpus: &str,
    cycles: usize,
    mut cycle: impl FnMut(&mut Guest, usize),
) -> i64 {
    let start = Instant::now();
    let mut memory = Vec::new();
    for nr in 0..cycles {
        load(guest, cpus);
        cycle(guest, nr);
        assert!(is_loaded(guest), "the load ended before cycle {nr}");
        if nr % 10 == 9 {
            memory.push(kernel_memory(guest));
        }
    }
    stop(guest);
    let took = start.elapsed();
    let grown = memory.last().unwrap() - memory.first().unwrap();
    let version = guest.sh("uname -r").unwrap();
    println!(
        "Linux {}: {what} {cycles} times in {took:.0?}, {:.0?} each; the kernel's memory has {grown} kB \
         more than after the tenth",
        version.trim(),
        took / u32::try_from(cycles).unwrap()
    );
    grown
}

/// Keeps threads busy with mutexes for as long as a workload may last.
fn load(guest: &mut Guest, cpus: &str) {
    let work = format!("echo sleep_mutex cpu={cpus} ms=60000 hold_us=50 gap_us=200");
    stop(guest);
    guest.sh(&format!("{work} >{}/run", Truth::DIR)).unwrap();
}

fn stop(guest: &mut Guest) {
    guest.sh(&format!("echo 1 >{}/stop", Truth::DIR)).unwrap();
}

fn is_loaded(guest: &mut Guest) -> bool {
    let run = guest.sh(&format!("cat {}/run", Truth::DIR)).unwrap();
    run.starts_with("running")
}

/// kB of slabs, of areas that modules and others have mapped, and of per-CPU memory.
fn kernel_memory(guest: &mut Guest) -> i64 {
    let sum = "awk '/^(Slab|VmallocUsed|Percpu):/ {kb += $2} END {print kb}' /proc/meminfo";
    guest.sh(sum).unwrap().trim().parse().unwrap()
}
