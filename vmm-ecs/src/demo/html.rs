//! The demo's result as one HTML page with plots, for a browser or a phone.
//!
//! The page loads nothing and runs no script: inline CSS, inline SVG. Plots are drawn in the colours
//! of the light theme; the style sheet exchanges them, by value, where the reader prefers dark.

use std::error::Error;
use std::fmt::Write;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::measure::RunReport;
use super::{Arm, ArmReport, Report, Scenario, median};

/// A colour: as drawn, and in its place on a dark page.
#[derive(Clone, Copy)]
struct Paint(RGBColor, RGBColor);

const INK: Paint = Paint(RGBColor(0x1f, 0x1f, 0x1d), RGBColor(0xf0, 0xef, 0xea));
const MUTED: Paint = Paint(RGBColor(0x5f, 0x5e, 0x5a), RGBColor(0xb0, 0xaf, 0xa8));
const GRID: Paint = Paint(RGBColor(0xe3, 0xe2, 0xdd), RGBColor(0x3a, 0x3a, 0x37));
const SURFACE: Paint = Paint(RGBColor(0xfd, 0xfd, 0xfc), RGBColor(0x20, 0x20, 0x1e));
const NEUTRAL: Paint = Paint(RGBColor(0x94, 0x93, 0x8d), RGBColor(0x84, 0x83, 0x7d));
const ECS: Paint = Paint(RGBColor(0x2a, 0x77, 0xd6), RGBColor(0x39, 0x87, 0xe5));
const CRITICAL: Paint = Paint(RGBColor(0xe3, 0x48, 0x48), RGBColor(0xe6, 0x66, 0x66));
/// Lines of the VMs, in their order; VMs beyond them share `NEUTRAL`.
const VMS: [Paint; 6] = [
    Paint(RGBColor(0x2a, 0x78, 0xd6), RGBColor(0x39, 0x87, 0xe6)),
    Paint(RGBColor(0xeb, 0x68, 0x34), RGBColor(0xd9, 0x59, 0x26)),
    Paint(RGBColor(0x1b, 0xaf, 0x7a), RGBColor(0x19, 0x9e, 0x70)),
    Paint(RGBColor(0x4a, 0x3a, 0xa7), RGBColor(0x90, 0x85, 0xe9)),
    Paint(RGBColor(0xed, 0xa1, 0x00), RGBColor(0xc9, 0x85, 0x00)),
    Paint(RGBColor(0xe8, 0x7b, 0xa4), RGBColor(0xd5, 0x51, 0x81)),
];

/// Width of a plot in its own units; shown at about half of it, as its coordinates are integers.
const WIDTH: u32 = 800;
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
.tiles{display:flex;flex-wrap:wrap;gap:12px;margin:16px 0 0}
.tiles div{flex:1 1 150px;background:var(--card);border:1px solid var(--line);border-radius:10px;
padding:10px 14px}.tiles dt{color:var(--muted);font-size:.85rem}
.tiles dd{margin:0;font-size:1.6rem;font-weight:600;color:var(--accent)}
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
:focus-visible{outline:2px solid var(--accent);outline-offset:2px}
";

const WORDS: [(&str, &str); 7] = [
    (
        "Lock operation",
        "Taking a lock, working inside its section, and releasing it: the work the VMs do.",
    ),
    (
        "Slice",
        "The time a vCPU may run before the host gives its CPU to another vCPU that waits for it.",
    ),
    (
        "Extension",
        "A little extra time at the end of a slice, 1 ms at most by default, for a vCPU inside a \
         critical section. One a slice; the time used is taken back from its VM later.",
    ),
    (
        "Preemption",
        "The host took the CPU from a vCPU that still had work.",
    ),
    (
        "Critical preemption",
        "A preemption in the middle of a critical section: whoever needs the lock waits, and can \
         make no progress, until that vCPU runs again.",
    ),
    (
        "Avoided",
        "A slice ended inside a section, an extension was granted, and the section ended within \
         it: one critical preemption that did not happen.",
    ),
    (
        "Share",
        "The CPU time a VM is entitled to, by its weight. Its deviation says how far the time it \
         received is from that.",
    ),
];

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
    let _ = write!(page, "<h1>eCS demo</h1><p class=\"lead\">{}</p>", headline(report));
    if report.vcpus_are.contains("software") {
        page.push_str(
            "<p class=\"note\">KVM is emulated here: compare the arms, not the absolute \
             figures.</p>",
        );
    }
    page.push_str(&tiles(report));
    page.push_str(&what_was_run(report));
    page.push_str("<div class=\"pair\">");
    page.push_str(&throughput(report));
    page.push_str(&preemptions(report));
    page.push_str("</div>");
    page.push_str(&shares(report));
    page.push_str(&all_runs(report));
    page.push_str("<section><h2>Words</h2><dl class=\"words\">");
    for (word, meaning) in WORDS {
        let _ = write!(page, "<dt>{word}</dt><dd>{meaning}</dd>");
    }
    page.push_str("</dl></section>\n</main></body></html>\n");
    page
}

/// What the ratios say, in words.
fn headline(report: &Report) -> String {
    let vms = plural(report.scenario.vms, "VM");
    let mut against = Vec::new();
    if let Some(ratio) = report.throughput_ratio {
        against.push(format!(
            "<strong>{} times</strong> the lock operations they reach under the stock scheduler",
            number(ratio)
        ));
    }
    if let Some(ratio) = report.extension_ratio {
        against.push(format!(
            "<strong>{} times</strong> those under the same controller without extensions",
            number(ratio)
        ));
    }
    if let Some(efficiency) = report.efficiency {
        against.push(format!(
            "<strong>{} %</strong> of what one VM alone reaches, which is the limit",
            number(efficiency * 100.0)
        ));
    }
    let mut text = match against.split_last() {
        None => format!(
            "{vms} ran, but there is no ratio to report: eCS, or what it is compared with, was \
             not among the arms, or did no lock operations."
        ),
        Some((only, [])) => format!("With eCS, {vms} together reach {only}."),
        Some((last, rest)) => {
            format!("With eCS, {vms} together reach {}, and {last}.", rest.join(", "))
        }
    };
    if let Some(avoided) = report.avoided_ratio {
        let _ = write!(
            text,
            " Of the slice ends that met a critical section, <strong>{} %</strong> did no harm: \
             the section ended within its extension.",
            number(avoided * 100.0)
        );
    }
    if let Some(percent) = report.share_deviation_percent {
        let _ = write!(
            text,
            " The VM furthest from its share of CPU time is <strong>{} %</strong> away from it.",
            number(percent)
        );
    }
    text
}

fn tiles(report: &Report) -> String {
    let percent = |value: Option<f64>| value.map(|value| format!("{} %", number(value)));
    let times = |value: Option<f64>| value.map(|value| format!("{}×", number(value)));
    let hundred = |value: Option<f64>| value.map(|value| value * 100.0);
    let tiles: String = [
        ("against the stock scheduler", times(report.throughput_ratio)),
        ("against no extensions", times(report.extension_ratio)),
        ("of the limit", percent(hundred(report.efficiency))),
        ("critical preemptions avoided", percent(hundred(report.avoided_ratio))),
        ("largest share deviation", percent(report.share_deviation_percent)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some(format!("<div><dt>{name}</dt><dd>{}</dd></div>", value?)))
    .collect();
    if tiles.is_empty() { tiles } else { format!("<dl class=\"tiles\">{tiles}</dl>") }
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
    for (vms, what) in [
        (&scenario.unhinted, "annotate nothing"),
        (&scenario.pinning, "pin their counts for ever, to gain time"),
    ] {
        if !vms.is_empty() {
            let _ = write!(work, "; VMs that {what}: {}", list(vms));
        }
    }
    if !scenario.weights.is_empty() {
        let _ = write!(work, "; weights {}", list(&scenario.weights));
    }
    let mut rows = vec![
        ("Work", work),
        ("Runs", format!("{} of {} s an arm, arms interleaved", scenario.runs, scenario.seconds)),
        ("vCPUs", report.vcpus_are.clone()),
        ("CPU", format!("{}; online: {}", machine.cpu, machine.online_cpus)),
        ("Kernel", machine.kernel.clone()),
    ];
    rows.extend(machine.hz.clone().map(|hz| ("Timer", format!("{hz} Hz"))));
    rows.push(("Load average", machine.load_average.clone()));
    let rows: String = rows
        .iter()
        .map(|(name, value)| {
            format!("<tr><th scope=\"row\">{name}</th><td>{}</td></tr>", escape(value))
        })
        .collect();
    format!(
        "<section><h2>What was run, and on what</h2><table class=\"facts\"><tbody>{rows}</tbody>\
         </table></section>\n"
    )
}

/// Plot 1.
fn throughput(report: &Report) -> String {
    let title = "Throughput by arm";
    let rows: Vec<Row> = report
        .arms
        .iter()
        .map(|arm| Row {
            label: format!("{}: {}", arm.arm.title(), number(arm.ops_per_s)),
            bars: vec![(
                arm.ops_per_s,
                if arm.arm == Arm::Ecs { ECS } else { NEUTRAL },
                arm.runs.iter().map(RunReport::ops_per_s).collect(),
            )],
        })
        .collect();
    let limit = report.alone_ops_per_s;
    let limit_shown = limit.map(number);
    let mut keys = vec![
        key("<rect width=\"12\" height=\"12\" rx=\"2\"", ECS, "eCS, median"),
        key("<rect width=\"12\" height=\"12\" rx=\"2\"", NEUTRAL, "other arms, median"),
        key("<circle cx=\"6\" cy=\"6\" r=\"4\"", INK, "one run"),
    ];
    keys.extend(limit_shown.as_ref().map(|limit| {
        key(
            "<rect x=\"5\" width=\"2\" height=\"12\"",
            INK,
            &format!("limit, one VM alone: {limit}"),
        )
    }));
    let mut table: Vec<Vec<String>> = report
        .arms
        .iter()
        .map(|arm| {
            let (low, high) = arm.ops_per_s_range;
            vec![arm.arm.title().to_owned(), number(arm.ops_per_s), number(low), number(high)]
        })
        .collect();
    table.extend(limit_shown.map(|limit| {
        vec!["one VM alone (the limit)".to_owned(), limit, "–".to_owned(), "–".to_owned()]
    }));
    format!(
        "<section><h2>{title}</h2><p class=\"note\">Lock operations a second, all VMs together. \
         More is better.</p>{}{}{}</section>\n",
        legend(&keys),
        figure(&format!("{title}: {}", labels(&rows)), bars_height(&rows), |root| {
            draw_bars(root, &rows, limit)
        }),
        table_of("Lock operations a second", &["arm", "median", "lowest", "highest"], &table),
    )
}

/// Plot 2.
fn preemptions(report: &Report) -> String {
    let title = "Preemptions by arm";
    let figures: Vec<(&str, [f64; 3])> = report
        .arms
        .iter()
        .map(|arm| {
            let of = |count: fn(&RunReport) -> f64| median_per_second(arm, count);
            let all = of(|run| run.counters.preemptions as f64);
            let critical = of(|run| run.counters.critical_preemptions as f64);
            let stall = of(|run| run.counters.critical_stall_us as f64 / 1e3);
            (arm.arm.title(), [all, critical, stall])
        })
        .collect();
    let rows: Vec<Row> = figures
        .iter()
        .map(|(name, [all, critical, _])| Row {
            label: format!("{name}: {}, critical {}", number(*all), number(*critical)),
            bars: vec![(*all, NEUTRAL, Vec::new()), (*critical, CRITICAL, Vec::new())],
        })
        .collect();
    let table: Vec<Vec<String>> = figures
        .iter()
        .map(|(name, values)| {
            let values = values.iter().map(|value| number(*value));
            std::iter::once((*name).to_owned()).chain(values).collect()
        })
        .collect();
    let keys = [
        key("<rect width=\"12\" height=\"12\" rx=\"2\"", NEUTRAL, "preemptions"),
        key("<rect width=\"12\" height=\"12\" rx=\"2\"", CRITICAL, "critical preemptions"),
    ];
    format!(
        "<section><h2>{title}</h2><p class=\"note\">A second, all VMs together, median of the \
         runs. Fewer critical ones is better.</p>{}{}{}</section>\n",
        legend(&keys),
        figure(&format!("{title}, a second: {}", labels(&rows)), bars_height(&rows), |root| {
            draw_bars(root, &rows, None)
        }),
        table_of(
            "A second, median of the runs",
            &["arm", "preemptions", "critical", "stalled in a section, ms"],
            &table
        ),
    )
}

/// Plot 3.
fn shares(report: &Report) -> String {
    let last: Vec<(Arm, &RunReport, Vec<Line>)> = report
        .arms
        .iter()
        .filter_map(|arm| arm.runs.last().map(|run| (arm.arm, run, fair_lines(run))))
        .collect();
    let samples = || last.iter().flat_map(|(_, _, lines)| lines.iter().flatten());
    let widest = samples().map(Sample::ahead_ms).map(f64::abs).fold(1.0, f64::max);
    let longest = samples().map(|sample| sample.seconds).fold(0.1, f64::max);
    let mut panels = String::new();
    let (mut summary, mut series) = (Vec::new(), Vec::new());
    for (arm, run, lines) in &last {
        let title = arm.title();
        let worst = lines.iter().flatten().map(Sample::ahead_ms).map(f64::abs).fold(0.0, f64::max);
        let plot = if lines.iter().all(Vec::is_empty) {
            "<p class=\"note\">No samples over time.</p>".to_owned()
        } else {
            let alt = format!(
                "CPU time ahead of the fair line over time, {title}: at most {} ms away",
                number(worst)
            );
            figure(&alt, 440, |root| draw_lines(root, lines, longest, widest))
        };
        let _ = write!(panels, "<div><h3>{title}</h3>{plot}</div>");
        for (index, vm) in run.vms.iter().enumerate() {
            let off = (vm.cpu_s / vm.entitled_s - 1.0) * 100.0;
            summary.push(vec![
                title.to_owned(),
                vm.name.clone(),
                number(vm.cpu_s),
                number(vm.entitled_s),
                number(off),
            ]);
            for sample in lines.get(index).into_iter().flatten() {
                series.push(vec![
                    title.to_owned(),
                    vm.name.clone(),
                    number(sample.seconds),
                    format!("{:.4}", sample.received_s),
                    format!("{:.4}", sample.fair_s),
                    number(sample.ahead_ms()),
                    number(sample.ops_per_s),
                ]);
            }
        }
    }
    let names = last.iter().map(|(_, run, _)| &run.vms).max_by_key(|vms| vms.len());
    let mut keys: Vec<String> = names
        .into_iter()
        .flatten()
        .zip(VMS)
        .map(|(vm, paint)| key("<rect y=\"4\" width=\"12\" height=\"4\"", paint, &vm.name))
        .collect();
    if names.is_some_and(|names| names.len() > VMS.len()) {
        keys.push(key("<rect y=\"4\" width=\"12\" height=\"4\"", NEUTRAL, "all other VMs"));
    }
    format!(
        "<section><h2>Shares over time</h2><p class=\"note\">Last run of each arm: CPU time each \
         VM received so far, ms ahead of its fair part of what all VMs received (the line at 0), \
         against seconds. Nearer to 0 is fairer; the scale is the same for all arms.</p>{}\
         <div class=\"panels\">{panels}</div>{}<details><summary>Every sample</summary>{}\
         </details></section>\n",
        legend(&keys),
        table_of(
            "Last run of each arm, whole run",
            &["arm", "VM", "received, CPU s", "entitled, CPU s", "off, %"],
            &summary
        ),
        table_of(
            "Since the first common sample",
            &["arm", "VM", "time, s", "received, CPU s", "fair, CPU s", "ahead, ms", "ops/s"],
            &series
        ),
    )
}

fn all_runs(report: &Report) -> String {
    let head = [
        "arm and run", "ops/s", "lost wake-ups", "preempted/s", "critical/s", "stalled, ms/s",
        "requests", "grants", "denials", "yielded", "expired", "revoked", "aborted",
        "extension, ms", "stepped aside", "rotations", "doorbells", "share off, %",
        "controller CPU, %", "decision, ns", "length, s", "controller",
    ];
    let mut rows = Vec::new();
    for arm in &report.arms {
        for (index, run) in arm.runs.iter().enumerate() {
            let counters = &run.counters;
            let rate = |count: u64| number(per_second(count as f64, run.seconds));
            let mut row = vec![
                format!("{}, {}", arm.arm.title(), index + 1),
                number(run.ops_per_s()),
                run.vms.iter().map(|vm| vm.lost_wakeups).sum::<u64>().to_string(),
                rate(counters.preemptions),
                rate(counters.critical_preemptions),
                number(per_second(counters.critical_stall_us as f64 / 1e3, run.seconds)),
            ];
            row.extend(
                [
                    counters.requests,
                    counters.grants,
                    counters.denials,
                    counters.yielded,
                    counters.expired,
                    counters.revoked,
                    counters.aborted,
                ]
                .map(count),
            );
            row.push(number(counters.extension_us as f64 / 1e3));
            row.extend([counters.stepped_aside, counters.rotations, counters.doorbells].map(count));
            row.extend([
                number(run.share_deviation_percent),
                number(run.controller_cpu_percent),
                count(run.decision_median_ns),
                number(run.seconds),
                run.controller.clone(),
            ]);
            rows.push(row);
        }
    }
    format!("<section><h2>All runs</h2>{}</section>\n", table_of("Sums of all VMs", &head, &rows))
}

/// A group of bars with a line of text above.
struct Row {
    label: String,
    /// Length, colour, and dots beside it.
    bars: Vec<(f64, Paint, Vec<f64>)>,
}

/// Height of a bar, and of all else in its row, in units of the plot.
const BAR: u32 = 34;
const ROW: u32 = 66;
const AXIS: u32 = 48;

fn bars_height(rows: &[Row]) -> u32 {
    rows.iter().map(row_height).sum::<u32>() + AXIS
}

fn row_height(row: &Row) -> u32 {
    row.bars.iter().map(|_| BAR + 4).sum::<u32>() + ROW
}

fn labels(rows: &[Row]) -> String {
    rows.iter().map(|row| row.label.as_str()).collect::<Vec<_>>().join("; ")
}

type Drawing = Result<(), Box<dyn Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn draw_bars(root: &Area<'_>, rows: &[Row], limit: Option<f64>) -> Drawing {
    let bars = || rows.iter().flat_map(|row| &row.bars);
    let top = bars().flat_map(|(value, _, dots)| dots.iter().chain([value])).chain(&limit);
    let top = top.copied().filter(|value| value.is_finite()).fold(0.0, f64::max);
    let end = if top > 0.0 { top * 1.02 } else { 1.0 };
    let depth = f64::from(rows.iter().map(row_height).sum::<u32>());
    let mut chart = ChartBuilder::on(root)
        .margin_left(6)
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
        let ink = FONT.into_font().color(&INK.0).pos(Pos::new(HPos::Left, VPos::Center));
        chart.draw_series([EmptyElement::at((0.0, y + 34.0)) + Text::new(row.label.clone(), (4, 0), ink)])?;
        y += 52.0;
        for (value, paint, dots) in &row.bars {
            let (upper, lower) = (y, y + f64::from(BAR));
            let length = if value.is_finite() { value.max(0.0) } else { 0.0 };
            chart.draw_series([Rectangle::new([(0.0, upper), (length, lower)], paint.0.filled())])?;
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
        y += f64::from(ROW) - 52.0;
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

/// The samples of one VM; empty where there are none.
type Line = Vec<Sample>;

/// What each VM received, and its entitlement's part of what all received by then.
///
/// VMs are sampled one by one; what the others had at that moment is interpolated.
fn fair_lines(run: &RunReport) -> Vec<Line> {
    let usable = |points: &[(f64, f64, f64)]| {
        points.len() > 1 && points.iter().all(|(t, _, cpu)| t.is_finite() && cpu.is_finite())
    };
    if !run.vms.iter().all(|vm| usable(&vm.timeline)) {
        return run.vms.iter().map(|_| Line::new()).collect();
    }
    let times = |end: fn(&[(f64, f64, f64)]) -> Option<&(f64, f64, f64)>| {
        run.vms.iter().filter_map(move |vm| end(&vm.timeline)).map(|point| point.0)
    };
    let from = times(|points| points.first()).fold(0.0, f64::max);
    let to = times(|points| points.last()).fold(f64::MAX, f64::min);
    let since = |points: &[(f64, f64, f64)], t: f64| cpu_at(points, t) - cpu_at(points, from);
    let entitled: f64 = run.vms.iter().map(|vm| vm.entitled_s).sum();
    run.vms
        .iter()
        .map(|vm| {
            let share = if entitled > 0.0 {
                vm.entitled_s / entitled
            } else {
                1.0 / run.vms.len() as f64
            };
            let inside = vm.timeline.iter().filter(|(t, _, _)| (from..=to).contains(t));
            inside
                .map(|&(seconds, ops_per_s, _)| Sample {
                    seconds,
                    ops_per_s,
                    received_s: since(&vm.timeline, seconds),
                    fair_s: share * run.vms.iter().map(|vm| since(&vm.timeline, seconds)).sum::<f64>(),
                })
                .collect()
        })
        .collect()
}

/// CPU seconds at a time, interpolated between samples, constant beyond them.
fn cpu_at(points: &[(f64, f64, f64)], t: f64) -> f64 {
    let next = points.partition_point(|point| point.0 < t);
    match (next.checked_sub(1).and_then(|before| points.get(before)), points.get(next)) {
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
        let points = line.iter().map(|sample| (sample.seconds, sample.ahead_ms()));
        chart.draw_series(LineSeries::new(points, paint.0.stroke_width(4)))?;
    }
    Ok(())
}

/// One SVG, with its text for who cannot see it.
fn figure(alt: &str, height: u32, draw: impl FnOnce(&Area<'_>) -> Drawing) -> String {
    let mut svg = String::new();
    let drawn = {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        draw(&root).and_then(|()| Ok(root.present()?))
    };
    let alt = escape(alt);
    match (drawn, svg.split_once('>')) {
        (Ok(()), Some((open, rest))) => {
            format!("<figure>{open} role=\"img\" aria-label=\"{alt}\">{rest}</figure>")
        }
        (Err(error), _) => {
            format!("<p class=\"note\">Cannot draw this plot: {}.</p>", escape(&error.to_string()))
        }
        (Ok(()), None) => String::new(),
    }
}

/// An entry of a legend; `shape` lacks its colour and end.
fn key(shape: &str, paint: Paint, text: &str) -> String {
    format!(
        "<li><svg viewBox=\"0 0 12 12\" aria-hidden=\"true\">{shape} fill=\"{}\"/></svg>{}</li>",
        hex(paint.0),
        escape(text)
    )
}

fn legend(keys: &[String]) -> String {
    if keys.is_empty() {
        return String::new();
    }
    format!("<ul class=\"key\">{}</ul>", keys.concat())
}

/// A table that scrolls by itself where the page is narrow.
fn table_of(caption: &str, head: &[&str], rows: &[Vec<String>]) -> String {
    let head: String = head.iter().map(|name| format!("<th scope=\"col\">{name}</th>")).collect();
    let cells = |row: &Vec<String>| -> String {
        row.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect()
    };
    let body: String = rows.iter().map(|row| format!("<tr>{}</tr>\n", cells(row))).collect();
    format!(
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{caption}\">\
         <table class=\"wide\"><caption>{caption}</caption><thead><tr>{head}</tr></thead>\
         <tbody>{body}</tbody></table></div>"
    )
}

/// Exchanges the colours of the plots on a dark page.
fn dark_plots() -> String {
    let mut css = "@media (prefers-color-scheme:dark){".to_owned();
    for Paint(light, dark) in [INK, MUTED, GRID, SURFACE, NEUTRAL, ECS, CRITICAL].iter().chain(&VMS)
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

fn per_second(count: f64, seconds: f64) -> f64 {
    if seconds > 0.0 { count / seconds } else { 0.0 }
}

fn median_per_second(arm: &ArmReport, count: fn(&RunReport) -> f64) -> f64 {
    median(&arm.runs.iter().map(|run| per_second(count(run), run.seconds)).collect::<Vec<_>>())
}

fn plural(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn list(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn count(value: u64) -> String {
    if value == 0 { "0".to_owned() } else { grouped(&value.to_string()) }
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
    let sign = if value < 0.0 { "−" } else { "" };
    format!("{sign}{}", grouped(&digits))
}
