//! Real Linux guests: Debian kernels in QEMU, with the driver of this tree and the device of this
//! tree.
//!
//! # Problem
//! Only a real kernel shows what the driver publishes, and only the host sees whether it is true.
//! The kernel of the machine that runs the tests will neither load a module nor be crashed by one.
//!
//! # Approach
//! `tests/stacks/setup.sh` fetches kernels, compilers and QEMU into a cache ([`Parts`]). A
//! [`Kernel`] builds the modules from this tree, a [`Guest`] boots it under QEMU's own emulation
//! (TCG), attached to our vhost-user socket, and runs shell commands for the test. [`Watch`] is the
//! host's side within the test: the real device, and reads of what the guest publishes against the
//! truth its test module writes beside it. A [`Relay`] on the socket connects QEMU with a daemon
//! that goes away and comes back, and makes the device misbehave. [`cases`] has what cases share.
//!
//! # What it does not do
//! It proves nothing about speed: every instruction of the guest is emulated. vCPUs are QEMU's
//! threads, not KVM's.

pub mod cases;

mod guest;
mod initramfs;
mod journal;
mod meddler;
mod monitor;
mod parts;
mod relay;
mod watch;
mod wire;

pub use guest::{Guest, Machine};
pub use initramfs::pack;
pub use meddler::{Garbage, Meddling};
pub use parts::{Kernel, Parts};
pub use relay::Relay;
pub use watch::{Tally, Truth, Watch, state};

/// The parts, or the end of the test as skipped where this machine has none.
#[macro_export]
macro_rules! parts {
    ($name:expr) => {
        match $crate::linux::Parts::find() {
            Ok(parts) => parts,
            Err(reason) => $crate::skip!($name, "{reason}"),
        }
    };
}
