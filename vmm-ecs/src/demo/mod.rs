//! `vmm-ecs demo`: two or more over-committed VMs, with and without eCS, in one run.
//!
//! Every arm is measured the same way: a daemon of its own (observing, steering without
//! extensions, or steering with all of eCS), real VMs that connect to it over its sockets, the
//! same work. Arms are interleaved, run by run, so that whatever else the machine does hits all.

mod arm;
mod digits;
mod figures;
pub(crate) mod html;
mod measure;
mod process;
mod scenario;
mod table;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

pub(crate) use arm::Arm;
pub(crate) use figures::{HandoffUs, RunCounters, RunReport, VmRun};
pub(crate) use measure::Bench;
pub(crate) use scenario::Scenario;

use crate::config::{ControllerChoice, PolicySection};

/// What a whole demo found; `--json` writes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    /// The machine.
    pub(crate) machine: Machine,
    /// What was run.
    pub(crate) scenario: Scenario,
    /// How the vCPUs were run, and why so.
    pub(crate) vcpus_are: String,
    /// One VM alone, stock scheduler: lock operations a second, median.
    pub(crate) alone_ops_per_s: Option<f64>,
    /// The arms, in order.
    pub(crate) arms: Vec<ArmReport>,
    /// eCS against stock: lock operations a second of all VMs, ratio of medians.
    pub(crate) throughput_ratio: Option<f64>,
    /// eCS against the same controller without extensions.
    pub(crate) extension_ratio: Option<f64>,
    /// eCS against what one VM alone reaches, shared among all.
    pub(crate) efficiency: Option<f64>,
    /// Extensions that ended because the section ended, over all slice ends inside a section.
    pub(crate) avoided_ratio: Option<f64>,
    /// Largest deviation of a VM's share of CPU time from its entitlement, percent, eCS arm, median
    /// of the runs.
    pub(crate) share_deviation_percent: Option<f64>,
}

/// One arm.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ArmReport {
    /// Which.
    pub(crate) arm: Arm,
    /// Lock operations a second of all VMs, median of the runs.
    pub(crate) ops_per_s: f64,
    /// Lowest and highest run.
    pub(crate) ops_per_s_range: (f64, f64),
    /// Every run.
    pub(crate) runs: Vec<RunReport>,
}

impl ArmReport {
    /// Median over the runs; zero without any.
    pub(crate) fn median(&self, figure: fn(&RunReport) -> f64) -> f64 {
        median(&self.runs.iter().map(figure).collect::<Vec<_>>())
    }

    /// Counters of all VMs and runs.
    pub(crate) fn counters(&self) -> RunCounters {
        self.runs.iter().map(|run| run.counters).sum()
    }

    /// Median over the runs that have the figure.
    pub(crate) fn median_if_any(&self, figure: fn(&RunReport) -> Option<f64>) -> Option<f64> {
        let figures: Vec<f64> = self.runs.iter().filter_map(figure).collect();
        (!figures.is_empty()).then(|| median(&figures))
    }
}

/// One arm, if it was run.
pub(crate) fn find(arms: &[ArmReport], arm: Arm) -> Option<&ArmReport> {
    arms.iter().find(|report| report.arm == arm)
}

/// What the figures were measured on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) online_cpus: String,
    pub(crate) kernel: String,
    pub(crate) hz: Option<String>,
    pub(crate) load_average: String,
}

impl Machine {
    pub(crate) fn read() -> Self {
        let first = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = first("/proc/cpuinfo")
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or_else(|| "unknown".to_owned(), |(_, name)| name.to_owned());
        Self {
            cpu,
            online_cpus: first("/sys/devices/system/cpu/online").trim().to_owned(),
            kernel: first("/proc/sys/kernel/osrelease").trim().to_owned(),
            hz: None,
            load_average: first("/proc/loadavg").trim().to_owned(),
        }
    }
}

/// The date, UTC, as `2026-11-27`.
pub(crate) fn today() -> String {
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    now.chars().take_while(|char| *char != 'T').collect()
}

/// What the command line asks for.
#[derive(Debug, Clone)]
pub(crate) struct DemoOptions {
    pub(crate) scenario: Scenario,
    pub(crate) arms: Vec<Arm>,
    /// Which controller steers in the arms that do.
    pub(crate) controller: ControllerChoice,
    /// The policy of those arms, but for what makes the difference between them.
    pub(crate) policy: PolicySection,
    /// Measure one VM alone too, for the efficiency.
    pub(crate) alone: bool,
    pub(crate) pcpus: Option<String>,
    pub(crate) mechanism: String,
    /// A file for the operations on the books.
    pub(crate) record: Option<PathBuf>,
    pub(crate) json: Option<PathBuf>,
    pub(crate) html: Option<PathBuf>,
    pub(crate) keep: bool,
    pub(crate) quiet: bool,
}

impl DemoOptions {
    /// The real run of a scenario file, of `arms`.
    ///
    /// # Errors
    /// What of the scenario has no real run.
    pub(crate) fn of_file(file: &ecs_sim::Scenario, arms: Vec<Arm>) -> anyhow::Result<Self> {
        Ok(Self {
            scenario: Scenario::try_from(file)?,
            arms,
            controller: ControllerChoice::Userspace,
            policy: PolicySection {
                slice_us: file.policy.slice_us,
                extension_us: file.policy.extension_us,
                budget_us: file.policy.budget_us,
                cooldown_max: file.policy.cooldown_max,
                ..PolicySection::default()
            },
            alone: false,
            pcpus: Some(format!("0-{}", file.nr_cpus() - 1)),
            mechanism: "rt".to_owned(),
            record: None,
            json: None,
            html: None,
            keep: false,
            quiet: true,
        })
    }
}

/// The file that is standard output.
const STDOUT: &str = "-";

/// Runs the demo and prints what it found.
pub(crate) fn run(options: &DemoOptions) -> anyhow::Result<()> {
    let json_to_stdout = options.json.as_deref() == Some(Path::new(STDOUT));
    let bench = Bench::new(options)?;
    let exporter = bench.start_exporter();
    let say = |text: &str| {
        if !options.quiet {
            // Progress is not the result: it must not get into piped JSON.
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    };
    match &exporter {
        Ok(exporter) => say(&format!("Live metrics: {}", exporter.address)),
        Err(error) => say(&format!("No live metrics: {error:#}")),
    }
    let report = compare(&bench, options, &say)?;
    let html = write_html(options.html.as_deref(), &html::render(&report))?;
    if let Some(path) = &options.json {
        write_json(path, &report)?;
    }
    let table = table::render(&report);
    if json_to_stdout {
        say(&table);
    } else {
        println!("{table}");
    }
    say(&format!("Report with plots: {}", html.display()));
    if options.keep {
        say("Staying up with eCS on; press Ctrl-C to end.");
        bench.stay_up()?;
    }
    Ok(())
}

/// Writes what `--json` asks for: to a file, or to standard output.
fn write_json(path: &Path, found: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(found)?;
    if path == Path::new(STDOUT) {
        println!("{text}");
        return Ok(());
    }
    write(path, &text)
}

/// Writes a file; an error names it.
pub(crate) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("Cannot write {}", path.display()))
}

/// Writes the report where it was asked for, or to a file of its own that stays.
fn write_html(path: Option<&Path>, text: &str) -> anyhow::Result<PathBuf> {
    match path {
        Some(path) => {
            std::fs::write(path, text)
                .with_context(|| format!("Cannot write the report {}", path.display()))?;
            Ok(path.to_owned())
        }
        None => {
            let mut file = tempfile::Builder::new()
                .prefix("vmm-ecs-demo-")
                .suffix(".html")
                .tempfile()?;
            file.write_all(text.as_bytes())?;
            Ok(file.keep()?.1)
        }
    }
}

/// Runs every arm of a scenario, interleaved.
pub(crate) fn compare(
    bench: &Bench,
    options: &DemoOptions,
    say: &dyn Fn(&str),
) -> anyhow::Result<Report> {
    let scenario = &options.scenario;
    if scenario.vms == 0 || scenario.vcpus == 0 || scenario.runs == 0 {
        bail!("A demo needs at least one VM, one vCPU and one run");
    }
    let machine = Machine::read();
    // More vCPUs than CPUs would slow a VM down by itself.
    let alone = Scenario {
        vms: 1,
        vcpus: scenario.vcpus.min(bench.nr_pcpus()),
        ..scenario.clone()
    };
    let nr_alone = if options.alone {
        scenario.runs.min(3)
    } else {
        0
    };
    let total = scenario.runs * options.arms.len() + nr_alone;
    let mut done = 0;
    let mut progress = |name: &str, run: &RunReport| {
        done += 1;
        say(&format!(
            "[{done:>2}/{total}] {name:<24} {}",
            table::one_line(run)
        ));
    };
    let mut alone_ops = Vec::new();
    let mut runs: Vec<Vec<RunReport>> = vec![Vec::new(); options.arms.len()];
    for index in 0..scenario.runs {
        if index < nr_alone {
            let run = bench.run(Arm::Stock, &alone)?;
            progress("one VM alone", &run);
            alone_ops.push(run.ops_per_s());
        }
        for (arm, runs) in options.arms.iter().zip(&mut runs) {
            let run = bench.run(*arm, scenario)?;
            progress(arm.title(), &run);
            runs.push(run);
        }
    }
    let vcpus_are = runs
        .iter()
        .flatten()
        .next()
        .map(|run| run.vcpus_are.clone())
        .unwrap_or_default();
    let arms: Vec<ArmReport> = options
        .arms
        .iter()
        .zip(runs)
        .map(|(&arm, runs)| {
            let ops: Vec<f64> = runs.iter().map(RunReport::ops_per_s).collect();
            let range = ops.iter().fold((f64::MAX, 0f64), |(low, high), &ops| {
                (low.min(ops), high.max(ops))
            });
            ArmReport {
                arm,
                ops_per_s: median(&ops),
                ops_per_s_range: range,
                runs,
            }
        })
        .collect();
    let ops_of = |arm: Arm| find(&arms, arm).map(|arm| arm.ops_per_s);
    let ecs = find(&arms, Arm::Ecs);
    let alone_ops_per_s = (!alone_ops.is_empty()).then(|| median(&alone_ops));
    Ok(Report {
        throughput_ratio: ratio(ops_of(Arm::Ecs), ops_of(Arm::Stock)),
        extension_ratio: ratio(ops_of(Arm::Ecs), ops_of(Arm::Rotate)),
        efficiency: ratio(ops_of(Arm::Ecs), alone_ops_per_s),
        avoided_ratio: ecs.and_then(|arm| arm.counters().avoided_ratio()),
        share_deviation_percent: ecs
            .and_then(|arm| arm.median_if_any(|run| run.share_deviation_percent)),
        machine,
        scenario: scenario.clone(),
        vcpus_are,
        alone_ops_per_s,
        arms,
    })
}

/// One figure over another; none where one is missing, or nothing to divide by.
pub(crate) fn ratio(over: Option<f64>, under: Option<f64>) -> Option<f64> {
    let under = under.filter(|&under| under > 0.0)?;
    Some(over? / under)
}

/// Median; zero for nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default();
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => at(n / 2),
        n => (at(n / 2 - 1) + at(n / 2)) / 2.0,
    }
}

/// Longest wait for a process of the demo to become ready.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
