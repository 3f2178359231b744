//! Simulated scenarios as a table, a line an arm.

use ecs_sim::{Point, Report};

use super::Simulated;

/// The table of one file.
pub(super) struct Table {
    /// Width of each column of the sweep.
    widths: Vec<usize>,
}

impl Table {
    /// Says what the file is, and prints the head.
    pub(super) fn begin(points: &[Point]) -> Self {
        let Some(first) = points.first() else {
            return Self { widths: Vec::new() };
        };
        let name = &first.scenario.name;
        if !name.is_empty() {
            println!("\n{name}");
        }
        let short = |path: &str| path.rsplit('.').next().unwrap_or_default().to_owned();
        let keys: Vec<String> = first.at.iter().map(|(path, _)| short(path)).collect();
        let widths = keys.iter().map(|key| key.len().max(10)).collect();
        let table = Self { widths };
        println!(
            "{}{:<12}{:>12}{:>9}{:>10}{:>8}{:>8}{:>8}{:>8}{:>10}{:>9}{:>12}{:>9}{:>10}{:>10}{:>11}",
            table.key(keys.iter().map(String::as_str)),
            "arm",
            "ops/s",
            "ratio",
            "crit/s",
            "LHP/s",
            "RP/s",
            "ICP/s",
            "LWP/s",
            "BWW/s",
            "avoided",
            "stall ms/s",
            "off %",
            "p50 us",
            "p99 us",
            "p99.9 us"
        );
        table
    }

    fn key<'a>(&self, values: impl Iterator<Item = &'a str>) -> String {
        let cells = values.zip(&self.widths);
        cells
            .map(|(value, width)| format!("{:<1$} ", value.trim_matches('"'), width))
            .collect()
    }

    /// Prints one scenario.
    pub(super) fn print(&self, simulated: &Simulated) {
        let key = self.key(simulated.at.iter().map(|(_, value)| value.as_str()));
        let base = simulated.arms.first().map_or(0.0, |arm| arm.ops_per_s);
        for arm in &simulated.arms {
            let rate = |count: fn(&Report) -> u64| {
                arm.median(|run| count(run) as f64 * 1e9 / run.duration_ns as f64)
            };
            println!(
                "{key}{:<12}{:>12.0}{:>9.3}{:>10.1}{:>8.1}{:>8.1}{:>8.1}{:>8.1}{:>10.0}{:>9}{:>12.2}{:>9.2}{:>10.1}{:>10.1}{:>11.1}",
                arm.arm,
                arm.ops_per_s,
                arm.ops_per_s / base,
                rate(|run| run.critical.preemptions()),
                rate(|run| run.critical.holder),
                rate(|run| run.critical.reader),
                rate(|run| run.critical.interrupt),
                rate(|run| run.critical.waiter),
                rate(|run| run.critical.wakeups),
                avoided(&arm.runs),
                rate(|run| run.stall_ns) / 1e6,
                arm.median(|run| run.share_deviation_percent),
                arm.median(|run| run.handoff.p50_us),
                arm.median(|run| run.handoff.p99_us),
                arm.median(|run| run.handoff.p999_us),
            );
        }
    }
}

/// Extensions that ended because the section ended, over all slice ends inside a section, percent.
fn avoided(runs: &[Report]) -> String {
    let yielded: u64 = runs.iter().map(|run| run.policy.yielded).sum();
    let requests: u64 = runs.iter().map(|run| run.policy.requests).sum();
    if requests == 0 {
        return "-".to_owned();
    }
    format!("{:.2}%", 100.0 * yielded as f64 / requests as f64)
}
