//! `vmm-ecs advise`: what eCS would have done on a host that was only observed.
//!
//! Two scrapes of the exporter, in observe mode, say on how many CPUs how many vCPUs wanted to run, how many
//! preemptions met a section of which kind, and for how long. Workloads whose simulation looks most like
//! that ([`fit`]), with sections as long as the operator says, are simulated at every over-commit, with
//! and without eCS. How far such advice is off is measured ([`validate`]), and said with it ([`stated`]).

mod fit;
mod seen;
mod stated;
mod validate;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use fit::{Atlas, Figures, Forecast, Host, forecast};
use seen::Seen;

/// Part of the critical preemptions that eCS avoids: nine of ten cells of docs/evaluation.json with ten and
/// more a second leave less than the first, one of ten less than the second.
const AVOIDED: (f64, f64) = (0.90, 0.99);
/// Stalled under eCS although simulated without, ms in a second of CPU time: the median of these cells, and
/// what nine of ten stay below. The host's own threads interrupt sections, and have no model there.
const LEFT_MS: (f64, f64) = (2.6, 9.2);
/// From the end of a section to the end of its extension, us: the median of these cells, on nested KVM.
const HANDBACK_US: f64 = 45.0;
/// Over-commit that is looked at, vCPUs a CPU.
const LEVELS: std::ops::RangeInclusive<u32> = 1..=8;

/// Options of `vmm-ecs advise`.
#[derive(Debug, clap::Args)]
pub(crate) struct AdviseArgs {
    /// Metrics of the exporter, saved at the beginning.
    #[arg(required_unless_present_any = ["validate", "from"])]
    before: Option<PathBuf>,
    /// The same, saved at the end.
    #[arg(required_unless_present_any = ["validate", "from"])]
    after: Option<PathBuf>,
    /// Time between the two, s.
    #[arg(long, required_unless_present_any = ["validate", "from"])]
    seconds: Option<f64>,
    /// Longest time that sections may be stalled by preemptions, ms in a second of CPU time.
    #[arg(long, default_value_t = 20.0)]
    stall_budget_ms: f64,
    /// Length of the guests' sections, us: no metric says it.
    #[arg(long, default_value_t = 1.0)]
    section_us: f64,
    /// From the end of a section to the end of its extension, us: of the host's way to deliver doorbells.
    #[arg(long, default_value_t = HANDBACK_US)]
    handback_us: f64,
    /// Observe real VMs, take advice, run what it is about, and say how far off it was.
    #[arg(long, conflicts_with_all = ["before", "from"])]
    validate: bool,
    /// Scenarios to validate with; those of the validation set when absent.
    #[arg(long, value_delimiter = ',', requires = "validate")]
    scenarios: Vec<String>,
    /// Real runs of each kind, for the validation.
    #[arg(long, default_value_t = 3, requires = "validate")]
    runs: usize,
    /// Length of each, s.
    #[arg(long, default_value_t = 1.6, requires = "validate")]
    run_seconds: f64,
    /// Write what the validation found here, as JSON.
    #[arg(long, requires = "validate")]
    json: Option<PathBuf>,
    /// Take what a validation found from here.
    #[arg(long, conflicts_with = "before")]
    from: Option<PathBuf>,
    /// Put its table into this page, between `<!-- advice -->` and `<!-- end -->`.
    #[arg(long)]
    docs: Option<PathBuf>,
}

/// What is said of a host before anybody knows it.
struct Question {
    seconds: f64,
    stall_budget_ms: f64,
    section_us: f64,
    handback_us: f64,
}

/// Prints the advice, or validates it.
///
/// # Errors
/// What of the options, the scrapes or a real run is wrong.
pub(crate) fn run(args: &AdviseArgs) -> anyhow::Result<()> {
    if !((0.1..=1000.0).contains(&args.section_us) && (0.0..=1000.0).contains(&args.handback_us)) {
        bail!("--section-us must be 0.1 to 1000, --handback-us 0 to 1000");
    }
    if args.validate || args.from.is_some() {
        return report_validation(args);
    }
    let (Some(before), Some(after), Some(seconds)) = (&args.before, &args.after, args.seconds)
    else {
        bail!("Two scrapes and --seconds are needed");
    };
    if seconds <= 0.0 || seconds.is_nan() {
        bail!("--seconds must be above 0");
    }
    let seen = Seen::between(&read(before)?, &read(after)?, seconds)?;
    let question = Question {
        seconds,
        stall_budget_ms: args.stall_budget_ms,
        section_us: args.section_us,
        handback_us: args.handback_us,
    };
    print!("{}", advise(&seen, &question)?);
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("Cannot read {}", path.display()))
}

fn report_validation(args: &AdviseArgs) -> anyhow::Result<()> {
    let found = match &args.from {
        Some(path) => serde_json::from_str(&read(path)?)
            .with_context(|| format!("{} is no validation of advice", path.display()))?,
        None => validate::run(args)?,
    };
    print!("{}", stated::table(&found));
    if let Some(path) = &args.json {
        crate::demo::write(path, &stated::compact(&found)?)?;
    }
    if let Some(path) = &args.docs {
        crate::demo::write(path, &stated::fill(&read(path)?, &found)?)?;
    }
    Ok(())
}

fn advise(seen: &Seen, question: &Question) -> anyhow::Result<String> {
    let mut out = String::new();
    let host = Host::of(seen, question.seconds, question.section_us);
    let per_s = |count: f64| count / question.seconds;
    writeln!(
        out,
        "In {} s {} VMs had {:.1} s of CPU time on {} CPUs and waited {:.1} s for more: as {} busy VMs of {} vCPUs \
         on {} CPUs,\n{:.1} vCPUs a CPU{}.",
        question.seconds,
        seen.vms,
        seen.cpu_s,
        seen.cpus,
        seen.delay_s,
        host.vms,
        host.vcpus,
        host.cpus,
        host.over_commit(),
        if host.had < 1.0 {
            let others = (1.0 - host.had) * 100.0;
            format!(", beside other work that took {others:.0} % of the CPUs")
        } else {
            String::new()
        },
    )?;
    writeln!(
        out,
        "{:.0} preemptions ({:.1} a second); {:.0} met a section ({:.1} a second): stalled {:.1} ms in a second of \
         CPU time.",
        seen.preemptions,
        per_s(seen.preemptions),
        seen.critical,
        per_s(seen.critical),
        seen.stall_ms(),
    )?;
    let (least, most) = (seen.critical * AVOIDED.0, seen.critical * AVOIDED.1);
    writeln!(
        out,
        "eCS would have avoided {least:.0} to {most:.0} of these ({:.0} to {:.0} %, as in real runs). Observing sees \
         only those that\nlast until it looks: it is a lower bound.",
        AVOIDED.0 * 100.0,
        AVOIDED.1 * 100.0,
    )?;
    if seen.critical == 0.0 {
        writeln!(
            out,
            "Without any, over-commit is limited by the wait for a CPU alone."
        )?;
        return Ok(out);
    }
    let guesses = Atlas::of(host)?.closest(&Figures::of(seen));
    let now = forecast(&host, &guesses)?;
    writeln!(
        out,
        "Cost: about {:.0} extensions ({:.0} to {:.0}) in a second of CPU time, {:.1} ms of it if a section takes {} us and \
         its\nhand-back {} us, repaid later.\n\n\
         The {} simulations most like this host: {}.\n\
         Stalled ms in a second of CPU time, median and where eight of ten are; eCS with the {} ms that real runs had \
         left\n(one in ten more than {}):",
        now.extensions.median,
        now.extensions.low,
        now.extensions.high,
        now.extension_ms(question.section_us, question.handback_us),
        question.section_us,
        question.handback_us,
        guesses.len(),
        fit::names(&guesses),
        LEFT_MS.0,
        LEFT_MS.1,
    )?;
    table(&mut out, &host, &guesses, question)?;
    writeln!(out, "{}", stated::sentence()?)?;
    Ok(out)
}

/// The stall at every over-commit, and which of them stay within the budget.
fn table(
    out: &mut String,
    host: &Host,
    guesses: &[fit::Guess],
    question: &Question,
) -> anyhow::Result<()> {
    writeln!(
        out,
        "{:>12}{:>12}{:>22}{:>12}",
        "vCPUs a CPU", "stock", "", "eCS"
    )?;
    let mut good = [0.0f64; 2];
    let mut bad = [false; 2];
    let mut last_vms = 0;
    for level in LEVELS {
        let host = host.at(level.into());
        if host.vms == last_vms {
            // A VM has more vCPUs than the step from one to the next.
            continue;
        }
        last_vms = host.vms;
        let found: Forecast = forecast(&host, guesses)?;
        let ecs_ms = found.ecs_stall_ms.median + LEFT_MS.0;
        let stock = found.stock_stall_ms;
        for ((good, bad), stall_ms) in good.iter_mut().zip(&mut bad).zip([stock.median, ecs_ms]) {
            *bad |= stall_ms > question.stall_budget_ms;
            if !*bad {
                *good = host.over_commit();
            }
        }
        writeln!(
            out,
            "{:>12.1}{:>12.1}{:>22}{ecs_ms:>12.1}",
            host.over_commit(),
            stock.median,
            format!("({:.1} to {:.1})", stock.low, stock.high),
        )?;
    }
    let [stock, ecs] = good.map(|level| {
        if level > 0.0 {
            format!("up to {level:.1}")
        } else {
            "none".to_owned()
        }
    });
    writeln!(
        out,
        "Within {} ms, vCPUs a CPU: {stock} with the stock scheduler, {ecs} with eCS.",
        question.stall_budget_ms
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: Question = Question {
        seconds: 10.0,
        stall_budget_ms: 20.0,
        section_us: 20.0,
        handback_us: 50.0,
    };

    /// Three VMs of two vCPUs on two CPUs.
    fn busy() -> Seen {
        Seen {
            preemptions: 11_000.0,
            critical: 4_000.0,
            stall_s: [2.0, 0.0, 14.0],
            cpu_s: 19.8,
            delay_s: 40.2,
            wakeups: 0.0,
            cpus: 2.0,
            vms: 3.0,
            vcpus: 6.0,
        }
    }

    #[test]
    fn advice_says_what_ecs_gives_and_how_sure_that_is() {
        let text = advise(&busy(), &QUESTION).unwrap();
        assert!(
            text.contains("3 busy VMs of 2 vCPUs on 2 CPUs,\n3.0 vCPUs"),
            "{text}"
        );
        assert!(text.contains("avoided 3600 to 3960"), "{text}");
        assert!(text.contains("ticket"), "{text}");
        assert!(
            text.contains("up to 1.0 with the stock scheduler, up to 8.0 with eCS"),
            "{text}"
        );
        assert!(text.contains("docs/simulation.md"), "{text}");
    }

    #[test]
    fn other_work_on_the_host_is_said() {
        let seen = Seen {
            cpu_s: 12.0,
            delay_s: 48.0,
            ..busy()
        };
        let text = advise(&seen, &QUESTION).unwrap();
        assert!(text.contains("took 40 % of the CPUs"), "{text}");
    }

    #[test]
    fn a_host_without_critical_preemptions_needs_no_simulation() {
        let calm = Seen {
            critical: 0.0,
            stall_s: [0.0; 3],
            ..busy()
        };
        let text = advise(&calm, &QUESTION).unwrap();
        assert!(
            text.contains("Without any") && !text.contains("simulations"),
            "{text}"
        );
    }
}
