//! `vmm-ecs bench`: scenario files, run for real, every arm in one run.
//!
//! A scenario file of the simulator says with `[bench]` what a real run of it compares and promises. The
//! result is one JSON file, small enough to be kept; the page and the tables of the documentation are
//! made of it.

mod api;
mod cell;
mod docs;
mod file;
mod page;
mod paper;
mod summary;
mod tables;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use ecs_sim::{EXAMPLES, Point};
use serde_json::Value;

use crate::demo::{self, Bench, DemoOptions, Machine};
use crate::simulate;
use cell::{Cell, FileFound, Found};
use file::BenchSection;

/// Folder of the scenarios that a benchmark without names runs.
const FOLDER: &str = "bench/";

/// Options of `vmm-ecs bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Scenario files, or names of those that come with the program; all under `bench/` when absent.
    scenarios: Vec<String>,
    /// Runs of each arm, in place of the files'.
    #[arg(long)]
    runs: Option<usize>,
    /// Length of each run, s, in place of the files'.
    #[arg(long)]
    seconds: Option<f64>,
    /// Write the result here.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the page with plots here.
    #[arg(long)]
    html: Option<PathBuf>,
    /// Fill the tables of this Markdown page.
    #[arg(long)]
    docs: Option<PathBuf>,
    /// Measure nothing: take the result from this file.
    #[arg(long, conflicts_with_all = ["scenarios", "runs", "seconds", "json"])]
    from: Option<PathBuf>,
    /// Only make one of the guest's calls, for a tool that counts instructions.
    #[arg(long, hide = true)]
    call: Option<api::Call>,
    /// How often.
    #[arg(long, hide = true, default_value_t = 1)]
    times: u32,
}

/// Runs `vmm-ecs bench`; fails if a bar is missed.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    if let Some(call) = args.call {
        call.repeat(args.times);
        return Ok(ExitCode::SUCCESS);
    }
    let found = match &args.from {
        Some(path) => read(path)?,
        None => rounded(&measure(args)?)?,
    };
    if let Some(path) = &args.json {
        demo::write(path, &compact(&found)?)?;
    }
    if let Some(path) = &args.html {
        demo::write(path, &page::render(&found))?;
    }
    if let Some(path) = &args.docs {
        let page = std::fs::read_to_string(path)
            .with_context(|| format!("Cannot read {}", path.display()))?;
        let filled = docs::fill(&page, &found).with_context(|| format!("In {}", path.display()))?;
        demo::write(path, &filled)?;
    }
    println!("{}", summary::machine(&found));
    for file in &found.files {
        let table = tables::of_file(file);
        println!("{}\n\n{}", table.title, table.markdown());
    }
    println!(
        "{}\n{}",
        summary::limit(&found),
        tables::bars(&found).markdown()
    );
    let bars: Vec<_> = found.cells().flat_map(|cell| &cell.bars).collect();
    let missed = bars.iter().filter(|bar| !bar.holds).count();
    println!("{} bars, {missed} missed", bars.len());
    Ok(if missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn read(path: &Path) -> anyhow::Result<Found> {
    let context = || format!("Cannot read the result {}", path.display());
    let text = std::fs::read_to_string(path).with_context(context)?;
    serde_json::from_str(&text).with_context(context)
}

/// With every figure to five digits: more of them are noise.
fn rounded(found: &Found) -> anyhow::Result<Found> {
    let mut value = serde_json::to_value(found)?;
    round(&mut value);
    Ok(serde_json::from_value(value)?)
}

fn round(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let short = format!("{:.4e}", number.as_f64().unwrap_or_default());
            *value = short.parse::<f64>().map_or(Value::Null, Value::from);
        }
        Value::Array(values) => values.iter_mut().for_each(round),
        Value::Object(fields) => fields.values_mut().for_each(round),
        _ => {}
    }
}

/// JSON with a line a scenario: small, and its changes can be read.
fn compact(found: &Found) -> anyhow::Result<String> {
    let mut head = found.clone();
    let files = std::mem::take(&mut head.files);
    let head = serde_json::to_string_pretty(&head)?;
    let Some(head) = head.strip_suffix("\"files\": []\n}") else {
        bail!("The result cannot be written: its files are not its last field");
    };
    let mut text = format!("{head}\"files\": [");
    for (nr, file) in files.iter().enumerate() {
        let name = serde_json::to_string(&file.file)?;
        let title = serde_json::to_string(&file.title)?;
        text += if nr == 0 { "\n" } else { ",\n" };
        text += &format!("    {{\"file\": {name}, \"title\": {title}, \"cells\": [\n");
        let cells = file.cells.iter().map(serde_json::to_string);
        text += &cells.collect::<Result<Vec<_>, _>>()?.join(",\n");
        text += "\n    ]}";
    }
    Ok(text + "\n  ]\n}\n")
}

/// A scenario that is about to run.
struct Planned {
    options: DemoOptions,
    section: BenchSection,
}

fn plan(point: &Point, args: &BenchArgs) -> anyhow::Result<Planned> {
    let section = BenchSection::of(&point.scenario)?;
    let mut options = DemoOptions::of_file(&point.scenario, section.arms.clone())?;
    let scenario = &mut options.scenario;
    scenario.kind.clone_from(&section.kind);
    scenario.runs = args.runs.unwrap_or(scenario.runs);
    scenario.seconds = args.seconds.unwrap_or(scenario.seconds);
    options.alone = section.alone;
    Ok(Planned { options, section })
}

fn measure(args: &BenchArgs) -> anyhow::Result<Found> {
    let mut names = args.scenarios.clone();
    if names.is_empty() {
        let all = EXAMPLES.iter().map(|(name, _)| (*name).to_owned());
        names = all.filter(|name| name.starts_with(FOLDER)).collect();
    }
    // All of them before the first runs: a mistake in the last is not found after half an hour.
    let mut files = Vec::new();
    for name in &names {
        let points = simulate::read(name)?;
        let planned = points.iter().map(|point| plan(point, args));
        let planned = planned
            .collect::<anyhow::Result<Vec<_>>>()
            .with_context(|| format!("{name} has no real run"))?;
        let title = points.first().map(|point| point.scenario.name.clone());
        files.push((name, title.unwrap_or_default(), planned));
    }
    let nr_cells: usize = files.iter().map(|(_, _, planned)| planned.len()).sum();
    let mut nr = 0;
    let mut found = Found {
        date: demo::today(),
        machine: Machine::read(),
        vcpus_are: String::new(),
        calls: api::measure(),
        files: Vec::new(),
    };
    let mut bench: Option<Bench> = None;
    for (name, title, planned) in files {
        let mut cells = Vec::new();
        for Planned { options, section } in planned {
            nr += 1;
            eprintln!(
                "[{nr}/{nr_cells}] {name}: {}",
                tables::label(&options.scenario)
            );
            // The same work in the same time throughout.
            let bench = bench.insert(match &bench {
                Some(last) => last.another(&options)?,
                None => Bench::new(&options)?,
            });
            let report = demo::compare(bench, &options, &|_| ())?;
            if found.vcpus_are.is_empty() {
                found.vcpus_are.clone_from(&report.vcpus_are);
            }
            let bars = section.promises.iter();
            let bars = bars.flat_map(|promise| promise.check(&report)).collect();
            cells.push(Cell::new(&report, bars));
        }
        let file = Path::new(name).file_stem().unwrap_or_default();
        found.files.push(FileFound {
            file: file.to_string_lossy().into_owned(),
            title,
            cells,
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::file::{Bar, Promise};
    use super::*;
    use crate::demo::{ArmReport, Report, RunReport};

    const ARGS: BenchArgs = BenchArgs {
        scenarios: Vec::new(),
        runs: None,
        seconds: None,
        json: None,
        html: None,
        docs: None,
        from: None,
        call: None,
        times: 1,
    };

    /// The result and the page that are kept with the code.
    const RESULT: &str = include_str!("../../../docs/evaluation.json");
    const PAGE: &str = include_str!("../../../docs/evaluation.md");

    fn report(arms: &[(demo::Arm, [f64; 3])]) -> Report {
        let arms: Vec<ArmReport> = arms
            .iter()
            .map(|(arm, ops)| ArmReport {
                arm: *arm,
                ops_per_s: demo::median(ops),
                ops_per_s_range: (0.0, 0.0),
                runs: ops
                    .map(|ops_per_s| RunReport {
                        vms: vec![demo::VmRun {
                            ops_per_s,
                            ..demo::VmRun::default()
                        }],
                        ..RunReport::default()
                    })
                    .to_vec(),
            })
            .collect();
        Report {
            machine: Machine::read(),
            scenario: demo::Scenario::default(),
            vcpus_are: "threads".to_owned(),
            alone_ops_per_s: Some(100.0),
            throughput_ratio: None,
            extension_ratio: None,
            efficiency: None,
            avoided_ratio: None,
            share_deviation_percent: Some(0.04),
            arms,
        }
    }

    fn promise(text: &str) -> Promise {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn every_scenario_of_the_benchmark_has_a_real_run() {
        let mut nr_bars = 0;
        for (name, _) in EXAMPLES.iter().filter(|(name, _)| name.starts_with(FOLDER)) {
            for point in simulate::read(name).unwrap() {
                let planned = plan(&point, &ARGS).unwrap();
                nr_bars += planned.section.promises.len();
            }
        }
        assert!(nr_bars >= 20, "{nr_bars}");
    }

    #[test]
    fn what_bench_does_not_know_is_named() {
        let vm = "[[vm]]\nvcpus = 1\nworkload = { kind = \"ticket\", in_us = 5, out_us = 5 }\n";
        for (section, part) in [
            ("arm = []", "unknown field `arm`"),
            ("arms = [\"fast\"]", "unknown variant `fast`"),
            ("bar = [{ figure = \"speed\" }]", "unknown variant `speed`"),
        ] {
            let text = format!("[bench]\n{section}\n{vm}");
            let points = ecs_sim::points(&text).unwrap();
            let error = plan(&points[0], &ARGS).err().unwrap();
            assert!(format!("{error:#}").contains(part), "{error:#}");
        }
    }

    #[test]
    fn a_bar_that_is_not_measured_does_not_hold() {
        let report = report(&[(demo::Arm::Ecs, [1.0, 2.0, 3.0])]);
        let bar = |text| promise(text).check(&report);
        let missing = bar("figure = \"throughput_ratio\"\nat_least = 0");
        assert_eq!((missing[0].measured, missing[0].holds), (None, false));
        let both = bar("figure = \"share_deviation_percent\"\nat_least = 0.01\nat_most = 0.03");
        let holds: Vec<bool> = both.iter().map(|bar: &Bar| bar.holds).collect();
        assert_eq!(holds, [true, false]);
    }

    #[test]
    fn ratios_are_of_runs_that_were_neighbours() {
        let report = report(&[
            (demo::Arm::Stock, [10.0, 20.0, 40.0]),
            (demo::Arm::Ecs, [20.0, 80.0, 40.0]),
        ]);
        let cell = Cell::new(&report, Vec::new());
        let ratio = cell.against(demo::Arm::Ecs, demo::Arm::Stock).unwrap();
        assert_eq!((ratio.lowest, ratio.median, ratio.highest), (1.0, 2.0, 4.0));
        assert_eq!(cell.efficiency(demo::Arm::Ecs), Some(0.4));
        assert!((cell::confidence(5) - 0.9375).abs() < 1e-9);
    }

    #[test]
    fn what_is_written_can_be_read() {
        let found: Found = serde_json::from_str(RESULT).unwrap();
        assert_eq!(compact(&found).unwrap(), RESULT);
        assert!(page::render(&found).ends_with("</html>\n"));
    }

    #[test]
    fn the_page_says_what_the_result_has() {
        let found: Found = serde_json::from_str(RESULT).unwrap();
        let filled = docs::fill(PAGE, &found).unwrap();
        assert!(
            filled == PAGE,
            "docs/evaluation.md is not of docs/evaluation.json: vmm-ecs bench --from \
             docs/evaluation.json --docs docs/evaluation.md"
        );
        assert!(PAGE.contains("<!-- bench: bars -->"));
    }

    #[test]
    fn blocks_that_nothing_can_fill_are_named() {
        let found: Found = serde_json::from_str(RESULT).unwrap();
        for (page, part) in [
            ("<!-- bench: nothing --><!-- end -->", "nothing"),
            ("<!-- bench: bars -->", "no \"<!-- end -->\""),
        ] {
            let error = docs::fill(page, &found).unwrap_err();
            assert!(format!("{error:#}").contains(part), "{error:#}");
        }
    }
}
