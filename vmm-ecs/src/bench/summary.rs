//! What the tables come to, in sentences.

use super::cell::{Cell, Found, confidence};
use super::paper;
use super::tables::label;
use crate::demo::Arm;

/// Efficiency below which a scenario must be explained.
const NEAR_THE_LIMIT: f64 = 0.95;

/// On what, when, and how sure.
pub(super) fn machine(found: &Found) -> String {
    let machine = &found.machine;
    let runs = |of: fn(usize, usize) -> usize| {
        let cells = found.cells();
        cells.map(|cell| cell.scenario.runs).reduce(of).unwrap_or(0)
    };
    let (fewest, most) = (runs(usize::min), runs(usize::max));
    let range = |fewest: String, most: String| {
        if fewest == most {
            most
        } else {
            format!("{fewest} to {most}")
        }
    };
    let sure = |runs| format!("{:.0}", confidence(runs) * 100.0);
    format!(
        "Measured on {}: {} (CPUs {}), kernel {}, load average when it began {}; vCPUs: {}. {} runs of each arm, arms \
         interleaved; the true median lies between the lowest and the highest run with a probability of {} %.\n",
        found.date,
        machine.cpu,
        machine.online_cpus,
        machine.kernel,
        machine.load_average,
        found.vcpus_are,
        range(fewest.to_string(), most.to_string()),
        range(sure(fewest), sure(most)),
    )
}

/// How many scenarios reach the limit, and which do not.
pub(super) fn limit(found: &Found) -> String {
    let known: Vec<(&Cell, f64)> = found
        .cells()
        .filter_map(|cell| Some((cell, cell.efficiency(Arm::Ecs)?)))
        .collect();
    let below: Vec<&(&Cell, f64)> = known
        .iter()
        .filter(|(_, of)| *of < NEAR_THE_LIMIT)
        .collect();
    let ratios = paper::over_committed(found);
    let mut text = format!(
        "{} of {} scenarios reach {NEAR_THE_LIMIT} of what one VM alone does. Of {} over-committed ones with locks, eCS \
         gains 1.2 times or more in {}.\n",
        known.len() - below.len(),
        known.len(),
        ratios.len(),
        ratios.iter().filter(|ratio| **ratio >= 1.2).count(),
    );
    if !below.is_empty() {
        text += "Below the limit:\n\n";
        for (cell, efficiency) in below {
            text += &format!("- {}: {efficiency:.3}\n", label(&cell.scenario));
        }
    }
    text
}
