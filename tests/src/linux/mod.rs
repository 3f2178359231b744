//! Real Linux kernels in QEMU: guests with the driver of this tree and the device of this tree, and
//! hosts with sched_ext that run the programs of this tree.
//!
//! # Problem
//! Only a real kernel shows what the driver publishes, and only the host sees whether it is true.
//! Only a real kernel with sched_ext takes or refuses a scheduler. The kernel of the machine that
//! runs the tests will neither load a module nor be crashed by one, and may have no sched_ext.
//!
//! # Approach
//! `tests/stacks/setup.sh` fetches kernels, compilers and QEMU into a cache ([`Parts`]). A
//! [`Kernel`] is booted under QEMU's own emulation (TCG) and runs shell commands for the test, a
//! [`Shell`]. A [`Guest`] is one with the modules of this tree, attached to our vhost-user socket.
//! A [`HostVm`] is one with KVM inside, and with programs of this machine in it. [`Watch`] is the
//! host's side within the test: the real device, and reads of what the guest publishes against the
//! truth its test module writes beside it. A [`Relay`] on the socket connects QEMU with a daemon
//! that goes away and comes back, and makes the device misbehave. [`cases`] has what cases share,
//! [`cycles`] what they do a thousand times. [`side_by_side`] puts the demo's VMs under several schedulers of one host;
//! [`nested`] has a VMM and a Linux guest on such a host.
//!
//! # What it does not do
//! It proves nothing about speed: every instruction is emulated. A [`Guest`]'s vCPUs are QEMU's
//! threads, not KVM's.

pub mod cases;
pub mod cycles;
pub mod nested;
pub mod side_by_side;

mod emulator;
mod guest;
mod host;
mod initramfs;
mod journal;
mod meddler;
mod monitor;
mod parts;
mod relay;
mod shell;
mod watch;
mod wire;

pub use emulator::on_emulator;
pub use guest::{DEVICE_ID, Guest, Machine};
pub use host::{Host, HostVm};
pub use initramfs::Initramfs;
pub use meddler::{Garbage, Meddling};
pub use parts::{Kernel, Modules, Parts};
pub use relay::Relay;
pub use shell::Shell;
pub use watch::{Heart, Polls, Tally, Truth, Watch, state};

/// The parts, or the end of the test as skipped where this machine has none: those for guests with
/// our driver, or with the kernels that are named, those alone.
#[macro_export]
macro_rules! parts {
    ($name:expr) => {
        $crate::parts!(@ $name, $crate::linux::Parts::find())
    };
    ($name:expr, $($kernel:expr),+) => {
        $crate::parts!(@ $name, $crate::linux::Parts::with(&[$($kernel),+]))
    };
    (@ $name:expr, $found:expr) => {
        match $found {
            Ok(parts) => parts,
            Err(reason) => $crate::skip!($name, "{reason}"),
        }
    };
}
