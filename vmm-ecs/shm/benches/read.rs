//! Cost of one read of a vCPU's slots: `cargo bench -p ecs-shm`.
//!
//! Prints the median of several runs, ns a read, and the spread. `--once KIND` (`line`, `word` or
//! `wait`) makes 1000 reads and nothing else, to count instructions, which do not depend on what
//! else the machine does:
//!
//! ```text
//! valgrind --tool=callgrind --toggle-collect='*VcpuSlots::read*' \
//!     target/release/deps/read-HASH --once wait
//! ```
//!
//! and divide the instructions collected by 1000.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
#[allow(dead_code, reason = "shared with the tests")]
#[path = "../tests/common/mod.rs"]
mod common;

use common::*;
use ecs_abi::VirtioEcsGuestLine;
use std::hint::black_box;
use std::time::Instant;

const NR_RUNS: usize = 21;
const NR_READS: u32 = 200_000;
/// Target of the reader, ns.
const TARGET_NS: f64 = 50.0;

/// Guests by kind; each is in a section, and reads of it make sense.
fn guests() -> [(&'static str, Guest); 3] {
    let line = VirtioEcsGuestLine {
        np_count: 1,
        ..Default::default()
    };
    let plain = Guest::new(&registration());
    plain.publish(&line);
    let word = Guest::new(&registration_with_word());
    word.store(WORD, &0x8000_0001u32.to_le_bytes());
    let wait = Guest::new(&registration_with_word());
    wait.publish(&VirtioEcsGuestLine {
        wait_holder: 1,
        ..waits_for(7)
    });
    [("line", plain), ("word", word), ("wait", wait)]
}

fn read_many(guest: &Guest, nr_reads: u32) {
    for _ in 0..nr_reads {
        black_box(black_box(&guest.slots).read());
    }
}

/// Time of one read in each run, ns, ascending.
fn measure(guest: &Guest) -> Vec<f64> {
    read_many(guest, NR_READS); // warm up
    let mut runs: Vec<f64> = (0..NR_RUNS)
        .map(|_| {
            let start = Instant::now();
            read_many(guest, NR_READS);
            start.elapsed().as_secs_f64() * 1e9 / f64::from(NR_READS)
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    assert_eq!(
        guest.slots.nr_faults(),
        0,
        "a fault is not what is to be measured"
    );
    runs
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(at) = args.iter().position(|arg| arg == "--once") {
        let kind = args.get(at + 1).map_or("", String::as_str);
        let Some((_, guest)) = guests().into_iter().find(|(name, _)| *name == kind) else {
            eprintln!("--once needs line, word or wait");
            std::process::exit(2);
        };
        read_many(&guest, 1000);
        return;
    }
    if cfg!(debug_assertions) {
        println!("SKIPPED: read: a debug build says nothing about cost; use cargo bench");
        return;
    }
    println!(
        "{:<6}{:>12}{:>10}{:>10}   target {TARGET_NS} ns",
        "kind", "median ns", "min", "max"
    );
    for (name, guest) in guests() {
        let runs = measure(&guest);
        let median = runs[NR_RUNS / 2];
        let verdict = if median < TARGET_NS { "met" } else { "MISSED" };
        println!(
            "{name:<6}{median:>12.2}{:>10.2}{:>10.2}   {verdict}",
            runs[0],
            runs[NR_RUNS - 1]
        );
    }
}
