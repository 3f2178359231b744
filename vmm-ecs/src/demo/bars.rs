//! The bars the project sets itself, measured: `vmm-ecs demo --bars`.

use serde::{Deserialize, Serialize};

use super::figures::{RunReport, VmRun};
use super::measure::Bench;
use super::{Arm, DemoOptions, Report, Scenario, compare, find};

/// One promise, what was measured, and whether it holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Bar {
    /// What is promised.
    pub(crate) name: String,
    /// The scenario.
    pub(crate) scenario: String,
    /// `>=` or `<=`.
    pub(crate) direction: String,
    /// The bar.
    pub(crate) bar: f64,
    /// The figure, a median over the runs.
    pub(crate) measured: Option<f64>,
    /// Whether it holds.
    pub(crate) holds: bool,
}

/// All of them, with the reports they come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Bars {
    /// The promises.
    pub(crate) bars: Vec<Bar>,
    /// The comparisons behind them.
    pub(crate) reports: Vec<Report>,
}

struct Case {
    name: &'static str,
    scenario: Scenario,
    arms: &'static [Arm],
    alone: bool,
    checks: &'static [(&'static str, Direction, f64, Figure)],
}

#[derive(Clone, Copy)]
enum Direction {
    AtLeast,
    AtMost,
}

type Figure = fn(&Report) -> Option<f64>;

const STOCK_AND_ECS: &[Arm] = &[Arm::Stock, Arm::Ecs];
const ONLY_ECS: &[Arm] = &[Arm::Ecs];

fn of_ecs(report: &Report, figure: fn(&RunReport) -> Option<f64>) -> Option<f64> {
    find(&report.arms, Arm::Ecs)?.median_if_any(figure)
}

/// Operations of one arm against those of another.
fn against(report: &Report, arm: Arm, base: Arm) -> Option<f64> {
    let ops_per_s = |arm| find(&report.arms, arm).map(|found| found.ops_per_s);
    let base = ops_per_s(base).filter(|&ops_per_s| ops_per_s > 0.0)?;
    Some(ops_per_s(arm)? / base)
}

/// How many times longer a lock takes to a waiter that halts than to one that is told, in the median.
fn handoff_gain(report: &Report) -> Option<f64> {
    let median_us = |arm| {
        let found = find(&report.arms, arm)?;
        found.median_if_any(|run| run.handoff_us().map(|(median, _)| median))
    };
    Some(median_us(Arm::Stock)? / median_us(Arm::Hints).filter(|&us| us > 0.0)?)
}

/// A mutex whose waiters halt, poll, or do what they are told.
fn mutexes(base: &Scenario, kind: &str, names: [&'static str; 2]) -> [Case; 2] {
    use Direction::AtLeast;
    let [alone, two] = names;
    let scenario = |vms| Scenario {
        vms,
        workload: "blocking".to_owned(),
        // At 5 us two threads that halt are at 0.7 of what one lock allows: no factor is left to gain.
        in_us: 2.0,
        out_us: 2.0,
        kind: kind.to_owned(),
        ..base.clone()
    };
    [
        Case {
            name: alone,
            scenario: scenario(1),
            arms: &[Arm::Stock, Arm::Hints, Arm::Ecs],
            alone: false,
            checks: &[
                ("told_against_halting", AtLeast, 1.6, |r| {
                    against(r, Arm::Hints, Arm::Stock)
                }),
                ("ecs_against_halting", AtLeast, 1.6, |r| {
                    against(r, Arm::Ecs, Arm::Stock)
                }),
                ("handoff_gain", AtLeast, 3.0, handoff_gain),
            ],
        },
        Case {
            name: two,
            scenario: scenario(2),
            arms: &[Arm::Stock, Arm::Poll, Arm::Hints, Arm::Halt, Arm::Ecs],
            alone: false,
            checks: &[
                ("told_against_halting", AtLeast, 0.98, |r| {
                    against(r, Arm::Hints, Arm::Stock)
                }),
                ("told_against_polling", AtLeast, 1.3, |r| {
                    against(r, Arm::Hints, Arm::Poll)
                }),
                ("ecs_against_ecs_halting", AtLeast, 0.98, |r| {
                    against(r, Arm::Ecs, Arm::Halt)
                }),
            ],
        },
    ]
}

/// Excess of the first VM over its entitlement, percent.
fn first_vm_gain(run: &RunReport) -> Option<f64> {
    run.vms.first().and_then(VmRun::off_percent)
}

fn cases(base: &Scenario) -> Vec<Case> {
    use Direction::{AtLeast, AtMost};
    let [alone, two] = mutexes(
        base,
        &base.kind,
        ["mutex, 1 VM x 2 vCPUs", "mutex, 2 VMs x 2 vCPUs"],
    );
    let [threads, two_of_threads] = mutexes(
        base,
        "thread",
        ["mutex, 1 VM x 2 threads", "mutex, 2 VMs x 2 threads"],
    );
    let long = Scenario {
        seconds: 10.0,
        ..base.clone()
    };
    vec![
        Case {
            name: "ticket lock, 2 VMs x 2 vCPUs",
            scenario: base.clone(),
            arms: &Arm::DEMO,
            alone: true,
            checks: &[
                ("throughput_ratio", AtLeast, 1.5, |r| r.throughput_ratio),
                ("extension_ratio", AtLeast, 1.2, |r| r.extension_ratio),
                ("efficiency", AtLeast, 0.95, |r| r.efficiency),
                ("avoided_ratio", AtLeast, 0.99, |r| r.avoided_ratio),
                ("decision_median_ns", AtMost, 1000.0, |r| {
                    of_ecs(r, |run| Some(run.decision_median_ns as f64))
                }),
            ],
        },
        Case {
            name: "convoy, 2 VMs x 4 vCPUs",
            scenario: Scenario {
                vcpus: 4,
                ..base.clone()
            },
            arms: STOCK_AND_ECS,
            alone: true,
            checks: &[
                ("throughput_ratio", AtLeast, 200.0, |r| r.throughput_ratio),
                ("share_deviation_percent", AtMost, 1.0, |r| {
                    r.share_deviation_percent
                }),
                ("efficiency", AtLeast, 0.95, |r| r.efficiency),
            ],
        },
        Case {
            name: "ticket lock, 3 VMs x 2 vCPUs",
            scenario: Scenario {
                vms: 3,
                ..base.clone()
            },
            arms: STOCK_AND_ECS,
            alone: false,
            checks: &[("throughput_ratio", AtLeast, 2.0, |r| r.throughput_ratio)],
        },
        Case {
            name: "fairness, both enlightened, 10 s",
            scenario: long.clone(),
            arms: ONLY_ECS,
            alone: false,
            checks: &[("share_deviation_percent", AtMost, 0.5, |r| {
                r.share_deviation_percent
            })],
        },
        Case {
            name: "fairness, one enlightened, 10 s",
            scenario: Scenario {
                unhinted: vec![1],
                ..long.clone()
            },
            arms: ONLY_ECS,
            alone: false,
            checks: &[("share_deviation_percent", AtMost, 0.5, |r| {
                r.share_deviation_percent
            })],
        },
        Case {
            name: "fairness, weights 1:3, 10 s",
            scenario: Scenario {
                weights: vec![100, 300],
                ..long.clone()
            },
            arms: ONLY_ECS,
            alone: false,
            checks: &[("share_deviation_percent", AtMost, 1.0, |r| {
                r.share_deviation_percent
            })],
        },
        Case {
            name: "fairness, the first VM pins its counts, 10 s",
            scenario: Scenario {
                pinning: vec![0],
                ..long
            },
            arms: ONLY_ECS,
            alone: false,
            checks: &[("gain_percent", AtMost, 0.5, |r| of_ecs(r, first_vm_gain))],
        },
        Case {
            name: "no locks, 2 VMs x 2 vCPUs",
            scenario: Scenario {
                workload: "compute".to_owned(),
                ..base.clone()
            },
            arms: STOCK_AND_ECS,
            alone: false,
            checks: &[("controller_cpu_percent", AtMost, 0.5, |r| {
                of_ecs(r, |run| Some(run.controller_cpu_percent))
            })],
        },
        alone,
        two,
        threads,
        two_of_threads,
    ]
}

/// Measures every bar.
pub(crate) fn run_bars(options: &DemoOptions, say: &dyn Fn(&str)) -> anyhow::Result<Bars> {
    let bench = Bench::new(options)?;
    let mut bars = Vec::new();
    let mut reports = Vec::new();
    for case in cases(&options.scenario) {
        say(&format!("\n== {}", case.name));
        let options = DemoOptions {
            scenario: case.scenario,
            arms: case.arms.to_vec(),
            alone: case.alone,
            ..options.clone()
        };
        let report = compare(&bench, &options, say)?;
        for (name, direction, bar, figure) in case.checks {
            let measured = figure(&report);
            let (sign, holds) = match direction {
                Direction::AtLeast => (">=", measured.is_some_and(|value| value >= *bar)),
                Direction::AtMost => ("<=", measured.is_some_and(|value| value <= *bar)),
            };
            let shown = measured.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"));
            let verdict = if holds { "holds" } else { "MISSED" };
            say(&format!(
                "{name:<26} {shown:>12}  {sign} {bar:<8} {verdict}"
            ));
            bars.push(Bar {
                name: (*name).to_owned(),
                scenario: case.name.to_owned(),
                direction: sign.to_owned(),
                bar: *bar,
                measured,
                holds,
            });
        }
        reports.push(report);
    }
    Ok(Bars { bars, reports })
}
