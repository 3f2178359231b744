//! The whole path from what Linux distributions ship: a host with sched_ext and our daemon, QEMU on its
//! KVM, and a Linux guest with the driver.
//!
//! Cloud Hypervisor is the VMM that this is for (`cloud_hypervisor.rs`), and in no distribution.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::time::Duration;

use ecs_tests::linux::nested::{
    COMMAND_LINE, INITRAMFS, KERNEL, KILL, Nested, SOCKET, host, steered,
};
use ecs_tests::linux::{DEVICE_ID, HostVm, Initramfs};
use ecs_tests::process::until;
use ecs_tests::{parts, scx_program, skip, slow};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_guest_of_qemu_runs_on_the_scheduler_in_the_kernel() {
    let name = "a_guest_of_qemu_runs_on_the_scheduler_in_the_kernel";
    slow!(name);
    let parts = parts!(name);
    let ours = match scx_program().unwrap() {
        Ok(program) => program,
        Err(reason) => skip!(name, "{reason}"),
    };
    let files = Initramfs::new(&parts).unwrap();
    let kernel = parts.kernel("7.3").unwrap();
    let mut host = host(&kernel, &files, vec![ours]);
    let qemu = parts.qemu_for(&mut host).unwrap();
    // Its own names of vCPU threads tell them apart, where it is asked for them.
    let run = format!(
        "{qemu} -accel kvm -cpu host -name vm,debug-threads=on -nodefaults -no-user-config \
         -display none -no-reboot -m 256M -smp 2 -machine q35,memory-backend=ram \
         -object memory-backend-memfd,id=ram,size=256M,share=on -kernel {KERNEL} -initrd {INITRAMFS} \
         -append '{COMMAND_LINE}' -serial pty -chardev socket,id=ecs,path={SOCKET} \
         -device vhost-user-test-device-pci,chardev=ecs,virtio-id={DEVICE_ID},num_vqs=4,config_size=64"
    );
    HostVm::run(&parts, &kernel, &host, |host| {
        let mut vm = steered(host, &run, &format!("virtio_id={DEVICE_ID}"));
        hands_over(&mut vm);
        // Killed under load: the kernel's own scheduler takes over, and the VM runs on. Its device is
        // gone for good, as QEMU's does not connect again.
        vm.host().sh(KILL).unwrap();
        until("the kernel's own scheduler", PATIENCE, || {
            (vm.host().sched_ext().unwrap() == "disabled").then_some(())
        })
        .unwrap();
        assert!(vm.sh("rmmod virtio_ecs && echo $((6 * 7))").contains("42"));
        vm.end();
    });
}

/// Its kernel hands its CPU to a sibling that it waits for: KVM's directed yield, of which the scheduler
/// hears. Changed code makes every CPU answer, and one of them is off the CPU.
fn hands_over(vm: &mut Nested<'_>) {
    // Both vCPUs on one CPU, and busy.
    let pin = "for t in /proc/$(cat /tmp/vmm)/task/*; do case $(cat $t/comm) in CPU*) \
               taskset -p 1 ${t##*/} >/dev/null;; esac; done";
    vm.host().sh(pin).unwrap();
    let yields = |vm: &mut Nested<'_>| {
        let said = vm.host().sh("vmm-ecs stats").unwrap();
        let stats: Value = serde_json::from_str(&said).unwrap();
        stats["host"]["directed_yields"].as_u64().unwrap()
    };
    let before = yields(vm);
    let took = vm.sh(
        "time sh -c 'for n in 1 2 3 4 5 6 7 8 9 10; do echo 1 >/proc/sys/kernel/sched_schedstats; \
         echo 0 >/proc/sys/kernel/sched_schedstats; done'",
    );
    let after = yields(vm);
    println!("{} directed yields: {}", after - before, took.trim());
    assert!(after > before, "{before} {after}");
}
