//! What a guest writes is what the host reads.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
#[allow(dead_code, reason = "shared by several test files")]
mod common;

use common::*;
use ecs_abi::*;
use ecs_shm::{CsSnapshot, MAX_COUNT, Wait};

fn line() -> VirtioEcsGuestLine {
    VirtioEcsGuestLine::default()
}

#[test]
fn a_line_of_zeros_is_outside_every_section() {
    let guest = Guest::new(&registration());
    assert_eq!(guest.shows(&line()), CsSnapshot::default());
}

#[test]
fn each_count_shows_its_own_section() {
    let guest = Guest::new(&registration());
    let np = guest.shows(&VirtioEcsGuestLine {
        np_count: 1,
        ..line()
    });
    assert_eq!(
        np,
        CsSnapshot {
            non_preemptable: true,
            ..Default::default()
        }
    );
    let p = guest.shows(&VirtioEcsGuestLine {
        p_count: 1,
        ..line()
    });
    assert_eq!(
        p,
        CsSnapshot {
            preemptable: true,
            ..Default::default()
        }
    );
    let deepest = VirtioEcsGuestLine {
        np_count: MAX_COUNT,
        p_count: MAX_COUNT,
        ..line()
    };
    assert!(guest.shows(&deepest).holds());
}

#[test]
fn the_inner_unlock_does_not_clear_the_outer_section() {
    let guest = Guest::new(&registration());
    for (depth, inside) in [
        (1, true),
        (2, true),
        (3, true),
        (2, true),
        (1, true),
        (0, false),
    ] {
        let np = guest.shows(&VirtioEcsGuestLine {
            np_count: depth,
            ..line()
        });
        let p = guest.shows(&VirtioEcsGuestLine {
            p_count: depth,
            ..line()
        });
        assert_eq!(
            (np.non_preemptable, p.preemptable),
            (inside, inside),
            "depth {depth}"
        );
    }
}

#[test]
fn an_idle_vcpu_holds_nothing_whatever_its_counts() {
    let guest = Guest::new(&registration());
    for idle in [1, 7, u32::MAX] {
        let snap = guest.shows(&VirtioEcsGuestLine {
            idle,
            np_count: 1,
            p_count: 1,
            ..line()
        });
        assert!(snap.idle && !snap.holds() && !snap.spins());
    }
}

#[test]
fn a_vcpu_about_to_queue_says_only_that() {
    let guest = Guest::new(&registration());
    // The rest of the line is not valid yet, so it must not matter.
    let garbage = VirtioEcsGuestLine {
        waiting: VIRTIO_ECS_WAIT_ENTER,
        wait_addr: u64::MAX,
        wait_mask: u64::MAX,
        wait_holder: u32::MAX,
        wait_width: 3,
        ..line()
    };
    assert_eq!(guest.shows(&garbage).wait, Wait::Entering);
}

#[test]
fn a_wait_is_pending_until_the_word_has_the_value() {
    let guest = Guest::new(&registration());
    let wait = VirtioEcsGuestLine {
        wait_holder: 3,
        ..waits_for(7)
    };
    guest.store(LOCK, &6u32.to_le_bytes());
    let pending = Wait::Pending {
        lock: LOCK,
        holder: Some(2),
    };
    assert_eq!(guest.shows(&wait).wait, pending);
    // The guest's line is frozen; the word alone moves. Bits outside the mask do not count.
    guest.store(LOCK, &0xabcd_0007u32.to_le_bytes());
    assert_eq!(guest.slots.read().wait, Wait::Ended { lock: LOCK });
    guest.store(LOCK, &8u32.to_le_bytes());
    assert_eq!(guest.slots.read().wait, pending);
}

#[test]
fn a_wait_on_a_64_bit_word_uses_all_of_it() {
    let guest = Guest::new(&registration());
    let wait = VirtioEcsGuestLine {
        wait_mask: u64::MAX,
        wait_value: 0x0123_4567_89ab_cdef,
        wait_width: VIRTIO_ECS_WIDTH_64,
        ..waits_for(0)
    };
    assert_eq!(
        guest.shows(&wait).wait,
        Wait::Pending {
            lock: LOCK,
            holder: None
        }
    );
    guest.store(LOCK, &0x0123_4567_89ab_cdefu64.to_le_bytes());
    assert_eq!(guest.slots.read().wait, Wait::Ended { lock: LOCK });
}

#[test]
fn a_value_outside_its_mask_is_never_reached() {
    let guest = Guest::new(&registration());
    guest.store(LOCK, &u32::MAX.to_le_bytes());
    let wait = VirtioEcsGuestLine {
        wait_value: 0x1_0000,
        ..waits_for(0)
    };
    assert_eq!(
        guest.shows(&wait).wait,
        Wait::Pending {
            lock: LOCK,
            holder: None
        }
    );
}

#[test]
fn without_a_mask_only_the_holder_is_read() {
    let guest = Guest::new(&registration());
    for (raw, holder) in [(0, None), (1, Some(0)), (256, Some(255))] {
        let wait = VirtioEcsGuestLine {
            wait_mask: 0,
            wait_addr: u64::MAX,
            wait_width: 99,
            wait_holder: raw,
            ..waits_for(0)
        };
        assert_eq!(guest.shows(&wait).wait, Wait::Unknown { holder });
    }
}

#[test]
fn a_vcpu_that_halts_until_its_wait_ends_does_not_spin() {
    let guest = Guest::new(&registration());
    let wait = VirtioEcsGuestLine {
        waiting: VIRTIO_ECS_WAIT_BLOCK,
        ..waits_for(7)
    };
    let snap = guest.shows(&wait);
    assert!(snap.blocked && !snap.spins());
    assert_eq!(
        snap.wait,
        Wait::Pending {
            lock: LOCK,
            holder: None
        }
    );
    guest.store(LOCK, &7u32.to_le_bytes());
    assert_eq!(guest.slots.read().wait, Wait::Ended { lock: LOCK });
}

#[test]
fn the_wait_word_may_lie_in_the_last_bytes_of_memory() {
    let guest = Guest::new(&registration());
    let end = START + SIZE as u64;
    for (width, len) in [(VIRTIO_ECS_WIDTH_32, 4), (VIRTIO_ECS_WIDTH_64, 8)] {
        let lock = end - len;
        let wait = VirtioEcsGuestLine {
            wait_addr: lock,
            wait_width: width,
            ..waits_for(1)
        };
        assert_eq!(
            guest.shows(&wait).wait,
            Wait::Pending { lock, holder: None }
        );
    }
}

/// Reads `word` as `preempt_count`, while the line says `waiting`.
fn word_shows(guest: &Guest, word: u32, waiting: u32) -> bool {
    guest.store(WORD, &word.to_le_bytes());
    guest
        .shows(&VirtioEcsGuestLine { waiting, ..line() })
        .non_preemptable
}

#[test]
fn preempt_count_shows_depth_softirq_hardirq_and_nmi() {
    let guest = Guest::new(&registration_with_word());
    const NEED_RESCHED_CLEAR: u32 = 1 << 31; // folded in inverted
    let cases = [
        (0, false, "preemptible"),
        (1, true, "one spinlock"),
        (0xff, true, "deepest"),
        (1 << 8, true, "softirq"),
        (2 << 8, true, "softirqs disabled"),
        (1 << 16, true, "hardirq"),
        (1 << 20, true, "NMI"),
        (1 << 24, false, "bits beyond the count"),
    ];
    for (count, inside, what) in cases {
        for folded in [0, NEED_RESCHED_CLEAR] {
            let shown = word_shows(&guest, count | folded, VIRTIO_ECS_WAIT_NONE);
            assert_eq!(shown, inside, "{what}, bit 31 is {}", folded >> 31);
        }
    }
}

#[test]
fn a_spinning_waiter_is_no_holder_for_the_level_its_own_wait_disabled() {
    let guest = Guest::new(&registration_with_word());
    let cases = [
        (0, false, "waits with preemption enabled"),
        (1, false, "only the wait's own level"),
        (2, true, "holds another lock"),
        (1 | 2 << 8, false, "waits with softirqs disabled"),
        (1 | 4 << 8, true, "softirqs were disabled before"),
        (1 | 1 << 8, true, "waits in a softirq"),
        (1 | 1 << 16, true, "waits in an interrupt"),
    ];
    for (count, inside, what) in cases {
        for waiting in [VIRTIO_ECS_WAIT_ENTER, VIRTIO_ECS_WAIT_SPIN] {
            let shown = word_shows(&guest, count | 1 << 31, waiting);
            assert_eq!(shown, inside, "{what}");
        }
    }
}

#[test]
fn a_64_bit_preempt_count_has_its_bits_elsewhere() {
    let guest = Guest::new(&VirtioEcsRegister {
        word_format: VIRTIO_ECS_WORD_X86_PREEMPT64,
        ..registration_with_word()
    });
    // Without a wait, and in one.
    let cases = [
        (0, false, false, "preemptible"),
        (1, true, false, "one level of preemption"),
        (2, true, true, "two levels"),
        (1 << 8, true, true, "softirq"),
        (2 << 8, true, false, "softirqs disabled"),
        (1 << 16, true, false, "interrupts disabled"),
        (2 << 16, true, true, "interrupts disabled twice"),
        (1 << 24, true, true, "hardirq"),
        (1 << 28, true, true, "NMI"),
        (1 << 31, true, true, "NMI, deepest bit"),
    ];
    for (word, inside, waiting, what) in cases {
        assert_eq!(
            word_shows(&guest, word, VIRTIO_ECS_WAIT_NONE),
            inside,
            "{what}"
        );
        assert_eq!(
            word_shows(&guest, word, VIRTIO_ECS_WAIT_SPIN),
            waiting,
            "{what}, waits"
        );
    }
}

#[test]
fn the_idle_task_runs_with_a_count_and_is_in_no_section() {
    let guest = Guest::new(&registration_with_word());
    guest.store(WORD, &1u32.to_le_bytes());
    assert!(
        !guest
            .shows(&VirtioEcsGuestLine { idle: 1, ..line() })
            .holds()
    );
}

#[test]
fn word_and_line_add_up() {
    let guest = Guest::new(&registration_with_word());
    guest.store(WORD, &0u32.to_le_bytes());
    let both = VirtioEcsGuestLine {
        np_count: 1,
        p_count: 1,
        ..line()
    };
    let snap = guest.shows(&both);
    assert!(snap.non_preemptable && snap.preemptable);
}

#[test]
fn a_word_that_was_not_registered_is_not_read() {
    let guest = Guest::new(&registration());
    assert!(!word_shows(&guest, 1, VIRTIO_ECS_WAIT_NONE));
}
