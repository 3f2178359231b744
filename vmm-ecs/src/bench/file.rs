//! `[bench]` of a scenario file: what is compared, and what is promised.

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::demo::{self, Arm, Report, RunReport, VmRun, find};

/// `[bench]`: how a scenario file is run for real.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct BenchSection {
    /// What is compared, in this order.
    pub(super) arms: Vec<Arm>,
    /// Measure one VM alone too, for the efficiency.
    pub(super) alone: bool,
    /// `auto`, `kvm` or `thread`.
    pub(super) kind: String,
    /// What the scenario must show.
    #[serde(rename = "bar")]
    pub(super) promises: Vec<Promise>,
}

impl Default for BenchSection {
    fn default() -> Self {
        Self {
            arms: vec![Arm::Stock, Arm::Ecs],
            alone: true,
            kind: "auto".to_owned(),
            promises: Vec::new(),
        }
    }
}

impl BenchSection {
    pub(super) fn of(scenario: &ecs_sim::Scenario) -> anyhow::Result<Self> {
        scenario
            .bench
            .clone()
            .try_into()
            .context("Cannot understand [bench]")
    }
}

/// `[[bench.bar]]`: a figure and its bar.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Promise {
    /// What is promised.
    figure: Figure,
    /// The least it may be.
    at_least: Option<f64>,
    /// The most it may be.
    at_most: Option<f64>,
}

/// Figures that a scenario can promise; each a median over the runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Figure {
    /// Throughput of eCS over the stock arm's.
    ThroughputRatio,
    /// Throughput of eCS over the same controller's without extensions.
    ExtensionRatio,
    /// Throughput of eCS over that of one VM alone.
    Efficiency,
    /// Part of slice ends inside a section whose section ended within its extension.
    AvoidedRatio,
    /// CPU time of the VM furthest from its entitlement, percent away from it, eCS arm.
    ShareDeviationPercent,
    /// Excess of the first VM's CPU time over its entitlement, percent, eCS arm.
    GainPercent,
    /// CPU time of the controller, percent of one CPU, a pCPU.
    ControllerCpuPercent,
    /// Decision time, ns.
    DecisionMedianNs,
    /// Throughput of waiters that are told over waiters that halt, own scheduler.
    ToldAgainstHalting,
    /// Throughput of waiters that are told over waiters that always poll, own scheduler.
    ToldAgainstPolling,
    /// Throughput of eCS over waiters that halt, own scheduler.
    EcsAgainstHalting,
    /// Throughput of eCS over eCS whose waiters halt.
    EcsAgainstEcsHalting,
    /// Time a lock takes to a waiter that halts over that to one that is told, own scheduler.
    HandoffGain,
}

impl Figure {
    /// Name in scenario files.
    fn name(self) -> String {
        let name = serde_json::to_value(self).unwrap_or_default();
        name.as_str().unwrap_or_default().to_owned()
    }

    /// None where the arms that it takes did not run.
    fn of(self, report: &Report) -> Option<f64> {
        match self {
            Self::ThroughputRatio => report.throughput_ratio,
            Self::ExtensionRatio => report.extension_ratio,
            Self::Efficiency => report.efficiency,
            Self::AvoidedRatio => report.avoided_ratio,
            Self::ShareDeviationPercent => report.share_deviation_percent,
            Self::GainPercent => of_ecs(report, |run| run.vms.first().and_then(VmRun::off_percent)),
            Self::ControllerCpuPercent => of_ecs(report, |run| Some(run.controller_cpu_percent)),
            Self::DecisionMedianNs => of_ecs(report, |run| Some(run.decision_median_ns as f64)),
            Self::ToldAgainstHalting => against(report, Arm::Hints, Arm::Stock),
            Self::ToldAgainstPolling => against(report, Arm::Hints, Arm::Poll),
            Self::EcsAgainstHalting => against(report, Arm::Ecs, Arm::Stock),
            Self::EcsAgainstEcsHalting => against(report, Arm::Ecs, Arm::Halt),
            Self::HandoffGain => {
                let median_us = |arm| {
                    let found = find(&report.arms, arm)?;
                    found.median_if_any(|run| run.handoff_us().map(|us| us.p50))
                };
                Some(median_us(Arm::Stock)? / median_us(Arm::Hints).filter(|&us| us > 0.0)?)
            }
        }
    }
}

fn of_ecs(report: &Report, figure: fn(&RunReport) -> Option<f64>) -> Option<f64> {
    find(&report.arms, Arm::Ecs)?.median_if_any(figure)
}

/// Operations of one arm against those of another.
fn against(report: &Report, arm: Arm, base: Arm) -> Option<f64> {
    let ops_per_s = |arm| find(&report.arms, arm).map(|found| found.ops_per_s);
    demo::ratio(ops_per_s(arm), ops_per_s(base))
}

/// One promise, what was measured, and whether it holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Bar {
    /// The figure.
    pub(super) figure: String,
    /// `>=` or `<=`.
    pub(super) direction: String,
    /// The bar.
    pub(super) bar: f64,
    /// What was measured; none where it could not be.
    pub(super) measured: Option<f64>,
    /// Whether it holds.
    pub(super) holds: bool,
}

impl Promise {
    /// Its bars, and whether they hold: one not measured does not.
    pub(super) fn check(&self, report: &Report) -> Vec<Bar> {
        let measured = self.figure.of(report);
        let bar = |direction: &str, bar: f64, holds: fn(f64, f64) -> bool| Bar {
            figure: self.figure.name(),
            direction: direction.to_owned(),
            bar,
            measured,
            holds: measured.is_some_and(|measured| holds(measured, bar)),
        };
        let least = self
            .at_least
            .map(|least| bar(">=", least, |is, least| is >= least));
        let most = self
            .at_most
            .map(|most| bar("<=", most, |is, most| is <= most));
        least.into_iter().chain(most).collect()
    }
}
