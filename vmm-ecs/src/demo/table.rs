//! The demo's result as a table a person understands.

use std::fmt::Write;

use super::measure::RunReport;
use super::{Report, median};

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
        let per_second = |field: fn(&RunReport) -> f64| {
            median(
                &arm.runs
                    .iter()
                    .map(|run| field(run) / run.seconds)
                    .collect::<Vec<_>>(),
            )
        };
        let shares: Vec<f64> = arm
            .runs
            .iter()
            .map(|run| run.share_deviation_percent)
            .collect();
        let _ = writeln!(
            out,
            "{:<27} {:>12} {:>19} {:>12} {:>13} {:>13} {:>9.2}%",
            arm.arm.title(),
            thousands(arm.ops_per_s),
            format!(
                "{}-{}",
                thousands(arm.ops_per_s_range.0),
                thousands(arm.ops_per_s_range.1)
            ),
            thousands(per_second(|run| run.counters.preemptions as f64)),
            thousands(per_second(|run| run.counters.critical_preemptions as f64)),
            thousands(per_second(|run| run.counters.critical_stall_us as f64 / 1e3)),
            median(&shares),
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

/// A number with thin spaces a person can read.
fn thousands(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) && digit.is_ascii_digit() {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(thousands(0.0), "0");
        assert_eq!(thousands(999.4), "999");
        assert_eq!(thousands(1_234_567.0), "1 234 567");
    }
}
