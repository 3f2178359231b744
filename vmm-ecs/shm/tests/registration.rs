//! What may be registered, and what the host writes.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
#[allow(dead_code, reason = "shared by several test files")]
mod common;

use common::*;
use ecs_abi::*;
use ecs_shm::{CsSnapshot, GuestMem, SlotError, VcpuSlots, VmSlots};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress};

fn register(mem: &Arc<GuestMem>, registration: VirtioEcsRegister) -> Result<VcpuSlots, SlotError> {
    VcpuSlots::new(mem, &registration, Arc::default())
}

/// The error of a registration in the usual memory, and its status on the wire.
fn refused(registration: VirtioEcsRegister) -> (SlotError, u16) {
    let error = register(&memory(&[(START, SIZE)]), registration).unwrap_err();
    (error, error.status())
}

#[test]
fn each_refusal_has_its_status() {
    let end = START + SIZE as u64;
    let with_word = registration_with_word();
    let cases = [
        (
            VirtioEcsRegister {
                guest_line: GUEST_LINE + 8,
                ..registration()
            },
            SlotError::Misaligned(GUEST_LINE + 8, 64),
            VIRTIO_ECS_S_MISALIGNED,
        ),
        (
            VirtioEcsRegister {
                host_line: HOST_LINE + 32,
                ..registration()
            },
            SlotError::Misaligned(HOST_LINE + 32, 64),
            VIRTIO_ECS_S_MISALIGNED,
        ),
        (
            VirtioEcsRegister {
                word_addr: WORD + 2,
                ..with_word
            },
            SlotError::Misaligned(WORD + 2, 4),
            VIRTIO_ECS_S_MISALIGNED,
        ),
        (
            VirtioEcsRegister {
                guest_line: end,
                ..registration()
            },
            SlotError::BadAddress(end),
            VIRTIO_ECS_S_BAD_ADDR,
        ),
        (
            VirtioEcsRegister {
                host_line: START - 64,
                ..registration()
            },
            SlotError::BadAddress(START - 64),
            VIRTIO_ECS_S_BAD_ADDR,
        ),
        (
            VirtioEcsRegister {
                word_addr: end,
                ..with_word
            },
            SlotError::BadAddress(end),
            VIRTIO_ECS_S_BAD_ADDR,
        ),
        (
            VirtioEcsRegister {
                host_line: GUEST_LINE,
                ..registration()
            },
            SlotError::Overlap(GUEST_LINE),
            VIRTIO_ECS_S_OVERLAP,
        ),
        (
            VirtioEcsRegister {
                word_format: 3,
                ..with_word
            },
            SlotError::BadFormat(3),
            VIRTIO_ECS_S_BAD_FORMAT,
        ),
        (
            VirtioEcsRegister {
                word_format: u32::MAX,
                ..with_word
            },
            SlotError::BadFormat(u32::MAX),
            VIRTIO_ECS_S_BAD_FORMAT,
        ),
    ];
    for (registration, error, status) in cases {
        assert_eq!(refused(registration), (error, status));
    }
}

#[test]
fn addresses_that_overflow_are_outside_memory() {
    for addr in [!63, !127, 1 << 63] {
        let expected = (SlotError::BadAddress(addr), VIRTIO_ECS_S_BAD_ADDR);
        assert_eq!(
            refused(VirtioEcsRegister {
                guest_line: addr,
                ..registration()
            }),
            expected
        );
        assert_eq!(
            refused(VirtioEcsRegister {
                host_line: addr,
                ..registration()
            }),
            expected
        );
        let word = VirtioEcsRegister {
            word_addr: addr,
            ..registration_with_word()
        };
        assert_eq!(refused(word), expected);
    }
}

#[test]
fn without_memory_every_address_is_bad() {
    let error = register(&Arc::new(GuestMem::default()), registration()).unwrap_err();
    assert_eq!(error.status(), VIRTIO_ECS_S_BAD_ADDR);
}

#[test]
fn a_word_address_without_a_format_is_ignored() {
    let lines = VirtioEcsRegister {
        word_addr: u64::MAX,
        ..registration()
    };
    assert!(register(&memory(&[(START, SIZE)]), lines).is_ok());
}

#[test]
fn a_line_may_end_where_memory_ends_and_not_beyond() {
    let last = START + SIZE as u64 - 64;
    let fits = VirtioEcsRegister {
        guest_line: last,
        ..registration()
    };
    let slots = register(&memory(&[(START, SIZE)]), fits).unwrap();
    assert_eq!(slots.read(), CsSnapshot::default());
    assert_eq!(slots.nr_faults(), 0);
    let host = VirtioEcsRegister {
        host_line: last,
        ..registration()
    };
    register(&memory(&[(START, SIZE)]), host)
        .unwrap()
        .clear_hints();
    // A region that ends in the middle of the line.
    for missing in [8, 32, 56] {
        let error = register(&memory(&[(START, SIZE - missing)]), fits).unwrap_err();
        assert_eq!(
            error,
            SlotError::BadAddress(last),
            "{missing} bytes missing"
        );
    }
    let word = VirtioEcsRegister {
        word_addr: START + SIZE as u64 - 4,
        ..registration_with_word()
    };
    assert!(register(&memory(&[(START, SIZE)]), word).is_ok());
    let error = register(&memory(&[(START, SIZE - 2)]), word).unwrap_err();
    assert_eq!(error.status(), VIRTIO_ECS_S_BAD_ADDR);
}

#[test]
fn a_line_does_not_reach_over_two_regions() {
    // They touch, but are two mappings.
    let mem = memory(&[(0x1000, 0x1020), (0x2020, 0x1000)]);
    let lines = VirtioEcsRegister {
        guest_line: 0x2000,
        host_line: 0x2040,
        ..registration()
    };
    assert_eq!(
        register(&mem, lines).unwrap_err(),
        SlotError::BadAddress(0x2000)
    );
}

#[test]
fn lines_word_and_lock_may_lie_in_different_regions() {
    let (low, high) = (0x1000u64, 0x1_0000_0000u64);
    // In descending order: the map sorts them.
    let mem = memory(&[(high, 0x1000), (low, 0x1000)]);
    let lines = VirtioEcsRegister {
        guest_line: low,
        host_line: high + 0x40,
        word_addr: high + 0x80,
        word_format: VIRTIO_ECS_WORD_X86_PREEMPT,
        ..Default::default()
    };
    let slots = register(&mem, lines).unwrap();
    let wait = VirtioEcsGuestLine {
        wait_addr: high + 0xc0,
        ..waits_for(1)
    };
    mem.map()
        .write_slice(&wait.to_bytes(), GuestAddress(low))
        .unwrap();
    mem.map()
        .write_obj(2u32, GuestAddress(high + 0x80))
        .unwrap();
    let snap = slots.read();
    assert!(snap.non_preemptable && snap.spins());
    mem.map()
        .write_obj(1u32, GuestAddress(high + 0xc0))
        .unwrap();
    assert_eq!(
        slots.read().wait,
        ecs_shm::Wait::Ended { lock: high + 0xc0 }
    );
    slots.set_preempted(true);
    assert_eq!(
        mem.map()
            .read_obj::<u32>(GuestAddress(high + 0x48))
            .unwrap(),
        1
    );
    // The hole between them is not memory.
    let hole = VirtioEcsRegister {
        guest_line: 0x2000,
        ..lines
    };
    assert_eq!(
        register(&mem, hole).unwrap_err(),
        SlotError::BadAddress(0x2000)
    );
    assert_eq!(slots.nr_faults(), 0);
}

#[test]
fn regions_that_overlap_are_refused() {
    let regions = [(0x1000, 0x2000), (0x2000, 0x1000)];
    let regions = regions.map(|(start, size)| region(&memfd(size), start, size));
    assert!(GuestMem::new(regions.to_vec()).is_err());
    assert!(GuestMem::new(Vec::new()).is_err());
}

#[test]
fn lines_of_another_vcpu_are_noticed() {
    let slots = register(&memory(&[(START, SIZE)]), registration()).unwrap();
    let other = |guest_line, host_line| VirtioEcsRegister {
        guest_line,
        host_line,
        ..registration()
    };
    let free = START;
    assert!(!slots.overlaps(&other(free, free + 64)));
    assert!(slots.overlaps(&other(GUEST_LINE, free)));
    assert!(slots.overlaps(&other(free, GUEST_LINE)));
    assert!(slots.overlaps(&other(HOST_LINE, free)));
    assert!(slots.overlaps(&other(free, HOST_LINE)));
}

#[test]
fn the_host_writes_its_own_line_and_nothing_else() {
    let guest = Guest::new(&registration_with_word());
    guest.store(START, &[0x5a; SIZE]);
    guest.store(HOST_LINE, &[0; 64]);
    let expected = |line: VirtioEcsHostLine| {
        assert_eq!(guest.load::<64>(HOST_LINE), line.to_bytes(), "{line:?}");
    };
    let slots = &guest.slots;
    slots.set_granted(true);
    slots.set_yield(VIRTIO_ECS_YIELD_RELEASE | VIRTIO_ECS_YIELD_HOPELESS);
    slots.set_preempted(true);
    slots.set_overloaded(true);
    slots.set_heartbeat(5, 9);
    let mut line = VirtioEcsHostLine {
        granted: 1,
        r#yield: 3,
        preempted: 1,
        overloaded: 1,
        generation: 5,
        heartbeat: 9,
        nr_grants: 1,
        ..Default::default()
    };
    expected(line);
    slots.set_granted(false);
    slots.set_granted(true);
    line.nr_grants = 2;
    expected(line);
    slots.clear_hints();
    line = VirtioEcsHostLine {
        generation: 5,
        heartbeat: 9,
        nr_grants: 2,
        ..Default::default()
    };
    expected(line);
    // Everything around it is as the guest left it.
    let all = guest.load::<SIZE>(START);
    let host = usize::try_from(HOST_LINE - START).unwrap();
    assert!(
        all[..host]
            .iter()
            .chain(&all[host + 64..])
            .all(|byte| *byte == 0x5a)
    );
}

#[test]
fn the_slots_of_a_vm_are_found_by_number() {
    let slots = Arc::new(register(&memory(&[(START, SIZE)]), registration()).unwrap());
    let vm = VmSlots {
        vcpus: vec![None, Some(slots)],
    };
    assert!(vm.get(0).is_none() && vm.get(1).is_some() && vm.get(2).is_none());
    assert_eq!(
        (vm.nr_registered(), VmSlots::default().nr_registered()),
        (1, 0)
    );
}
