//! `vmm-ecs advise`: what eCS would have done on a host that was only observed.
//!
//! Two scrapes of the exporter, in observe mode, say how many preemptions met a section. The part that do
//! is the part of their time that guests spend in sections; with a length of sections that the operator
//! names, this makes a workload; the number of locks is the one whose simulation stalls most like the
//! host; and the simulator says how that stalls at every over-commit.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, bail};
use ecs_sim::{Arm, Scenario};

/// Slice ends in a section that became none: lowest and highest in real runs (docs/evaluation.md and
/// docs/simulation.md).
const AVOIDED: (f64, f64) = (0.986, 1.0);
/// Locks a VM that are tried for the best fit.
const LOCKS: [usize; 3] = [1, 4, 16];
/// Over-commit that is looked at, vCPUs a CPU.
const LEVELS: std::ops::RangeInclusive<usize> = 1..=8;

/// Options of `vmm-ecs advise`.
#[derive(Debug, clap::Args)]
pub(crate) struct AdviseArgs {
    /// Metrics of the exporter, saved at the beginning.
    before: PathBuf,
    /// The same, saved at the end.
    after: PathBuf,
    /// Time between the two, s.
    #[arg(long)]
    seconds: f64,
    /// Longest time that sections may be stalled by preemptions, ms in a second of CPU time.
    #[arg(long, default_value_t = 1.0)]
    stall_budget_ms: f64,
    /// Length of the guests' sections, us: no metric says it.
    #[arg(long, default_value_t = 1.0)]
    section_us: f64,
}

/// What happened between two scrapes, all VMs together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Seen {
    preemptions: f64,
    critical: f64,
    stall_s: f64,
    cpu_s: f64,
    delay_s: f64,
}

/// Prints the advice.
pub(crate) fn run(args: &AdviseArgs) -> anyhow::Result<()> {
    if !(args.seconds > 0.0 && (0.1..=1000.0).contains(&args.section_us)) {
        bail!("--seconds must be above 0, --section-us 0.1 to 1000");
    }
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).with_context(|| format!("Cannot read {}", path.display()))
    };
    let (before, after) = (read(&args.before)?, read(&args.after)?);
    print!("{}", advise(&seen(&parse(&before), &parse(&after))?, args)?);
    Ok(())
}

/// Samples of a Prometheus text, by name with labels.
fn parse(text: &str) -> BTreeMap<&str, f64> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            // Label values may hold spaces.
            let end = line
                .rfind('}')
                .map_or_else(|| line.find(' '), |at| Some(at + 1))?;
            let (series, rest) = line.split_at_checked(end)?;
            Some((series, rest.split_whitespace().next()?.parse().ok()?))
        })
        .collect()
}

fn seen(before: &BTreeMap<&str, f64>, after: &BTreeMap<&str, f64>) -> anyhow::Result<Seen> {
    let grown = |family: &str| {
        let of_family = after
            .iter()
            .filter(|(series, _)| series.split('{').next() == Some(family));
        of_family
            .map(|(series, now)| {
                // A VM that began in between, or began again, began at 0.
                let first = before.get(series).copied().unwrap_or(0.0);
                if first <= *now { now - first } else { *now }
            })
            .sum::<f64>()
    };
    let seen = Seen {
        preemptions: grown("ecs_vm_preemptions_total"),
        critical: grown("ecs_vm_critical_preemptions_total"),
        stall_s: grown("ecs_vm_critical_stall_seconds_total"),
        cpu_s: grown("ecs_vm_cpu_seconds_total"),
        delay_s: grown("ecs_vm_delay_seconds_total"),
    };
    if seen.cpu_s <= 0.0 {
        bail!("No VM had any CPU time between the two scrapes: are they of one host, in order?");
    }
    Ok(seen)
}

fn advise(seen: &Seen, args: &AdviseArgs) -> anyhow::Result<String> {
    let mut out = String::new();
    let per_s = |count: f64| count / args.seconds;
    writeln!(
        out,
        "In {} s VMs had {:.1} s of CPU time and waited {:.1} s for more.\n\
         {:.0} preemptions ({:.1} a second); {:.0} met a section ({:.1} a second), for {:.1} ms.",
        args.seconds,
        seen.cpu_s,
        seen.delay_s,
        seen.preemptions,
        per_s(seen.preemptions),
        seen.critical,
        per_s(seen.critical),
        seen.stall_s * 1e3,
    )?;
    let (least, most) = (seen.critical * AVOIDED.0, seen.critical * AVOIDED.1);
    writeln!(
        out,
        "eCS would have avoided {least:.0} to {most:.0} of these, as it did in real runs. Observing sees \
         only those that last until it looks:\nit is a lower bound."
    )?;
    let part = (seen.critical / seen.preemptions.max(1.0)).min(0.95);
    if seen.critical == 0.0 {
        writeln!(
            out,
            "Without any, over-commit is limited by the wait for a CPU alone."
        )?;
        return Ok(out);
    }
    let (now, locks) = fit(seen, part, args.section_us)?;
    let real_ms = seen.stall_s * 1e3 / seen.cpu_s;
    let found_ms = stalled_ms(Arm::Stock, now, part, args.section_us, locks)?;
    writeln!(
        out,
        "Cost: {:.3} ms of CPU time in extensions if sections take {} us, repaid later.\n\n\
         Simulated: {:.1} % of the time in sections of {} us of {locks} locks, which fits this host best: stalled \
         {real_ms:.1} ms\nin a second of CPU time at about {now} vCPUs a CPU, simulated {found_ms:.1} ms. By over-commit, ms:",
        most * args.section_us / 1e3,
        args.section_us,
        part * 100.0,
        args.section_us
    )?;
    writeln!(out, "{:>12}{:>12}{:>12}", "vCPUs a CPU", "stock", "eCS")?;
    let mut good = [0, 0];
    for level in LEVELS {
        let stalls = [
            stalled_ms(Arm::Stock, level, part, args.section_us, locks)?,
            stalled_ms(Arm::Ecs, level, part, args.section_us, locks)?,
        ];
        for (good, stall) in good.iter_mut().zip(stalls) {
            if stall <= args.stall_budget_ms && *good + 1 == level {
                *good = level;
            }
        }
        let [stock, ecs] = stalls;
        writeln!(out, "{level:>12}{stock:>12.3}{ecs:>12.3}")?;
    }
    writeln!(
        out,
        "Within {} ms: up to {}x with the stock scheduler, {}x with eCS.\n\
         The simulation is within 22 % of real throughput in convoys, 3 % under eCS, and unproven for stalls: \
         docs/simulation.md.",
        args.stall_budget_ms, good[0], good[1]
    )?;
    Ok(out)
}

/// The over-commit of the observed host, and how many locks make its simulation stall most like it.
fn fit(seen: &Seen, part: f64, section_us: f64) -> anyhow::Result<(usize, usize)> {
    let wanted = (seen.cpu_s + seen.delay_s) / seen.cpu_s;
    let level = LEVELS
        .min_by(|a, b| {
            let off = |level: &usize| (*level as f64 - wanted).abs();
            off(a).total_cmp(&off(b))
        })
        .unwrap_or(1);
    let real_ms = seen.stall_s * 1e3 / seen.cpu_s;
    let mut best = (f64::MAX, 1);
    for locks in LOCKS {
        let found_ms = stalled_ms(Arm::Stock, level, part, section_us, locks)?;
        let off = ((found_ms + 0.1) / (real_ms + 0.1)).ln().abs();
        if off < best.0 {
            best = (off, locks);
        }
    }
    Ok((level, best.1))
}

/// Stalled time in a second of CPU time, ms, of VMs of 4 vCPUs on 8 CPUs: what the VMs do to each other,
/// on a host without threads of its own.
fn stalled_ms(
    arm: Arm,
    level: usize,
    part: f64,
    section_us: f64,
    locks: usize,
) -> anyhow::Result<f64> {
    let out_us = section_us * (1.0 - part) / part;
    let scenario: Scenario = format!(
        "duration_ms = 500\n[host]\ncores = 8\n[stock]\nobserver_sleep_us = 0\nwakeups_per_s = 0\n\
         [[vm]]\nvcpus = 4\ncount = {}\nworkload = {{ kind = \"ticket\", in_us = {section_us}, out_us = {:.3}, locks = {locks} }}\n",
        2 * level,
        out_us.min(1e6)
    )
    .parse()?;
    let report = ecs_sim::run(&scenario, arm, 1)?;
    Ok(report.stall_ns as f64 / 1e6 / (report.cpu_ns as f64 / 1e9))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# HELP x y\necs_vm_cpu_seconds_total{vm=\"a b\"} 10\n\
        ecs_vm_preemptions_total{vm=\"a b\"} 100\nprocess_open_fds 3\n";
    const AFTER: &str = "ecs_vm_cpu_seconds_total{vm=\"a b\"} 40\n\
        ecs_vm_preemptions_total{vm=\"a b\"} 1100\necs_vm_preemptions_total{vm=\"new\"} 1000\n\
        ecs_vm_critical_preemptions_total{vm=\"a b\",cause=\"host\"} 100\n\
        ecs_vm_critical_stall_seconds_total{vm=\"a b\"} 0.25\n";

    fn args() -> AdviseArgs {
        AdviseArgs {
            before: PathBuf::new(),
            after: PathBuf::new(),
            seconds: 10.0,
            stall_budget_ms: 1.0,
            section_us: 2.0,
        }
    }

    #[test]
    fn what_grew_is_summed_over_vms_old_and_new() {
        let found = seen(&parse(BEFORE), &parse(AFTER)).unwrap();
        assert_eq!((found.preemptions, found.critical), (2000.0, 100.0));
        assert_eq!((found.cpu_s, found.stall_s), (30.0, 0.25));
        assert!(seen(&parse(AFTER), &parse("")).is_err());
    }

    #[test]
    fn advice_says_what_ecs_gives_and_how_sure_that_is() {
        let found = seen(&parse(BEFORE), &parse(AFTER)).unwrap();
        let text = advise(&found, &args()).unwrap();
        assert!(text.contains("avoided 99 to 100"), "{text}");
        assert!(text.contains("5.0 % of the time in sections"), "{text}");
        assert!(
            text.contains("up to 1x with the stock scheduler, 8x with eCS"),
            "{text}"
        );
        assert!(text.contains("docs/simulation.md"), "{text}");
    }

    #[test]
    fn a_host_without_critical_preemptions_needs_no_simulation() {
        let calm = Seen {
            cpu_s: 1.0,
            preemptions: 50.0,
            ..Seen::default()
        };
        let text = advise(&calm, &args()).unwrap();
        assert!(
            text.contains("Without any") && !text.contains("Simulated"),
            "{text}"
        );
    }
}
