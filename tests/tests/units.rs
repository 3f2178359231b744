//! The systemd units and what goes with them, by systemd's own tools.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ecs_tests::{root, skip};

const UNITS: [&str; 2] = ["vmm-ecs.service", "ecs-exporter.service"];
/// For a daemon with programs for the kernel.
const DROP_IN: &str = "vmm-ecs.service.d/scx.conf";

fn unit(name: &str) -> PathBuf {
    root().join("deploy/systemd").join(name)
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Puts a unit into a folder of its own: what lies beside it is taken for what it depends on.
fn place(dir: &Path, name: &str, text: &str, drop_in: Option<&str>) {
    fs::write(dir.join(name), text).unwrap();
    if let Some(drop_in) = drop_in {
        let to = dir.join(drop_in);
        fs::create_dir(to.parent().unwrap()).unwrap();
        fs::copy(unit(drop_in), to).unwrap();
    }
}

/// What `systemd-analyze verify` says about a unit, with a program that is there.
fn verify(name: &str, text: &str, drop_in: Option<&str>) -> String {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let programs = ["/usr/bin/vmm-ecs", "/usr/bin/ecs-exporter"];
    let text = programs.iter().fold(text.to_owned(), |text, program| {
        text.replace(program, "/bin/true")
    });
    place(dir, name, &text, drop_in);
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(dir.join(name))
        .output()
        .unwrap();
    said(&output)
}

#[test]
fn systemd_accepts_the_units() {
    if !is_there("systemd-analyze") {
        skip!("systemd_accepts_the_units", "no systemd-analyze");
    }
    for name in UNITS {
        let text = fs::read_to_string(unit(name)).unwrap();
        let drop_in = (name == "vmm-ecs.service").then_some(DROP_IN);
        assert_eq!(verify(name, &text, None), "", "{name}");
        assert_eq!(verify(name, &text, drop_in), "", "{name}");
        // It would notice.
        let wrong = text.replace("ProtectSystem=", "ProtectSystems=");
        let said = verify(name, &wrong, drop_in);
        assert!(said.contains("ProtectSystems"), "{name}");
    }
}

/// Exposure as systemd counts it, from 0 to 10: the exporter below 2.0, the daemon, which must steer
/// threads of other users, below 3.0, whether it has programs for the kernel or not.
#[test]
fn units_are_hardened() {
    if !is_there("systemd-analyze") {
        skip!("units_are_hardened", "no systemd-analyze");
    }
    for (name, drop_in, most) in [
        ("ecs-exporter.service", None, 19),
        ("vmm-ecs.service", None, 29),
        ("vmm-ecs.service", Some(DROP_IN), 29),
    ] {
        let dir = tempfile::tempdir().unwrap();
        place(
            dir.path(),
            name,
            &fs::read_to_string(unit(name)).unwrap(),
            drop_in,
        );
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(format!("--threshold={most}"))
            .arg(dir.path().join(name))
            .output()
            .unwrap();
        let said = said(&output);
        if said.contains("unrecognized option") {
            skip!(
                "units_are_hardened",
                "systemd-analyze is too old for --offline"
            );
        }
        assert!(output.status.success(), "{name}:\n{said}");
        // It is read.
        assert_eq!(said.contains("may load BPF"), drop_in.is_some(), "{said}");
    }
}

#[test]
fn group_and_directories_are_made() {
    let test = "group_and_directories_are_made";
    for program in ["systemd-sysusers", "systemd-tmpfiles"] {
        if !is_there(program) {
            skip!(test, "no {program}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let etc = dir.path().join("etc");
    fs::create_dir(&etc).unwrap();
    fs::write(etc.join("passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(etc.join("group"), "root:x:0:\n").unwrap();
    let run = |command: &mut Command, file: &str| {
        let root = format!("--root={}", dir.path().display());
        let output = command.arg(root).arg(unit(file)).output().unwrap();
        assert!(output.status.success(), "{file}: {}", said(&output));
    };
    run(&mut Command::new("systemd-sysusers"), "vmm-ecs.sysusers");
    let groups = fs::read_to_string(etc.join("group")).unwrap();
    assert!(groups.contains("vmm-ecs:x:"), "{groups}");
    if !is_root() {
        skip!(test, "only root gives directories away");
    }
    let mut create = Command::new("systemd-tmpfiles");
    run(create.arg("--create"), "vmm-ecs.tmpfiles");
    assert!(dir.path().join("run/vmm-ecs").is_dir());
    assert!(etc.join("vmm-ecs/vms.d").is_dir());
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout == b"0\n")
}
