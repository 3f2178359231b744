//! One VM from its first request on: negotiation, registration, hotplug, pause, reconnect, moves.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use common::*;
use ecs_abi::*;
use ecs_device::UserRegion;
use nix::sys::stat::fstat;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags,
};
use vm_memory::{Bytes, GuestAddress};

#[test]
fn a_guest_negotiates_registers_asks_and_unregisters() {
    let host = Host::new();
    let mut guest = host.connect();
    let config = guest.read_config();
    assert_eq!(config.magic, VIRTIO_ECS_MAGIC);
    assert_eq!((config.version_min, config.version_max), (1, 1));
    assert_eq!(config.nr_doorbells, DOORBELLS);
    assert_eq!(
        (config.extension_ns, config.slice_ns),
        (1_000_000, 3_000_000)
    );
    assert_eq!(config.status, VIRTIO_ECS_NEG_NONE);
    assert_eq!(guest.front.get_queue_num().unwrap(), NR_QUEUES as u64);
    assert_eq!(guest.front.get_max_mem_slots().unwrap(), 256);
    guest.negotiate(config.features);
    assert_eq!(host.sink.nr_told(), 0, "there is no memory to speak of yet");
    guest.activate();
    assert!(host.sink.view().running);

    let reply = guest.control(&registration(0).to_bytes());
    assert_eq!(
        reply,
        VirtioEcsCtrlReply {
            cookie: 42,
            op: VIRTIO_ECS_CTRL_REGISTER,
            generation: config.generation,
            ..Default::default()
        }
    );
    let word = VirtioEcsRegister {
        word_addr: 0x9004,
        word_format: VIRTIO_ECS_WORD_X86_PREEMPT,
        ..registration(5)
    };
    assert_eq!(guest.register(&word), VIRTIO_ECS_S_OK);

    let view = host.sink.view();
    assert_eq!(view.name, "vm");
    assert_eq!(view.pid, std::process::id());
    assert_eq!(view.generation, config.generation);
    assert_eq!(view.slots.vcpus.len(), 6);
    assert_eq!(view.slots.nr_registered(), 2);
    let info = region_info(&guest.mem);
    let region = UserRegion {
        gpa: 0,
        len: RAM as u64,
        userspace_addr: info.userspace_addr,
    };
    assert_eq!(view.mem_userspace, [region]);

    // The slots are the guest's own memory, both ways.
    guest.mem.write_obj(1u32, GuestAddress(LINES)).unwrap();
    let slots = view.slots.get(0).unwrap();
    assert!(slots.read().non_preemptable);
    slots.set_granted(true);
    assert_eq!(
        guest.mem.read_obj::<u32>(GuestAddress(LINES + 64)).unwrap(),
        1
    );
    guest.mem.write_obj(u32::MAX, GuestAddress(LINES)).unwrap();
    assert!(!slots.read().non_preemptable);
    let reply = guest.vcpu_message(VIRTIO_ECS_CTRL_QUERY, 0);
    assert_eq!(
        (reply.status, reply.vcpu, reply.cookie),
        (VIRTIO_ECS_S_OK, 0, 77)
    );
    assert_eq!((reply.nr_grants, reply.nr_faults), (1, 1));

    assert_eq!(
        guest.vcpu_message(VIRTIO_ECS_CTRL_UNREGISTER, 0).status,
        VIRTIO_ECS_S_OK
    );
    // The reply comes after the view: this is already the one without vCPU 0.
    let view = host.sink.view();
    assert!(view.slots.get(0).is_none());
    assert!(view.slots.get(5).is_some());
    let reply = guest.vcpu_message(VIRTIO_ECS_CTRL_QUERY, 0);
    assert_eq!(reply.status, VIRTIO_ECS_S_NOT_REGISTERED);
}

#[test]
fn config_reads_are_answered_at_every_offset_and_size() {
    let host = Host::new();
    let mut guest = host.connect();
    let flags = VhostUserConfigFlags::empty();
    let longest = 0x1000 - 12;
    let whole = vec![0; longest];
    let (_, whole) = guest
        .front
        .get_config(0, longest as u32, flags, &whole)
        .unwrap();
    let mut cases: Vec<(usize, usize)> = (0..72)
        .flat_map(|at| [1, 2, 3, 4, 8, 16, 64].map(|len| (at, len)))
        .collect();
    cases.extend([(0xffc, 4), (0xfff, 1), (0x800, 0x800), (12, longest)]);
    for (at, len) in cases {
        let (_, got) = guest
            .front
            .get_config(at as u32, len as u32, flags, &vec![0; len])
            .unwrap();
        assert_eq!(got.len(), len, "{len} bytes at {at:#x}");
        for (n, byte) in got.iter().enumerate() {
            assert_eq!(
                *byte,
                whole.get(at + n).copied().unwrap_or(0),
                "{at:#x}+{n}"
            );
        }
    }
    // Writes anywhere are taken, and change nothing but the driver's fields.
    guest.write_config(0, &[0xff; 40]);
    guest.write_config(0xff8, &[0xff; 8]);
    let (_, again) = guest
        .front
        .get_config(0, longest as u32, flags, &vec![0; longest])
        .unwrap();
    assert_eq!(again, whole);
    guest.write_config(40, &9u16.to_le_bytes());
    guest.write_config(48, &VIRTIO_ECS_F_LINES.to_le_bytes());
    assert_eq!(guest.read_config().status, VIRTIO_ECS_NEG_BAD_VERSION);
}

#[test]
fn doorbells_are_the_front_ends_own_and_are_left_unread() {
    let host = Host::new();
    let mut guest = host.boot();
    guest.negotiate(VIRTIO_ECS_F_LINES);
    // Who does not choose them never rings.
    let view = host.sink.view();
    assert!(view.doorbells.iter().all(Option::is_none));
    guest.negotiate(VIRTIO_ECS_F_LINES | VIRTIO_ECS_F_DOORBELL);
    let view = host.sink.view();
    assert_eq!(view.doorbells.len(), usize::from(DOORBELLS));
    for (ours, theirs) in guest.doorbells.iter().zip(&view.doorbells) {
        ours.write(3).unwrap();
        let theirs = theirs.as_ref().unwrap();
        let mut count = [0; 8];
        let mut file = std::fs::File::from(theirs.try_clone().unwrap());
        file.read_exact(&mut count).unwrap();
        assert_eq!(
            u64::from_ne_bytes(count),
            3,
            "rings once, read by nobody before us"
        );
    }
}

#[test]
fn pause_and_resume_change_running_only_and_lose_no_message() {
    let host = Host::new();
    let mut guest = host.boot();
    assert_eq!(guest.register(&registration(0)), VIRTIO_ECS_S_OK);
    guest.enable(false);
    let paused = host.sink.view();
    assert!(!paused.running);
    assert_eq!(paused.slots.nr_registered(), 1);

    // A message that the guest sent just before the pause is answered after it.
    let bytes = registration(1).to_bytes();
    guest.mem.write_slice(&bytes, GuestAddress(0xc000)).unwrap();
    let descs = [Desc(0xc000, 64, NEXT, 1), Desc(0xd000, 32, WRITE, 0)];
    let mem = guest.mem.clone();
    guest.control.post(&mem, 0, &descs, 0);
    guest.control.kick.write(1).unwrap();
    guest.enable(true);
    assert_eq!(guest.control.take_used(&mem), (0, 32));
    let view = host.sink.view();
    assert!(view.running);
    assert_eq!(view.slots.nr_registered(), 2);
}

#[test]
fn memory_comes_and_goes_and_registrations_follow() {
    let host = Host::new();
    let mut guest = host.boot();
    assert_eq!(guest.register(&registration(0)), VIRTIO_ECS_S_OK);
    assert_eq!(
        guest.register(&registration_at(1, HOT)),
        VIRTIO_ECS_S_BAD_ADDR
    );

    let hot = memory(HOT, HOT_LEN);
    guest.front.add_mem_region(&region_info(&hot)).unwrap();
    assert_eq!(host.sink.view().mem_userspace.len(), 2);
    assert_eq!(guest.register(&registration_at(1, HOT)), VIRTIO_ECS_S_OK);
    hot.write_obj(1u32, GuestAddress(HOT)).unwrap();
    let view = host.sink.view();
    assert!(view.slots.get(0).is_some());
    assert!(view.slots.get(1).unwrap().read().non_preemptable);

    guest.front.remove_mem_region(&region_info(&hot)).unwrap();
    let view = host.sink.view();
    assert_eq!(view.mem_userspace.len(), 1);
    assert_eq!(view.slots.nr_registered(), 1);
    assert_eq!(host.device().counters().dropped_registrations, 1);
    let reply = guest.vcpu_message(VIRTIO_ECS_CTRL_QUERY, 1);
    assert_eq!(reply.status, VIRTIO_ECS_S_NOT_REGISTERED);
}

#[test]
fn bad_memory_is_refused_and_the_old_table_stays() {
    let host = Host::new();
    let mut guest = host.boot();
    assert_eq!(guest.register(&registration(0)), VIRTIO_ECS_S_OK);
    let good = region_info(&guest.mem);
    let hot = memory(HOT, HOT_LEN);

    let mut long = region_info(&hot);
    long.memory_size = HOT_LEN as u64 + 0x1000;
    guest.front.add_mem_region(&long).unwrap_err();
    let mut over = region_info(&hot);
    over.guest_phys_addr = 0x1000;
    guest.front.add_mem_region(&over).unwrap_err();
    let mut crooked = region_info(&hot);
    crooked.mmap_offset = 0x10;
    crooked.memory_size = 0x1000;
    guest.front.add_mem_region(&crooked).unwrap_err();
    guest
        .front
        .remove_mem_region(&region_info(&hot))
        .unwrap_err();
    guest.front.set_mem_table(&[good, over]).unwrap_err();

    host.wait_counters(|counters| counters.refused_requests == 5);
    assert_eq!(guest.register(&registration(1)), VIRTIO_ECS_S_OK);
    assert_eq!(host.sink.view().slots.nr_registered(), 2);
}

#[test]
fn the_same_front_end_comes_back_to_its_registrations() {
    let host = Host::new();
    let mut guest = host.boot();
    assert_eq!(guest.register(&registration(3)), VIRTIO_ECS_S_OK);
    guest.post_event_buffer();
    let before = guest.read_config();
    guest.front = connect_nowhere();
    host.sink.wait_gone();

    guest.reconnect(&host.config.socket);
    let view = host.sink.view();
    assert!(view.running);
    assert!(view.slots.get(3).is_some());
    assert_eq!(
        guest.read_config(),
        before,
        "negotiation and generation stay"
    );
    let reply = guest.vcpu_message(VIRTIO_ECS_CTRL_QUERY, 3);
    assert_eq!(reply.status, VIRTIO_ECS_S_OK);
    // The buffer posted before the connection was lost still takes an event, and no restart.
    host.device().notify(VirtioEcsEvent {
        r#type: VIRTIO_ECS_EV_ENABLED,
        vcpu: VIRTIO_ECS_ALL_VCPUS,
        ..Default::default()
    });
    assert_eq!(guest.event().r#type, VIRTIO_ECS_EV_ENABLED);
}

/// A front-end connected to nothing that lasts, to put in the place of one that is let go.
fn connect_nowhere() -> vhost::vhost_user::Frontend {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    vhost::vhost_user::Frontend::from_stream(ours, 1)
}

#[test]
fn a_restarted_daemon_goes_on_without_the_guests_help() {
    let mut host = Host::saving();
    let mut guest = host.boot();
    for vcpu in 0..4 {
        assert_eq!(guest.register(&registration(vcpu)), VIRTIO_ECS_S_OK);
    }
    assert_eq!(
        guest.vcpu_message(VIRTIO_ECS_CTRL_UNREGISTER, 2).status,
        VIRTIO_ECS_S_OK
    );
    let before = guest.read_config();
    host.restart();
    host.sink.wait_gone();

    guest.reconnect(&host.config.socket);
    let view = host.sink.view();
    assert_eq!(view.slots.nr_registered(), 3);
    assert!(view.slots.get(2).is_none());
    assert_eq!(view.generation, before.generation);
    assert_eq!(guest.read_config(), before);
    assert_eq!(guest.register(&registration(2)), VIRTIO_ECS_S_OK);
    assert_eq!(host.device().counters().state_errors, 0);
}

#[test]
fn a_daemon_that_forgot_says_so() {
    for damaged in [false, true] {
        let mut host = if damaged { Host::saving() } else { Host::new() };
        let mut guest = host.boot();
        assert_eq!(guest.register(&registration(0)), VIRTIO_ECS_S_OK);
        guest.post_event_buffer();
        let before = guest.read_config();
        if damaged {
            std::fs::write(host.dir.path().join("vm.state"), b"ecs-dev\0 but no more").unwrap();
        }
        host.restart();
        guest.reconnect(&host.config.socket);
        assert_eq!(guest.event().r#type, VIRTIO_ECS_EV_RESTART);
        let after = guest.read_config();
        assert_ne!(after.generation, before.generation);
        assert_eq!(after.status, VIRTIO_ECS_NEG_NONE);
        assert_eq!(
            guest.register(&registration(0)),
            VIRTIO_ECS_S_NOT_NEGOTIATED
        );
        guest.negotiate(VIRTIO_ECS_F_LINES);
        assert_eq!(guest.register(&registration(0)), VIRTIO_ECS_S_OK);
        assert_eq!(host.device().counters().state_errors, u64::from(damaged));
    }
}

#[test]
fn a_guest_that_boots_again_starts_with_nothing_registered() {
    let host = Host::new();
    let mut guest = host.boot();
    assert_eq!(guest.register(&registration(0)), VIRTIO_ECS_S_OK);
    guest.reset();
    assert!(!host.sink.view().running);
    guest.activate();
    let view = host.sink.view();
    assert!(view.running);
    assert_eq!(
        view.slots.nr_registered(),
        0,
        "the old lines are ordinary memory now"
    );
    assert_eq!(guest.register(&registration(1)), VIRTIO_ECS_S_OK);

    // A driver that negotiates again starts over, too.
    guest.negotiate(VIRTIO_ECS_F_LINES);
    assert_eq!(host.sink.view().slots.nr_registered(), 0);
}

#[test]
fn events_wait_for_buffers_and_the_latest_are_kept() {
    let host = Host::new();
    let mut guest = host.boot();
    for data in 0..40 {
        host.device().notify(VirtioEcsEvent {
            r#type: VIRTIO_ECS_EV_FAULT,
            data,
            ..Default::default()
        });
    }
    // Of 40, 16 are kept.
    host.wait_counters(|counters| counters.dropped_events == 40 - 16);
    for _ in 0..QUEUE_SIZE {
        guest.post_event_buffer();
    }
    for data in 40 - 16..40 {
        assert_eq!(guest.event().data, data);
    }
    host.device().notify(VirtioEcsEvent::default());
    guest.post_event_buffer();
    assert_eq!(guest.event(), VirtioEcsEvent::default());
}

fn save(guest: &mut Guest) -> Vec<u8> {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let direction = VhostTransferStateDirection::SAVE;
    let phase = VhostTransferStatePhase::STOPPED;
    let file = guest
        .front
        .set_device_state_fd(direction, phase, theirs.into())
        .unwrap();
    assert!(file.is_none());
    let mut bytes = Vec::new();
    ours.read_to_end(&mut bytes).unwrap();
    guest.front.check_device_state().unwrap();
    bytes
}

fn load(guest: &mut Guest, bytes: &[u8]) -> vhost::Result<()> {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let direction = VhostTransferStateDirection::LOAD;
    let phase = VhostTransferStatePhase::STOPPED;
    guest
        .front
        .set_device_state_fd(direction, phase, theirs.into())
        .unwrap();
    ours.write_all(bytes).unwrap();
    drop(ours);
    guest.front.check_device_state()
}

#[test]
fn a_moved_guest_keeps_its_registrations() {
    let from = Host::new();
    let mut guest = from.boot();
    assert_eq!(guest.register(&registration(0)), VIRTIO_ECS_S_OK);
    assert_eq!(guest.register(&registration(1)), VIRTIO_ECS_S_OK);
    let before = guest.read_config();
    guest.enable(false);
    for index in 0..NR_QUEUES {
        guest.front.get_vring_base(index).unwrap();
    }
    let bytes = save(&mut guest);

    // It may go on where it was: the queues are set up again, with the guest's indices.
    guest.activate();
    assert_eq!(from.sink.view().slots.nr_registered(), 2);
    assert_eq!(
        guest.vcpu_message(VIRTIO_ECS_CTRL_QUERY, 1).status,
        VIRTIO_ECS_S_OK
    );
    let bytes_again = save(&mut guest);
    assert_eq!(bytes_again, bytes);

    // Elsewhere, the state comes before features and memory.
    let to = Host::new();
    guest.front = to.connect().front;
    load(&mut guest, &bytes).unwrap();
    assert_eq!(guest.read_config(), before);
    assert_eq!(to.sink.nr_told(), 0);
    guest.activate();
    let view = to.sink.view();
    assert_eq!(view.slots.nr_registered(), 2);
    assert_eq!(view.generation, before.generation);
    assert_eq!(
        guest.vcpu_message(VIRTIO_ECS_CTRL_QUERY, 1).status,
        VIRTIO_ECS_S_OK
    );
}

#[test]
fn state_that_makes_no_sense_is_refused_and_changes_nothing() {
    let host = Host::new();
    let mut guest = host.boot();
    assert_eq!(guest.register(&registration(0)), VIRTIO_ECS_S_OK);
    let good = save(&mut guest);
    let mut bad = good.clone();
    bad[40] ^= 1;
    for bytes in [&[][..], &good[..good.len() - 1], &bad, &vec![0xff; 100_000]] {
        load(&mut guest, bytes).unwrap_err();
    }
    // A front-end that never closes its end is not waited for for ever.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let direction = VhostTransferStateDirection::LOAD;
    let phase = VhostTransferStatePhase::STOPPED;
    guest
        .front
        .set_device_state_fd(direction, phase, theirs.into())
        .unwrap();
    guest.front.check_device_state().unwrap_err();
    drop(ours);
    host.wait_counters(|counters| counters.state_errors == 5);
    assert_eq!(
        guest.vcpu_message(VIRTIO_ECS_CTRL_QUERY, 0).status,
        VIRTIO_ECS_S_OK
    );
}

#[test]
fn memory_is_unmapped_when_nobody_holds_a_view() {
    let mut host = Host::new();
    let mut guest = host.boot();
    let hot = memory(HOT, HOT_LEN);
    guest.front.add_mem_region(&region_info(&hot)).unwrap();
    let inode = fstat(file_of(&hot)).unwrap().st_ino;
    assert_eq!(mapped(inode), 2, "ours and the device's");
    host.device.take().unwrap().stop();
    assert_eq!(mapped(inode), 2, "the sink still has a view");
    drop(host);
    assert_eq!(mapped(inode), 1, "ours alone");
}

fn file_of(mem: &vm_memory::GuestMemoryMmap) -> &std::fs::File {
    use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
    mem.iter().next().unwrap().file_offset().unwrap().file()
}

fn mapped(inode: u64) -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let inode = inode.to_string();
    maps.lines()
        .filter(|line| line.split_ascii_whitespace().nth(4) == Some(&inode))
        .count()
}
