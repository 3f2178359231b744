//! The Debian packages: built, linted, installed, run and removed as an operator does.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ecs_tests::{release_program, root, scx_program, skip, slow};

const PACKAGES: [&str; 2] = ["vmm-ecs", "ecs-exporter"];

/// What lintian may say: decisions, not slips.
const LINTIAN: [&str; 4] = [
    // They do not come from Debian, and close no request to package them.
    "initial-upload-closes-no-bugs",
    "bogus-mail-host",
    "bogus-mail-host-in-debian-changelog",
    // The programs print their own pages (`ecs-exporter man`).
    "no-manual-page",
];

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn done(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}:\n{}", text(&output));
    text(&output)
}

fn is_there(program: &str, argument: &str) -> bool {
    Command::new(program)
        .arg(argument)
        .output()
        .is_ok_and(|output| output.status.success())
}

/// A Debian package of each program; the daemon's with programs for the kernel where they can be built.
fn build(dir: &Path) -> Vec<PathBuf> {
    let scx = scx_program().unwrap().is_ok();
    let package = |name: &&str| {
        release_program(name).unwrap();
        let deb = dir.join(format!("{name}.deb"));
        let mut build = Command::new("cargo");
        build
            .args(["deb", "--no-build", "--strip", "-p", name, "--output"])
            .arg(&deb)
            .current_dir(root());
        let scx = scx && *name == "vmm-ecs";
        if scx {
            build.args(["--variant", "scx"]);
        }
        done(&mut build);
        // Whoever may load programs has them.
        let files = done(Command::new("dpkg-deb").arg("--contents").arg(&deb));
        assert_eq!(files.contains("vmm-ecs.service.d/scx.conf"), scx, "{files}");
        deb
    };
    PACKAGES.iter().map(package).collect()
}

/// A copy of this machine's own system, of which nothing stays.
struct Copy {
    dir: tempfile::TempDir,
}

impl Copy {
    /// The error is what the kernel refuses.
    fn new() -> Result<Self, String> {
        let copy = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let output = copy.command("exit 7").output().unwrap();
        match output.status.code() {
            Some(7) => Ok(copy),
            _ => Err(text(&output).trim().to_owned()),
        }
    }

    fn command(&self, script: &str) -> Command {
        // Without /run, as before a boot: no maintainer script talks to the service manager.
        let enter = "mount -t tmpfs none \"$0\" && mkdir -p \"$0/up\" \"$0/work\" \"$0/root\" && \
            mount -t overlay none -o lowerdir=/,upperdir=\"$0/up\",workdir=\"$0/work\" \"$0/root\" && \
            mount -t tmpfs none \"$0/root/run\" && mount -t proc none \"$0/root/proc\" && \
            mount --rbind /dev \"$0/root/dev\" && mkdir -p \"$0/root/debs\" && \
            mount --bind \"$1\" \"$0/root/debs\" && \
            exec chroot \"$0/root\" /bin/sh -ec \"$2\"";
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "sh",
                "-c",
                enter,
            ])
            .arg("/mnt")
            .arg(self.dir.path())
            .arg(script)
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

/// What is said line by line after a package has come and gone.
const SCRIPT: &str = "
dpkg --install /debs/vmm-ecs.deb /debs/ecs-exporter.deb
test ! -d /run/systemd/system
echo group: $(getent group vmm-ecs | cut -d: -f1)
echo enabled: $(ls /etc/systemd/system/multi-user.target.wants | grep -E 'vmm-ecs|ecs-exporter' | tr '\\n' ' ')
test -d /etc/vmm-ecs/vms.d
vmm-ecs check-config --config /etc/vmm-ecs/vmm-ecs.toml >/dev/null
ecs-exporter check-config --config.file /etc/ecs-exporter/ecs-exporter.yaml >/dev/null
systemd-analyze verify --man=no /usr/lib/systemd/system/vmm-ecs.service \
    /usr/lib/systemd/system/ecs-exporter.service
ip link set lo up 2>/dev/null || true
ecs-exporter serve --config.file /etc/ecs-exporter/ecs-exporter.yaml --listen 127.0.0.1:0 >/tmp/said 2>&1 &
exporter=$!
for n in $(seq 300); do grep -q listening /tmp/said && break; sleep 0.1; done
address=$(sed -n 's,listening on http://\\(.*\\)/metrics,\\1,p' /tmp/said)
echo health: $(ecs-exporter healthcheck --address \"$address\")
kill $exporter
wait $exporter
dpkg --purge vmm-ecs ecs-exporter
echo left: $(ls -d /etc/vmm-ecs /etc/ecs-exporter /usr/bin/vmm-ecs /usr/bin/ecs-exporter \
    /usr/lib/systemd/system/vmm-ecs.service 2>/dev/null)
";

#[test]
fn packages_install_run_and_go() {
    let test = "packages_install_run_and_go";
    slow!(test);
    for (program, argument, what) in [
        ("cargo", "deb --version", "cargo-deb"),
        ("dpkg-deb", "--version", "dpkg"),
    ] {
        let mut words = argument.split(' ');
        let first = words.next().unwrap();
        let output = Command::new(program).arg(first).args(words).output();
        if !output.is_ok_and(|output| output.status.success()) {
            skip!(test, "no {what}");
        }
    }
    let copy = match Copy::new() {
        Ok(copy) => copy,
        Err(reason) => skip!(test, "no copy of the system to install in: {reason}"),
    };
    build(copy.dir.path());
    let said = done(&mut copy.command(SCRIPT));
    for line in [
        "group: vmm-ecs",
        "enabled: ecs-exporter.service",
        "health: Healthy",
        "left:",
    ] {
        assert!(
            said.lines().any(|it| it.trim_end() == line),
            "no {line:?} in\n{said}"
        );
    }
}

#[test]
fn lintian_finds_nothing() {
    let test = "lintian_finds_nothing";
    slow!(test);
    if !is_there("lintian", "--version") {
        skip!(test, "no lintian");
    }
    if !Command::new("cargo")
        .args(["deb", "--version"])
        .output()
        .unwrap()
        .status
        .success()
    {
        skip!(test, "no cargo-deb");
    }
    let dir = tempfile::tempdir().unwrap();
    for deb in build(dir.path()) {
        let output = Command::new("lintian")
            .args([
                "--allow-root",
                "--fail-on=none",
                "--suppress-tags",
                &LINTIAN.join(","),
            ])
            .arg(&deb)
            .output()
            .unwrap();
        let said = text(&output);
        let found: Vec<&str> = said
            .lines()
            .filter(|line| line.starts_with("E:") || line.starts_with("W:"))
            .collect();
        assert!(found.is_empty(), "{}:\n{}", deb.display(), found.join("\n"));
        // It did look.
        assert!(fs::metadata(&deb).unwrap().len() > 100_000);
    }
}
