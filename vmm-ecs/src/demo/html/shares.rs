//! The section on shares: what each VM received over time, against its fair part.

use std::fmt::Write;

use super::plot::{DASH, NEUTRAL, VMS, key, legend, lines_figure};
use super::text::{none, number, seconds, table_of};
use crate::demo::Report;
use crate::demo::figures::{RunReport, VmRun};

/// The whole section.
pub(super) fn shares(report: &Report) -> String {
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
            let points: Vec<_> = lines.iter().map(points_of).collect();
            let plot = lines_figure(&alt, &points, longest, widest);
            format!("<p class=\"note\">at most {off} ms off</p>{plot}")
        };
        let _ = write!(panels, "<div><h3>{title}</h3>{plot}</div>");
        for (vm, line) in run.vms.iter().zip(lines) {
            let name = || vec![(*title).to_owned(), vm.name.clone()];
            let whole = [
                seconds(vm.cpu_s),
                seconds(vm.entitled_s),
                vm.off_percent().map_or_else(none, number),
            ];
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

/// Of a line: seconds, and how far it is ahead of the fair line.
fn points_of(line: &Line) -> Vec<(f64, f64)> {
    line.iter()
        .map(|sample| (sample.seconds, sample.ahead_ms()))
        .collect()
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

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]

    use super::*;

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
}
