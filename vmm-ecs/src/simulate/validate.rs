//! The same scenario, simulated and run for real: how far apart they are.
//!
//! A scenario can be run for real when all its VMs are alike but for weight, annotation and behaviour,
//! and this machine has its CPUs. What else the machine does has no model: "CPUs had" is the part of the
//! CPUs' time that the VMs had, and says how much of a difference that is. The real run is the demo's: the daemon, real VMs, real sockets.

use std::process::ExitCode;

use anyhow::Context;
use ecs_sim::{Point, Report, VmSection};

use super::outcomes::Outcomes;
use super::{Arms, Simulated, read};
use crate::demo::{self, Arm, Bench, DemoOptions, RunReport};

/// Difference between a simulated and a measured throughput ratio that the project allows itself.
const ALLOWED_PERCENT: f64 = 10.0;

/// Runs simulated for each real series.
const SEEDS: u32 = 101;

/// Real runs of an arm. The host deals vCPUs to CPUs by chance, and some scenarios have several outcomes by
/// that: fewer runs could all be of one.
const RUNS: usize = 15;

/// Real runs from which on an outcome counts; of one run alone nobody knows the spread.
const LEAST_RUNS: usize = 2;

/// Runs scenarios both ways, and prints every figure of both.
pub(super) fn run(files: &[String], seed: Option<u64>) -> anyhow::Result<ExitCode> {
    let (mut within, mut within_beside) = (0, 0);
    let (mut total, mut outcomes_within, mut outcomes_total) = (0, 0, 0);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!(
        "Load of this machine before (1, 5, 15 minutes): {}",
        load.trim()
    );
    println!(
        "{:<30}{:<24}{:>14}{:>14}{:>14}{:>14}",
        "scenario", "figure", "measured", "lowest", "highest", "simulated"
    );
    for file in files {
        for point in read(file)? {
            let arms = vec![Arm::Stock, Arm::Ecs];
            let mut options = DemoOptions::of_file(&point.scenario, arms)
                .with_context(|| format!("{file} has no real run"))?;
            options.scenario.runs = RUNS;
            let mut many = point.clone();
            many.scenario.runs = SEEDS;
            let simulated = Simulated::of(file, &many, Arms::Both.list(), seed)?;
            let bench = Bench::new(&options)?;
            let measured = demo::compare(&bench, &options, &|text| eprintln!("{text}"))?;
            let print = |figure: &str, real: f64, range: Option<(f64, f64)>, found: f64| {
                let range = range.map_or_else(String::new, |(low, high)| {
                    format!("{low:>14.3}{high:>14.3}")
                });
                let off = (found / real - 1.0) * 100.0;
                println!(
                    "{file:<30}{figure:<24.24}{real:>14.3}{range:>28}{found:>14.3}  {off:+.1} %"
                );
            };
            let (mut per_cpu_s, mut with_neighbours) = (Vec::new(), Vec::new());
            for arm in &measured.arms {
                let Some(found) = same(arm.arm).and_then(|same| simulated.arm(same)) else {
                    continue;
                };
                let name = arm.arm.title();
                let (low, high) = arm.ops_per_s_range;
                print(
                    &format!("ops/s, {name}"),
                    arm.ops_per_s,
                    Some((low, high)),
                    found.ops_per_s,
                );
                let nr_cpus = bench.nr_pcpus() as f64;
                let share = |run: &RunReport| {
                    let cpu_s: f64 = run.vms.iter().map(|vm| vm.cpu_s).sum();
                    cpu_s / run.seconds / nr_cpus
                };
                let shares: Vec<f64> = arm.runs.iter().map(share).collect();
                let had = demo::median(&shares);
                let range = shares.iter().fold((f64::MAX, 0f64), |(low, high), &share| {
                    (low.min(share), high.max(share))
                });
                let of_all = |run: &Report| {
                    let all_ns = run.cpu_ns + run.host_ns + run.idle_ns;
                    run.cpu_ns as f64 / all_ns as f64
                };
                let would_have = found.median(of_all);
                print(&format!("CPUs had, {name}"), had, Some(range), would_have);
                with_neighbours.push((found.ops_per_s / would_have, had));
                per_cpu_s.push((arm.ops_per_s / had, found.ops_per_s / would_have));
            }
            if let [(stock, stock_found), (ecs, ecs_found)] = per_cpu_s[..] {
                let (real, found) = (ecs / stock, ecs_found / stock_found);
                print("ratio per CPU second", real, None, found);
            }
            if let [(_, stock_had), (ecs_found, ecs_had)] = with_neighbours[..]
                && let Some(real) = measured.throughput_ratio
            {
                let stock_found = stock_beside(&point, stock_had, seed)?;
                let found = ecs_found * ecs_had / stock_found;
                print("ratio, with neighbours", real, None, found);
                within_beside += u32::from(is_within(found, real));
            }
            if let (Some(found), Some(real)) =
                (simulated.throughput_ratio, measured.throughput_ratio)
            {
                total += 1;
                within += u32::from(is_within(found, real));
                print("throughput ratio", real, None, found);
            }
            for outcome in by_outcome(&measured, &simulated) {
                let (real, found) = (outcome.ratio, outcome.simulated_ratio);
                let counts = outcome.runs >= LEAST_RUNS;
                print(
                    &format!(
                        "ratio of {}/{}{}",
                        outcome.runs,
                        RUNS,
                        if counts { "" } else { " (too few)" }
                    ),
                    real,
                    None,
                    found,
                );
                println!(
                    "{file:<30}  such runs: {:.0} % simulated",
                    100.0 * outcome.simulated_part
                );
                if counts {
                    outcomes_total += 1;
                    outcomes_within += u32::from(is_within(found, real));
                }
            }
        }
    }
    println!(
        "{outcomes_within} of {outcomes_total} outcomes' throughput ratios within {ALLOWED_PERCENT} %"
    );
    println!(
        "Of medians over all outcomes: {within} of {total} throughput ratios within {ALLOWED_PERCENT} %, \
         {within_beside} with the neighbours of the real run in the simulation"
    );
    Ok(if outcomes_within == outcomes_total {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Whether a simulated ratio is as near to the measured one as it has to be.
fn is_within(found: f64, real: f64) -> bool {
    (found / real - 1.0).abs() * 100.0 <= ALLOWED_PERCENT
}

/// One outcome of the stock scheduler, and what eCS makes of it.
struct OfOutcome {
    /// Real runs that had it.
    runs: usize,
    /// Throughput ratio, of medians.
    ratio: f64,
    simulated_ratio: f64,
    /// Part of the simulated runs that have it.
    simulated_part: f64,
}

/// The outcomes that real runs of the stock scheduler had. eCS has one: it deals vCPUs out itself.
fn by_outcome(measured: &demo::Report, simulated: &Simulated) -> Vec<OfOutcome> {
    let real = |arm: Arm| {
        let found = measured.arms.iter().find(|found| found.arm == arm);
        found.map(|found| {
            found
                .runs
                .iter()
                .map(RunReport::ops_per_s)
                .collect::<Vec<_>>()
        })
    };
    let (Some(stock), Some(ecs)) = (real(Arm::Stock), real(Arm::Ecs)) else {
        return Vec::new();
    };
    let (Some(stock_found), Some(ecs_found)) = (
        simulated.arm(ecs_sim::Arm::Stock),
        simulated.arm(ecs_sim::Arm::Ecs),
    ) else {
        return Vec::new();
    };
    let found: Vec<f64> = stock_found.runs.iter().map(|run| run.ops_per_s).collect();
    let outcomes = Outcomes::of(&found);
    let split = outcomes.split(&stock);
    let had = split
        .iter()
        .enumerate()
        .filter(|(_, runs)| !runs.is_empty());
    had.filter_map(|(index, runs)| {
        let (predicted, part) = outcomes.predicted(index)?;
        Some(OfOutcome {
            runs: runs.len(),
            ratio: demo::median(&ecs) / demo::median(runs),
            simulated_ratio: ecs_found.ops_per_s / predicted,
            simulated_part: part,
        })
    })
    .collect()
}

/// Operations a second of the stock arm beside threads that want every CPU all the time, one a CPU, of a
/// weight that leaves the VMs the part `had` of the CPUs. eCS' own windows for such threads stop all
/// VMs alike: it loses what they take.
fn stock_beside(point: &Point, had: f64, seed: Option<u64>) -> anyhow::Result<f64> {
    let mut point = point.clone();
    let scenario = &mut point.scenario;
    let own: f64 = scenario
        .vms
        .iter()
        .map(|vm| (vm.count * vm.vcpus) as f64 * f64::from(vm.weight))
        .sum();
    let nr_own = scenario.vms.iter().map(|vm| vm.count).sum::<usize>();
    let nr_cpus = scenario.nr_cpus();
    let weight = own / nr_cpus as f64 * (1.0 - had).max(0.0) / had;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let weight = (weight.round() as u32).clamp(1, 10_000);
    let text = format!(
        "count = 1\nvcpus = 1\nweight = {weight}\nenlightened = false\n\
         workload = {{ kind = \"compute\", in_us = 0, out_us = 50 }}\n"
    );
    for cpu in 0..nr_cpus {
        let mut neighbour: VmSection = toml::from_str(&text)?;
        neighbour.pcpus = Some(cpu.to_string());
        scenario.vms.push(neighbour);
    }
    let simulated = Simulated::of("", &point, Arms::Stock.list(), seed)?;
    let of_own = |run: &Report| run.vms.iter().take(nr_own).map(|vm| vm.ops_per_s).sum();
    Ok(simulated
        .arm(ecs_sim::Arm::Stock)
        .map_or(0.0, |arm| arm.median(of_own)))
}

fn same(arm: Arm) -> Option<ecs_sim::Arm> {
    match arm {
        Arm::Stock => Some(ecs_sim::Arm::Stock),
        Arm::Rotate => Some(ecs_sim::Arm::Rotate),
        Arm::HolderOnly => Some(ecs_sim::Arm::HolderOnly),
        Arm::Ecs => Some(ecs_sim::Arm::Ecs),
        // Simulated waiters halt or spin by the arm.
        Arm::Poll | Arm::Hints | Arm::Halt => None,
        // Nor are these simulated.
        Arm::LongSlice | Arm::Batch | Arm::RoundRobin => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::Scenario;
    use ecs_sim::EXAMPLES;

    #[test]
    fn the_validation_set_has_real_runs() {
        for (name, _) in EXAMPLES
            .iter()
            .filter(|(name, _)| name.starts_with("validation/"))
        {
            for point in read(name).unwrap() {
                let real = Scenario::try_from(&point.scenario).unwrap();
                assert_eq!(real.vms, point.scenario.vms[0].count, "{name}");
                let workload: Result<ecs_microvm::WorkloadKind, _> = real.workload.parse();
                assert!(workload.is_ok(), "{name}");
            }
        }
    }

    #[test]
    fn what_the_demo_cannot_do_is_refused() {
        let point = &read("budget").unwrap()[0];
        assert!(
            Scenario::try_from(&point.scenario).is_ok(),
            "a VM that pins its counts is one the demo has"
        );
        let many = &read("paper-80-cores").unwrap()[0];
        let error = Scenario::try_from(&many.scenario).unwrap_err();
        assert!(error.to_string().contains("one lock"));
    }
}
