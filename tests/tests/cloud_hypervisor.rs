//! An unpatched Cloud Hypervisor with the daemon, and a Linux guest with the driver. Nobody builds
//! it here: the binary is `$ECS_CLOUD_HYPERVISOR`, or `cloud-hypervisor` in the path.
//!
//! The /dev/kvm of a machine that runs tests may not boot a kernel, so all of it runs in a guest
//! whose processor QEMU emulates, virtualization included: times mean nothing.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use ecs_tests::linux::cases::KERNELS;
use ecs_tests::linux::{Host, HostVm, Initramfs, Parts};
use ecs_tests::process::until;
use ecs_tests::{parts, release_program, scx_program, skip, slow};
use serde_json::Value;

/// Time for anything in a guest of a guest.
const PATIENCE: Duration = Duration::from_secs(180);
/// vCPUs of the VM.
const VCPUS: usize = 2;

/// Set-up of the host that is itself a guest: one VM, and who looks after it.
fn set_up(controller: &str) -> String {
    format!(
        "mkdir -p /dev/pts /run/vmm-ecs; mount -t devpts devpts /dev/pts; \
         printf '[host]\\ncontroller = \"{controller}\"\\n[[vm]]\\nname = \"vm\"\\ndoorbells = 2\\n' \
         >/tmp/ecs.toml"
    )
}
const SERVE: &str = "(setsid vmm-ecs serve --config /tmp/ecs.toml </dev/null >>/tmp/daemon.log 2>&1 & \
                     echo $! >/tmp/daemon)";
const KILL: &str = "kill -9 $(cat /tmp/daemon); while [ -d /proc/$(cat /tmp/daemon) ]; do :; done";
const ENDS: &str = "while [ -d /proc/$(cat /tmp/vmm) ]; do sleep 0.2; done";
/// Starts the VM, with the VMM of this name.
fn start(vmm: &str) -> String {
    format!(
        "(setsid {vmm} --kernel /vm/vmlinuz --initramfs /vm/initramfs \
    --cmdline 'console=ttyS0 panic=-1 quiet ecs_line=ttyS0' --cpus boot=2 \
    --memory size=256M,shared=on --console off --serial pty --generic-vhost-user \
    'socket=/run/vmm-ecs/vm.sock,device_type=63,queue_sizes=[16,16,16,16],id=ecs0' \
    </dev/null >/tmp/vmm.log 2>&1 & echo $! >/tmp/vmm); \
    while ! [ -e /dev/pts/0 ]; do sleep 0.2; done; (setsid cat /dev/pts/0 >/tmp/line 2>/dev/null &)"
    )
}

/// The binary; `None` if there is none.
fn cloud_hypervisor() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("ECS_CLOUD_HYPERVISOR").filter(|path| !path.is_empty()) {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path);
    folders
        .map(|folder| folder.join("cloud-hypervisor"))
        .find(|program| program.is_file())
}

/// The VM within the host.
struct Vm<'a>(&'a mut HostVm);

impl Vm<'_> {
    /// What has come on its serial line. Its shell speaks as that of its host does, which must not
    /// take the answers of one for those of the other.
    fn line(&mut self) -> String {
        self.0.sh("sed 's/ECS-/VM-/' /tmp/line").unwrap()
    }

    /// Waits until it has booted, and loads the driver.
    fn boots(&mut self) {
        until("the VM to boot", PATIENCE, || {
            self.line().contains("VM-READY").then_some(())
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", self.logs()));
        self.sh("insmod /virtio_ecs.ko");
        self.all_alive();
    }

    /// Runs a command in it; what it printed.
    fn sh(&mut self, command: &str) -> String {
        let from = self.line().len();
        self.0
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
    fn all_alive(&mut self) {
        let before = self.heartbeats();
        assert_eq!(before.len(), VCPUS, "{before:?}");
        until("the heartbeat of every CPU", PATIENCE, || {
            let now = self.heartbeats();
            let mut both = now.iter().zip(&before);
            both.all(|(now, before)| now != before).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error:#}\n{}", self.logs()));
    }

    fn logs(&mut self) -> String {
        self.0.sh("cat /tmp/daemon.log /tmp/vmm.log").unwrap()
    }
}

/// A host for Cloud Hypervisor, with what its VM boots.
fn host(parts: &Parts, vm_kernel: &str, files: &Initramfs, programs: [PathBuf; 2]) -> Host {
    let kernel = parts.kernel(vm_kernel).unwrap();
    for module in kernel.modules().unwrap() {
        let name = module.file_name().unwrap();
        files.add(&module, Path::new("/").join(name)).unwrap();
    }
    Host {
        memory: 2048,
        programs: programs.into(),
        files: vec![
            (files.pack().unwrap(), "/vm/initramfs".to_owned()),
            (kernel.image(), "/vm/vmlinuz".to_owned()),
        ],
        ..Host::default()
    }
}

#[test]
fn cloud_hypervisor_keeps_its_guest_registered() {
    slow!("cloud_hypervisor_keeps_its_guest_registered");
    let name = "cloud_hypervisor_keeps_its_guest_registered";
    let parts = parts!(name);
    let Some(vmm) = cloud_hypervisor() else {
        skip!(
            name,
            "no cloud-hypervisor in the path: set ECS_CLOUD_HYPERVISOR"
        );
    };
    let host_kernel = parts.kernel("7.3").unwrap();
    let start = start(vmm.file_name().unwrap().to_str().unwrap());
    for kernel in KERNELS {
        let files = Initramfs::new(&parts).unwrap();
        let programs = [release_program("vmm-ecs").unwrap(), vmm.clone()];
        let host = host(&parts, kernel, &files, programs);
        HostVm::run(&parts, &host_kernel, &host, |host| {
            for line in [&set_up("observe"), SERVE, &start] {
                host.sh(line).unwrap();
            }
            let mut vm = Vm(host);
            vm.boots();
            // Killed, with what it had saved, and without.
            for forget in ["true", "rm /run/vmm-ecs/vm.state"] {
                vm.0.sh(&format!("{KILL}; {forget}; {SERVE}")).unwrap();
                vm.all_alive();
            }
            vm.sh("rmmod virtio_ecs");
            vm.sh("insmod /virtio_ecs.ko");
            vm.all_alive();
            let said = vm.0.sh("cat /tmp/daemon.log").unwrap();
            assert!(!said.contains("WARN") && !said.contains("ERROR"), "{said}");
            vm.0.sh("echo poweroff -f >/dev/pts/0").unwrap();
            vm.0.sh(ENDS).unwrap();
        });
        println!(
            "Linux {kernel} under Cloud Hypervisor: registered, twice killed under it, reloaded"
        );
    }
}

/// The whole path: the guest's driver publishes, the scheduler in the host's kernel reads and decides.
#[test]
fn cloud_hypervisor_runs_on_the_scheduler_in_the_kernel() {
    let name = "cloud_hypervisor_runs_on_the_scheduler_in_the_kernel";
    slow!(name);
    let parts = parts!(name);
    let Some(vmm) = cloud_hypervisor() else {
        skip!(
            name,
            "no cloud-hypervisor in the path: set ECS_CLOUD_HYPERVISOR"
        );
    };
    let ours = match scx_program().unwrap() {
        Ok(program) => program,
        Err(reason) => skip!(name, "{reason}"),
    };
    let start = start(vmm.file_name().unwrap().to_str().unwrap());
    let files = Initramfs::new(&parts).unwrap();
    let host = host(&parts, "7.3", &files, [ours, vmm]);
    HostVm::run(&parts, &parts.kernel("7.3").unwrap(), &host, |host| {
        for line in [&set_up("scx"), SERVE] {
            host.sh(line).unwrap();
        }
        until("our scheduler", PATIENCE, || {
            (host.sched_ext().unwrap() == "enabled").then_some(())
        })
        .unwrap();
        host.sh(&start).unwrap();
        let mut vm = Vm(host);
        vm.boots();
        // Its kernel works on both vCPUs, and others want the CPUs.
        vm.0.sh("for cpu in 1 2; do taskset $cpu sh -c 'while :; do :; done' & echo $! >>/tmp/hogs; done")
            .unwrap();
        vm.sh("for n in 1 2; do (while :; do cat /proc/meminfo /proc/slabinfo >/dev/null; done) & done");
        let mut stats = Value::Null;
        until("extensions", PATIENCE, || {
            let said = vm.0.sh("vmm-ecs stats").unwrap();
            stats = serde_json::from_str(&said).unwrap();
            let grants = &stats["vms"][0]["grants"];
            let total = ["non_preemptable", "preemptable", "wait"].map(|of| grants[of].as_u64());
            (total.iter().flatten().sum::<u64>() >= 50).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error:#}: {stats:#}\n{}", vm.logs()));
        println!("{:#}", stats["vms"][0]);
        // Killed under load: the VM runs on, and is steered again by the next daemon.
        vm.0.sh("kill $(cat /tmp/hogs)").unwrap();
        vm.0.sh(&format!("{KILL}; {SERVE}")).unwrap();
        vm.all_alive();
        println!("{}", vm.0.sh("vmm-ecs status").unwrap());
        vm.0.sh("echo poweroff -f >/dev/pts/0").unwrap();
        vm.0.sh(ENDS).unwrap();
    });
}
