//! vCPU threads as the kernel shows them: which ones there are, what it counts of each, and when
//! each came to a CPU or left it.
//!
//! # Problem
//! The controllers and the exporter both need to know how vCPU threads fare, and must mean the
//! same by it.
//!
//! # Approach
//! [`threads`] reads /proc, [`perf`] reads context-switch records, [`CpuSet`] names CPUs. Nothing
//! here needs `vmm-ecs` to run or a VM to know of it.
//!
//! # What it does not do
//! It changes nothing but affinities, and only when asked to; it keeps no state of a VM.

mod cpus;
pub mod perf;
pub mod threads;

pub use cpus::CpuSet;

/// Thread id.
pub type Tid = i32;
