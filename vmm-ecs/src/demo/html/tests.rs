//! The page as a whole.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use super::plot::{VMS, hex};
use super::*;
use crate::demo::figures::{HandoffUs, RunCounters, VmRun};
use crate::demo::{ArmReport, Machine, Scenario};

/// A report as two VMs on two CPUs give it; `scale` 0 is one of nothing but zeros.
fn sample(scale: f64, name: &str) -> Report {
    let run = |ops: f64, critical: u64, drift: f64| {
        let vm = |sign: f64, name: String| VmRun {
            name,
            ops_per_s: ops * scale,
            cpu_s: (2.0 + sign * drift) * scale,
            entitled_s: 2.0 * scale,
            handoff_us: HandoffUs {
                p50: 0.8 * scale,
                p99: (2.0 + sign) * 3456.0 * scale,
                p999: (2.0 + sign) * 3999.0 * scale,
            },
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
            share_deviation_percent: (scale > 0.0).then_some(drift * 50.0),
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
            extension_max_us: 0,
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
        // The slower VM's.
        "<td>0.80</td><td>10\u{202f}368</td>",
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
    assert!(page.contains("&lt;b&gt;&amp;&quot;&#x27;") && !page.contains("<b>"));
    assert!(page.contains("Test CPU &lt;2 GHz&gt;"));
}
