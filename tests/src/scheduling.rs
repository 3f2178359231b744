//! How the kernel schedules a thread, as a test sees and sets it.

use anyhow::Context;
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

/// CPU time of threads so far, ns, as the kernel counts it.
///
/// # Errors
/// If one of them is gone.
pub fn cpu_ns(tids: &[Tid]) -> anyhow::Result<u64> {
    tids.iter()
        .map(|tid| {
            let text = std::fs::read_to_string(format!("/proc/{tid}/schedstat"))?;
            let first = text.split_whitespace().next();
            first
                .context("Empty schedstat")?
                .parse::<u64>()
                .context("Not a number")
        })
        .sum()
}

/// A tick of `/proc`, ns.
const TICK_NS: u64 = 10_000_000;

/// Time that some CPUs spent for other machines so far, where this one is virtual, ns.
///
/// # Errors
/// If the kernel does not say.
pub fn stolen_ns(cpus: &[u32]) -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let mut ticks = 0;
    for cpu in cpus {
        let name = format!("cpu{cpu} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        let columns = line.context("No such CPU")?.split_whitespace();
        // User, nice, system, idle, iowait, irq, softirq, steal.
        let column = { columns }.nth(7);
        ticks += column.context("No such column")?.parse::<u64>()?;
    }
    Ok(ticks * TICK_NS)
}

/// CPU time so far, ns, of every process but some and their children, kernel threads included; of
/// those that have ended, what their parents have been told.
#[must_use]
pub fn others_ns(but: &[u32]) -> u64 {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ticks = entries.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name, in parentheses, may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let parent: u32 = fields.get(1)?.parse().ok()?;
        let times = fields.get(11..15)?.iter();
        let ticks: u64 = times.filter_map(|field| field.parse::<u64>().ok()).sum();
        (!but.contains(&pid) && !but.contains(&parent)).then_some(ticks)
    });
    ticks.sum::<u64>() * TICK_NS
}

/// Binds the calling thread to one CPU.
///
/// # Errors
/// If the kernel refuses.
pub fn bind_to(cpu: u32) -> std::io::Result<()> {
    CpuSet::new(vec![cpu]).bind(0)
}
