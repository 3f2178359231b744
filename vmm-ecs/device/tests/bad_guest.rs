//! A guest that gets everything wrong: messages, addresses, chains, rings.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;

use common::*;
use ecs_abi::*;
use vm_memory::{Bytes, GuestAddress};

const FAR: u64 = 0x7fff_ffff_0000;

#[test]
fn every_wrong_size_is_answered_as_such() {
    let host = Host::new();
    let mut guest = host.boot();
    for (op, right) in [
        (VIRTIO_ECS_CTRL_REGISTER, VirtioEcsRegister::SIZE),
        (VIRTIO_ECS_CTRL_UNREGISTER, VirtioEcsVcpuMsg::SIZE),
        (VIRTIO_ECS_CTRL_QUERY, VirtioEcsVcpuMsg::SIZE),
    ] {
        let mut long = registration(0).to_bytes().to_vec();
        long[..2].copy_from_slice(&op.to_le_bytes());
        long.resize(300, 0);
        // Every size, in slices of the guest's budget of messages a second.
        for len in (0..=90)
            .chain([127, 128, 129, 300])
            .filter(|len| *len != right)
        {
            let reply = guest.control(&long[..len]);
            assert_eq!(
                reply.status, VIRTIO_ECS_S_BAD_LENGTH,
                "op {op}, {len} bytes"
            );
            let cookie = if len < VirtioEcsCtrlHdr::SIZE { 0 } else { 42 };
            assert_eq!(reply.cookie, cookie);
        }
    }
    assert_eq!(host.sink.view().slots.nr_registered(), 0);
    assert_eq!(host.device().counters().guest_faults, 0);
    assert_eq!(guest.register(&registration(0)), VIRTIO_ECS_S_OK);
}

#[test]
fn each_refusal_has_its_own_status() {
    let host = Host::new();
    let mut guest = host.boot();
    assert_eq!(guest.register(&registration(0)), VIRTIO_ECS_S_OK);
    let lines = |vcpu, guest_line, host_line| VirtioEcsRegister {
        guest_line,
        host_line,
        ..registration(vcpu)
    };
    let word = |word_addr, word_format| VirtioEcsRegister {
        word_addr,
        word_format,
        ..registration(1)
    };
    let end = RAM as u64;
    let x86 = VIRTIO_ECS_WORD_X86_PREEMPT;
    let cases = [
        (
            "unknown op",
            VirtioEcsRegister {
                op: 9,
                ..registration(1)
            },
            VIRTIO_ECS_S_BAD_OP,
        ),
        (
            "op 0",
            VirtioEcsRegister {
                op: 0,
                ..registration(1)
            },
            VIRTIO_ECS_S_BAD_OP,
        ),
        (
            "vCPU 256",
            lines(256, LINES, LINES + 64),
            VIRTIO_ECS_S_BAD_VCPU,
        ),
        (
            "vCPU 2^32-1",
            lines(u32::MAX, LINES, LINES + 64),
            VIRTIO_ECS_S_BAD_VCPU,
        ),
        (
            "guest line far away",
            lines(1, FAR, LINES + 192),
            VIRTIO_ECS_S_BAD_ADDR,
        ),
        (
            "host line far away",
            lines(1, LINES + 128, FAR),
            VIRTIO_ECS_S_BAD_ADDR,
        ),
        (
            "past the end",
            lines(1, end, LINES + 192),
            VIRTIO_ECS_S_BAD_ADDR,
        ),
        (
            "at the top",
            lines(1, u64::MAX - 63, LINES + 192),
            VIRTIO_ECS_S_BAD_ADDR,
        ),
        (
            "guest line crooked",
            lines(1, LINES + 129, LINES + 192),
            VIRTIO_ECS_S_MISALIGNED,
        ),
        (
            "host line crooked",
            lines(1, LINES + 128, LINES + 200),
            VIRTIO_ECS_S_MISALIGNED,
        ),
        (
            "same line twice",
            lines(1, LINES + 128, LINES + 128),
            VIRTIO_ECS_S_OVERLAP,
        ),
        (
            "guest line taken",
            lines(1, LINES, LINES + 192),
            VIRTIO_ECS_S_OVERLAP,
        ),
        (
            "host line taken",
            lines(1, LINES + 128, LINES + 64),
            VIRTIO_ECS_S_OVERLAP,
        ),
        (
            "crossed lines taken",
            lines(1, LINES + 64, LINES),
            VIRTIO_ECS_S_OVERLAP,
        ),
        ("word far away", word(FAR, x86), VIRTIO_ECS_S_BAD_ADDR),
        ("word crooked", word(0x9002, x86), VIRTIO_ECS_S_MISALIGNED),
        ("word past the end", word(end, x86), VIRTIO_ECS_S_BAD_ADDR),
        ("unknown word", word(0x9000, 77), VIRTIO_ECS_S_BAD_FORMAT),
    ];
    let nr = cases.len() as u64;
    for (what, registration, status) in cases {
        assert_eq!(guest.register(&registration), status, "{what}");
    }
    for op in [VIRTIO_ECS_CTRL_UNREGISTER, VIRTIO_ECS_CTRL_QUERY] {
        assert_eq!(
            guest.vcpu_message(op, 1).status,
            VIRTIO_ECS_S_NOT_REGISTERED
        );
        assert_eq!(guest.vcpu_message(op, 256).status, VIRTIO_ECS_S_BAD_VCPU);
    }
    let view = host.sink.view();
    assert_eq!(
        view.slots.nr_registered(),
        1,
        "what was registered before stays"
    );
    assert_eq!(host.device().counters().refused_messages, nr + 4);
    // The last line of memory is memory.
    let last = lines(1, end - 64, end - 128);
    assert_eq!(guest.register(&last), VIRTIO_ECS_S_OK);
}

#[test]
fn nothing_is_done_before_negotiation_nor_without_its_feature() {
    let host = Host::new();
    let mut guest = host.connect();
    guest.activate();
    assert_eq!(
        guest.register(&registration(0)),
        VIRTIO_ECS_S_NOT_NEGOTIATED
    );
    for op in [VIRTIO_ECS_CTRL_UNREGISTER, VIRTIO_ECS_CTRL_QUERY] {
        assert_eq!(
            guest.vcpu_message(op, 0).status,
            VIRTIO_ECS_S_NOT_NEGOTIATED
        );
    }
    guest.negotiate(VIRTIO_ECS_F_LINES);
    let word = VirtioEcsRegister {
        word_addr: 0x9000,
        word_format: VIRTIO_ECS_WORD_X86_PREEMPT,
        ..registration(0)
    };
    assert_eq!(guest.register(&word), VIRTIO_ECS_S_BAD_FORMAT);
    guest.negotiate(VIRTIO_ECS_F_EVENTS);
    assert_eq!(
        guest.register(&registration(0)),
        VIRTIO_ECS_S_NOT_NEGOTIATED
    );
}

#[test]
fn all_256_vcpus_fit() {
    let host = Host::saving();
    let mut guest = host.boot();
    for vcpu in 0..VIRTIO_ECS_MAX_VCPUS {
        assert_eq!(
            guest.register(&registration(vcpu)),
            VIRTIO_ECS_S_OK,
            "vCPU {vcpu}"
        );
    }
    assert_eq!(host.sink.view().slots.nr_registered(), 256);
}

#[test]
fn broken_chains_are_counted_and_given_back_empty() {
    let host = Host::new();
    let mut guest = host.boot();
    let message = registration(0).to_bytes();
    guest
        .mem
        .write_slice(&message, GuestAddress(0xc000))
        .unwrap();
    let (m, r) = (0xc000, 0xd000);
    let chains: &[(&str, &[Desc])] = &[
        ("no writable part", &[Desc(m, 64, 0, 0)]),
        (
            "room too small",
            &[Desc(m, 64, NEXT, 1), Desc(r, 31, WRITE, 0)],
        ),
        ("a loop of one", &[Desc(m, 64, NEXT, 0)]),
        (
            "a loop of two",
            &[Desc(m, 64, NEXT, 1), Desc(r, 32, WRITE | NEXT, 0)],
        ),
        (
            "a loop at the end",
            &[Desc(m, 64, NEXT, 1), Desc(r, 32, WRITE | NEXT, 1)],
        ),
        (
            "next out of the table",
            &[Desc(m, 64, NEXT, 1), Desc(r, 32, WRITE | NEXT, 500)],
        ),
        (
            "message outside memory",
            &[Desc(FAR, 64, NEXT, 1), Desc(r, 32, WRITE, 0)],
        ),
        (
            "reply outside memory",
            &[Desc(m, 64, NEXT, 1), Desc(FAR, 32, WRITE, 0)],
        ),
        (
            "reply past the end",
            &[Desc(m, 64, NEXT, 1), Desc(RAM as u64 - 16, 32, WRITE, 0)],
        ),
        (
            "address overflow",
            &[Desc(u64::MAX - 8, 64, NEXT, 1), Desc(r, 32, WRITE, 0)],
        ),
        (
            "wrong order",
            &[Desc(r, 32, WRITE | NEXT, 1), Desc(m, 64, 0, 0)],
        ),
        ("an indirect table of nonsense", &[Desc(m, 33, 4, 0)]),
        (
            "4 GiB and more",
            &[
                Desc(m, u32::MAX, NEXT, 1),
                Desc(m, u32::MAX, NEXT, 2),
                Desc(r, u32::MAX, WRITE, 0),
            ],
        ),
    ];
    for (n, (what, chain)) in chains.iter().enumerate() {
        assert_eq!(guest.submit(chain), (0, 0), "{what}");
        assert_eq!(
            host.device().counters().guest_faults,
            n as u64 + 1,
            "{what}"
        );
    }
    assert_eq!(host.sink.view().slots.nr_registered(), 0);

    // A message in pieces, and an answer in pieces, are in order.
    let pieces = [
        Desc(m, 1, NEXT, 1),
        Desc(m + 1, 62, NEXT, 2),
        Desc(m + 63, 1, NEXT, 3),
        Desc(r, 1, WRITE | NEXT, 4),
        Desc(r + 1, 200, WRITE, 0),
    ];
    assert_eq!(guest.submit(&pieces), (0, 32));
    assert_eq!(host.sink.view().slots.nr_registered(), 1);

    // A head outside the table cannot be given back; the next chain is answered.
    let mem = guest.mem.clone();
    guest.control.post(&mem, 0, &[], 400);
    assert_eq!(
        guest.vcpu_message(VIRTIO_ECS_CTRL_QUERY, 0).status,
        VIRTIO_ECS_S_OK
    );
}

#[test]
fn bad_event_buffers_are_given_back_and_the_event_waits() {
    let host = Host::new();
    let mut guest = host.boot();
    host.device().notify(VirtioEcsEvent {
        r#type: 3,
        ..Default::default()
    });
    let mem = guest.mem.clone();
    for desc in [
        Desc(0xe000, 15, WRITE, 0),
        Desc(0xe000, 16, 0, 0),
        Desc(FAR, 16, WRITE, 0),
    ] {
        guest.events.post(&mem, 0, &[desc], 0);
        guest.events.kick.write(1).unwrap();
        assert_eq!(guest.events.take_used(&mem), (0, 0));
    }
    guest.post_event_buffer();
    assert_eq!(guest.event().r#type, 3);
    assert_eq!(host.device().counters().guest_faults, 3);
}

#[test]
fn an_available_index_that_ran_away_stops_nothing_else() {
    let host = Host::new();
    let mut guest = host.boot();
    let index = GuestAddress(guest.control.avail().0 + 2);
    guest.mem.write_obj(5000u16, index).unwrap();
    guest.control.kick.write(1).unwrap();
    host.wait_counters(|counters| counters.guest_faults == 1);
    // The guest resets the device, and all is well.
    guest.reset();
    guest.activate();
    assert_eq!(guest.register(&registration(0)), VIRTIO_ECS_S_OK);
}

#[test]
fn noise_in_the_rings_harms_nobody() {
    let host = Host::new();
    let mut guest = host.boot();
    // xorshift, always the same.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut noise = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for _ in 0..300 {
        for at in (0x1000..0x3000u64).step_by(8) {
            // Small numbers now and then, so that some of it nearly makes sense.
            let word = if noise() % 3 == 0 {
                noise() % 0x1_0000
            } else {
                noise()
            };
            guest.mem.write_obj(word, GuestAddress(at)).unwrap();
        }
        guest.control.kick.write(1).unwrap();
        guest.events.kick.write(1).unwrap();
        std::thread::yield_now();
    }
    guest.reset();
    guest.activate();
    assert_eq!(guest.register(&registration(0)), VIRTIO_ECS_S_OK);
    assert_eq!(host.sink.view().slots.nr_registered(), 1);
}

#[test]
fn a_guest_that_rings_all_the_time_is_slowed_down() {
    let host = Host::new();
    let mut guest = host.boot();
    let start = std::time::Instant::now();
    for _ in 0..600 {
        assert_eq!(guest.vcpu_message(VIRTIO_ECS_CTRL_QUERY, 0).status, 8);
    }
    let took = start.elapsed();
    assert!(
        took > std::time::Duration::from_millis(500),
        "600 messages in {took:?}"
    );
}
