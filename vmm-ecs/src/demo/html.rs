//! The demo's result as one HTML page with plots, for a browser or a phone.
//!
//! The page loads nothing and runs no script: inline CSS, inline SVG. Plots are drawn in the colours
//! of the light theme; the style sheet exchanges them, by value, where the reader prefers dark.

use std::error::Error;
use std::fmt::Write;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::measure::{RunReport, VmRun};
use super::{Arm, Report, median};

/// A colour: as drawn, and in its place on a dark page.
#[derive(Clone, Copy)]
struct Paint(RGBColor, RGBColor);

const INK: Paint = Paint(RGBColor(0x1f, 0x1f, 0x1d), RGBColor(0xf0, 0xef, 0xea));
const MUTED: Paint = Paint(RGBColor(0x5f, 0x5e, 0x5a), RGBColor(0xb0, 0xaf, 0xa8));
const GRID: Paint = Paint(RGBColor(0xe3, 0xe2, 0xdd), RGBColor(0x3a, 0x3a, 0x37));
const SURFACE: Paint = Paint(RGBColor(0xfd, 0xfd, 0xfc), RGBColor(0x20, 0x20, 0x1e));
const NEUTRAL: Paint = Paint(RGBColor(0x94, 0x93, 0x8d), RGBColor(0x84, 0x83, 0x7d));
const ECS: Paint = Paint(RGBColor(0x2a, 0x78, 0xd6), RGBColor(0x39, 0x87, 0xe5));
const CRITICAL: Paint = Paint(RGBColor(0xe3, 0x48, 0x48), RGBColor(0xe6, 0x66, 0x66));
/// Lines of the VMs, in their order; VMs beyond them share `NEUTRAL`.
const VMS: [Paint; 6] = [
    ECS,
    Paint(RGBColor(0xeb, 0x68, 0x34), RGBColor(0xd9, 0x59, 0x26)),
    Paint(RGBColor(0x1b, 0xaf, 0x7a), RGBColor(0x19, 0x9e, 0x70)),
    Paint(RGBColor(0x4a, 0x3a, 0xa7), RGBColor(0x90, 0x85, 0xe9)),
    Paint(RGBColor(0xed, 0xa1, 0x00), RGBColor(0xc9, 0x85, 0x00)),
    Paint(RGBColor(0xe8, 0x7b, 0xa4), RGBColor(0xd5, 0x51, 0x81)),
];

/// Sizes of plots, in units of their own; shown smaller, as coordinates are integers.
const BARS_WIDTH: u32 = 700;
const PANEL: (u32, u32) = (600, 400);
/// Shapes of a legend: SVG paths in a box of 12 by 12.
const SQUARE: &str = "M0 0h12v12H0z";
const DOT: &str = "M6 2a4 4 0 1 0 .01 0z";
const MARK: &str = "M5 0h2v12H5z";
const DASH: &str = "M0 4h12v4H0z";
/// Size plotters writes as 24 units: it divides by 1.24.
const FONT: (&str, f64) = ("sans-serif", 29.76);

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1f1f1d;--muted:#5f5e5a;--line:#e3e2dd;--page:#f4f3ef;
--card:#fdfdfc;--accent:#1f66ba}
@media (prefers-color-scheme:dark){:root{--ink:#f0efea;--muted:#b0afa8;--line:#3a3a37;
--page:#151513;--card:#20201e;--accent:#7db4f0}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}
main{max-width:1040px;margin:0 auto;padding:20px 16px 48px}
h1{font-size:1.5rem;margin:0 0 8px}h2{font-size:1.15rem;margin:0 0 4px}
h3{font-size:.95rem;margin:12px 0 4px}p{margin:0 0 10px;max-width:75ch}
.lead{font-size:1.15rem}.note{color:var(--muted);font-size:.9rem}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:16px;margin-top:16px;min-width:0}
.pair{display:grid;gap:0 16px;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr))}
.panels{display:grid;gap:0 16px;grid-template-columns:repeat(auto-fit,minmax(min(100%,290px),1fr))}
figure{margin:0}figure svg{display:block;width:100%;height:auto}svg text{font-family:inherit}
.key{display:flex;flex-wrap:wrap;gap:4px 16px;list-style:none;padding:0;margin:0 0 6px;
font-size:.85rem;color:var(--muted)}.key svg{width:12px;height:12px;margin-right:5px}
.scroll{overflow-x:auto;margin-top:8px}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums;width:100%}
caption{text-align:left;color:var(--muted);padding-bottom:4px}
th,td{padding:4px 10px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{font-weight:600;vertical-align:bottom}thead th{color:var(--muted)}
th:first-child,td:first-child{text-align:left;padding-left:0}
.wide th:first-child,.wide td:first-child{position:sticky;left:0;background:var(--card)}
.facts th{width:8rem;color:var(--muted);vertical-align:top}
.facts td{text-align:left;white-space:normal;overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--accent);font-size:.9rem;margin-top:8px}
dl.words dt{font-weight:600}dl.words dd{margin:0 0 8px;max-width:75ch}
@media (max-width:520px){th,td{padding:4px 5px}.wide td:first-child{white-space:normal;
min-width:6rem}}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
";

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
<dt>Share</dt><dd>The CPU time a VM is entitled to, by its weight. Its deviation says how far the \
time it received is from that.</dd>
</dl></section>
";

/// The whole page.
pub(super) fn render(report: &Report) -> String {
    let mut page = String::new();
    let _ = write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"/>\
         <title>eCS demo: {} VMs, {}</title><style>{STYLE}{}</style></head><body><main>\n",
        report.scenario.vms,
        escape(&report.scenario.workload),
        dark_plots(),
    );
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
    page.push_str(&shares(report));
    page.push_str(&all_runs(report));
    page + WORDS + "</main></body></html>\n"
}

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

/// Plot 1.
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
        table.push(vec![name, limit, "–".to_owned(), "–".to_owned()]);
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

/// Plot 2.
fn preemptions(report: &Report) -> String {
    let (mut rows, mut table) = (Vec::new(), Vec::new());
    for arm in &report.arms {
        let name = arm.arm.title();
        let of = |count: fn(&RunReport) -> f64| {
            let rates = arm.runs.iter().map(|run| per_second(count(run), run));
            median(&rates.collect::<Vec<_>>())
        };
        let all = of(|run| run.counters.preemptions as f64);
        let critical = of(|run| run.counters.critical_preemptions as f64);
        let stall = of(|run| run.counters.critical_stall_us as f64 / 1e3);
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

/// Plot 3.
fn shares(report: &Report) -> String {
    let mut last = Vec::new();
    for arm in &report.arms {
        if let Some(run) = arm.runs.last() {
            last.push((arm.arm.title(), run, fair_lines(run)));
        }
    }
    let widest = last
        .iter()
        .map(|(_, _, lines)| furthest_ms(lines))
        .fold(1.0, f64::max);
    let samples = last.iter().flat_map(|(_, _, lines)| lines.iter().flatten());
    let longest = samples.map(|sample| sample.seconds).fold(0.1, f64::max);
    let mut panels = String::new();
    let (mut summary, mut series) = (Vec::new(), Vec::new());
    for (title, run, lines) in &last {
        let off = number(furthest_ms(lines));
        let plot = if lines.iter().all(Vec::is_empty) {
            "<p class=\"note\">No samples over time.</p>".to_owned()
        } else {
            let alt = format!("CPU time ahead of the fair line, {title}: at most {off} ms off");
            let plot = figure(&alt, PANEL, |root| draw_lines(root, lines, longest, widest));
            format!("<p class=\"note\">at most {off} ms off</p>{plot}")
        };
        let _ = write!(panels, "<div><h3>{title}</h3>{plot}</div>");
        for (vm, line) in run.vms.iter().zip(lines) {
            let name = || vec![(*title).to_owned(), vm.name.clone()];
            let off = (vm.cpu_s / vm.entitled_s - 1.0) * 100.0;
            let whole = [seconds(vm.cpu_s), seconds(vm.entitled_s), number(off)];
            summary.push(name().into_iter().chain(whole).collect());
            for sample in line {
                let times = [sample.seconds, sample.received_s, sample.fair_s].map(seconds);
                let figures = [sample.ahead_ms(), sample.ops_per_s].map(number);
                series.push(name().into_iter().chain(times).chain(figures).collect());
            }
        }
    }
    let vms = last.first().map_or(&[][..], |(_, run, _)| &run.vms);
    let mut keys: Vec<String> = vms
        .iter()
        .zip(VMS)
        .map(|(vm, paint)| key(DASH, paint, &vm.name))
        .collect();
    if vms.len() > VMS.len() {
        keys.push(key(DASH, NEUTRAL, "all other VMs"));
    }
    let head = ["arm", "VM", "received, CPU s", "entitled, CPU s", "off, %"];
    let fine = [
        "arm",
        "VM",
        "time, s",
        "received, CPU s",
        "fair, CPU s",
        "ahead, ms",
        "ops/s",
    ];
    format!(
        "<section><h2>Shares over time</h2><p class=\"note\">Last run of each arm: CPU time each \
         VM received so far, in ms ahead of its fair part of what all VMs received (the line at \
         0), against seconds. Nearer to 0 is fairer; all arms have the same scale.</p>{}\
         <div class=\"panels\">{panels}</div>{}<details><summary>Every sample</summary>{}\
         </details></section>\n",
        legend(&keys),
        table_of("Last run of each arm, whole run", &head, &summary),
        table_of("Since the first common sample", &fine, &series),
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
    let table = table_of("Sums of all VMs; counts are of the whole run", &head, &rows);
    format!("<section><h2>All runs</h2>{table}</section>\n")
}

/// A column of the table of all runs, and its figure.
type Column = (&'static str, fn(&RunReport) -> String);

const COLUMNS: [Column; 21] = [
    ("ops/s", |run| number(run.ops_per_s())),
    ("preempted/s", |run| {
        number(per_second(run.counters.preemptions as f64, run))
    }),
    ("critical/s", |run| {
        number(per_second(run.counters.critical_preemptions as f64, run))
    }),
    ("stalled, ms/s", |run| {
        number(per_second(run.counters.critical_stall_us as f64 / 1e3, run))
    }),
    ("share off, %", |run| number(run.share_deviation_percent)),
    ("requests", |run| count(run.counters.requests)),
    ("grants", |run| count(run.counters.grants)),
    ("denials", |run| count(run.counters.denials)),
    ("yielded", |run| count(run.counters.yielded)),
    ("expired", |run| count(run.counters.expired)),
    ("revoked", |run| count(run.counters.revoked)),
    ("aborted", |run| count(run.counters.aborted)),
    ("extension, us", |run| count(run.counters.extension_us)),
    ("stepped aside", |run| count(run.counters.stepped_aside)),
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

/// A group of bars with a line of text above.
struct Row {
    label: String,
    /// Length, colour, and dots beside it.
    bars: Vec<(f64, Paint, Vec<f64>)>,
}

/// Heights of a bar, of the text above it and of the axis, in units of the plot.
const BAR: u32 = 34;
const LABEL: u32 = 52;
const AXIS: u32 = 48;

fn bars_figure(what: &str, rows: &[Row], limit: Option<f64>) -> String {
    let labels: Vec<&str> = rows.iter().map(|row| row.label.as_str()).collect();
    let size = (BARS_WIDTH, rows.iter().map(row_height).sum::<u32>() + AXIS);
    let alt = format!("{what}. {}", labels.join("; "));
    figure(&alt, size, |root| draw_bars(root, rows, limit))
}

fn row_height(row: &Row) -> u32 {
    row.bars.iter().map(|_| BAR + 4).sum::<u32>() + LABEL + 14
}

type Drawing = Result<(), Box<dyn Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw_bars(root: &Area<'_>, rows: &[Row], limit: Option<f64>) -> Drawing {
    let bars = || rows.iter().flat_map(|row| &row.bars);
    let top = bars()
        .flat_map(|(value, _, dots)| dots.iter().chain([value]))
        .chain(&limit);
    let top = top
        .copied()
        .filter(|value| value.is_finite())
        .fold(0.0, f64::max);
    let end = if top > 0.0 { top * 1.02 } else { 1.0 };
    let depth = f64::from(rows.iter().map(row_height).sum::<u32>());
    let mut chart = ChartBuilder::on(root)
        .margin_left(12)
        .margin_right(40)
        .x_label_area_size(AXIS)
        .build_cartesian_2d(0.0..end, depth.max(1.0)..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(5)
        .x_label_formatter(&|value| tick(*value))
        .x_label_style(FONT.into_font().color(&MUTED.0))
        .axis_style(MUTED.0.stroke_width(2))
        .bold_line_style(GRID.0.stroke_width(2))
        .light_line_style(TRANSPARENT)
        .draw()?;
    let mut y = 0.0;
    for row in rows {
        let ink = FONT
            .into_font()
            .color(&INK.0)
            .pos(Pos::new(HPos::Left, VPos::Center));
        chart.draw_series([Text::new(row.label.clone(), (0.0, y + 34.0), ink)])?;
        y += f64::from(LABEL);
        for (value, paint, dots) in &row.bars {
            let (upper, lower) = (y, y + f64::from(BAR));
            let length = if value.is_finite() {
                value.max(0.0)
            } else {
                0.0
            };
            chart.draw_series([Rectangle::new(
                [(0.0, upper), (length, lower)],
                paint.0.filled(),
            )])?;
            if let Some(limit) = limit.filter(|limit| limit.is_finite()) {
                let mark = [(limit, upper - 6.0), (limit, lower + 6.0)];
                chart.draw_series([PathElement::new(mark, INK.0.stroke_width(4))])?;
            }
            let middle = f64::midpoint(upper, lower);
            for dot in dots.iter().filter(|dot| dot.is_finite()) {
                // A ring in the colour of the page keeps dots apart from the bar and each other.
                chart.draw_series([
                    Circle::new((*dot, middle), 10, SURFACE.0.filled()),
                    Circle::new((*dot, middle), 7, INK.0.filled()),
                ])?;
            }
            y = lower + 4.0;
        }
        y += 14.0;
    }
    Ok(())
}

/// A VM at one moment of a run.
struct Sample {
    seconds: f64,
    ops_per_s: f64,
    received_s: f64,
    fair_s: f64,
}

impl Sample {
    fn ahead_ms(&self) -> f64 {
        (self.received_s - self.fair_s) * 1e3
    }
}

fn furthest_ms(lines: &[Line]) -> f64 {
    let away = lines.iter().flatten().map(|sample| sample.ahead_ms().abs());
    away.fold(0.0, f64::max)
}

/// The samples of one VM; empty where there are none.
type Line = Vec<Sample>;

/// Of a timeline: seconds, lock operations a second, CPU seconds so far.
type Point = (f64, f64, f64);

/// What each VM received, and its entitlement's part of what all received by then.
///
/// VMs are sampled one by one; what the others had at that moment is interpolated.
fn fair_lines(run: &RunReport) -> Vec<Line> {
    let is_sound = |&(t, _, cpu_s): &Point| t.is_finite() && cpu_s.is_finite();
    if !run.vms.iter().flat_map(|vm| &vm.timeline).all(is_sound) {
        return run.vms.iter().map(|_| Line::new()).collect();
    }
    let start = |vm: &VmRun| vm.timeline.first().map_or(f64::MAX, |point| point.0);
    let end = |vm: &VmRun| vm.timeline.last().map_or(f64::MIN, |point| point.0);
    let from = run.vms.iter().map(start).fold(f64::MIN, f64::max);
    let to = run.vms.iter().map(end).fold(f64::MAX, f64::min);
    let received_s = |vm: &VmRun, t| cpu_at(&vm.timeline, t) - cpu_at(&vm.timeline, from);
    let entitled_s: f64 = run.vms.iter().map(|vm| vm.entitled_s).sum();
    let line = |vm: &VmRun| {
        let common = vm
            .timeline
            .iter()
            .filter(|(t, _, _)| (from..=to).contains(t));
        let sample = |&(seconds, ops_per_s, _): &Point| {
            let all_s: f64 = run.vms.iter().map(|vm| received_s(vm, seconds)).sum();
            let fair_s = all_s * vm.entitled_s / entitled_s.max(1e-9);
            Sample {
                seconds,
                ops_per_s,
                received_s: received_s(vm, seconds),
                fair_s,
            }
        };
        common.map(sample).collect()
    };
    run.vms.iter().map(line).collect()
}

/// CPU seconds at a time, interpolated between samples, constant beyond them.
fn cpu_at(points: &[Point], t: f64) -> f64 {
    let next = points.partition_point(|point| point.0 < t);
    match (
        next.checked_sub(1).and_then(|before| points.get(before)),
        points.get(next),
    ) {
        (Some(a), Some(b)) if b.0 > a.0 => a.2 + (b.2 - a.2) * (t - a.0) / (b.0 - a.0),
        (_, Some(b)) => b.2,
        (Some(a), None) => a.2,
        (None, None) => 0.0,
    }
}

fn draw_lines(root: &Area<'_>, lines: &[Line], seconds: f64, widest_ms: f64) -> Drawing {
    let mut chart = ChartBuilder::on(root)
        .margin_top(20)
        .margin_right(30)
        .x_label_area_size(AXIS)
        .y_label_area_size(90)
        .build_cartesian_2d(0.0..seconds, -widest_ms * 1.05..widest_ms * 1.05)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(5)
        .y_labels(5)
        .x_label_formatter(&|value| tick(*value))
        .y_label_formatter(&|value| tick(*value))
        .label_style(FONT.into_font().color(&MUTED.0))
        .axis_style(GRID.0.stroke_width(2))
        .bold_line_style(GRID.0.stroke_width(2))
        .light_line_style(TRANSPARENT)
        .draw()?;
    let fair = [(0.0, 0.0), (seconds, 0.0)];
    chart.draw_series([PathElement::new(fair, MUTED.0.stroke_width(3))])?;
    for (index, line) in lines.iter().enumerate() {
        let paint = VMS.get(index).copied().unwrap_or(NEUTRAL);
        let points = line
            .iter()
            .map(|sample| (sample.seconds, sample.ahead_ms()));
        chart.draw_series(LineSeries::new(points, paint.0.stroke_width(4)))?;
    }
    Ok(())
}

/// One SVG, with its text for who cannot see it.
fn figure(alt: &str, size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> Drawing) -> String {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    let drawn = draw(&root).and_then(|()| Ok(root.present()?));
    drop(root);
    if let Err(error) = drawn {
        let error = escape(&error.to_string());
        return format!("<p class=\"note\">Cannot draw this plot: {error}.</p>");
    }
    let alt = escape(alt);
    let named = format!("<svg role=\"img\" aria-label=\"{alt}\"");
    format!("<figure>{}</figure>", svg.replacen("<svg", &named, 1))
}

/// An entry of a legend.
fn key(shape: &str, paint: Paint, text: &str) -> String {
    let (fill, text) = (hex(paint.0), escape(text));
    format!(
        "<li><svg viewBox=\"0 0 12 12\" aria-hidden=\"true\"><path d=\"{shape}\" \
         fill=\"{fill}\"/></svg>{text}</li>"
    )
}

fn legend(keys: &[String]) -> String {
    format!("<ul class=\"key\">{}</ul>", keys.concat())
}

/// A table that scrolls by itself where the page is narrow.
fn table_of(caption: &str, head: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\">\
         <table class=\"wide\"><caption>{caption}</caption><thead><tr>"
    );
    for name in head {
        let _ = write!(table, "<th scope=\"col\">{name}</th>");
    }
    table.push_str("</tr></thead><tbody>");
    for row in rows {
        table.push_str("<tr>");
        for cell in row {
            let _ = write!(table, "<td>{}</td>", escape(cell));
        }
        table.push_str("</tr>\n");
    }
    table + "</tbody></table></div>"
}

/// Exchanges the colours of the plots on a dark page.
fn dark_plots() -> String {
    let mut css = "@media (prefers-color-scheme:dark){".to_owned();
    for Paint(light, dark) in [INK, MUTED, GRID, SURFACE, NEUTRAL, CRITICAL]
        .iter()
        .chain(&VMS)
    {
        let (light, dark) = (hex(*light), hex(*dark));
        let _ = write!(
            css,
            "svg [fill=\"{light}\"]{{fill:{dark}}}svg [stroke=\"{light}\"]{{stroke:{dark}}}"
        );
    }
    css + "}"
}

/// A colour as plotters writes it.
fn hex(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

fn per_second(count: f64, run: &RunReport) -> f64 {
    if run.seconds > 0.0 {
        count / run.seconds
    } else {
        0.0
    }
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn count(value: u64) -> String {
    grouped(&value.to_string())
}

fn seconds(value: f64) -> String {
    if value.is_finite() {
        format!("{value:.3}")
    } else {
        number(value)
    }
}

/// A number to three digits or more, its thousands apart; a dash where there is none.
fn number(value: f64) -> String {
    if !value.is_finite() {
        return "–".to_owned();
    }
    let size = value.abs();
    let digits = match size {
        _ if size < 1e-9 => return "0".to_owned(),
        _ if size >= 99.95 => format!("{size:.0}"),
        _ if size >= 9.995 => format!("{size:.1}"),
        _ => format!("{size:.2}"),
    };
    let is_zero = digits.bytes().all(|digit| matches!(digit, b'0' | b'.'));
    let sign = if value < 0.0 && !is_zero { "−" } else { "" };
    format!("{sign}{}", grouped(&digits))
}

/// The same for an axis: no zeros that say nothing.
fn tick(value: f64) -> String {
    let text = number(value);
    if text.contains('.') {
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    text
}

/// Puts a narrow space before every third of many digits.
fn grouped(digits: &str) -> String {
    if digits.contains('.') {
        return digits.to_owned();
    }
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// Text as it may stand in HTML, between tags and in attributes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::super::measure::RunCounters;
    use super::super::{ArmReport, Machine, Scenario};
    use super::*;

    /// A report as two VMs on two CPUs give it; `scale` 0 is one of nothing but zeros.
    fn sample(scale: f64, name: &str) -> Report {
        let run = |ops: f64, critical: u64, drift: f64| {
            let vm = |sign: f64, name: String| VmRun {
                name,
                ops_per_s: ops * scale,
                cpu_s: (2.0 + sign * drift) * scale,
                entitled_s: 2.0 * scale,
                timeline: (1..=10)
                    .map(|i| f64::from(i) * 0.2)
                    .map(|t| {
                        let ahead = sign * drift * t / 2.0 * (1.0 + 0.4 * (t * 7.0).sin());
                        (t + 0.003 * sign, ops * scale, (t + ahead) * scale)
                    })
                    .collect(),
                ..VmRun::default()
            };
            let of = |count: u64| if scale > 0.0 { count } else { 0 };
            RunReport {
                seconds: 2.0 * scale,
                vcpus_are: "KVM (works)".to_owned(),
                vms: vec![vm(1.0, name.to_owned()), vm(-1.0, "vm1".to_owned())],
                share_deviation_percent: drift * 50.0 * scale,
                counters: RunCounters {
                    requests: of(400),
                    grants: of(398),
                    yielded: of(397),
                    preemptions: of(1400),
                    critical_preemptions: of(critical),
                    critical_stall_us: of(critical * 2900),
                    ..RunCounters::default()
                },
                controller_cpu_percent: 0.3 * scale,
                decision_median_ns: of(512),
                controller: "userspace rr".to_owned(),
            }
        };
        let arm = |arm: Arm, ops: f64, critical: u64, drift: f64| ArmReport {
            arm,
            ops_per_s: 2.0 * ops * scale,
            ops_per_s_range: (1.9 * ops * scale, 2.1 * ops * scale),
            runs: [1.0, 0.95, 1.05]
                .iter()
                .map(|f| run(ops * f, critical, drift))
                .collect(),
        };
        Report {
            machine: Machine {
                cpu: "Test CPU <2 GHz>".to_owned(),
                online_cpus: "0-1".to_owned(),
                kernel: "6.12.0".to_owned(),
                hz: None,
                load_average: "0.50 0.40 0.30 1/200 4000".to_owned(),
            },
            scenario: Scenario::default(),
            vcpus_are: "KVM (works)".to_owned(),
            alone_ops_per_s: Some(165_000.0 * scale),
            arms: vec![
                arm(Arm::Stock, 51_000.0, 700, 0.03),
                arm(Arm::Rotate, 62_000.0, 520, 0.004),
                arm(Arm::Ecs, 81_500.0, 2, 0.001),
            ],
            throughput_ratio: Some(1.598),
            extension_ratio: Some(1.314),
            efficiency: Some(0.988),
            avoided_ratio: Some(0.9925),
            share_deviation_percent: Some(0.05),
        }
    }

    /// Every tag closed, in order, no stray `<`; the page is written so that XML's rules hold.
    fn assert_well_formed(page: &str) {
        let body = page.strip_prefix("<!DOCTYPE html>").unwrap();
        let mut open: Vec<&str> = Vec::new();
        for part in body.split('<').skip(1) {
            let (tag, text) = part
                .split_once('>')
                .unwrap_or_else(|| panic!("unclosed: {part}"));
            let is_style = open.last() == Some(&"style") || tag == "style";
            assert!(is_style || !text.contains('>'), "stray > in {text:?}");
            assert!(
                tag.matches('"').count().is_multiple_of(2),
                "quotes of {tag:?}"
            );
            let name = tag
                .trim_start_matches('/')
                .split([' ', '/', '\n'])
                .next()
                .unwrap();
            assert!(
                name.chars().all(|c| c.is_ascii_alphanumeric()) && !name.is_empty(),
                "{tag:?}"
            );
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name), "closed out of order");
            } else if !tag.ends_with('/') {
                open.push(name);
            }
        }
        assert_eq!(open, Vec::<&str>::new());
        assert!(
            !page.contains("NaN") && !page.contains("inf<"),
            "a figure that is none"
        );
        for outside in ["http://", "https://", "src=", "url(", "@import", "<script"] {
            let found = page.matches(outside).count();
            let namespaces = page.matches("xmlns=\"http://www.w3.org/2000/svg\"").count();
            assert_eq!(
                found,
                if outside == "http://" { namespaces } else { 0 },
                "{outside}"
            );
        }
    }

    #[test]
    fn a_whole_report_has_all_parts() {
        let page = render(&sample(1.0, "vm0"));
        assert_well_formed(&page);
        for part in [
            "<strong>1.60 times</strong> the lock operations",
            "<strong>1.31 times</strong> those under",
            "<strong>98.8 %</strong> of what one VM alone",
            "<strong>99.2 %</strong> did no harm",
            "<strong>0.05 %</strong> away",
            "limit, one VM alone: 165\u{202f}000",
            "stock scheduler: 700, critical 350",
        ] {
            assert!(page.contains(part), "lacks {part}");
        }
        // Two plots of bars, one of lines an arm, each named twice: for the ear and the pointer.
        assert_eq!(page.matches("role=\"img\" aria-label=\"").count(), 5);
        assert_eq!(
            page.matches("<polyline").count() - axes(&page),
            6,
            "two VMs, three arms"
        );
        assert_eq!(
            page.matches("<td>eCS, 3</td>").count(),
            1,
            "the last run is in the table"
        );
    }

    /// Polylines that plotters draws for axes and marks, not for VMs.
    fn axes(page: &str) -> usize {
        let lines: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("<polyline"))
            .collect();
        lines
            .iter()
            .filter(|line| !VMS.iter().any(|vm| line.contains(&hex(vm.0))))
            .count()
    }

    #[test]
    fn zeros_render() {
        let mut report = sample(0.0, "vm0");
        assert_well_formed(&render(&report));
        report.arms.iter_mut().for_each(|arm| arm.runs.clear());
        assert_well_formed(&render(&report));
        report.arms.clear();
        report.scenario.vms = 0;
        assert_well_formed(&render(&report));
    }

    #[test]
    fn figures_that_are_none_render() {
        let mut report = sample(1.0, "vm0");
        for (index, broken) in [f64::NAN, f64::INFINITY, -1.0].into_iter().enumerate() {
            let arm = &mut report.arms[index];
            arm.ops_per_s = broken;
            for run in &mut arm.runs {
                run.seconds = broken;
                run.vms[0].timeline[3].2 = broken;
                run.vms[1].timeline.truncate(index);
            }
        }
        report.alone_ops_per_s = Some(f64::INFINITY);
        assert_well_formed(&render(&report));
    }

    #[test]
    fn nothing_to_compare_is_said() {
        let report = Report {
            alone_ops_per_s: None,
            throughput_ratio: None,
            extension_ratio: None,
            efficiency: None,
            avoided_ratio: None,
            share_deviation_percent: None,
            ..sample(1.0, "vm0")
        };
        let page = render(&report);
        assert_well_formed(&page);
        assert!(page.contains("there is no ratio to report"));
        assert!(!page.contains("class=\"tiles\"") && !page.contains("one VM alone"));
    }

    #[test]
    fn text_is_escaped() {
        let mut report = sample(1.0, "<b>&\"'");
        report.scenario.workload = "</style><script>".to_owned();
        let page = render(&report);
        assert_well_formed(&page);
        assert!(page.contains("&lt;b&gt;&amp;&quot;&#39;") && !page.contains("<b>"));
        assert!(page.contains("Test CPU &lt;2 GHz&gt;"));
    }

    #[test]
    fn the_fair_line_is_the_entitlement_of_what_all_received() {
        let vm = |entitled_s: f64, timeline| VmRun {
            entitled_s,
            timeline,
            ..VmRun::default()
        };
        let run = RunReport {
            vms: vec![
                vm(1.0, vec![(0.0, 0.0, 5.0), (1.0, 0.0, 5.5), (2.0, 0.0, 6.0)]),
                vm(3.0, vec![(0.0, 0.0, 0.0), (2.0, 0.0, 2.0)]),
            ],
            ..RunReport::default()
        };
        let lines = fair_lines(&run);
        let sample = &lines[0][1];
        // By then 0.5 s and, between two samples, 1.0 s: a quarter of 1.5 s is fair.
        assert!((sample.received_s - 0.5).abs() < 1e-9);
        assert!((sample.fair_s - 0.375).abs() < 1e-9);
        assert!((sample.ahead_ms() - 125.0).abs() < 1e-6);
        assert!(
            (lines[0][2].ahead_ms() + lines[1][1].ahead_ms()).abs() < 1e-6,
            "they balance"
        );
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(number(0.0), "0");
        assert_eq!(number(-0.0004), "0.00");
        assert_eq!(number(9.996), "10.0");
        assert_eq!(number(-12.34), "−12.3");
        assert_eq!(number(1_234_567.8), "1\u{202f}234\u{202f}568");
        assert_eq!(number(f64::NAN), "–");
        assert_eq!(
            (tick(2.0), tick(0.5), tick(100.0)),
            ("2".into(), "0.5".into(), "100".into())
        );
    }
}
