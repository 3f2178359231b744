//! The front-end against the real device, over a real socket.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ecs_abi::{VIRTIO_ECS_EV_RESTART, VIRTIO_ECS_YIELD_RELEASE, VirtioEcsEvent};
use ecs_device::{Device, DeviceConfig, VmSink, VmView};
use ecs_microvm::{Kind, Vm, VmConfig, Workload, WorkloadKind};
use ecs_shm::Wait;
use tempfile::TempDir;

#[derive(Default)]
struct Sink(Mutex<Option<VmView>>);

impl VmSink for Sink {
    fn update(&self, view: VmView) {
        *self.0.lock().unwrap() = Some(view);
    }
    fn gone(&self, _: &str) {
        *self.0.lock().unwrap() = None;
    }
}

impl Sink {
    fn view(&self) -> Option<VmView> {
        self.0.lock().unwrap().clone()
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn device(dir: &Path, nr_doorbells: u16, keep: bool) -> (Device, Arc<Sink>) {
    let sink = Arc::new(Sink::default());
    let config = DeviceConfig {
        name: "vm".to_owned(),
        socket: dir.join("vm.sock"),
        socket_mode: 0o600,
        nr_doorbells,
        extension_ns: 1_000_000,
        slice_ns: 3_000_000,
        state_dir: keep.then(|| dir.to_owned()),
    };
    (
        Device::bind(config, Arc::clone(&sink) as Arc<dyn VmSink>).unwrap(),
        sink,
    )
}

fn vm(dir: &Path, kind: Kind, vcpus: u32) -> Result<Vm, ecs_microvm::VmError> {
    let workload = Workload::new(WorkloadKind::Ticket, 20.0, 5.0);
    let mut config = VmConfig::new("vm", vcpus, workload);
    config.kind = kind;
    config.socket = Some(dir.join("vm.sock"));
    Vm::new(config)
}

/// Registration, what the host reads, the doorbell: everything a controller lives on.
fn sees_and_is_rung(test: &str, kind: Kind, nr_doorbells: u16) {
    let dir = TempDir::new().unwrap();
    let (device, sink) = device(dir.path(), nr_doorbells, false);
    let mut vm = match vm(dir.path(), kind, 2) {
        Ok(vm) => vm,
        Err(error) => {
            println!("SKIPPED: {test}: {error}");
            return;
        }
    };
    assert!(
        vm.wait_for_device(Duration::from_secs(5)),
        "{:?}",
        vm.device()
    );
    until("registered", || {
        sink.view()
            .is_some_and(|view| view.running && view.slots.nr_registered() == 2)
    });
    let view = sink.view().unwrap();
    assert_eq!(view.pid, std::process::id());
    let slots = [
        view.slots.get(0).unwrap().clone(),
        view.slots.get(1).unwrap().clone(),
    ];
    vm.go();

    let (mut held, mut waited) = (false, false);
    until("a holder and a waiter are seen", || {
        for _ in 0..1_000 {
            for slot in &slots {
                let snap = slot.read();
                held |= snap.holds();
                waited |= matches!(snap.wait, Wait::Pending { .. } | Wait::Ended { .. });
            }
        }
        held && waited
    });
    assert_eq!(slots[0].nr_faults() + slots[1].nr_faults(), 0);

    let bell = view.doorbells[1 % usize::from(nr_doorbells)]
        .clone()
        .unwrap();
    let bell = std::fs::File::from(bell.try_clone().unwrap());
    slots[1].set_heartbeat(view.generation, 1);
    slots[1].set_yield(VIRTIO_ECS_YIELD_RELEASE);
    until("vCPU 1 hands its pCPU back", || {
        let mut count = [0; 8];
        std::io::Read::read(&mut &bell, &mut count).is_ok() && u64::from_ne_bytes(count) > 0
    });
    slots[1].clear_hints();

    let report = vm.finish().unwrap();
    assert!(report.exclusion_held());
    assert!(
        report.handbacks[1] > 0 && report.handbacks[0] == 0,
        "{report:?}"
    );
    let of_device = report.device.unwrap();
    assert_eq!((of_device.nr_connects, of_device.nr_registrations), (1, 1));
    until("the VM is gone", || sink.view().is_none());
    device.stop();
}

#[test]
fn threads_are_seen_and_rung() {
    sees_and_is_rung("threads_are_seen_and_rung", Kind::Thread, 4);
}

#[test]
fn kvm_vcpus_are_seen_and_rung() {
    sees_and_is_rung("kvm_vcpus_are_seen_and_rung", Kind::Kvm, 4);
}

#[test]
fn vcpus_may_share_a_doorbell() {
    sees_and_is_rung("vcpus_may_share_a_doorbell", Kind::Thread, 1);
    sees_and_is_rung("vcpus_may_share_a_doorbell", Kind::Kvm, 1);
}

#[test]
fn a_device_that_comes_late_and_forgets_is_registered_with_again() {
    let dir = TempDir::new().unwrap();
    let mut vm = vm(dir.path(), Kind::Thread, 2).unwrap();
    vm.go();
    assert!(!vm.wait_for_device(Duration::from_millis(20)));
    assert!(
        vm.device()
            .unwrap()
            .error
            .unwrap()
            .contains("Cannot connect")
    );
    let mut generation = 0;
    for round in 1..=2 {
        let (device, sink) = device(dir.path(), 2, false);
        until("registered", || {
            sink.view()
                .is_some_and(|view| view.slots.nr_registered() == 2)
                && vm.device().is_some_and(|device| device.registered)
        });
        // The device that forgot says so by a new generation, and by an event.
        let report = vm.device().unwrap();
        assert!(
            (round..2 * round).contains(&report.nr_registrations),
            "{report:?}"
        );
        assert_ne!(report.generation, generation);
        generation = report.generation;
        device.stop();
        until("noticed", || !vm.device().unwrap().registered);
    }
    let ops = vm.progress().ops;
    until("it works on alone", || {
        vm.progress()
            .ops
            .iter()
            .zip(&ops)
            .all(|(now, then)| now > then)
    });
    assert!(vm.finish().unwrap().exclusion_held());
}

#[test]
fn a_device_that_remembers_is_not_registered_with_again() {
    let dir = TempDir::new().unwrap();
    let mut vm = vm(dir.path(), Kind::Thread, 2).unwrap();
    vm.go();
    for connects in 1..=2 {
        let (device, sink) = device(dir.path(), 2, true);
        until("registered", || {
            sink.view()
                .is_some_and(|view| view.slots.nr_registered() == 2)
                && vm.device().is_some_and(|device| device.registered)
        });
        let report = vm.device().unwrap();
        assert_eq!((report.nr_connects, report.nr_registrations), (connects, 1));
        device.stop();
        until("noticed", || !vm.device().unwrap().registered);
    }
    vm.finish().unwrap();
}

#[test]
fn a_restart_event_makes_the_driver_register_again() {
    let dir = TempDir::new().unwrap();
    let (device, _sink) = device(dir.path(), 2, false);
    let vm = vm(dir.path(), Kind::Thread, 1).unwrap();
    assert!(vm.wait_for_device(Duration::from_secs(5)));
    let before = vm.device().unwrap().nr_registrations;
    device.notify(VirtioEcsEvent {
        r#type: VIRTIO_ECS_EV_RESTART,
        ..Default::default()
    });
    until("registered again", || {
        vm.device().unwrap().nr_registrations > before
    });
    vm.finish().unwrap();
    device.stop();
}

#[test]
fn a_backend_that_never_answers_keeps_neither_start_nor_end_waiting() {
    let dir = TempDir::new().unwrap();
    let _listener = UnixListener::bind(dir.path().join("vm.sock")).unwrap();
    let mut vm = vm(dir.path(), Kind::Thread, 1).unwrap();
    vm.go();
    until("it works", || vm.progress().ops[0] > 0);
    let start = Instant::now();
    vm.finish().unwrap();
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
}
