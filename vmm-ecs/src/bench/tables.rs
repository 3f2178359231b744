//! What was found as tables, for Markdown and for the page.

use std::fmt::Write;

use super::cell::{ArmFound, Cell, FileFound, Found, Spread};
use crate::demo::html::text;
use crate::demo::{Arm, Scenario};

/// A table, and how it came about.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Table {
    pub(super) title: String,
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(title: &str, head: &[&str]) -> Self {
        Self {
            title: title.to_owned(),
            head: head.iter().map(|name| (*name).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    pub(super) fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rule = "|---".repeat(self.head.len()) + "|\n";
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        line(&self.head) + &rule + &rows
    }
}

/// A number, or a dash.
pub(super) fn number(value: impl Into<Option<f64>>) -> String {
    value.into().map_or_else(text::none, text::number)
}

/// Median, and lowest to highest.
pub(super) fn spread(value: Option<Spread>) -> String {
    let Some(Spread {
        median,
        lowest,
        highest,
    }) = value
    else {
        return number(None);
    };
    format!(
        "{} ({} to {})",
        number(median),
        number(lowest),
        number(highest)
    )
}

fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| number(None), |value| format!("{:.2} %", value * 100.0))
}

/// A scenario in a few words.
pub(super) fn label(scenario: &Scenario) -> String {
    let mut text = format!(
        "{} x {} {}, {}/{} us",
        scenario.vms, scenario.vcpus, scenario.workload, scenario.in_us, scenario.out_us
    );
    if scenario.workload == "rwlock" && scenario.read_pct != Scenario::default().read_pct {
        let _ = write!(text, ", {} % reads", scenario.read_pct);
    }
    if scenario.kind != Scenario::default().kind {
        let _ = write!(text, ", {}", scenario.kind);
    }
    if scenario.weights.iter().any(|weight| *weight != 100) {
        let weights: Vec<String> = scenario.weights.iter().map(u32::to_string).collect();
        let _ = write!(text, ", weights {}", weights.join(":"));
    }
    for (vms, what) in [(&scenario.unhinted, "silent"), (&scenario.pinning, "lying")] {
        if !vms.is_empty() {
            let _ = write!(text, ", {} {what}", vms.len());
        }
    }
    text
}

/// Every promise.
pub(super) fn bars(found: &Found) -> Table {
    let mut table = Table::new(
        "Bars",
        &["scenario", "figure", "measured (median)", "bar", ""],
    );
    for cell in found.cells() {
        for bar in &cell.bars {
            table.rows.push(vec![
                label(&cell.scenario),
                bar.figure.clone(),
                bar.measured
                    .map_or_else(text::none, |value| format!("{value:.3}")),
                format!("{} {}", bar.direction, bar.bar),
                if bar.holds { "holds" } else { "MISSED" }.to_owned(),
            ]);
        }
    }
    table
}

/// The scenarios of a file: a line each where two arms are compared, a line an arm elsewhere.
pub(super) fn of_file(file: &FileFound) -> Table {
    let pairs = file.cells.iter().all(|cell| {
        let arms: Vec<Arm> = cell.arms.iter().map(|found| found.arm).collect();
        arms == [Arm::Stock, Arm::Ecs]
    });
    if pairs { cells(file) } else { arms(file) }
}

fn cells(file: &FileFound) -> Table {
    let mut table = Table::new(
        &file.title,
        &[
            "VMs x vCPUs, work",
            "one VM alone",
            "stock, ops/s",
            "eCS, ops/s",
            "ratio (lowest to highest pair)",
            "of the limit",
            "avoided",
            "critical/s, stock",
            "eCS",
            "hand-over p99 us, stock",
            "eCS",
            "share off",
        ],
    );
    for cell in &file.cells {
        let (stock, ecs) = (cell.arm(Arm::Stock), cell.arm(Arm::Ecs));
        let ops = |arm: Option<&ArmFound>| number(arm.map(ArmFound::median_ops_per_s));
        let critical = |arm: Option<&ArmFound>| number(arm.map(|arm| arm.critical_per_s));
        let p99 = |arm: Option<&ArmFound>| number(arm.and_then(|arm| Some(arm.handoff_us?.p99)));
        table.rows.push(vec![
            label(&cell.scenario),
            number(cell.alone_ops_per_s),
            ops(stock),
            ops(ecs),
            spread(cell.against(Arm::Ecs, Arm::Stock)),
            number(cell.efficiency(Arm::Ecs)),
            percent(ecs.and_then(|ecs| ecs.counters.avoided_ratio())),
            critical(stock),
            critical(ecs),
            p99(stock),
            p99(ecs),
            percent(ecs.and_then(|ecs| Some(ecs.share_off_percent? / 100.0))),
        ]);
    }
    table
}

fn arms(file: &FileFound) -> Table {
    let mut table = Table::new(
        &file.title,
        &[
            "VMs x vCPUs, work",
            "arm",
            "ops/s (lowest to highest run)",
            "of stock's",
            "of the limit",
            "critical/s",
            "stalled, ms/s",
            "hand-over us, p50",
            "p99",
            "p99.9",
            "share off",
            "polled",
            "controller CPU",
        ],
    );
    for cell in &file.cells {
        for arm in &cell.arms {
            table.rows.push(arm_row(cell, arm));
        }
    }
    table
}

fn arm_row(cell: &Cell, arm: &ArmFound) -> Vec<String> {
    let handoff = arm.handoff_us;
    let cpu_s: f64 = arm.cpu_s.iter().flatten().map(|(cpu_s, _)| cpu_s).sum();
    let polled = (cpu_s > 0.0).then_some(arm.counters.poll_us as f64 / 1e6 / cpu_s);
    vec![
        label(&cell.scenario),
        arm.arm.title().to_owned(),
        spread(Spread::of(&arm.ops_per_s)),
        number(cell.against(arm.arm, Arm::Stock).map(|ratio| ratio.median)),
        number(cell.efficiency(arm.arm)),
        number(arm.critical_per_s),
        number(arm.stalled_ms_per_s),
        number(handoff.map(|us| us.p50)),
        number(handoff.map(|us| us.p99)),
        number(handoff.map(|us| us.p999)),
        percent(arm.share_off_percent.map(|off| off / 100.0)),
        percent(polled.filter(|part| *part > 0.0)),
        percent(Some(arm.controller_cpu_percent / 100.0)),
    ]
}
