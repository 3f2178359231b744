//! Controllers: they enforce the policy on vCPU threads, or only observe.
//!
//! # Problem
//! A decision is worth nothing until some thread gets a CPU and another one does not. Each kernel
//! offers other levers for that.
//!
//! # Approach
//! [`Controller`] is what the daemon sees: VMs come, change and go; statistics come out. The
//! [`userspace`] controller steers with scheduling classes, `scx` (a feature) with a scheduler in the
//! kernel; [`observe`] steers nothing and counts the same things, so that "off" and "on" are measured
//! the same way.
//!
//! # Invariants
//! Every steered thread can be put back by somebody else ([`journal`]). Guest faults are counted
//! and ignored, host faults are returned.
//!
//! # What it does not do
//! It decides nothing: that is `ecs-policy`. It speaks no vhost-user: that is `ecs-device`.

mod accounting;
mod entitle;
pub mod journal;
pub mod observe;
mod pimutex;
mod roster;
#[cfg(feature = "scx")]
pub mod scx;
mod state;
mod stats;
pub mod sys;
mod tell;
pub mod userspace;

use ecs_stats::Snapshot;

pub use ecs_threads::{perf, threads};
pub use state::VmSpec;

/// What the daemon sees of a controller.
pub trait Controller: Send + Sync {
    /// A VM has come, or anything about it has changed. When this returns, slots that the VM has
    /// registered no longer are not touched any more.
    fn update(&self, vm: VmSpec);
    /// A VM has gone. When this returns, its slots are not touched any more.
    fn gone(&self, name: &str);
    /// Statistics of this moment.
    fn snapshot(&self) -> Snapshot;
}

/// Facts of the host that do not change while a controller runs.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    controller: String,
    mechanism: String,
    kernel: String,
}

impl Host {
    fn read(controller: &str, mechanism: &str) -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            controller: controller.to_owned(),
            mechanism: mechanism.to_owned(),
            kernel: kernel.trim().to_owned(),
        }
    }
}
