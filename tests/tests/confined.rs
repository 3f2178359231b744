//! The daemon with what its systemd unit leaves it, and no more: it steers, tells guests at once, and
//! puts every thread back.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ecs_microvm::{VmConfig, WorkloadKind};
use ecs_tests::linux::HostVm;
use ecs_tests::process::{Signal, until};
use ecs_tests::scheduling::Scheduling;
use ecs_tests::{Rig, TestVm, rig, root, scx_host, scx_program, skip, slow};

const PATIENCE: Duration = Duration::from_secs(20);
/// What a daemon logs that may load no programs into the kernel.
const TELLS_LATE: &str = "at each look only";

fn unit() -> PathBuf {
    root().join("deploy/systemd/vmm-ecs.service")
}

/// For a build with programs for the kernel.
fn drop_in() -> PathBuf {
    root().join("deploy/systemd/vmm-ecs.service.d/scx.conf")
}

/// A command that runs the program with the arguments it is given, confined as units say.
fn confined(units: &[PathBuf], program: &Path) -> Command {
    let mut command = Command::new("python3");
    command
        .arg(root().join("tests/tests/confine.py"))
        .args(units)
        .arg("--")
        .arg(program);
    command
}

/// The reason is what it said last.
fn ran(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = said.lines().last().unwrap_or_default().to_owned();
    output.status.success().then_some(()).ok_or(last)
}

/// Two VMs that want the same CPUs, and were there before any daemon.
fn vms(rig: &Rig) -> [TestVm; 2] {
    ["vm1", "vm2"].map(|name| {
        let mut vm = rig
            .vm(&VmConfig {
                device_wait_ms: 1,
                ..rig.vm_config(name, WorkloadKind::Ticket)
            })
            .unwrap();
        vm.go().unwrap();
        vm
    })
}

#[test]
fn the_daemon_does_with_what_its_unit_leaves_it() {
    let test = "the_daemon_does_with_what_its_unit_leaves_it";
    let rig = rig!(test);
    if let Err(reason) = ran(&mut confined(&[unit()], Path::new("/bin/true"))) {
        skip!(test, "units cannot be imitated here: {reason}");
    }
    // Not every build and kernel has the programs.
    // A daemon, and whether it tells guests at once. All daemons of a rig write one log.
    let mut late = 0;
    let mut serve = |command, controller: &str| {
        let config = rig.config(&format!("controller = \"{controller}\""), &["vm1", "vm2"]);
        let daemon = rig.serve_by(command, &config).unwrap();
        let before = std::mem::replace(&mut late, daemon.said().matches(TELLS_LATE).count());
        (daemon, late == before)
    };
    let has_programs = scx_program().unwrap().is_ok() && serve(rig.command(), "observe").1;
    for controller in ["observe", "userspace"] {
        for units in [vec![unit()], vec![unit(), drop_in()]] {
            let vms = vms(&rig);
            let tids = vms.iter().flat_map(|vm| vm.vcpus().unwrap());
            let original: Vec<_> = tids
                .map(|tid| (tid, Scheduling::of(tid).unwrap()))
                .collect();
            let mut start = || serve(confined(&units, rig.program()), controller);
            let (mut daemon, tells) = start();
            println!(
                "{controller}, {} files: tells at once: {tells}",
                units.len()
            );
            assert_eq!(tells, has_programs && units.len() == 2, "{controller}");
            rig.stats_when("vm1", |vm| {
                vm.preemptions > 10 && (controller == "observe" || vm.grants.total() > 10)
            })
            .unwrap();
            // By its watchdog, which is confined as it is, and by itself.
            for signal in [Signal::SIGKILL, Signal::SIGTERM] {
                if signal == Signal::SIGTERM {
                    (daemon, _) = start();
                    rig.registered("vm1", 2).unwrap();
                }
                daemon.signal(signal).unwrap();
                let status = daemon.wait().unwrap();
                assert_eq!(status.success(), signal == Signal::SIGTERM, "{status}");
                until("every thread put back", PATIENCE, || {
                    let mut all = original.iter();
                    all.all(|(tid, original)| Scheduling::of(*tid).unwrap() == *original)
                        .then_some(())
                })
                .unwrap();
            }
        }
    }
    // What the unit runs afterwards.
    let mut restore = confined(&[unit()], rig.program());
    let journal = rig.dir().join("threads.journal");
    restore.arg("restore").arg("--journal").arg(journal);
    ran(&mut restore).unwrap();
}

/// The scheduler in the kernel needs no capability beyond those either.
#[test]
fn the_kernel_takes_the_scheduler_with_what_the_unit_leaves() {
    let test = "the_kernel_takes_the_scheduler_with_what_the_unit_leaves";
    slow!(test);
    let setpriv = Path::new("/usr/bin/setpriv");
    if !setpriv.exists() {
        skip!(test, "no setpriv");
    }
    let (parts, mut host) = scx_host!(test, "7.3", false);
    host.programs.push(setpriv.to_owned());
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        let run = |host: &mut HostVm, capabilities: &str| {
            let demo = "vmm-ecs demo --quiet --arms ecs --controller scx --seconds 1 --runs 1 --vms 2 \
                        --vcpus 1 --kind thread";
            let command = format!(
                "/bin/setpriv --no-new-privs --inh-caps -all --bounding-set -all{capabilities} {demo}"
            );
            host.try_sh(&command, 3 * PATIENCE).unwrap()
        };
        let all: String = [unit(), drop_in()]
            .iter()
            .flat_map(|file| capabilities(file))
            .map(|name| format!(",+{name}"))
            .collect();
        // Debian's kernels leave perf events to CAP_SYS_ADMIN until they are told otherwise.
        let paranoid = "/proc/sys/kernel/perf_event_paranoid";
        if host.sh(&format!("cat {paranoid}")).unwrap().trim() == "3" {
            let (status, said) = run(host, &all);
            assert!(
                status != 0 && said.contains("perf_event_paranoid"),
                "{said}"
            );
            host.sh(&format!("echo 2 >{paranoid}")).unwrap();
        }
        let (status, said) = run(host, &all);
        println!("{all}:\n{said}");
        assert_eq!(status, 0, "{said}");
        let (status, said) = run(host, &all.replace(",+bpf", ""));
        assert!(
            status != 0 && said.contains("refuses the scheduler"),
            "{said}"
        );
    });
}

/// Capabilities that a unit grants, as setpriv calls them.
fn capabilities(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let lines = text.lines();
    let words = lines.filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    words
        .flat_map(|line| line.split(' '))
        .map(|name| name.strip_prefix("CAP_").unwrap().to_lowercase())
        .collect()
}
