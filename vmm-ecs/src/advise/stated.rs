//! How far advice was off in real runs: docs/advice.json, its table, and the sentence under each advice.

use std::fmt::Write;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::AVOIDED;
use crate::demo::{Machine, median};
use crate::markdown;

/// The validation that this program states its error from.
const STATED: &str = include_str!("../../../docs/advice.json");

/// Part of the CPUs' time that the VMs of an undisturbed series have at least.
const UNDISTURBED: f64 = 0.85;

/// Of its block, which needs no name.
const BEGIN: &str = "<!-- advice";

/// What a validation found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Validation {
    pub(super) date: String,
    pub(super) machine: Machine,
    pub(super) vcpus_are: String,
    /// Real runs of each kind.
    pub(super) runs: usize,
    /// Length of each, s.
    pub(super) seconds: f64,
    pub(super) scenarios: Vec<Checked>,
}

/// One scenario: what was forecast from each of its observed runs, and what came. Stalls and times are ms in
/// a second of the VMs' CPU time, counts are in such a second.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Checked {
    pub(super) scenario: String,
    /// Part of the CPUs' time that the observed VMs had, median.
    pub(super) had: f64,
    /// Stall with the VMs that were observed: of the real runs, and as forecast from each.
    pub(super) stall: Pair,
    /// Stall with one VM more.
    pub(super) stall_of_more: Pair,
    /// Stall under eCS.
    pub(super) ecs_stall: Pair,
    /// Critical preemptions while observed, and under eCS: both real.
    pub(super) critical: Vec<f64>,
    pub(super) ecs_critical: Vec<f64>,
    /// Extensions under eCS.
    pub(super) extensions: Pair,
    /// CPU time in them.
    pub(super) extension: Pair,
}

/// A figure of the real runs, and what was forecast from each observed run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Pair {
    pub(super) real: Vec<f64>,
    pub(super) forecast: Vec<f64>,
    /// Where the middle eight of ten simulations are, lowest and highest of all forecasts; no figure, no
    /// range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) range: Option<(f64, f64)>,
}

impl Pair {
    /// Forecast over real, of medians. One is added to both: small stalls matter to nobody.
    fn factor(&self) -> f64 {
        (median(&self.forecast) + 1.0) / (median(&self.real) + 1.0)
    }

    /// Whether the real median is where eight of ten simulations are.
    fn is_inside(&self) -> bool {
        let real = median(&self.real);
        self.range
            .is_some_and(|(low, high)| (low..=high).contains(&real))
    }

    fn cells(&self) -> String {
        let low = self.real.iter().copied().fold(f64::MAX, f64::min);
        let high = self.real.iter().copied().fold(0.0, f64::max);
        let range = self.range.map_or_else(String::new, |(low, high)| {
            format!(" ({} to {})", short(low), short(high))
        });
        format!(
            "{} ({} to {}) | {}{range} | {:.2}",
            short(median(&self.real)),
            short(low),
            short(high),
            short(median(&self.forecast)),
            self.factor()
        )
    }
}

fn short(value: f64) -> String {
    if value < 9.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

impl Checked {
    /// With three digits after the point: more are noise, and would not be read as they were written.
    pub(super) fn rounded(mut self) -> Self {
        let round = |value: &mut f64| *value = (*value * 1e3).round() / 1e3;
        round(&mut self.had);
        for pair in [
            &mut self.stall,
            &mut self.stall_of_more,
            &mut self.ecs_stall,
            &mut self.extensions,
            &mut self.extension,
        ] {
            pair.real.iter_mut().for_each(round);
            pair.forecast.iter_mut().for_each(round);
            if let Some((low, high)) = &mut pair.range {
                round(low);
                round(high);
            }
        }
        let counts = self.critical.iter_mut().chain(&mut self.ecs_critical);
        counts.for_each(round);
        self
    }

    /// Part of the critical preemptions that eCS avoided; `None` where there were none to speak of.
    fn avoided(&self) -> Option<f64> {
        let critical = median(&self.critical);
        (critical >= 1.0).then(|| 1.0 - median(&self.ecs_critical) / critical)
    }
}

/// How far off: median and worst of several factors, whichever way.
fn off(factors: impl Iterator<Item = f64>) -> (f64, f64) {
    let off: Vec<f64> = factors.map(|factor| factor.max(1.0 / factor)).collect();
    (median(&off), off.iter().copied().fold(1.0, f64::max))
}

/// The tables, as they stand in docs/simulation.md.
pub(super) fn table(found: &Validation) -> String {
    let mut out = format!(
        "{}, {}, {}, load average before {}; {} runs of {} s of each kind, vCPUs: {}.\n\n\
         | scenario | CPUs had | stall: real (lowest to highest) | forecast (8 of 10 simulations) | factor | one VM more: real | \
         forecast | factor |\n|---|---|---|---|---|---|---|---|\n",
        found.date,
        found.machine.cpu,
        found.machine.kernel,
        found.machine.load_average,
        found.runs,
        found.seconds,
        found.vcpus_are
    );
    for row in &found.scenarios {
        let _ = writeln!(
            out,
            "| {} | {:.0} % | {} | {} |",
            name(row),
            row.had * 100.0,
            row.stall.cells(),
            row.stall_of_more.cells()
        );
    }
    out += "\n| scenario | eCS avoided, of critical preemptions | stall left: real | forecast | extensions: real | \
            forecast | factor | their time, ms: real | forecast | factor |\n|---|---|---|---|---|---|---|---|---|---|\n";
    for row in &found.scenarios {
        let avoided = row.avoided().map_or_else(
            || "–".to_owned(),
            |avoided| format!("{:.1} %", avoided * 100.0),
        );
        let left = row.ecs_stall.cells();
        let left = left.rsplit_once(" | ").map_or("", |(left, _)| left);
        let _ = writeln!(
            out,
            "| {} | {avoided} | {left} | {} | {} |",
            name(row),
            row.extensions.cells(),
            row.extension.cells()
        );
    }
    let _ = writeln!(out, "\n{}", summary(found));
    let had = found.scenarios.iter().map(|row| row.had);
    let (low, high) = had.fold((f64::MAX, 0f64), |(low, high), had| {
        (low.min(had), high.max(had))
    });
    if low < UNDISTURBED {
        let _ = writeln!(
            out,
            "\nThis series was disturbed: its VMs had {:.0} to {:.0} % of the CPUs, and other work that came and went the rest.",
            low * 100.0,
            high * 100.0
        );
    }
    out
}

fn name(row: &Checked) -> &str {
    row.scenario.rsplit('/').next().unwrap_or_default()
}

/// The error in one sentence.
pub(super) fn summary(found: &Validation) -> String {
    // Where nothing met a section there is nothing to forecast.
    let rows: Vec<&Checked> = found
        .scenarios
        .iter()
        .filter(|row| row.avoided().is_some())
        .collect();
    let of = |pair: fn(&Checked) -> &Pair| off(rows.iter().map(|row| pair(row).factor()));
    let inside = |pair: fn(&Checked) -> &Pair| {
        let rows = rows.iter();
        rows.filter(|row| pair(row).is_inside()).count()
    };
    let (same, same_worst) = of(|row| &row.stall);
    let (more, more_worst) = of(|row| &row.stall_of_more);
    let (number, number_worst) = of(|row| &row.extensions);
    let (cost, cost_worst) = of(|row| &row.extension);
    let avoided = rows.iter().filter_map(|row| row.avoided());
    let as_said = avoided.filter(|part| *part >= AVOIDED.0).count();
    format!(
        "In real runs of {} scenarios the stall was off by a factor of {same:.2} in the median and {same_worst:.1} in the \
         worst, {more:.2} and {more_worst:.1} with one VM more than observed, and in the range of eight of ten \
         simulations in {} and {}; the number of extensions by {number:.2} and {number_worst:.1}, in the range in {}; \
         their time by {cost:.2} and {cost_worst:.1}. eCS avoided {:.0} % and more in {as_said}.",
        rows.len(),
        inside(|row| &row.stall),
        inside(|row| &row.stall_of_more),
        inside(|row| &row.extensions),
        AVOIDED.0 * 100.0,
    )
}

/// What stands under every advice.
pub(super) fn sentence() -> anyhow::Result<String> {
    let found = serde_json::from_str(STATED).context("docs/advice.json is no validation")?;
    Ok(format!(
        "Error: {}\nHow it was measured: docs/simulation.md.",
        summary(&found)
    ))
}

/// JSON with a line for each scenario.
pub(super) fn compact(found: &Validation) -> anyhow::Result<String> {
    let mut head = found.clone();
    let scenarios = std::mem::take(&mut head.scenarios);
    let head = serde_json::to_string_pretty(&head)?;
    let Some(head) = head.strip_suffix("[]\n}") else {
        bail!("The result cannot be written: its scenarios are not its last field");
    };
    let lines: Result<Vec<_>, _> = scenarios.iter().map(serde_json::to_string).collect();
    Ok(format!("{head}[\n{}\n  ]\n}}\n", lines?.join(",\n")))
}

/// The page with the tables in their place.
pub(super) fn fill(page: &str, found: &Validation) -> anyhow::Result<String> {
    if !page.contains(BEGIN) {
        bail!("The page has no {BEGIN:?}");
    }
    markdown::fill(page, BEGIN, |_| Ok(table(found)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../../docs/simulation.md");

    fn stated() -> Validation {
        serde_json::from_str(STATED).unwrap()
    }

    #[test]
    fn the_page_says_what_the_validation_found() {
        let filled = fill(PAGE, &stated()).unwrap();
        assert!(
            filled == PAGE,
            "docs/simulation.md is not of docs/advice.json: vmm-ecs advise --from docs/advice.json \
             --docs docs/simulation.md"
        );
    }

    #[test]
    fn what_is_written_can_be_read() {
        assert_eq!(compact(&stated()).unwrap(), STATED);
    }

    #[test]
    fn the_stated_error_is_of_the_whole_validation_set() {
        let names: Vec<String> = stated()
            .scenarios
            .into_iter()
            .map(|row| row.scenario)
            .collect();
        assert_eq!(names, super::super::validate::set());
    }

    #[test]
    fn a_factor_is_as_far_off_either_way() {
        let pair = |real: f64, forecast: f64| Pair {
            real: vec![real],
            forecast: vec![forecast],
            range: None,
        };
        assert!((pair(99.0, 199.0).factor() - 2.0).abs() < 1e-9);
        assert!((pair(0.1, 0.0).factor() - 1.0 / 1.1).abs() < 1e-9);
        let (median, worst) = off([2.0, 0.25, 1.0].into_iter());
        assert!((median - 2.0).abs() < 1e-9 && (worst - 4.0).abs() < 1e-9);
    }

    #[test]
    fn avoided_is_of_what_there_was_to_avoid() {
        let mut row = stated().scenarios.remove(0);
        (row.critical, row.ecs_critical) = (vec![100.0], vec![5.0]);
        assert!((row.avoided().unwrap() - 0.95).abs() < 1e-9);
        row.critical = vec![0.2];
        assert_eq!(row.avoided(), None);
    }
}
