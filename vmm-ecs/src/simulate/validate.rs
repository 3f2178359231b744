//! The same scenario, simulated and run for real: how far apart they are.
//!
//! A scenario can be run for real when all its VMs are alike but for weight, annotation and behaviour,
//! and this machine has its CPUs. The real run is the demo's: the daemon, real VMs, real sockets.

use std::process::ExitCode;

use anyhow::{Context, bail};
use ecs_sim::{Guest, Kind, Point};

use super::{Arms, Simulated, read};
use crate::config::{ControllerChoice, PolicySection};
use crate::demo::{self, Arm, Bench, DemoOptions, Scenario};

/// Difference between a simulated and a measured throughput ratio that the project allows itself.
const ALLOWED_PERCENT: f64 = 10.0;

/// Runs scenarios both ways, and prints every figure of both.
pub(super) fn run(files: &[String], seed: Option<u64>) -> anyhow::Result<ExitCode> {
    let mut within = 0;
    let mut total = 0;
    println!(
        "{:<30}{:<20}{:>14}{:>14}{:>14}{:>10}",
        "scenario", "figure", "measured", "lowest", "highest", "simulated"
    );
    for file in files {
        for point in read(file)? {
            let options = options(&point).with_context(|| format!("{file} has no real run"))?;
            let simulated = Simulated::of(file, &point, Arms::Both.list(), seed)?;
            let bench = Bench::new(&options)?;
            let measured = demo::compare(&bench, &options, &|text| eprintln!("{text}"))?;
            for arm in &measured.arms {
                let figure = format!("{} ops/s", arm.arm.title());
                let simulated = simulated
                    .arms
                    .iter()
                    .find(|found| found.arm == same(arm.arm))
                    .map_or(0.0, |found| found.ops_per_s);
                let (low, high) = arm.ops_per_s_range;
                println!(
                    "{file:<30}{figure:<20.20}{:>14.0}{low:>14.0}{high:>14.0}{simulated:>10.0}  {}",
                    arm.ops_per_s,
                    error(simulated, arm.ops_per_s)
                );
            }
            if let (Some(found), Some(real)) =
                (simulated.throughput_ratio, measured.throughput_ratio)
            {
                total += 1;
                within += u32::from((found / real - 1.0).abs() * 100.0 <= ALLOWED_PERCENT);
                println!(
                    "{file:<30}{:<20}{real:>14.3}{:>14}{:>14}{found:>10.3}  {}",
                    "throughput ratio",
                    "",
                    "",
                    error(found, real)
                );
            }
        }
    }
    println!("{within} of {total} throughput ratios within {ALLOWED_PERCENT} %");
    Ok(if within == total {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn error(simulated: f64, measured: f64) -> String {
    format!("{:+.1} %", (simulated / measured - 1.0) * 100.0)
}

fn same(arm: Arm) -> ecs_sim::Arm {
    match arm {
        Arm::Stock => ecs_sim::Arm::Stock,
        Arm::Rotate => ecs_sim::Arm::Rotate,
        Arm::HolderOnly => ecs_sim::Arm::HolderOnly,
        Arm::Ecs => ecs_sim::Arm::Ecs,
    }
}

/// The real run of a scenario.
fn options(point: &Point) -> anyhow::Result<DemoOptions> {
    let scenario = &point.scenario;
    let Some(first) = scenario.vms.first() else {
        bail!("It has no VM");
    };
    let work = &first.workload;
    let (mut weights, mut unhinted, mut pinning) = (Vec::new(), Vec::new(), Vec::new());
    for section in &scenario.vms {
        let other = &section.workload;
        if section.vcpus != first.vcpus
            || (other.kind, other.in_us, other.out_us) != (work.kind, work.in_us, work.out_us)
        {
            bail!("Its VMs are not alike");
        }
        if section.pcpus.is_some() || other.locks != 1 {
            bail!("The demo's VMs use every CPU, and one lock each");
        }
        if other.kind == Kind::RwLock && other.read_pct != 90 {
            bail!("The demo's readers and writers read 90 % of the time");
        }
        for _ in 0..section.count {
            let index = weights.len();
            weights.push(section.weight);
            if !section.enlightened {
                unhinted.push(index);
            }
            if section.guest == Guest::PinCounts {
                pinning.push(index);
            }
        }
    }
    let policy = &scenario.policy;
    Ok(DemoOptions {
        scenario: Scenario {
            vms: weights.len(),
            vcpus: first.vcpus,
            workload: work.kind.name().to_owned(),
            in_us: work.in_us,
            out_us: work.out_us,
            seconds: scenario.duration_ms as f64 / 1e3,
            runs: usize::try_from(scenario.runs)?,
            weights,
            unhinted,
            pinning,
            ..Scenario::default()
        },
        arms: vec![Arm::Stock, Arm::Ecs],
        controller: ControllerChoice::Userspace,
        policy: PolicySection {
            slice_us: policy.slice_us,
            extension_us: policy.extension_us,
            budget_us: policy.budget_us,
            cooldown_max: policy.cooldown_max,
            ..PolicySection::default()
        },
        alone: false,
        pcpus: Some(format!("0-{}", scenario.nr_cpus() - 1)),
        mechanism: "rt".to_owned(),
        record: None,
        json: None,
        html: None,
        keep: false,
        quiet: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ecs_sim::EXAMPLES;

    #[test]
    fn the_validation_set_has_real_runs() {
        for (name, _) in EXAMPLES
            .iter()
            .filter(|(name, _)| name.starts_with("validation/"))
        {
            for point in read(name).unwrap() {
                let options = options(&point).unwrap();
                assert_eq!(options.scenario.vms, point.scenario.vms[0].count, "{name}");
                let workload: Result<ecs_microvm::WorkloadKind, _> =
                    options.scenario.workload.parse();
                assert!(workload.is_ok(), "{name}");
            }
        }
    }

    #[test]
    fn what_the_demo_cannot_do_is_refused() {
        let point = &read("budget").unwrap()[0];
        assert!(
            options(point).is_ok(),
            "a VM that pins its counts is one the demo has"
        );
        let many = &read("paper-80-cores").unwrap()[0];
        assert!(options(many).unwrap_err().to_string().contains("one lock"));
    }
}
