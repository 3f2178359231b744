//! Sockets and front-ends that misbehave, and the VMs beside them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

mod common;

use std::error::Error;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::*;
use ecs_abi::*;
use ecs_device::{Device, DeviceConfig, DeviceError, SocketError};
use vhost::VhostBackend;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

fn bind(config: &DeviceConfig) -> Result<Device, DeviceError> {
    Device::bind(config.clone(), Arc::new(Recorder::default()))
}

/// Binds, and returns the error's own text.
fn refused(config: &DeviceConfig) -> (DeviceError, String) {
    let error = bind(config).unwrap_err();
    let text = error.to_string();
    (error, text)
}

#[test]
fn a_socket_has_its_mode_and_goes_with_the_device() {
    let dir = tempfile::tempdir().unwrap();
    for mode in [0o600, 0o660, 0o666] {
        let config = DeviceConfig {
            socket_mode: mode,
            ..config(dir.path(), "vm")
        };
        let device = bind(&config).unwrap();
        let found = fs::metadata(&config.socket).unwrap().permissions().mode();
        assert_eq!(found & 0o7777, mode);
        assert_eq!(device.name(), "vm");
        device.stop();
        assert!(!config.socket.exists());
    }
}

#[test]
fn a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "vm");
    drop(UnixListener::bind(&config.socket).unwrap());
    assert!(config.socket.exists());
    let device = bind(&config).unwrap();
    UnixStream::connect(&config.socket).unwrap();
    device.stop();
}

#[test]
fn a_socket_that_is_served_is_left_alone() {
    let host = Host::new();
    let mut guest = host.boot();
    let (error, text) = refused(&host.config);
    assert!(
        matches!(error, DeviceError::Socket(SocketError::Served(_))),
        "{text}"
    );
    assert!(text.contains("Another daemon serves"), "{text}");
    assert_eq!(guest.register(&registration(0)), VIRTIO_ECS_S_OK);

    // Nor does the look at it disturb a device that waits for its front-end to come back.
    drop(guest);
    host.sink.wait_gone();
    refused(&host.config);
    host.connect();

    // One that does not even accept is served, too.
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "vm");
    let _listener = UnixListener::bind(&config.socket).unwrap();
    let (error, _) = refused(&config);
    assert!(matches!(error, DeviceError::Socket(SocketError::Served(_))));
}

#[test]
fn two_daemons_that_race_for_a_stale_socket_do_not_both_win() {
    for _ in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path(), "vm");
        drop(UnixListener::bind(&config.socket).unwrap());
        let results: Vec<_> = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..4).map(|_| scope.spawn(|| bind(&config))).collect();
            racers
                .into_iter()
                .map(|racer| racer.join().unwrap())
                .collect()
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
        UnixStream::connect(&config.socket).unwrap();
    }
}

#[test]
fn what_is_not_a_socket_is_never_removed() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "vm");
    fs::write(&config.socket, "precious").unwrap();
    let (error, text) = refused(&config);
    assert!(
        matches!(error, DeviceError::Socket(SocketError::NotASocket(_))),
        "{text}"
    );
    assert_eq!(fs::read_to_string(&config.socket).unwrap(), "precious");

    fs::remove_file(&config.socket).unwrap();
    std::os::unix::fs::symlink("elsewhere", &config.socket).unwrap();
    let (error, _) = refused(&config);
    assert!(matches!(
        error,
        DeviceError::Socket(SocketError::NotASocket(_))
    ));
    fs::remove_file(&config.socket).unwrap();
    fs::create_dir(&config.socket).unwrap();
    let (error, _) = refused(&config);
    assert!(matches!(
        error,
        DeviceError::Socket(SocketError::NotASocket(_))
    ));
    fs::remove_dir(&config.socket).unwrap();

    // What somebody put in the place of our socket is not ours to remove either.
    let device = bind(&config).unwrap();
    fs::remove_file(&config.socket).unwrap();
    fs::write(&config.socket, "precious").unwrap();
    device.stop();
    assert_eq!(fs::read_to_string(&config.socket).unwrap(), "precious");
}

#[test]
fn bad_configurations_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let good = config(dir.path(), "vm");
    let change = |change: &dyn Fn(&mut DeviceConfig)| {
        let mut config = good.clone();
        change(&mut config);
        refused(&config).1
    };
    let missing = change(&|config| config.socket = dir.path().join("no/vm.sock"));
    assert!(missing.contains("does not exist: create it"), "{missing}");
    let long = change(&|config| config.socket = dir.path().join("x".repeat(120)));
    assert!(long.contains("choose a shorter one"), "{long}");
    let name = change(&|config| config.name = "../vm".to_owned());
    assert!(name.contains("begin with a letter or digit"), "{name}");
    let bells = change(&|config| config.nr_doorbells = 255);
    assert!(
        bells.contains("255 doorbells are more than the 254"),
        "{bells}"
    );
    let mode = change(&|config| config.socket_mode = 0o1777);
    assert!(mode.contains("is no file mode"), "{mode}");
    let state = change(&|config| config.state_dir = Some(dir.path().join("no")));
    assert!(state.contains("create it, or configure none"), "{state}");
    assert!(!good.socket.exists());
}

#[test]
fn a_directory_without_permission_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), "vm");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o500)).unwrap();
    if fs::write(dir.path().join("probe"), "").is_ok() {
        // Root may write anywhere but where nobody may.
        config.socket = Path::new("/sys/kernel/vm.sock").to_owned();
        match UnixListener::bind(&config.socket) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
            other => {
                println!(
                    "SKIPPED: a_directory_without_permission_is_named: runs as root, and \
                     /sys answers {other:?}"
                );
                return;
            }
        }
    }
    let (error, text) = refused(&config);
    assert!(
        matches!(error, DeviceError::Socket(SocketError::Permission { .. })),
        "{text}"
    );
    assert!(
        text.contains("let the daemon write to its directory"),
        "{text}"
    );
    assert!(error.source().is_some(), "what the system said is kept");
}

#[test]
fn only_one_front_end_at_a_time() {
    let host = Host::new();
    let mut first = host.boot();
    let mut second = UnixStream::connect(&host.config.socket).unwrap();
    let mut byte = [0];
    assert_eq!(second.read(&mut byte).unwrap(), 0, "closed at once");
    host.wait_counters(|counters| counters.refused_connections == 1);
    assert_eq!(first.register(&registration(0)), VIRTIO_ECS_S_OK);
    drop(first);
    host.sink.wait_gone();
    let mut second = host.boot();
    assert_eq!(second.register(&registration(1)), VIRTIO_ECS_S_OK);
}

#[test]
fn one_that_looked_and_left_does_not_keep_the_next_out() {
    let host = Host::new();
    for vcpu in 0..50 {
        drop(UnixStream::connect(&host.config.socket).unwrap());
        let mut guest = host.boot();
        assert_eq!(guest.register(&registration(vcpu)), VIRTIO_ECS_S_OK);
    }
    assert_eq!(host.device().counters().refused_connections, 0);
    // Nor does one that says nothing, for more than two seconds.
    let silent = UnixStream::connect(&host.config.socket).unwrap();
    std::thread::sleep(Duration::from_millis(2100));
    host.boot();
    assert!(closed(silent, PATIENCE));
}

/// GET_FEATURES, whole.
const GET_FEATURES: [u8; 12] = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

/// A message's head: request, flags (version 1), size of the body.
fn head(request: u32, size: u32) -> Vec<u8> {
    [request, 1, size]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect()
}

/// A front-end that speaks in raw bytes. True once it was closed.
fn closed(mut stream: UnixStream, within: Duration) -> bool {
    stream.set_read_timeout(Some(within)).unwrap();
    let mut bytes = [0; 4096];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(error) => return error.kind() == ErrorKind::ConnectionReset,
        }
    }
}

#[test]
fn a_front_end_that_dies_in_a_message_is_gone_and_the_next_is_served() {
    let host = Host::new();
    let whole = [head(2, 8), vec![0; 8]].concat();
    for cut in 1..whole.len() {
        let mut stream = UnixStream::connect(&host.config.socket).unwrap();
        stream.write_all(&GET_FEATURES).unwrap();
        stream.read_exact(&mut [0; 20]).unwrap();
        stream.write_all(&whole[..cut]).unwrap();
        drop(stream);
        host.wait_counters(|counters| counters.stalled_connections == cut as u64);
    }
    let mut guest = host.boot();
    assert_eq!(guest.register(&registration(0)), VIRTIO_ECS_S_OK);
}

#[test]
fn a_message_that_comes_byte_by_byte_is_handled() {
    let host = Host::new();
    let mut stream = UnixStream::connect(&host.config.socket).unwrap();
    for byte in GET_FEATURES {
        stream.write_all(&[byte]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[12..20], 0x1_4000_0000u64.to_le_bytes());
}

#[test]
fn nonsense_on_the_socket_ends_that_connection_only() {
    let host = Host::new();
    let bad: &[Vec<u8>] = &[
        vec![0xff; 64],
        head(1, 0x2000),
        head(1, u32::MAX),
        head(9999, 0),
        head(0, 0),
        [head(2, 4), vec![0; 4]].concat(),
        [head(8, 9), vec![0; 9]].concat(),
        [head(11, 8), vec![200, 0, 0, 0, 0, 0, 0, 0]].concat(),
        [vec![1, 0, 0, 0, 2, 0, 0, 0], vec![0; 4]].concat(),
    ];
    for (n, bytes) in bad.iter().enumerate() {
        let mut stream = UnixStream::connect(&host.config.socket).unwrap();
        stream.write_all(bytes).unwrap();
        assert!(closed(stream, PATIENCE), "case {n}");
        host.wait_counters(|counters| counters.protocol_errors == n as u64 + 1);
    }
    let mut guest = host.boot();
    assert_eq!(guest.register(&registration(0)), VIRTIO_ECS_S_OK);
}

#[test]
fn a_vm_beside_a_stalled_one_does_not_notice() {
    let stalled = Host::new();
    let other = Host::new();
    let mut guest = other.boot();
    let mut stream = UnixStream::connect(&stalled.config.socket).unwrap();
    stream.write_all(&GET_FEATURES[..7]).unwrap();
    let start = Instant::now();
    for vcpu in 0..16 {
        assert_eq!(guest.register(&registration(vcpu)), VIRTIO_ECS_S_OK);
    }
    assert!(start.elapsed() < Duration::from_secs(1));
    // The stalled one is let go after two seconds, and its socket serves again.
    assert!(closed(stream, PATIENCE));
    assert_eq!(stalled.device().counters().stalled_connections, 1);
    assert_eq!(stalled.boot().register(&registration(0)), VIRTIO_ECS_S_OK);
}

#[test]
fn a_device_stops_whatever_its_front_end_does() {
    // Silent, stalled in a message, and one that asks without end and never takes an answer.
    for behaviour in 0..3 {
        let mut host = Host::new();
        let mut stream = UnixStream::connect(&host.config.socket).unwrap();
        match behaviour {
            0 => {}
            1 => stream.write_all(&GET_FEATURES[..5]).unwrap(),
            _ => {
                stream
                    .set_write_timeout(Some(Duration::from_millis(300)))
                    .unwrap();
                while stream.write_all(&GET_FEATURES).is_ok() {}
            }
        }
        std::thread::sleep(Duration::from_millis(50));
        let start = Instant::now();
        host.device.take().unwrap().stop();
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "behaviour {behaviour}"
        );
        assert!(!host.config.socket.exists());
    }
}

#[test]
fn queues_that_do_not_fit_are_refused_and_the_connection_stays() {
    let host = Host::new();
    let mut guest = host.connect();
    guest.negotiate(VIRTIO_ECS_F_LINES);
    let features = guest.front.get_features().unwrap();
    guest.front.set_features(features | 1 << 40).unwrap_err();
    guest.front.set_features(features).unwrap();
    guest
        .front
        .set_vring_kick(0, &guest.control.kick)
        .unwrap_err();
    guest
        .front
        .set_mem_table(&[region_info(&guest.mem)])
        .unwrap();
    for size in [0, 3, 2048] {
        guest.front.set_vring_num(0, size).unwrap_err();
    }
    let mut data = vhost::VringConfigData {
        queue_max_size: QUEUE_SIZE,
        queue_size: QUEUE_SIZE,
        flags: 0,
        desc_table_addr: 0x1000,
        used_ring_addr: 0x2000,
        avail_ring_addr: 0x3000,
        log_addr: None,
    };
    guest.front.set_vring_addr(0, &data).unwrap();
    guest
        .front
        .set_vring_kick(0, &guest.control.kick)
        .unwrap_err();
    let info = region_info(&guest.mem);
    let end = info.userspace_addr + info.memory_size;
    data.desc_table_addr = end - 16;
    data.avail_ring_addr = info.userspace_addr;
    data.used_ring_addr = info.userspace_addr + 0x100;
    guest.front.set_vring_addr(0, &data).unwrap();
    guest
        .front
        .set_vring_kick(0, &guest.control.kick)
        .unwrap_err();
    host.wait_counters(|counters| counters.refused_requests == 7);
    guest.activate();
    assert_eq!(guest.register(&registration(0)), VIRTIO_ECS_S_OK);
}

#[test]
fn a_kick_that_cannot_be_waited_for_is_refused() {
    let host = Host::new();
    let plain = tempfile::tempfile().unwrap();
    let stream = UnixStream::connect(&host.config.socket).unwrap();
    // SET_VRING_KICK of queue 0.
    let message = [head(12, 8), vec![0; 8]].concat();
    stream
        .send_with_fd(&message[..], plain.as_raw_fd())
        .unwrap();
    host.wait_counters(|counters| counters.refused_requests == 1);
}
