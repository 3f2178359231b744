//! Harness of the end-to-end tests.
//!
//! # Problem
//! Tests that cross crates, languages and processes need things a machine may lack, and programs
//! that must be those of this very tree. A test that quietly does nothing is worse than none.
//!
//! # Approach
//! [`skip!`] and [`slow!`] end a test with a printed reason, which `cargo xtask test` counts and
//! lists. [`workspace_program`] builds and finds a program of this workspace, [`release_program`]
//! one as it is released. [`header`] and [`cc`] read and compile the C side of the ABI. A [`Rig`]
//! has two CPUs to itself and starts real daemons ([`Daemon`]) and real VMs ([`TestVm`]) on them;
//! [`hints`] wakes a neighbour of a vCPU and reads what its guest is told; [`linux`] boots real Linux
//! guests and hosts, for which [`host_program`] builds what runs in them. The cases are in `tests/`.
//!
//! # Invariants
//! A skip always has a name and a reason. Programs are up to date with the sources when a test
//! runs them. No process of a test outlives it, every wait has an end, and what can be asked for is
//! never waited for by the clock.
//!
//! # What it does not do
//! It measures nothing: `vmm-ecs demo` does.
#![forbid(unsafe_code)]

pub mod cc;
pub mod header;
pub mod hints;
pub mod linux;
pub mod process;
pub mod scheduling;

mod daemon;
mod program;
mod rig;
mod vm;

pub use daemon::Daemon;
pub use program::{host_program, release_program, scx_program, static_test, workspace_program};
pub use rig::Rig;
pub use vm::TestVm;

/// Ends the test with `SKIPPED: name: reason`, for what this machine lacks.
///
/// `skip!("test_name", "reason {}", value)`; the function must return `()`.
#[macro_export]
macro_rules! skip {
    ($name:expr, $($reason:tt)+) => {{
        println!("SKIPPED: {}: {}", $name, format_args!($($reason)+));
        return;
    }};
}

/// A [`Rig`], or the end of the test as skipped where this machine cannot steer vCPUs.
#[macro_export]
macro_rules! rig {
    ($name:expr) => {
        match $crate::Rig::new().unwrap() {
            Ok(rig) => rig,
            Err(reason) => $crate::skip!($name, "{reason}"),
        }
    };
}

/// The host's parts and a host with our program; skips the test where one cannot be had. `figures`
/// tells whether the host counts instructions.
#[macro_export]
macro_rules! scx_host {
    ($name:expr, $kernel:expr) => {
        $crate::scx_host!($name, $kernel, true)
    };
    ($name:expr, $kernel:expr, $figures:expr) => {{
        let parts = $crate::parts!($name, $kernel);
        match $crate::scx_program().unwrap() {
            Ok(program) => (
                parts,
                $crate::linux::Host {
                    programs: vec![program],
                    count_instructions: $figures,
                    ..$crate::linux::Host::default()
                },
            ),
            Err(reason) => $crate::skip!($name, "{reason}"),
        }
    }};
}

/// Ends the test as skipped unless slow cases were asked for.
#[macro_export]
macro_rules! slow {
    ($name:expr) => {
        if !$crate::is_full() {
            $crate::skip!($name, "slow; make test-full runs it");
        }
    };
}

/// Whether slow cases were asked for: `ECS_TEST_FULL` is set, and not to `0` or nothing.
#[must_use]
pub fn is_full() -> bool {
    std::env::var_os("ECS_TEST_FULL").is_some_and(|value| !value.is_empty() && value != "0")
}

/// Root of the workspace.
#[must_use]
pub fn root() -> &'static std::path::Path {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}
