//! The daemon's process is killed, and the VM goes on.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use common::*;
use ecs_abi::*;

/// The example of this crate, which Cargo builds beside the tests.
fn example() -> Option<PathBuf> {
    let tests = std::env::current_exe().ok()?;
    let path = tests.parent()?.parent()?.join("examples/serve");
    path.is_file().then_some(path)
}

/// A daemon of its own; it ends with its input, so with this process at the latest.
fn serve(program: &Path, dir: &Path) -> Child {
    Command::new(program)
        .arg(dir.join("vm.sock"))
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn wait_for_socket(socket: &Path) {
    let until = Instant::now() + PATIENCE;
    while std::os::unix::net::UnixStream::connect(socket).is_err() {
        assert!(Instant::now() < until, "nobody serves the socket");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn a_killed_daemon_is_followed_by_one_that_knows_the_guest() {
    let Some(program) = example() else {
        println!(
            "SKIPPED: a_killed_daemon_is_followed_by_one_that_knows_the_guest: the example \
             `serve` is not built"
        );
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vm.sock");
    let mut daemon = serve(&program, dir.path());
    wait_for_socket(&socket);
    let mut guest = Guest::connect(&socket);
    guest.negotiate(VIRTIO_ECS_F_LINES | VIRTIO_ECS_F_EVENTS);
    guest.activate();
    for vcpu in 0..4 {
        assert_eq!(guest.register(&registration(vcpu)), VIRTIO_ECS_S_OK);
    }
    let before = guest.read_config();

    for _ in 0..5 {
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        assert!(socket.exists(), "nobody tidied up");
        daemon = serve(&program, dir.path());
        wait_for_socket(&socket);
        guest.reconnect(&socket);
        assert_eq!(guest.read_config(), before);
        for vcpu in 0..4 {
            let reply = guest.vcpu_message(VIRTIO_ECS_CTRL_QUERY, vcpu);
            assert_eq!(reply.status, VIRTIO_ECS_S_OK, "vCPU {vcpu}");
        }
    }

    // One that ends by itself tidies up.
    drop(daemon.stdin.take());
    daemon.wait().unwrap();
    assert!(!socket.exists());
}

#[test]
fn another_process_is_another_vm() {
    let Some(program) = example() else {
        println!("SKIPPED: another_process_is_another_vm: the example `serve` is not built");
        return;
    };
    // A state that this process left, read by a device whose front-end is this process, is its
    // own; one byte of the start time off, and it is somebody else's.
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("vm.sock");
    let mut daemon = serve(&program, dir.path());
    wait_for_socket(&socket);
    let mut guest = Guest::connect(&socket);
    guest.negotiate(VIRTIO_ECS_F_LINES);
    guest.activate();
    assert_eq!(guest.register(&registration(0)), VIRTIO_ECS_S_OK);
    guest.post_event_buffer();
    daemon.kill().unwrap();
    daemon.wait().unwrap();

    let path = dir.path().join("vm.state");
    let mut state = std::fs::read(&path).unwrap();
    let end = state.len() - 8;
    state[32] ^= 1;
    let sum = state[..end]
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    state[end..].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&path, state).unwrap();

    let mut daemon = serve(&program, dir.path());
    wait_for_socket(&socket);
    guest.reconnect(&socket);
    assert_eq!(guest.event().r#type, VIRTIO_ECS_EV_RESTART);
    assert_eq!(
        guest.register(&registration(0)),
        VIRTIO_ECS_S_NOT_NEGOTIATED
    );
    drop(daemon.stdin.take());
    daemon.wait().unwrap();
}
