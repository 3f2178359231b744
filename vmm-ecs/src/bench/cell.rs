//! What a benchmark found, small enough to be kept beside the text that quotes it.

use serde::{Deserialize, Serialize};

use super::api::CallCost;
use super::file::Bar;
use crate::demo::{
    self, Arm, ArmReport, HandoffUs, Machine, Report, RunCounters, RunReport, Scenario,
};

/// A whole benchmark.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Found {
    /// When it began, UTC, `2026-11-27`.
    pub(super) date: String,
    /// The machine.
    pub(super) machine: Machine,
    /// How the vCPUs were run, and why so.
    pub(super) vcpus_are: String,
    /// What the guest's calls cost.
    pub(super) calls: Vec<CallCost>,
    /// Every scenario file, in order.
    pub(super) files: Vec<FileFound>,
}

/// What one scenario file gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FileFound {
    /// Its name, without the folder and the ending.
    pub(super) file: String,
    /// What it is for.
    pub(super) title: String,
    /// Its scenarios.
    pub(super) cells: Vec<Cell>,
}

/// One scenario, every arm.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Cell {
    /// What was run.
    pub(super) scenario: Scenario,
    /// What other work there was, 1, 5 and 15 minutes before.
    pub(super) load_average: String,
    /// One VM alone, stock scheduler: operations a second, median.
    pub(super) alone_ops_per_s: Option<f64>,
    /// The arms, in order.
    pub(super) arms: Vec<ArmFound>,
    /// Promises of the scenario.
    pub(super) bars: Vec<Bar>,
}

/// One arm of a scenario.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ArmFound {
    /// Which.
    pub(super) arm: Arm,
    /// Operations a second of all VMs, by run.
    pub(super) ops_per_s: Vec<f64>,
    /// CPU seconds of each VM, and what it was entitled to, by run.
    pub(super) cpu_s: Vec<Vec<(f64, f64)>>,
    /// Preemptions a second.
    pub(super) preemptions_per_s: f64,
    /// Preemptions inside a section, a second.
    pub(super) critical_per_s: f64,
    /// Time that sections were held up by them, ms a second.
    pub(super) stalled_ms_per_s: f64,
    /// Hand-over of the lock in the slowest VM.
    pub(super) handoff_us: Option<HandoffUs>,
    /// Deviation of the VM furthest from its share, percent.
    pub(super) share_off_percent: Option<f64>,
    /// CPU time of the controller, percent of one CPU, a pCPU.
    pub(super) controller_cpu_percent: f64,
    /// Counters of all VMs and runs.
    pub(super) counters: RunCounters,
}

impl Found {
    /// Every scenario of every file, in order.
    pub(super) fn cells(&self) -> impl Iterator<Item = &Cell> {
        self.files.iter().flat_map(|file| &file.cells)
    }
}

/// A figure over several runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) lowest: f64,
    pub(super) highest: f64,
}

impl Spread {
    /// None of nothing.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let lowest = values.iter().copied().reduce(f64::min)?;
        let highest = values.iter().copied().reduce(f64::max)?;
        Some(Self {
            median: demo::median(values),
            lowest,
            highest,
        })
    }
}

/// Probability that the median of what is measured lies between the lowest and the highest of `runs`
/// runs: all would have to lie on one side of it.
pub(super) fn confidence(runs: usize) -> f64 {
    let runs = i32::try_from(runs).unwrap_or(i32::MAX);
    1.0 - 2f64.powi(1 - runs)
}

impl Cell {
    pub(super) fn new(report: &Report, bars: Vec<Bar>) -> Self {
        Self {
            scenario: report.scenario.clone(),
            load_average: report.machine.load_average.clone(),
            alone_ops_per_s: report.alone_ops_per_s,
            arms: report.arms.iter().map(ArmFound::new).collect(),
            bars,
        }
    }

    pub(super) fn arm(&self, arm: Arm) -> Option<&ArmFound> {
        self.arms.iter().find(|found| found.arm == arm)
    }

    /// Throughput of an arm over another's, run by run: the two ran one after the other.
    pub(super) fn against(&self, arm: Arm, base: Arm) -> Option<Spread> {
        let (arm, base) = (self.arm(arm)?, self.arm(base)?);
        let pairs = arm.ops_per_s.iter().zip(&base.ops_per_s);
        let ratios: Vec<f64> = pairs
            .filter(|(_, base)| **base > 0.0)
            .map(|(ops, base)| ops / base)
            .collect();
        Spread::of(&ratios)
    }

    /// Throughput of an arm over what one VM alone reaches.
    pub(super) fn efficiency(&self, arm: Arm) -> Option<f64> {
        demo::ratio(
            self.arm(arm).map(ArmFound::median_ops_per_s),
            self.alone_ops_per_s,
        )
    }
}

impl ArmFound {
    fn new(report: &ArmReport) -> Self {
        let handoff = |of| report.median_if_any(of).unwrap_or_default();
        let handoff_us = HandoffUs {
            p50: handoff(|run| Some(run.handoff_us()?.p50)),
            p99: handoff(|run| Some(run.handoff_us()?.p99)),
            p999: handoff(|run| Some(run.handoff_us()?.p999)),
        };
        Self {
            arm: report.arm,
            ops_per_s: report.runs.iter().map(RunReport::ops_per_s).collect(),
            cpu_s: report
                .runs
                .iter()
                .map(|run| run.vms.iter().map(|vm| (vm.cpu_s, vm.entitled_s)).collect())
                .collect(),
            preemptions_per_s: report.median(RunReport::preemptions_per_s),
            critical_per_s: report.median(RunReport::critical_preemptions_per_s),
            stalled_ms_per_s: report.median(RunReport::stalled_ms_per_s),
            handoff_us: (handoff_us.p99 > 0.0).then_some(handoff_us),
            share_off_percent: report.median_if_any(|run| run.share_deviation_percent),
            controller_cpu_percent: report.median(|run| run.controller_cpu_percent),
            counters: report.counters(),
        }
    }

    pub(super) fn median_ops_per_s(&self) -> f64 {
        demo::median(&self.ops_per_s)
    }
}
