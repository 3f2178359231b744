//! Embedded VMs for the demo, tests and benches, with a real vhost-user front-end.
//!
//! # Problem
//! To show what preemption does to lock holders one needs VMs whose locks are under control, which
//! start in milliseconds, on machines where no guest Linux boots.
//!
//! # Approach
//! One process is one VM, as with Cloud Hypervisor: vCPU threads named `vcpuN`, guest memory in a
//! memfd, and a vhost-user front-end that connects to the daemon's socket, shares the memory, and
//! registers each vCPU's lines over the control queue. The guest's work ([`workload`]) is one Rust
//! function over `ecs-guest`, and there are two kinds of VM to run it:
//! - **KVM**: the very machine code of this executable runs in a guest at CPL3. Its text, the guest
//!   memory and a stack are mapped into the guest's address space at the addresses they have here
//!   ([`kvm`]). The doorbell is an ioeventfd; HLT is privileged at CPL3, so halting and waking are
//!   MMIO exits that the VMM's thread serves with a futex.
//! - **Thread**: the vCPU threads run that function themselves; the doorbell is a write to the
//!   eventfd, and halting is a futex wait. For the host's scheduler both are the same.
//!
//! # Invariants
//! - Guest memory is only ever seen through atomics: [`shared::Shared`] has no other field, so no
//!   write of the guest or of the daemon can break a reference.
//! - Work is counted in calibrated loop iterations, not in time: a vCPU that is off the CPU does none.
//! - The VM runs on without the daemon, and takes it up again when it comes back.
//! - The guest's function calls nothing outside this executable. If it did, the guest would fault,
//!   and the probe would choose threads and say why.
//!
//! # What it does not do
//! It boots no operating system, has no interrupts and no other device, and is no sandbox: the guest
//! is our own code.

pub mod config;
pub mod report;
pub mod shared;
pub mod work;
pub mod workload;

mod frontend;
mod machine;
mod ring;
mod run;
mod sys;
mod threads;
mod vm;

#[cfg(target_arch = "x86_64")]
pub mod kvm;
#[cfg(not(target_arch = "x86_64"))]
#[path = "kvm_absent.rs"]
pub mod kvm;

pub use config::{ConfigError, Gate, Guest, Kind, VmConfig, Waiters, Workload, WorkloadKind};
pub use report::{DeviceReport, Handoff, KindUsed, Progress, VmReport};
pub use run::run;
pub use vm::{Vm, VmError};
