//! How the kernel schedules a thread, as a test sees and sets it.

use ecs_sched::sys::{CpuSet, SchedAttr, Tid};

/// Scheduling policies, as the kernel numbers them.
pub mod policy {
    /// `SCHED_OTHER`.
    pub const OTHER: u32 = 0;
    /// `SCHED_FIFO`.
    pub const FIFO: u32 = 1;
    /// `SCHED_IDLE`.
    pub const IDLE: u32 = 5;
}

/// Class, nice value, priority, slice and affinity of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduling {
    /// Attributes.
    pub attr: SchedAttr,
    /// CPUs it may use.
    pub cpus: CpuSet,
}

impl Scheduling {
    /// Reads them.
    ///
    /// # Errors
    /// If the thread is gone.
    pub fn of(tid: Tid) -> std::io::Result<Self> {
        Ok(Self {
            attr: SchedAttr::get(tid)?,
            cpus: CpuSet::of_thread(tid)?,
        })
    }

    /// Makes a thread an ordinary one with a nice value and an affinity, and reads what became of
    /// it.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn give(tid: Tid, nice: i32, cpus: &[u32]) -> std::io::Result<Self> {
        SchedAttr::other(nice).set(tid)?;
        CpuSet::new(cpus.to_vec()).bind(tid)?;
        Self::of(tid)
    }
}

/// Binds the calling thread to one CPU.
///
/// # Errors
/// If the kernel refuses.
pub fn bind_to(cpu: u32) -> std::io::Result<()> {
    CpuSet::new(vec![cpu]).bind(0)
}
