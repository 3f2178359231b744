//! The demo's result as one HTML page with plots, for a browser or a phone.
//!
//! The page loads nothing and runs no script: inline CSS, inline SVG.

pub(crate) mod plot;
mod shares;
#[cfg(test)]
mod tests;
pub(crate) mod text;

use std::fmt::Write;

use super::figures::RunReport;
use super::{Arm, Report};
use plot::{
    CRITICAL, DOT, ECS, INK, MARK, NEUTRAL, Row, SQUARE, bars_figure, dark_plots, key, legend,
};
use text::{count, escape, none, number, plural, seconds, table_of};

const STYLE: &str = include_str!("style.css");

const WORDS: &str = "<section><h2>Words</h2><dl class=\"words\">
<dt>Lock operation</dt><dd>Taking a lock, working inside its section, and releasing it: the work \
the VMs do.</dd>
<dt>Slice</dt><dd>The time a vCPU may run before the host gives its CPU to another vCPU that waits \
for it.</dd>
<dt>Extension</dt><dd>A little extra time at the end of a slice, 1 ms at most by default, for a \
vCPU inside a critical section. One a slice; the time used is taken back from its VM later.</dd>
<dt>Preemption</dt><dd>The host took the CPU from a vCPU that still had work.</dd>
<dt>Critical preemption</dt><dd>A preemption in the middle of a critical section: whoever needs \
the lock waits, and can make no progress, until that vCPU runs again.</dd>
<dt>Avoided</dt><dd>A slice ended inside a section, an extension was granted, and the section \
ended within it: one critical preemption that did not happen.</dd>
<dt>Hand-over</dt><dd>The time from a release of a lock to its next owner, where that one was \
waiting for it: long when the next in line is not running.</dd>
<dt>Share</dt><dd>The CPU time a VM is entitled to, by its weight. Its deviation says how far the \
time it received is from that.</dd>
</dl></section>
";

/// The whole page.
pub(super) fn render(report: &Report) -> String {
    let mut page = begin(&format!(
        "eCS demo: {} VMs, {}",
        report.scenario.vms, report.scenario.workload
    ));
    let _ = write!(
        page,
        "<h1>eCS demo</h1><p class=\"lead\">{}</p>",
        headline(report)
    );
    if report.vcpus_are.contains("software") {
        page.push_str(
            "<p class=\"note\">KVM is emulated here: compare the arms, not the absolute \
             figures.</p>",
        );
    }
    page.push_str(&what_was_run(report));
    page.push_str("<div class=\"pair\">");
    page.push_str(&throughput(report));
    page.push_str(&preemptions(report));
    page.push_str("</div>");
    page.push_str(&shares::shares(report));
    page.push_str(&all_runs(report));
    page + WORDS + END
}

/// A page up to its first heading; [`END`] closes it.
pub(crate) fn begin(title: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <title>{}</title><style>{STYLE}{}</style></head><body><main>\n",
        escape(title),
        dark_plots(),
    )
}

/// The end of a page.
pub(crate) const END: &str = "</main></body></html>\n";

/// What the ratios say, in words.
fn headline(report: &Report) -> String {
    let vms = plural(report.scenario.vms, "VM");
    let said = |value: Option<f64>, unit: &str, what: &str| {
        let value = value.map(number)?;
        Some(format!("<strong>{value}{unit}</strong> {what}"))
    };
    let hundred = |value: Option<f64>| value.map(|value| value * 100.0);
    let stock = "the lock operations they reach under the stock scheduler";
    let alone = "those under the same controller without extensions";
    let limit = "of what one VM alone reaches, which is taken as the limit";
    let against: Vec<String> = [
        said(report.throughput_ratio, " times", stock),
        said(report.extension_ratio, " times", alone),
        said(hundred(report.efficiency), " %", limit),
    ]
    .into_iter()
    .flatten()
    .collect();
    let mut text = match against.split_last() {
        None => format!(
            "{vms} ran, but there is no ratio to report: eCS, or what it is compared with, was \
             not among the arms, or did no lock operations."
        ),
        Some((only, [])) => format!("With eCS, {vms} together reach {only}."),
        Some((last, rest)) => {
            let rest = rest.join(", ");
            format!("With eCS, {vms} together reach {rest}, and {last}.")
        }
    };
    let harmless = "did no harm: the section ended within its extension.";
    if let Some(avoided) = said(hundred(report.avoided_ratio), " %", harmless) {
        let _ = write!(
            text,
            " Of the slice ends that met a critical section, {avoided}"
        );
    }
    if let Some(away) = said(report.share_deviation_percent, " %", "away from it.") {
        let _ = write!(
            text,
            " The VM furthest from its share of CPU time is {away}"
        );
    }
    text
}

fn what_was_run(report: &Report) -> String {
    let (scenario, machine) = (&report.scenario, &report.machine);
    let mut work = format!(
        "{} with {} each; workload {}, {} us inside the section, {} us between two",
        plural(scenario.vms, "VM"),
        plural(scenario.vcpus, "vCPU"),
        scenario.workload,
        scenario.in_us,
        scenario.out_us,
    );
    let pinning = "pin their counts for ever, to gain time";
    for (vms, what) in [
        (&scenario.unhinted, "annotate nothing"),
        (&scenario.pinning, pinning),
    ] {
        if !vms.is_empty() {
            let names: Vec<String> = vms.iter().map(|index| vm_name(report, *index)).collect();
            let _ = write!(work, "; VMs that {what}: {}", names.join(", "));
        }
    }
    if !scenario.weights.is_empty() {
        let weights: Vec<String> = scenario.weights.iter().map(u32::to_string).collect();
        let _ = write!(work, "; weights {}", weights.join(", "));
    }
    let (runs, seconds) = (plural(scenario.runs, "run"), scenario.seconds);
    let mut rows = vec![
        ("Work", work),
        (
            "Length",
            format!("{runs} of {seconds} s an arm, arms interleaved"),
        ),
        ("vCPUs", report.vcpus_are.clone()),
        ("CPU", machine.cpu.clone()),
        ("CPUs online", machine.online_cpus.clone()),
        ("Kernel", machine.kernel.clone()),
        ("Load average", machine.load_average.clone()),
    ];
    rows.extend(machine.hz.clone().map(|hz| ("Timer, Hz", hz)));
    let mut body = String::new();
    for (name, value) in rows {
        let value = escape(&value);
        let _ = write!(
            body,
            "<tr><th scope=\"row\">{name}</th><td>{value}</td></tr>"
        );
    }
    format!(
        "<section><h2>What was run, and on what</h2><table class=\"facts\"><tbody>{body}</tbody>\
         </table></section>\n"
    )
}

/// Name of a VM, from a run where it can be had.
fn vm_name(report: &Report, index: usize) -> String {
    let run = report.arms.iter().find_map(|arm| arm.runs.first());
    run.and_then(|run| run.vms.get(index))
        .map_or_else(|| index.to_string(), |vm| vm.name.clone())
}

fn throughput(report: &Report) -> String {
    let limit = report.alone_ops_per_s;
    let (mut rows, mut table) = (Vec::new(), Vec::new());
    for arm in &report.arms {
        let (name, median) = (arm.arm.title(), number(arm.ops_per_s));
        let (low, high) = arm.ops_per_s_range;
        let paint = if arm.arm == Arm::Ecs { ECS } else { NEUTRAL };
        let dots = arm.runs.iter().map(RunReport::ops_per_s).collect();
        rows.push(Row {
            label: format!("{name}: {median}"),
            bars: vec![(arm.ops_per_s, paint, dots)],
        });
        table.push(vec![name.to_owned(), median, number(low), number(high)]);
    }
    let mut keys = vec![
        key(SQUARE, ECS, "eCS, median"),
        key(SQUARE, NEUTRAL, "other arms, median"),
        key(DOT, INK, "one run"),
    ];
    if let Some(limit) = limit.map(number) {
        keys.push(key(MARK, INK, &format!("limit, one VM alone: {limit}")));
        let name = "one VM alone (the limit)".to_owned();
        table.push(vec![name, limit, none(), none()]);
    }
    let head = ["arm", "median", "lowest", "highest"];
    format!(
        "<section><h2>Throughput by arm</h2><p class=\"note\">Lock operations a second, all VMs \
         together. More is better.</p>{}{}{}</section>\n",
        legend(&keys),
        bars_figure("Lock operations a second by arm", &rows, limit),
        table_of("Lock operations a second", &head, &table),
    )
}

fn preemptions(report: &Report) -> String {
    let (mut rows, mut table) = (Vec::new(), Vec::new());
    for arm in &report.arms {
        let name = arm.arm.title();
        let all = arm.median(RunReport::preemptions_per_s);
        let critical = arm.median(RunReport::critical_preemptions_per_s);
        let stall = arm.median(RunReport::stalled_ms_per_s);
        rows.push(Row {
            label: format!("{name}: {}, critical {}", number(all), number(critical)),
            bars: vec![(all, NEUTRAL, Vec::new()), (critical, CRITICAL, Vec::new())],
        });
        let values = [all, critical, stall].map(number);
        table.push(std::iter::once(name.to_owned()).chain(values).collect());
    }
    let keys = [
        key(SQUARE, NEUTRAL, "preemptions"),
        key(SQUARE, CRITICAL, "critical preemptions"),
    ];
    format!(
        "<section><h2>Preemptions by arm</h2><p class=\"note\">A second, all VMs together, median \
         of the runs. Fewer critical ones is better.</p>{}{}{}</section>\n",
        legend(&keys),
        bars_figure("Preemptions a second by arm", &rows, None),
        table_of(
            "Per second, median of the runs",
            &["arm", "all", "critical", "stalled, ms"],
            &table
        ),
    )
}

fn all_runs(report: &Report) -> String {
    let head: Vec<&str> = std::iter::once("arm and run")
        .chain(COLUMNS.iter().map(|column| column.0))
        .collect();
    let mut rows = Vec::new();
    for arm in &report.arms {
        for (run, nr) in arm.runs.iter().zip(1..) {
            let mut row = vec![format!("{}, {nr}", arm.arm.title())];
            row.extend(COLUMNS.iter().map(|(_, figure)| figure(run)));
            rows.push(row);
        }
    }
    let table = table_of(
        "Sums of all VMs, but the slowest VM's hand-over; counts are of the whole run",
        &head,
        &rows,
    );
    format!("<section><h2>All runs</h2>{table}</section>\n")
}

/// A column of the table of all runs, and its figure.
type Column = (&'static str, fn(&RunReport) -> String);

const COLUMNS: [Column; 28] = [
    ("ops/s", |run| number(run.ops_per_s())),
    ("preempted/s", |run| number(run.preemptions_per_s())),
    ("critical/s", |run| number(run.critical_preemptions_per_s())),
    ("stalled, ms/s", |run| number(run.stalled_ms_per_s())),
    ("hand-over median, us", |run| {
        run.handoff_us().map_or_else(none, |us| number(us.p50))
    }),
    ("hand-over 99 %, us", |run| {
        run.handoff_us().map_or_else(none, |us| number(us.p99))
    }),
    ("hand-over 99.9 %, us", |run| {
        run.handoff_us().map_or_else(none, |us| number(us.p999))
    }),
    ("share off, %", |run| {
        run.share_deviation_percent.map_or_else(none, number)
    }),
    ("requests", |run| count(run.counters.requests)),
    ("grants", |run| count(run.counters.grants)),
    ("denials", |run| count(run.counters.denials)),
    ("yielded", |run| count(run.counters.yielded)),
    ("expired", |run| count(run.counters.expired)),
    ("revoked", |run| count(run.counters.revoked)),
    ("aborted", |run| count(run.counters.aborted)),
    ("extension, us", |run| count(run.counters.extension_us)),
    ("stepped aside", |run| count(run.counters.stepped_aside)),
    ("wake-ups", |run| count(run.counters.wakeups)),
    ("polls paid", |run| count(run.counters.polls_paid)),
    ("polls wasted", |run| count(run.counters.polls_wasted)),
    ("polled, us", |run| count(run.counters.poll_us)),
    ("rotations", |run| count(run.counters.rotations)),
    ("doorbells", |run| count(run.counters.doorbells)),
    ("lost wake-ups", |run| {
        count(run.vms.iter().map(|vm| vm.lost_wakeups).sum())
    }),
    ("controller CPU, %", |run| {
        number(run.controller_cpu_percent)
    }),
    ("decision, ns", |run| count(run.decision_median_ns)),
    ("length, s", |run| seconds(run.seconds)),
    ("controller", |run| run.controller.clone()),
];
