//! An unpatched Cloud Hypervisor with the daemon, and a Linux guest with the driver. Nobody builds
//! it here: the binary is `$ECS_CLOUD_HYPERVISOR`, or `cloud-hypervisor` in the path.
//!
//! The /dev/kvm of a machine that runs tests may not boot a kernel, so all of it runs in a guest
//! whose processor QEMU emulates, virtualization included: times mean nothing.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use ecs_tests::linux::cases::KERNELS;
use ecs_tests::linux::nested::{
    COMMAND_LINE, INITRAMFS, KERNEL, KILL, Nested, SERVE, SOCKET, host, set_up, start, steered,
};
use ecs_tests::linux::{HostVm, Initramfs, Kernel, Parts};
use ecs_tests::{parts, release_program, scx_program, skip, slow};

/// The command that runs the VM.
fn command(vmm: &Path) -> String {
    format!(
        "{} --kernel {KERNEL} --initramfs {INITRAMFS} --cmdline '{COMMAND_LINE}' --cpus boot=2 \
         --memory size=256M,shared=on --console off --serial pty --generic-vhost-user \
         'socket={SOCKET},device_type=63,queue_sizes=[16,16,16,16],id=ecs0'",
        vmm.file_name().unwrap().display()
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
    let start = start(&command(&vmm));
    for kernel in KERNELS {
        let files = Initramfs::new(&parts).unwrap();
        let programs = vec![release_program("vmm-ecs").unwrap(), vmm.clone()];
        let host = host(&parts.kernel(kernel).unwrap(), &files, programs);
        HostVm::run(&parts, &host_kernel, &host, |host| {
            for line in [&set_up("observe"), SERVE, &start] {
                host.sh(line).unwrap();
            }
            let mut vm = Nested::new(host, "");
            vm.boots();
            // Killed, with what it had saved, and without.
            for forget in ["true", "rm /run/vmm-ecs/vm.state"] {
                vm.host().sh(&format!("{KILL}; {forget}; {SERVE}")).unwrap();
                vm.all_alive();
            }
            vm.sh("rmmod virtio_ecs");
            vm.load();
            let said = vm.host().sh("cat /tmp/daemon.log").unwrap();
            assert!(!said.contains("WARN") && !said.contains("ERROR"), "{said}");
            vm.end();
        });
        println!(
            "Linux {kernel} under Cloud Hypervisor: registered, twice killed under it, reloaded"
        );
    }
}

/// The whole path: the guest's driver publishes, the scheduler in the host's kernel reads and decides. The
/// VMM is told `words`, too; `checked` is what our program says of the host.
fn runs_on_the_scheduler(
    name: &str,
    host_kernel: impl FnOnce(&Parts) -> Result<Kernel, String>,
    (cpus, threads): (usize, usize),
    words: &str,
    checked: &str,
) {
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
    let host_kernel = match host_kernel(&parts) {
        Ok(kernel) => kernel,
        Err(reason) => skip!(name, "{reason}"),
    };
    let files = Initramfs::new(&parts).unwrap();
    let run = format!("{} {words}", command(&vmm));
    let mut host = host(&parts.kernel("7.3").unwrap(), &files, vec![ours, vmm]);
    (host.cpus, host.threads) = (cpus, threads);
    HostVm::run(&parts, &host_kernel, &host, |host| {
        let mut vm = steered(host, &run, "");
        // Killed under load: the VM runs on, and is steered again by the next daemon.
        vm.host().sh(&format!("{KILL}; {SERVE}")).unwrap();
        vm.all_alive();
        let check = vm.host().sh("vmm-ecs check").unwrap();
        assert!(check.contains(checked), "{check}");
        println!("{}", vm.host().sh("vmm-ecs status").unwrap());
        vm.end();
    });
}

#[test]
fn cloud_hypervisor_runs_on_the_scheduler_in_the_kernel() {
    let name = "cloud_hypervisor_runs_on_the_scheduler_in_the_kernel";
    slow!(name);
    let kernel = |parts: &Parts| Ok(parts.kernel("7.3").unwrap());
    runs_on_the_scheduler(name, kernel, (2, 1), "", "no CPUs share cores");
}

/// It keeps cores to its VMs by itself, where the kernel lets it. That kernel has no seccomp.
#[test]
fn cloud_hypervisor_has_its_cores_to_itself_on_the_scheduler_in_the_kernel() {
    let name = "cloud_hypervisor_has_its_cores_to_itself_on_the_scheduler_in_the_kernel";
    slow!(name);
    let kernel = |parts: &Parts| parts.cores_kernel();
    let checked = "no core runs two VMs at once";
    runs_on_the_scheduler(name, kernel, (4, 2), "--seccomp false", checked);
}
