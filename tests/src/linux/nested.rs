//! A host with KVM in an emulator, our daemon on it, and a Linux guest with the driver on that: the
//! whole path. Times mean nothing.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::{Host, HostVm, Initramfs, Kernel};
use crate::process::until;

/// Time for anything in a guest of a guest.
const PATIENCE: Duration = Duration::from_secs(180);
/// vCPUs of the VM.
const VCPUS: usize = 2;

/// Starts the daemon.
pub const SERVE: &str = "(setsid vmm-ecs serve --config /tmp/ecs.toml </dev/null >>/tmp/daemon.log 2>&1 & \
                     echo $! >/tmp/daemon)";
/// Kills the daemon, and waits until it is gone.
pub const KILL: &str =
    "kill -9 $(cat /tmp/daemon); while [ -d /proc/$(cat /tmp/daemon) ]; do :; done";
/// Waits for the end of the VM.
const ENDS: &str = "while [ -d /proc/$(cat /tmp/vmm) ]; do sleep 0.2; done";
/// The VM's kernel, its files, and what its kernel is told: its shell is on the first serial line.
pub const KERNEL: &str = "/vm/vmlinuz";
/// See [`KERNEL`].
pub const INITRAMFS: &str = "/vm/initramfs";
/// See [`KERNEL`].
pub const COMMAND_LINE: &str = "console=ttyS0 panic=-1 quiet ecs_line=ttyS0";
/// Socket of the VM's device.
pub const SOCKET: &str = "/run/vmm-ecs/vm.sock";

/// Set-up of the host: one VM, and who looks after it.
#[must_use]
pub fn set_up(controller: &str) -> String {
    format!(
        "mkdir -p /dev/pts /run/vmm-ecs; mount -t devpts devpts /dev/pts; \
         printf '[host]\\ncontroller = \"{controller}\"\\n[[vm]]\\nname = \"vm\"\\ndoorbells = 2\\n' \
         >/tmp/ecs.toml"
    )
}

/// Starts a VMM whose VM has its serial line on the first pseudo-terminal.
#[must_use]
pub fn start(vmm: &str) -> String {
    format!(
        "(setsid {vmm} </dev/null >/tmp/vmm.log 2>&1 & echo $! >/tmp/vmm); \
         while ! [ -e /dev/pts/0 ]; do sleep 0.2; done; \
         (setsid cat /dev/pts/0 >/tmp/line 2>/dev/null &)"
    )
}

/// A host for a VMM, with what its VM boots.
///
/// # Panics
/// If a part cannot be copied.
#[must_use]
pub fn host(kernel: &Kernel, files: &Initramfs, programs: Vec<PathBuf>) -> Host {
    files.add_modules(&kernel.modules().unwrap()).unwrap();
    Host {
        memory: 2048,
        programs,
        files: vec![
            (files.pack().unwrap(), INITRAMFS.to_owned()),
            (kernel.image(), KERNEL.to_owned()),
        ],
        ..Host::default()
    }
}

/// The VM within the host: commands go to its shell.
#[derive(Debug)]
pub struct Nested<'a> {
    host: &'a mut HostVm,
    insmod: String,
}

impl<'a> Nested<'a> {
    /// The VM of this host; the driver is loaded with `parameters`.
    pub fn new(host: &'a mut HostVm, parameters: &str) -> Self {
        let insmod = format!("insmod /virtio_ecs.ko {parameters}");
        Self { host, insmod }
    }

    /// Its host.
    pub fn host(&mut self) -> &mut HostVm {
        self.host
    }

    /// What has come on its serial line. Its shell speaks as that of its host does, which must not
    /// take the answers of one for those of the other.
    fn line(&mut self) -> String {
        self.host.sh("sed 's/ECS-/VM-/' /tmp/line").unwrap()
    }

    /// Waits until it has booted, and loads the driver.
    pub fn boots(&mut self) {
        until("the VM to boot", PATIENCE, || {
            self.line().contains("VM-READY").then_some(())
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", self.logs()));
        self.load();
    }

    /// Loads the driver, and waits until the daemon looks after every CPU.
    pub fn load(&mut self) {
        let insmod = self.insmod.clone();
        self.sh(&insmod);
        self.all_alive();
    }

    /// Powers it off, and waits for the end of its VMM.
    pub fn end(&mut self) {
        self.host.sh("echo poweroff -f >/dev/pts/0").unwrap();
        self.host.sh(ENDS).unwrap();
    }

    /// Runs a command in it; what it printed.
    pub fn sh(&mut self, command: &str) -> String {
        let from = self.line().len();
        self.host
            .sh(&format!("echo \"{command}\" >/dev/pts/0"))
            .unwrap();
        let mut said = String::new();
        until("an answer of the VM", PATIENCE, || {
            said = self.line().get(from..)?.to_owned();
            let (_, status) = said.rsplit_once("VM-DONE ")?;
            status.ends_with('\n').then_some(())
        })
        .unwrap_or_else(|error| panic!("{error:#}: {command}: {said}\n{}", self.logs()));
        said
    }

    /// Heartbeats of its CPUs.
    fn heartbeats(&mut self) -> Vec<String> {
        let said = self.sh("cat /sys/kernel/debug/virtio_ecs/cpus");
        let words = said.split_whitespace();
        words
            .filter_map(|word| word.strip_prefix("heartbeat="))
            .map(str::to_owned)
            .collect()
    }

    /// Waits until the daemon writes to the lines of every CPU.
    pub fn all_alive(&mut self) {
        let before = self.heartbeats();
        assert_eq!(before.len(), VCPUS, "{before:?}");
        until("the heartbeat of every CPU", PATIENCE, || {
            let now = self.heartbeats();
            let mut both = now.iter().zip(&before);
            both.all(|(now, before)| now != before).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", self.logs()));
    }

    /// What daemon and VMM have said, and the end of what the VM has.
    pub fn logs(&mut self) -> String {
        self.host
            .sh("cat /tmp/daemon.log /tmp/vmm.log; tail -n 40 /tmp/line")
            .unwrap()
    }
}

/// A VM whose driver publishes while the scheduler in the host's kernel reads and decides: it has got
/// fifty extensions, and works on.
///
/// # Panics
/// If it does not get them.
pub fn steered<'a>(host: &'a mut HostVm, vmm: &str, parameters: &str) -> Nested<'a> {
    for line in [&set_up("scx"), SERVE] {
        host.sh(line).unwrap();
    }
    until("our scheduler", PATIENCE, || {
        (host.sched_ext().unwrap() == "enabled").then_some(())
    })
    .unwrap();
    host.sh(&start(vmm)).unwrap();
    let mut vm = Nested::new(host, parameters);
    vm.boots();
    // Its kernel works on both vCPUs, and others want the CPUs.
    let hogs = "cpu=1; while [ $cpu -lt $((1 << $(grep -c ^processor /proc/cpuinfo))) ]; do \
                taskset $cpu sh -c 'while :; do :; done' & echo $! >>/tmp/hogs; \
                cpu=$((cpu * 2)); done";
    vm.host.sh(hogs).unwrap();
    vm.sh(
        "for n in 1 2; do (while :; do cat /proc/meminfo /proc/slabinfo >/dev/null; done) & done",
    );
    let mut stats = Value::Null;
    until("extensions", PATIENCE, || {
        let said = vm.host.sh("vmm-ecs stats").unwrap();
        stats = serde_json::from_str(&said).unwrap();
        let grants = &stats["vms"][0]["grants"];
        let total = ["non_preemptable", "preemptable", "wait"].map(|of| grants[of].as_u64());
        (total.iter().flatten().sum::<u64>() >= 50).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error:#}: {stats:#}\n{}", vm.logs()));
    println!("{:#}", stats["vms"][0]);
    vm.host.sh("kill $(cat /tmp/hogs)").unwrap();
    vm
}
