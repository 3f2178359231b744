//! The demo's result as a table a person understands.

use std::fmt::Write;

use super::digits::{number, whole};
use super::figures::RunReport;
use super::{ArmReport, Report};

/// Between the thousands of a number: a terminal may not know a narrow one.
const GAP: char = ' ';

/// One run in one line.
pub(super) fn one_line(run: &RunReport) -> String {
    let mut line = String::new();
    for vm in &run.vms {
        let _ = write!(line, "{} {} ops/s  ", vm.name, thousands(vm.ops_per_s));
    }
    let _ = write!(
        line,
        "critical preemptions {}",
        run.counters.critical_preemptions
    );
    line
}

/// The whole result.
pub(super) fn render(report: &Report) -> String {
    let mut out = String::new();
    let scenario = &report.scenario;
    let _ = writeln!(
        out,
        "\n{} VMs x {} vCPUs on CPUs {}, workload {}, {} us in and {} us out of the section, \
         {} runs of {} s\nvCPUs: {}\n",
        scenario.vms,
        scenario.vcpus,
        report.machine.online_cpus,
        scenario.workload,
        scenario.in_us,
        scenario.out_us,
        scenario.runs,
        scenario.seconds,
        report.vcpus_are,
    );
    let _ = writeln!(
        out,
        "{:<27} {:>12} {:>19} {:>12} {:>13} {:>13} {:>10}",
        "",
        "lock ops/s",
        "lowest-highest",
        "preempted/s",
        "in a section",
        "stalled ms/s",
        "share off"
    );
    for arm in &report.arms {
        let _ = writeln!(
            out,
            "{:<27} {:>12} {:>19} {:>12} {:>13} {:>13} {:>10}",
            arm.arm.title(),
            thousands(arm.ops_per_s),
            format!(
                "{}-{}",
                thousands(arm.ops_per_s_range.0),
                thousands(arm.ops_per_s_range.1)
            ),
            thousands(arm.median(RunReport::preemptions_per_s)),
            thousands(arm.median(RunReport::critical_preemptions_per_s)),
            thousands(arm.median(RunReport::stalled_ms_per_s)),
            arm.median_if_any(|run| run.share_deviation_percent)
                .map_or_else(|| "–".to_owned(), |off| format!("{off:.2}%")),
        );
    }
    if let Some(alone) = report.alone_ops_per_s {
        let _ = writeln!(
            out,
            "{:<27} {:>12}",
            "one VM alone (the limit)",
            thousands(alone)
        );
    }
    out.push('\n');
    out += &handoffs(&report.arms);
    let mut say = |what: &str, value: Option<f64>, unit: &str| {
        if let Some(value) = value {
            let _ = writeln!(out, "{what:<58} {value:>9.3}{unit}");
        }
    };
    say(
        "throughput_ratio: eCS against the stock scheduler",
        report.throughput_ratio,
        "",
    );
    say(
        "extension_ratio: eCS against the controller alone",
        report.extension_ratio,
        "",
    );
    say("efficiency: eCS against the limit", report.efficiency, "");
    say(
        "avoided_ratio: of slice ends inside a section",
        report.avoided_ratio,
        "",
    );
    say(
        "share_deviation: worst VM, eCS",
        report.share_deviation_percent,
        " %",
    );
    if report.vcpus_are.contains("software") {
        out.push_str("\nKVM is emulated here: compare the arms, not the absolute figures.\n");
    }
    out
}

/// How long a lock takes to its next owner, by arm; nothing where nobody waited.
fn handoffs(arms: &[ArmReport]) -> String {
    let mut out = String::new();
    for arm in arms {
        let half = arm.median_if_any(|run| run.handoff_us().map(|us| us.p50));
        let slow = arm.median_if_any(|run| run.handoff_us().map(|us| us.p99));
        let (Some(half), Some(slow)) = (half, slow) else {
            continue;
        };
        let [half, slow] = [half, slow].map(|figure| number(figure, GAP));
        let _ = writeln!(out, "{:<27} {half:>12} {slow:>19}", arm.arm.title());
    }
    if out.is_empty() {
        return out;
    }
    format!(
        "{:<27} {:>12} {:>19}\n{out}\n",
        "lock to a waiter, us", "median", "99th percentile"
    )
}

fn thousands(value: f64) -> String {
    whole(value, GAP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::Arm;
    use crate::demo::figures::{HandoffUs, VmRun};

    fn arm(arm: Arm, handoffs_us: &[[(f64, f64); 2]]) -> ArmReport {
        let run = |vms: &[(f64, f64); 2]| RunReport {
            vms: vms
                .map(|(p50, p99)| VmRun {
                    handoff_us: HandoffUs {
                        p50,
                        p99,
                        p999: p99,
                    },
                    ..VmRun::default()
                })
                .to_vec(),
            ..RunReport::default()
        };
        ArmReport {
            arm,
            ops_per_s: 0.0,
            ops_per_s_range: (0.0, 0.0),
            runs: handoffs_us.iter().map(run).collect(),
        }
    }

    #[test]
    fn handoffs_are_of_the_slower_vm_in_the_median_run() {
        let none = (0.0, 0.0);
        let stock = [
            [(0.3, 20.0), (0.5, 10.0)],
            [(0.4, 9000.0), none],
            [none, none],
        ];
        let text = handoffs(&[arm(Arm::Stock, &stock), arm(Arm::Ecs, &[[none, none]])]);
        let words: Vec<&str> = text
            .lines()
            .nth(1)
            .unwrap_or_default()
            .split("  ")
            .collect();
        let words: Vec<&str> = words
            .into_iter()
            .map(str::trim)
            .filter(|w| !w.is_empty())
            .collect();
        assert_eq!(words, ["stock scheduler", "0.45", "4 510"]);
        assert!(!text.contains("eCS"), "nobody waited there:\n{text}");
        assert_eq!(handoffs(&[arm(Arm::Ecs, &[[none, none]])]), "");
    }
}
