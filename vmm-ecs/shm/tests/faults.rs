//! Nonsense yields "not in a section" and one counted fault, never more.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]
#[allow(dead_code, reason = "shared by several test files")]
mod common;

use common::*;
use ecs_abi::*;
use ecs_shm::{CsSnapshot, MAX_COUNT, VcpuSlots, Wait};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

/// In two sections, so that a default snapshot shows that they were not believed.
fn busy() -> VirtioEcsGuestLine {
    VirtioEcsGuestLine {
        np_count: 1,
        p_count: 1,
        ..Default::default()
    }
}

/// The wait of `common::waits_for`, inside sections.
fn busy_wait() -> VirtioEcsGuestLine {
    VirtioEcsGuestLine {
        np_count: 1,
        p_count: 1,
        ..waits_for(7)
    }
}

/// Every kind of nonsense a line can hold.
fn nonsense() -> Vec<(&'static str, VirtioEcsGuestLine)> {
    let end = START + SIZE as u64;
    let mut all = vec![
        (
            "np_count 2^32-1",
            VirtioEcsGuestLine {
                np_count: u32::MAX,
                ..busy()
            },
        ),
        (
            "p_count 2^32-1",
            VirtioEcsGuestLine {
                p_count: u32::MAX,
                ..busy()
            },
        ),
        (
            "np_count just too deep",
            VirtioEcsGuestLine {
                np_count: MAX_COUNT + 1,
                ..busy()
            },
        ),
        (
            "p_count just too deep",
            VirtioEcsGuestLine {
                p_count: MAX_COUNT + 1,
                ..busy()
            },
        ),
        (
            "waiting 4",
            VirtioEcsGuestLine {
                waiting: 4,
                ..busy()
            },
        ),
        (
            "waiting 2^32-1",
            VirtioEcsGuestLine {
                waiting: u32::MAX,
                ..busy()
            },
        ),
        (
            "holder 257",
            VirtioEcsGuestLine {
                wait_holder: 257,
                ..busy_wait()
            },
        ),
        (
            "holder 2^32-1",
            VirtioEcsGuestLine {
                wait_holder: u32::MAX,
                ..busy_wait()
            },
        ),
        (
            "holder out of range, no descriptor",
            VirtioEcsGuestLine {
                wait_holder: 257,
                wait_mask: 0,
                ..busy_wait()
            },
        ),
    ];
    for width in [0, 1, 2, 3, 5, 16, u32::MAX] {
        all.push((
            "width",
            VirtioEcsGuestLine {
                wait_width: width,
                ..busy_wait()
            },
        ));
    }
    let at = |name, wait_width, wait_addr| {
        (
            name,
            VirtioEcsGuestLine {
                wait_width,
                wait_addr,
                ..busy_wait()
            },
        )
    };
    for offset in 1..4 {
        all.push(at("misaligned for 4", VIRTIO_ECS_WIDTH_32, LOCK + offset));
    }
    for offset in 1..8 {
        all.push(at("misaligned for 8", VIRTIO_ECS_WIDTH_64, LOCK + offset));
    }
    for width in [VIRTIO_ECS_WIDTH_32, VIRTIO_ECS_WIDTH_64] {
        for addr in [0, START - 8, end, end + 0x1000, u64::MAX - 7, 1 << 63] {
            all.push(at("outside memory", width, addr));
        }
    }
    let halted = VIRTIO_ECS_WAIT_BLOCK;
    let (name, line) = at("outside memory, halted", VIRTIO_ECS_WIDTH_32, 0);
    all.push((
        name,
        VirtioEcsGuestLine {
            waiting: halted,
            ..line
        },
    ));
    all
}

#[test]
fn nonsense_is_not_in_a_section_and_one_fault() {
    let guest = Guest::new(&registration());
    for (nr, (name, line)) in nonsense().iter().enumerate() {
        guest.publish(line);
        assert_eq!(
            guest.slots.read(),
            CsSnapshot::default(),
            "{name}: {line:?}"
        );
        assert_eq!(guest.slots.nr_faults(), nr as u64 + 1, "{name}");
    }
}

#[test]
fn the_same_nonsense_is_a_fault_at_each_read() {
    let guest = Guest::new(&registration());
    guest.publish(&VirtioEcsGuestLine {
        waiting: 9,
        ..busy()
    });
    for nr in 1..=5 {
        assert_eq!(guest.slots.read(), CsSnapshot::default());
        assert_eq!(guest.slots.nr_faults(), nr);
    }
}

#[test]
fn a_guest_that_comes_to_its_senses_is_read_again() {
    let guest = Guest::new(&registration());
    for (name, line) in nonsense() {
        guest.publish(&line);
        assert_eq!(guest.slots.read(), CsSnapshot::default(), "{name}");
        assert!(guest.shows(&busy()).holds(), "after {name}");
    }
}

#[test]
fn a_count_that_fell_below_zero_is_no_section() {
    // What a reader that migrates between lock and unlock leaves behind on one of two vCPUs.
    let guest = Guest::new(&registration());
    let below = 0u32.wrapping_sub(1);
    guest.publish(&VirtioEcsGuestLine {
        np_count: below,
        ..Default::default()
    });
    assert!(!guest.slots.read().holds());
    assert_eq!(guest.slots.nr_faults(), 1);
}

#[test]
fn nonsense_where_nobody_looks_is_no_fault() {
    let guest = Guest::new(&registration());
    let line = VirtioEcsGuestLine {
        wait_addr: u64::MAX,
        wait_mask: 1,
        wait_holder: u32::MAX,
        wait_width: 3,
        poll_us: u32::MAX,
        polls_paid: u32::MAX,
        polls_wasted: u32::MAX,
        handback: u32::MAX,
        ..busy()
    };
    assert_eq!(guest.shows(&line).wait, Wait::None);
}

#[test]
fn faults_survive_a_rebuild_of_the_slots() {
    let guest = Guest::new(&registration());
    guest.publish(&VirtioEcsGuestLine {
        waiting: 9,
        ..busy()
    });
    let _ = guest.slots.read();
    let mem = memory(&[(START, SIZE)]);
    let counters = guest.slots.counters().clone();
    let rebuilt = VcpuSlots::new(&mem, guest.slots.registration(), counters).unwrap();
    assert_eq!(rebuilt.nr_faults(), 1);
}

#[test]
fn a_region_whose_words_cannot_be_loaded_faults_and_does_not_panic() {
    // A front-end may start a region at any address: aligned for the guest, not for the host.
    let lines = VirtioEcsRegister {
        guest_line: 0x1040,
        host_line: 0x1080,
        ..registration()
    };
    for (start, nr_faults) in [(0x1010, 0), (0x1002, 1)] {
        let slots = VcpuSlots::new(&memory(&[(start, 0x1000)]), &lines, Arc::default()).unwrap();
        assert_eq!(slots.read(), CsSnapshot::default(), "region at {start:#x}");
        assert_eq!(slots.nr_faults(), nr_faults, "region at {start:#x}");
        // Hints that cannot be written are dropped.
        slots.set_granted(true);
        slots.clear_hints();
    }
}

#[test]
fn a_guest_that_writes_while_the_host_reads_never_makes_it_panic() {
    const MIN_READS: u64 = 100_000;
    /// On a busy machine the writer may not have run at all by the last read.
    const PATIENCE: Duration = Duration::from_secs(30);
    let guest = Guest::new(&registration_with_word());
    let stop = AtomicBool::new(false);
    let (mut nr_reads, mut sane, mut in_section) = (0u64, 0u64, 0u64);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let guest = &guest;
        let writer = scope.spawn(|| {
            let lines = nonsense();
            let mut seed = 0x9e37_79b9_7f4a_7c15u64;
            let mut nr_writes = 0u64;
            while !stop.load(Ordering::Relaxed) {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                // Single words and whole lines, sane, silly and random, in no order.
                match seed % 5 {
                    0 => guest.publish(&lines[(seed >> 8) as usize % lines.len()].1),
                    1 => guest.publish(&busy_wait()),
                    2 => guest.publish(&busy()),
                    3 => {
                        let field = GUEST_LINE + (seed >> 8) % 8 * 8;
                        let map = guest.own.map();
                        map.store(seed >> 3, GuestAddress(field), Ordering::Relaxed)
                            .unwrap();
                    }
                    _ => {
                        guest.store(WORD, &(seed >> 20).to_le_bytes());
                        guest.store(LOCK, &(seed >> 9 & 7).to_le_bytes());
                    }
                }
                nr_writes += 1;
            }
            nr_writes
        });
        loop {
            let before = guest.slots.nr_faults();
            let both = sane > 0 && in_section > 0 && before > 0;
            if nr_reads >= MIN_READS && (both || start.elapsed() > PATIENCE) {
                break;
            }
            nr_reads += 1;
            let snap = guest.slots.read();
            let faults = guest.slots.nr_faults() - before;
            if faults > 0 {
                assert_eq!((faults, snap), (1, CsSnapshot::default()));
                continue;
            }
            sane += 1;
            in_section += u64::from(snap.holds());
            let (lock, holder) = match snap.wait {
                Wait::Pending { lock, holder } => (lock, holder),
                Wait::Ended { lock } => (lock, None),
                Wait::Unknown { holder } => (LOCK, holder),
                Wait::None | Wait::Entering => continue,
            };
            assert!((START..START + SIZE as u64).contains(&lock) && lock % 4 == 0);
            assert!(holder.is_none_or(|vcpu| u32::from(vcpu) < VIRTIO_ECS_MAX_VCPUS));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() > 0);
    });
    assert_eq!(sane + guest.slots.nr_faults(), nr_reads);
    assert!(
        sane > 0 && in_section > 0 && guest.slots.nr_faults() > 0,
        "both kinds were read"
    );
}
