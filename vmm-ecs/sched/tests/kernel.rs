//! The same headers inside the kernel of this machine: the policy against `ecs-policy`, reads of guest
//! memory against `ecs-shm`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[cfg(feature = "scx")]
#[path = "kernel/checker.rs"]
mod checker;
#[cfg(feature = "scx")]
#[path = "parity/draw.rs"]
mod draw;
#[cfg(feature = "scx")]
#[path = "parity/golden.rs"]
mod golden;
#[cfg(feature = "scx")]
#[path = "kernel/guest.rs"]
mod guest;
#[cfg(feature = "scx")]
#[path = "parity/host.rs"]
mod host;
#[cfg(feature = "scx")]
#[path = "kernel/memory.rs"]
mod memory;
#[cfg(feature = "scx")]
#[path = "parity/op.rs"]
mod op;
#[cfg(feature = "scx")]
#[path = "kernel/policy.rs"]
mod policy;

#[cfg(not(feature = "scx"))]
#[test]
fn the_kernel_decides_and_reads_as_this_side_does() {
    println!(
        "SKIPPED: the_kernel_decides_and_reads_as_this_side_does: built without the feature scx"
    );
}
