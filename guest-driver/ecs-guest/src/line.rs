//! The two lines of a vCPU, as atomics on the ABI's layout.

use crate::atomic::{AtomicU32, AtomicU64, Ordering};

#[cfg(target_endian = "big")]
compile_error!("The lines are little-endian: ecs-guest has no byte swapping");

/// Line written by this guest and read by the host. All zero is a valid state: no section, no wait.
#[doc(alias = "virtio_ecs_guest_line")]
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct GuestLine {
    /// Open non-preemptable sections.
    pub np_count: AtomicU32,
    /// Open preemptable sections of the current task.
    pub p_count: AtomicU32,
    /// `VIRTIO_ECS_WAIT_*`.
    pub waiting: AtomicU32,
    /// Non-zero: the idle task runs.
    pub idle: AtomicU32,
    /// Guest-physical address of the awaited word.
    pub wait_addr: AtomicU64,
    /// Bits of the awaited word that count; zero: no descriptor.
    pub wait_mask: AtomicU64,
    /// Value of those bits that ends the wait.
    pub wait_value: AtomicU64,
    /// vCPU that holds the lock, plus one; 0: unknown.
    pub wait_holder: AtomicU32,
    /// Size of the awaited word, `VIRTIO_ECS_WIDTH_*`.
    pub wait_width: AtomicU32,
    /// Hand-backs rung so far, wraps.
    pub handback: AtomicU32,
    /// Time polled for work instead of halting, us, wraps.
    pub poll_us: AtomicU32,
    /// Such polls that met work, wraps.
    pub polls_paid: AtomicU32,
    /// Such polls that ended in a halt, wraps.
    pub polls_wasted: AtomicU32,
}

/// Line written by the host and read by this guest.
#[doc(alias = "virtio_ecs_host_line")]
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct HostLine {
    /// Non-zero while an extension runs.
    pub granted: AtomicU32,
    /// `VIRTIO_ECS_YIELD_*`.
    pub r#yield: AtomicU32,
    /// Non-zero while the vCPU is off the CPU although it had work.
    pub preempted: AtomicU32,
    /// Non-zero while its pCPU has more than one runnable task.
    pub overloaded: AtomicU32,
    /// `config.generation` of the writer.
    pub generation: AtomicU32,
    /// Changes at least every 50 ms while the host is alive.
    pub heartbeat: AtomicU32,
    /// Extensions granted to this vCPU.
    pub nr_grants: AtomicU64,
    /// Zero.
    pub reserved: [AtomicU64; 4],
}

/// Both lines of one vCPU, side by side; an array of these, by vCPU number, is what a guest keeps.
#[repr(C)]
#[derive(Debug, Default)]
pub struct VcpuLines {
    /// Written by the guest.
    pub guest: GuestLine,
    /// Written by the host.
    pub host: HostLine,
}

/// Adds one, up to the highest value. Single writer: no locked instruction.
pub(crate) fn raise(count: &AtomicU32) {
    let now = count.load(Ordering::Relaxed);
    count.store(now.saturating_add(1), Ordering::Relaxed);
}

/// Takes one off, down to zero, after everything before it is visible; returns what is left.
pub(crate) fn lower(count: &AtomicU32) -> u32 {
    let left = count.load(Ordering::Relaxed).saturating_sub(1);
    count.store(left, Ordering::Release);
    left
}

#[cfg(not(test))]
mod layout {
    use super::{GuestLine, HostLine, VcpuLines};
    use core::mem::{align_of, offset_of, size_of};
    use ecs_abi::{VIRTIO_ECS_LINE_SIZE, VirtioEcsGuestLine, VirtioEcsHostLine};

    macro_rules! same {
        ($ours:ty, $abi:ty: $($field:ident),* $(,)?) => {
            const _: () = assert!(size_of::<$ours>() == VIRTIO_ECS_LINE_SIZE);
            const _: () = assert!(align_of::<$ours>() == VIRTIO_ECS_LINE_SIZE);
            $(const _: () = assert!(offset_of!($ours, $field) == offset_of!($abi, $field));)*
        };
    }

    same!(GuestLine, VirtioEcsGuestLine: np_count, p_count, waiting, idle, wait_addr, wait_mask,
        wait_value, wait_holder, wait_width, handback, poll_us, polls_paid, polls_wasted);
    same!(HostLine, VirtioEcsHostLine: granted, r#yield, preempted, overloaded, generation,
        heartbeat, nr_grants);
    const _: () =
        assert!(offset_of!(HostLine, reserved) == offset_of!(VirtioEcsHostLine, reserved0));
    const _: () = assert!(size_of::<VcpuLines>() == 2 * VIRTIO_ECS_LINE_SIZE);
}
