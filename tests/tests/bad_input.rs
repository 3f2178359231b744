//! Whatever the daemon is given, it says what is wrong and how to get out, or counts it, and the
//! other VMs run on.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss
)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ecs_microvm::{Guest, VmConfig, WorkloadKind};
use ecs_stats::VmStats;
use ecs_tests::process::until;
use ecs_tests::scheduling::cpu_ns;
use ecs_tests::{Rig, rig, skip};

const PATIENCE: Duration = Duration::from_secs(20);
/// A user without any privilege.
const NOBODY: u32 = 65_534;

#[test]
fn a_key_or_value_that_makes_no_sense_is_named() {
    let rig = rig!("a_key_or_value_that_makes_no_sense_is_named");
    let dir = format!("runtime_dir = {:?}", rig.dir());
    for (text, named) in [
        (format!("[host]\n{dir}\npcpu = \"0\""), "pcpu"),
        (format!("[host]\n{dir}\npcpus = \"0-x\""), "0-x"),
        (format!("[host]\n{dir}\npcpus = 0"), "pcpus"),
        (format!("[host]\n{dir}\ncontroller = \"magic\""), "magic"),
        (format!("[host]\n{dir}\nmechanism = \"magic\""), "magic"),
        (format!("[host]\n{dir}\n[policy]\nslice = 3"), "slice"),
        (format!("[host]\n{dir}\n[[vm]]\nname = \"../x\""), "../x"),
        (
            format!("[host]\n{dir}\n[[vm]]\nname = \"a\"\nweight = 0"),
            "weight 0",
        ),
        ("[host".to_owned(), "config.toml"),
    ] {
        let said = rig.refused(&text).unwrap();
        assert!(said.contains(named), "{text:?} gave:\n{said}");
    }
    let missing = rig.dir().join("missing.toml");
    let said = rig
        .fails(rig.command().args(["serve", "--config"]).arg(&missing))
        .unwrap();
    assert!(said.contains("missing.toml"), "{said}");
}

#[test]
fn pcpus_that_do_not_exist_are_named() {
    let rig = rig!("pcpus_that_do_not_exist_are_named");
    let [first, _] = rig.pcpus();
    let dir = rig.dir();
    for (list, named) in [
        (format!("{first},8000"), "CPU 8000 is not online (online: "),
        (String::new(), "The list of pCPUs is empty"),
    ] {
        let text = format!("[host]\npcpus = \"{list}\"\nruntime_dir = {dir:?}\n");
        let said = rig.refused(&text).unwrap();
        assert!(said.contains(named), "{list:?} gave:\n{said}");
    }
}

#[test]
fn a_second_daemon_for_the_same_pcpus_is_refused() {
    let rig = rig!("a_second_daemon_for_the_same_pcpus_is_refused");
    let mut first = rig.steer(&["a"]).unwrap();
    let mut vm = rig.vm(&rig.vm_config("a", WorkloadKind::Ticket)).unwrap();
    vm.go().unwrap();
    rig.registered("a", 2).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let [_, second] = rig.pcpus();
    // All of them or one of them, from the same directory or another one.
    for dir in [rig.dir(), elsewhere.path()] {
        let text = format!("[host]\npcpus = \"{second}\"\nruntime_dir = {dir:?}\n");
        let said = rig.refused(&text).unwrap();
        let named = format!("Cannot claim CPU {second} ");
        let way_out = "if another vmm-ecs manages it, stop that one";
        assert!(said.contains(&named) && said.contains(way_out), "{said}");
    }
    // Of other CPUs, but in the same directory: it would lose the first one's journal.
    let observer = rig.config("controller = \"observe\"", &[]);
    let said = rig.refused(&observer).unwrap();
    assert!(said.contains("stats.sock"), "{said}");

    assert!(first.is_alive().unwrap(), "{}", first.said());
    rig.registered("a", 2).unwrap();
    vm.wait_for_work().unwrap();
    let device = vm.stop().unwrap().device.unwrap();
    assert_eq!(device.nr_connects, 1, "the VM lost its device: {device:?}");
}

#[test]
fn stale_sockets_are_replaced() {
    let rig = rig!("stale_sockets_are_replaced");
    for socket in [rig.stats_socket(), rig.socket("a")] {
        drop(UnixListener::bind(&socket).unwrap());
        assert!(socket.exists());
    }
    let mut daemon = rig.steer(&["a"]).unwrap();
    let mut vm = rig.vm(&rig.vm_config("a", WorkloadKind::Ticket)).unwrap();
    vm.go().unwrap();
    rig.registered("a", 2).unwrap();
    vm.stop().unwrap();
    assert!(daemon.is_alive().unwrap());
}

#[test]
fn a_file_where_a_socket_belongs_is_left_alone() {
    let rig = rig!("a_file_where_a_socket_belongs_is_left_alone");
    for path in [rig.stats_socket(), rig.socket("a")] {
        fs::write(&path, "precious").unwrap();
        let said = rig
            .refused(&rig.config("controller = \"userspace\"", &["a"]))
            .unwrap();
        let name = path.display().to_string();
        assert!(
            said.contains(&name) && said.contains("not a socket"),
            "{said}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::remove_file(&path).unwrap();
    }
    // Nothing of the attempts is left that would be in the way.
    rig.steer(&["a"]).unwrap();
}

#[test]
fn a_socket_somebody_serves_is_left_alone() {
    let rig = rig!("a_socket_somebody_serves_is_left_alone");
    for path in [rig.stats_socket(), rig.socket("a")] {
        let listener = UnixListener::bind(&path).unwrap();
        let said = rig
            .refused(&rig.config("controller = \"userspace\"", &["a"]))
            .unwrap();
        assert!(said.contains(&path.display().to_string()), "{said}");
        assert!(said.contains("nother daemon"), "{said}");
        UnixStream::connect(&path).unwrap();
        drop(listener);
        fs::remove_file(&path).unwrap();
    }
}

/// A `serve` command as a user without privileges.
fn as_nobody(program: &Path, config: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["serve", "--config"]).arg(config);
    command.uid(NOBODY).gid(NOBODY);
    command
}

#[test]
fn without_privileges_it_says_which() {
    let rig = rig!("without_privileges_it_says_which");
    fs::set_permissions(rig.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = rig.dir().join("vmm-ecs");
    fs::copy(rig.program(), &program).unwrap();
    let own = rig.dir().join("own");
    fs::create_dir(&own).unwrap();
    chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
    let config = rig.dir().join("nobody.toml");

    let refused = |controller: &str, dir: &Path| {
        let text = format!("[host]\ncontroller = {controller:?}\nruntime_dir = {dir:?}\n");
        fs::write(&config, text).unwrap();
        rig.fails(&mut as_nobody(&program, &config)).unwrap()
    };
    for controller in ["userspace", "auto"] {
        let said = refused(controller, &own);
        assert!(
            said.contains("run as root") && said.contains("Permission denied"),
            "{controller}: {said}"
        );
    }

    for (controller, dir) in [
        ("userspace", rig.dir().join("no")),
        ("observe", rig.dir().join("no")),
    ] {
        let said = refused(controller, &dir);
        assert!(
            said.contains("Cannot make the runtime directory")
                && said.contains("Permission denied"),
            "{controller}: {said}"
        );
    }
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap();
    if paranoid.trim().parse::<i32>().unwrap() < 1 {
        skip!(
            "without_privileges_it_says_which",
            "this kernel lets everybody observe: perf_event_paranoid is {paranoid}"
        );
    }
    let said = refused("observe", &own);
    assert!(said.contains("CAP_PERFMON"), "{said}");
}

#[test]
fn where_it_may_not_steer_auto_observes() {
    let rig = rig!("where_it_may_not_steer_auto_observes");
    let unable = || {
        let mut command = Command::new("setpriv");
        command.arg("--bounding-set=-sys_nice").arg(rig.program());
        command
    };
    if unable().arg("--version").output().is_err() {
        skip!(
            "where_it_may_not_steer_auto_observes",
            "setpriv (util-linux) is not installed"
        );
    }
    let daemon = rig
        .serve_by(unable(), &rig.config("controller = \"auto\"", &["a"]))
        .unwrap();
    assert_eq!(rig.snapshot().unwrap().host.controller, "observe");
    assert!(
        daemon.said().contains("observing only"),
        "{}",
        daemon.said()
    );
}

/// Runs an honest VM beside one that is not; the honest one's part of its entitlement, and what was
/// counted of the other one.
fn beside(rig: &Rig, guest: Guest) -> (f64, VmStats) {
    let mut daemon = rig.steer(&["bad", "good"]).unwrap();
    let mut good = rig
        .vm(&rig.vm_config("good", WorkloadKind::Ticket))
        .unwrap();
    let mut bad = rig
        .vm(&VmConfig {
            guest,
            ..rig.vm_config("bad", WorkloadKind::Ticket)
        })
        .unwrap();
    good.go().unwrap();
    bad.go().unwrap();
    for (name, vm) in [("good", &good), ("bad", &bad)] {
        rig.registered(name, 2).unwrap();
        vm.wait_for_work().unwrap();
    }
    let used = || [&good, &bad].map(|vm| cpu_ns(&vm.vcpus().unwrap()).unwrap() as f64);
    let before = used();
    std::thread::sleep(Duration::from_secs(2));
    let after = used();
    let [good_ns, bad_ns] = [0, 1].map(|vm| after[vm] - before[vm]);
    let stats = rig.registered("bad", 2).unwrap();
    rig.snapshot().unwrap().check_invariants().unwrap();
    good.wait_for_work().unwrap();
    let report = good.stop().unwrap();
    assert!(
        report.exclusion_held() && report.lost_wakeups == 0,
        "{report:?}"
    );
    drop(bad);
    assert!(daemon.is_alive().unwrap(), "{}", daemon.said());
    (good_ns / ((good_ns + bad_ns) / 2.0), stats)
}

#[test]
fn a_guest_that_lies_is_counted_and_gains_nothing() {
    let rig = rig!("a_guest_that_lies_is_counted_and_gains_nothing");
    let (part, stats) = beside(&rig, Guest::Lies);
    println!(
        "the honest VM had {:.2} % of its share; {stats:?}",
        part * 100.0
    );
    assert!(
        (0.97..=1.03).contains(&part),
        "{:.2} % of its share",
        part * 100.0
    );
    assert!(stats.guest_faults > 0, "{stats:?}");
}

#[test]
fn a_guest_that_pins_its_counts_gains_nothing() {
    let rig = rig!("a_guest_that_pins_its_counts_gains_nothing");
    let (part, stats) = beside(&rig, Guest::PinCounts);
    println!(
        "the honest VM had {:.2} % of its share; {stats:?}",
        part * 100.0
    );
    assert!(
        // More is no harm: a guest that always holds a lock makes its own waiters look hopeless.
        part >= 0.97,
        "{:.2} % of its share",
        part * 100.0
    );
    assert!(
        stats.ended.expired > 0,
        "it was never stopped hard: {stats:?}"
    );
}

#[test]
fn front_ends_that_die_leave_the_other_vm_alone() {
    let rig = rig!("front_ends_that_die_leave_the_other_vm_alone");
    let mut daemon = rig.steer(&["a", "b"]).unwrap();
    let mut a = rig.vm(&rig.vm_config("a", WorkloadKind::Ticket)).unwrap();
    a.go().unwrap();
    rig.registered("a", 2).unwrap();

    // A head says: request (GET_FEATURES, SET_FEATURES), flags (version 1), length of the body.
    let head = |request: u32, length: u32| [request, 1, length].map(u32::to_le_bytes).concat();
    let begun: [Vec<u8>; 5] = [
        vec![],
        head(1, 0).into_iter().take(5).collect(),
        head(2, 8),
        [head(2, 8), vec![0; 3]].concat(),
        [head(1, 0), head(2, u32::MAX)].concat(),
    ];
    for bytes in &begun {
        let mut stream = UnixStream::connect(rig.socket("b")).unwrap();
        stream.write_all(bytes).unwrap();
        drop(stream);
        a.wait_for_work().unwrap();
    }

    // A whole VMM that dies while it is steered, and one in its place.
    for _ in 0..2 {
        let mut b = rig.vm(&rig.vm_config("b", WorkloadKind::Blocking)).unwrap();
        b.go().unwrap();
        rig.registered("b", 2).unwrap();
        b.wait_for_work().unwrap();
        b.kill().unwrap();
        a.wait_for_work().unwrap();
        until("b gone from the statistics", PATIENCE, || {
            let vms = rig.snapshot().ok()?.vms;
            vms.iter().all(|vm| vm.name != "b").then_some(())
        })
        .unwrap();
    }

    assert!(daemon.is_alive().unwrap(), "{}", daemon.said());
    let report = a.stop().unwrap();
    assert!(
        report.exclusion_held() && report.lost_wakeups == 0,
        "{report:?}"
    );
    let device = report.device.unwrap();
    assert_eq!(
        device.nr_connects, 1,
        "the other VM lost its device: {device:?}"
    );
}
