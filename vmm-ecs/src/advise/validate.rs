//! Advice beside what it is about: VMs are observed, advice is taken from two scrapes of the exporter, and
//! then what it forecast is run for real.
//!
//! The real runs are the demo's: the daemon in observe mode, KVM micro-VMs, the exporter. Each observed run
//! gives advice of its own, as an operator's would. Nothing of the advice was chosen by these runs
//! (docs/simulation.md says by which).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail};
use ecs_sim::{EXAMPLES, Point};

use super::fit::{Atlas, Figures, Forecast, Host, Range, forecast};
use super::seen::Seen;
use super::stated::{Checked, Pair, Validation};
use super::{AdviseArgs, HANDBACK_US};
use crate::demo::{self, Arm, Bench, DemoOptions, Machine, RunReport};
use crate::simulate;

/// What the scenarios that the error is stated from are named after.
const FOLDER: &str = "validation/";

/// These scenarios.
pub(super) fn set() -> Vec<String> {
    let names = EXAMPLES.iter().map(|(name, _)| (*name).to_owned());
    names.filter(|name| name.starts_with(FOLDER)).collect()
}

/// Runs every scenario for real, and takes advice of it.
///
/// # Errors
/// A scenario has no real run, or a run failed.
pub(super) fn run(args: &AdviseArgs) -> anyhow::Result<Validation> {
    let names = if args.scenarios.is_empty() {
        set()
    } else {
        args.scenarios.clone()
    };
    let mut found = Validation {
        date: demo::today(),
        machine: Machine::read(),
        vcpus_are: String::new(),
        runs: args.runs,
        seconds: args.run_seconds,
        scenarios: Vec::new(),
    };
    let mut last: Option<Bench> = None;
    for name in &names {
        for point in simulate::read(name)? {
            let mut options = DemoOptions::of_file(&point.scenario, Vec::new())
                .with_context(|| format!("{name} has no real run"))?;
            options.scenario.seconds = args.run_seconds;
            options.scenario.runs = args.runs;
            // The same work in the same time throughout.
            let bench = match &last {
                Some(bench) => bench.another(&options)?,
                None => Bench::new(&options)?,
            };
            let real = Real::measure(&bench, &options, name)?;
            found.vcpus_are.clone_from(&real.vcpus_are);
            found.scenarios.push(real.check(name, &point)?.rounded());
            last = Some(bench);
        }
    }
    Ok(found)
}

/// The real runs of a scenario.
#[derive(Default)]
struct Real {
    vcpus_are: String,
    /// What an operator has of each: what its scrapes said, and seconds between them.
    observed: Vec<(Seen, f64)>,
    more: Vec<RunReport>,
    ecs: Vec<RunReport>,
}

impl Real {
    fn measure(bench: &Bench, options: &DemoOptions, name: &str) -> anyhow::Result<Self> {
        let exporter = bench.start_exporter()?;
        let more = demo::Scenario {
            vms: options.scenario.vms + 1,
            ..options.scenario.clone()
        };
        let mut real = Self::default();
        for nr in 1..=options.scenario.runs {
            let scrape = || get(&exporter.address);
            let (run, [before, after]) = bench.observe(&options.scenario, &scrape)?;
            let seen = Seen::between(&before, &after, run.seconds)?;
            eprintln!(
                "{name} {nr}: stalled {:.1} ms in a second of CPU time",
                seen.stall_ms()
            );
            real.vcpus_are.clone_from(&run.vcpus_are);
            real.observed.push((seen, run.seconds));
            real.more.push(bench.run(Arm::Stock, &more)?);
            real.ecs.push(bench.run(Arm::Ecs, &options.scenario)?);
        }
        Ok(real)
    }

    fn check(&self, name: &str, point: &Point) -> anyhow::Result<Checked> {
        let Some(first) = point.scenario.vms.first() else {
            bail!("{name} has no VM");
        };
        let section_us = first.workload.in_us;
        let mut atlas: Option<Atlas> = None;
        let mut now = Vec::new();
        let mut more = Vec::new();
        for (seen, seconds) in &self.observed {
            if seen.critical == 0.0 {
                now.push(Forecast::default());
                more.push(Forecast::default());
                continue;
            }
            let host = Host::of(seen, *seconds, section_us);
            let known = atlas.take().filter(|atlas| *atlas.host() == host);
            let this = atlas.insert(match known {
                Some(atlas) => atlas,
                None => Atlas::of(host)?,
            });
            let guesses = this.closest(&Figures::of(seen));
            now.push(forecast(&host, &guesses)?);
            more.push(forecast(&host.with(host.vms + 1), &guesses)?);
        }
        let cpu_s = |run: &RunReport| run.vms.iter().map(|vm| vm.cpu_s).sum::<f64>();
        let of = |runs: &[RunReport], count: fn(&RunReport) -> f64| -> Vec<f64> {
            runs.iter().map(|run| count(run) / cpu_s(run)).collect()
        };
        let stall = |run: &RunReport| run.counters.critical_stall_us as f64 / 1e3;
        let had = self
            .observed
            .iter()
            .map(|(seen, seconds)| seen.cpu_s / seconds / seen.cpus);
        let observed = |figure: fn(&Seen) -> f64| -> Vec<f64> {
            let seen = self.observed.iter().map(|(seen, _)| seen);
            seen.map(figure).collect()
        };
        Ok(Checked {
            scenario: name.to_owned(),
            had: demo::median(&had.collect::<Vec<_>>()),
            stall: pair(observed(Seen::stall_ms), &now, |one| one.stock_stall_ms),
            stall_of_more: pair(of(&self.more, stall), &more, |one| one.stock_stall_ms),
            ecs_stall: pair(of(&self.ecs, stall), &now, |one| one.ecs_stall_ms),
            critical: observed(|seen| seen.critical / seen.cpu_s),
            ecs_critical: of(&self.ecs, |run| run.counters.critical_preemptions as f64),
            extensions: pair(
                of(&self.ecs, |run| run.counters.grants as f64),
                &now,
                |one| one.extensions,
            ),
            extension: Pair {
                real: of(&self.ecs, |run| run.counters.extension_us as f64 / 1e3),
                forecast: now
                    .iter()
                    .map(|one| one.extension_ms(section_us, HANDBACK_US))
                    .collect(),
                range: None,
            },
        })
    }
}

fn pair(real: Vec<f64>, forecasts: &[Forecast], of: fn(&Forecast) -> Range) -> Pair {
    let ranges = || forecasts.iter().map(of);
    let low = ranges().map(|range| range.low).fold(f64::MAX, f64::min);
    let high = ranges().map(|range| range.high).fold(0.0, f64::max);
    Pair {
        real,
        forecast: ranges().map(|range| range.median).collect(),
        range: (low <= high).then_some((low, high)),
    }
}

/// Body of the answer to a plain GET of the exporter.
fn get(address: &str) -> anyhow::Result<String> {
    let (host, path) = address
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
        .with_context(|| format!("{address} is no address of an exporter"))?;
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("The exporter answers {:?}", head.lines().next());
    }
    Ok(body.to_owned())
}
