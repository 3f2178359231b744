//! Both kinds of VM, every workload, without a daemon.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs)]

use std::thread::sleep;
use std::time::{Duration, Instant};

use ecs_microvm::{Guest, Kind, KindUsed, Vm, VmConfig, VmError, VmReport, Workload, WorkloadKind};

fn config(kind: Kind, vcpus: u32, workload: WorkloadKind) -> VmConfig {
    let mut config = VmConfig::new("test", vcpus, Workload::new(workload, 2.0, 2.0));
    config.kind = kind;
    config
}

/// `None` where this machine has no usable KVM.
fn start(test: &str, config: VmConfig) -> Option<Vm> {
    let wants_kvm = config.kind == Kind::Kvm;
    match Vm::new(config) {
        Ok(vm) => Some(vm),
        Err(VmError::Kvm(error)) if wants_kvm => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            println!("SKIPPED: {test}: {error}: {}", cause.unwrap_or_default());
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

/// Lets a VM work until every vCPU has done something, for 5 s at most, then stops it.
fn run(mut vm: Vm) -> VmReport {
    vm.go();
    let deadline = Instant::now() + Duration::from_secs(5);
    while vm.progress().ops.iter().any(|&ops| ops < 20) && Instant::now() < deadline {
        assert!(!vm.has_ended(), "{:?}", vm.finish());
        sleep(Duration::from_millis(5));
    }
    vm.finish().unwrap()
}

fn check(test: &str, kind: Kind, vcpus: u32) {
    for workload in WorkloadKind::ALL {
        for annotate in [true, false] {
            let mut config = config(kind, vcpus, workload);
            config.annotate = annotate;
            let Some(vm) = start(test, config) else {
                return;
            };
            let report = run(vm);
            let what = format!("{workload}, {vcpus} vCPUs, annotated {annotate}: {report:?}");
            assert_eq!(report.ops.len(), vcpus as usize, "{what}");
            assert!(report.ops.iter().all(|&ops| ops > 0), "{what}");
            assert!(report.cpu_ns.iter().all(|&ns| ns > 0), "{what}");
            assert!(report.exclusion_held(), "{what}");
            assert_eq!(report.lost_wakeups, 0, "{what}");
            if workload != WorkloadKind::Compute && workload != WorkloadKind::RwLock {
                assert!(report.protected >= report.ops.iter().sum(), "{what}");
            }
        }
    }
}

#[test]
fn one_vcpu_as_a_thread() {
    check("one_vcpu_as_a_thread", Kind::Thread, 1);
}

#[test]
fn two_vcpus_as_threads() {
    check("two_vcpus_as_threads", Kind::Thread, 2);
}

#[test]
fn one_vcpu_in_kvm() {
    check("one_vcpu_in_kvm", Kind::Kvm, 1);
}

#[test]
fn two_vcpus_in_kvm() {
    check("two_vcpus_in_kvm", Kind::Kvm, 2);
}

#[test]
fn vcpus_sleep_and_are_woken() {
    for kind in [Kind::Thread, Kind::Kvm] {
        let mut config = config(kind, 3, WorkloadKind::Blocking);
        config.workload.out_us = 0.0;
        let Some(mut vm) = start("vcpus_sleep_and_are_woken", config) else {
            continue;
        };
        vm.go();
        sleep(Duration::from_millis(150));
        let report = vm.finish().unwrap();
        assert!(report.nr_halts > 0, "{report:?}");
        assert!(
            report.exclusion_held() && report.lost_wakeups == 0,
            "{report:?}"
        );
    }
}

#[test]
fn auto_says_what_it_chose_and_why() {
    let vm = start("auto", config(Kind::Auto, 1, WorkloadKind::Ticket)).unwrap();
    assert!(!vm.why().is_empty());
    let kvm = Vm::new(config(Kind::Kvm, 1, WorkloadKind::Ticket)).is_ok();
    assert_eq!(vm.kind() == KindUsed::Kvm, kvm, "{}", vm.why());
}

#[test]
fn guests_that_lie_or_pin_their_counts_run_as_well() {
    for guest in [Guest::PinCounts, Guest::Lies] {
        for kind in [Kind::Thread, Kind::Kvm] {
            let mut config = config(kind, 2, WorkloadKind::Ticket);
            config.guest = guest;
            let Some(vm) = start("guests_that_lie_or_pin", config) else {
                continue;
            };
            assert!(run(vm).exclusion_held());
        }
    }
}

#[test]
fn vcpu_threads_have_the_names_and_cpus_asked_for() {
    let mut config = config(Kind::Thread, 2, WorkloadKind::Compute);
    config.cpus = vec![0];
    config.pin = true;
    let vm = start("names", config).unwrap();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| {
        let task = task.unwrap().path();
        let name = std::fs::read_to_string(task.join("comm")).ok()?;
        let status = std::fs::read_to_string(task.join("status")).ok()?;
        Some((name.trim().to_owned(), status))
    });
    let pinned = names
        .filter(|(name, _)| name == "vcpu0" || name == "vcpu1")
        .filter(|(_, status)| status.lines().any(|line| line == "Cpus_allowed_list:\t0"))
        .count();
    assert!(pinned >= 2, "{pinned}");
    drop(vm);
}

#[test]
fn a_vm_that_never_starts_ends_at_once() {
    let vm = start("never", config(Kind::Thread, 2, WorkloadKind::Blocking)).unwrap();
    let start = Instant::now();
    let report = vm.finish().unwrap();
    assert_eq!(report.ops, [0, 0]);
    assert!(start.elapsed() < Duration::from_millis(500));
}

#[test]
fn bad_configurations_say_what_to_do() {
    let expect = |change: fn(&mut VmConfig), text: &str| {
        let mut config = config(Kind::Thread, 1, WorkloadKind::Ticket);
        change(&mut config);
        let error = Vm::new(config).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    };
    expect(|config| config.vcpus = 0, "use 1 to 64");
    expect(|config| config.vcpus = 65, "use 1 to 64");
    expect(|config| config.workload.in_us = f64::NAN, "out of range");
    expect(|config| config.workload.in_us = -1.0, "out of range");
    expect(
        |config| {
            config.workload.in_us = 0.0;
            config.workload.out_us = 0.0;
        },
        "0.1 us in all",
    );
    expect(|config| config.workload.read_pct = 101, "0 to 100");
    expect(|config| config.duration_ms = 0, "set a duration");
    expect(|config| config.pin = true, "list them");
    expect(
        |config| config.iterations_per_us = Some(0.0),
        "leave it out",
    );
    expect(|config| config.cpus = vec![1023], "CPUs that exist");
    expect(|config| config.cpus = vec![100_000], "CPUs that exist");
}

#[test]
fn configuration_survives_json_and_unknown_fields_do_not() {
    let config = config(Kind::Auto, 2, WorkloadKind::RwLock);
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<VmConfig>(&text).unwrap(), config);
    let short = r#"{"name":"a","vcpus":1,"duration_ms":5,
        "workload":{"kind":"irq","in_us":1,"out_us":2}}"#;
    let parsed: VmConfig = serde_json::from_str(short).unwrap();
    assert!(parsed.annotate && parsed.socket.is_none());
    let unknown = text.replacen("\"vcpus\"", "\"vcpu\"", 1);
    assert!(serde_json::from_str::<VmConfig>(&unknown).is_err());
    assert!("spinlock".parse::<Workload>().is_err());
    assert!("xen".parse::<Kind>().is_err());
}
