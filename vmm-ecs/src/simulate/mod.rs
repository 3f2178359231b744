//! `vmm-ecs simulate`: scenario files into `ecs-sim`, and what came of them out.

mod outcomes;
mod table;
mod validate;

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::ValueEnum;
use ecs_sim::{Arm, EXAMPLES, Fleet, Point, Report, points};
use serde::Serialize;

use crate::demo::median;

/// Options of `vmm-ecs simulate`.
#[derive(Debug, clap::Args)]
pub(crate) struct SimulateArgs {
    /// Scenario files (TOML), or names of those that come with the program.
    #[arg(required_unless_present = "list")]
    scenarios: Vec<String>,
    /// What to simulate.
    #[arg(long, value_enum, default_value_t = Arms::Both)]
    arm: Arms,
    /// Print every run as JSON.
    #[arg(long)]
    json: bool,
    /// Seed of the first run, in place of the file's.
    #[arg(long)]
    seed: Option<u64>,
    /// Also run each scenario for real, as the demo does, and say how far the simulation is off.
    #[arg(long)]
    validate: bool,
    /// Write the metrics of a fleet scenario here, for promtool tsdb create-blocks-from openmetrics.
    #[arg(long)]
    openmetrics: Option<PathBuf>,
    /// Print the scenarios that come with the program, or the text of those named.
    #[arg(long)]
    list: bool,
}

/// Arms to simulate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Arms {
    /// The host's own scheduler.
    Stock,
    /// The controller without extensions and queue rules.
    Rotate,
    /// The controller with extensions, without queue rules.
    HolderOnly,
    /// All of eCS.
    Ecs,
    /// `stock` and `ecs`.
    Both,
    /// All four.
    All,
}

impl Arms {
    fn list(self) -> &'static [Arm] {
        match self {
            Self::Stock => &[Arm::Stock],
            Self::Rotate => &[Arm::Rotate],
            Self::HolderOnly => &[Arm::HolderOnly],
            Self::Ecs => &[Arm::Ecs],
            Self::Both => &[Arm::Stock, Arm::Ecs],
            Self::All => &[Arm::Stock, Arm::Rotate, Arm::HolderOnly, Arm::Ecs],
        }
    }
}

/// What one scenario gave.
#[derive(Debug, Serialize)]
pub(crate) struct Simulated {
    /// Its file, or name.
    file: String,
    /// What differs from the other points of a sweep.
    at: Vec<(String, String)>,
    /// eCS against stock: operations a second of all VMs, ratio of medians.
    throughput_ratio: Option<f64>,
    /// Every arm.
    arms: Vec<SimulatedArm>,
}

/// Every run of one arm.
#[derive(Debug, Serialize)]
pub(crate) struct SimulatedArm {
    arm: Arm,
    /// Operations a second of all VMs, median of the runs.
    ops_per_s: f64,
    runs: Vec<Report>,
}

impl SimulatedArm {
    fn median(&self, figure: impl Fn(&Report) -> f64) -> f64 {
        median(&self.runs.iter().map(figure).collect::<Vec<_>>())
    }
}

impl Simulated {
    fn of(file: &str, point: &Point, arms: &[Arm], seed: Option<u64>) -> anyhow::Result<Self> {
        let scenario = &point.scenario;
        let first = seed.unwrap_or(scenario.seed);
        let mut found = Vec::new();
        for &arm in arms {
            let seeds = (0..u64::from(scenario.runs)).map(|run| first.wrapping_add(run));
            let runs = seeds
                .map(|seed| ecs_sim::run(scenario, arm, seed))
                .collect::<Result<Vec<_>, _>>()?;
            let ops: Vec<f64> = runs.iter().map(|run| run.ops_per_s).collect();
            found.push(SimulatedArm {
                arm,
                ops_per_s: median(&ops),
                runs,
            });
        }
        let mut simulated = Self {
            file: file.to_owned(),
            at: point.at.clone(),
            throughput_ratio: None,
            arms: found,
        };
        if let (Some(ecs), Some(stock)) = (simulated.arm(Arm::Ecs), simulated.arm(Arm::Stock))
            && stock.ops_per_s > 0.0
        {
            simulated.throughput_ratio = Some(ecs.ops_per_s / stock.ops_per_s);
        }
        Ok(simulated)
    }

    fn arm(&self, arm: Arm) -> Option<&SimulatedArm> {
        self.arms.iter().find(|found| found.arm == arm)
    }
}

/// Runs `vmm-ecs simulate`.
pub(crate) fn run(args: &SimulateArgs) -> anyhow::Result<ExitCode> {
    if args.list {
        return list(&args.scenarios);
    }
    if args.validate {
        return validate::run(&args.scenarios, args.seed);
    }
    if let Some(path) = &args.openmetrics {
        return write_fleet(&args.scenarios, args.seed, path);
    }
    let mut all = Vec::new();
    for file in &args.scenarios {
        let points = read(file)?;
        // Each line when it is known: a sweep takes its time.
        let table = (!args.json).then(|| table::Table::begin(&points));
        for point in &points {
            let simulated = Simulated::of(file, point, args.arm.list(), args.seed)?;
            if let Some(table) = &table {
                table.print(&simulated);
            }
            all.push(simulated);
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    }
    Ok(ExitCode::SUCCESS)
}

/// The text of a scenario: of a file, or of one that comes with the program.
fn text_of(file: &str) -> anyhow::Result<String> {
    if let Some((_, text)) = EXAMPLES.iter().find(|(name, _)| *name == file) {
        return Ok((*text).to_owned());
    }
    if !Path::new(file).exists() {
        bail!("There is no file {file}, and no scenario of this name: see vmm-ecs simulate --list");
    }
    std::fs::read_to_string(file).with_context(|| format!("Cannot read {file}"))
}

pub(crate) fn read(file: &str) -> anyhow::Result<Vec<Point>> {
    let text = text_of(file)?;
    if Fleet::is_named_in(&text) {
        bail!("{file} is a fleet: say with --openmetrics where its metrics go");
    }
    points(&text).with_context(|| format!("In {file}"))
}

fn write_fleet(files: &[String], seed: Option<u64>, path: &Path) -> anyhow::Result<ExitCode> {
    let [file] = files else {
        bail!("--openmetrics takes one fleet scenario");
    };
    let mut fleet: Fleet = text_of(file)?
        .parse()
        .with_context(|| format!("{file} is no fleet scenario"))?;
    fleet.seed = seed.unwrap_or(fleet.seed);
    let context = || format!("Cannot write {}", path.display());
    let mut out = BufWriter::new(std::fs::File::create(path).with_context(context)?);
    fleet.write_openmetrics(&mut out)?;
    out.flush().with_context(context)?;
    Ok(ExitCode::SUCCESS)
}

fn list(names: &[String]) -> anyhow::Result<ExitCode> {
    for name in names {
        print!("{}", text_of(name)?);
    }
    if names.is_empty() {
        for (name, text) in EXAMPLES {
            let title = text.lines().next().unwrap_or_default();
            let title = title.trim_start_matches("name = ").trim_start_matches("# ");
            println!("{name:<30} {}", title.trim_matches('"'));
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_that_comes_with_the_program_can_be_read() {
        for (name, text) in EXAMPLES {
            if Fleet::is_named_in(text) {
                assert!(text.parse::<Fleet>().is_ok(), "{name}");
                continue;
            }
            let points = read(name).unwrap();
            assert!(!points.is_empty(), "{name}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = text_of("nowhere").unwrap_err().to_string();
        assert!(
            error.contains("nowhere") && error.contains("--list"),
            "{error}"
        );
    }

    #[test]
    fn the_ratio_is_of_the_medians_of_all_runs() {
        let point = &read("validation/ticket-2x4").unwrap()[0];
        let found = Simulated::of("x", point, Arms::Both.list(), Some(3)).unwrap();
        assert_eq!(found.arms[0].runs.len(), 5);
        assert_eq!(found.arms[1].runs[4].seed, 7);
        let ratio = found.throughput_ratio.unwrap();
        assert!((ratio - found.arms[1].ops_per_s / found.arms[0].ops_per_s).abs() < 1e-9);
        assert!(ratio > 100.0, "{ratio}");
    }
}
