//! The exposition of a fixed snapshot, compared byte by byte with committed files.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use common::{fixture, value, with_vms};
use ecs_exporter::catalogue::{self, Kind};
use ecs_exporter::host::{HostReading, HostVcpu, HostVm, PerfTotals};
use ecs_exporter::{
    Config, Exporter, Format, Limits, Reading, Scope, ScrapeError, Timed, VmFilter,
};
use ecs_stats::Snapshot;

/// What every source says: `web` as vmm-ecs and the host see it, `bare` as the host alone does.
fn full_reading() -> Reading {
    let bare = HostVm {
        name: "bare".into(),
        pid: 77,
        uuid: Some("77aa".into()),
        cgroup: Some("/vms/bare".into()),
        api_socket: Some("/run/bare.sock".into()),
        api_up: Some(false),
        cpu_ns: 3_000_000_000,
        delay_ns: 1_000_000_000,
        preemptions: Some(40),
        cycles_and_instructions: Some((9_000, 8_000)),
        vcpus: vec![HostVcpu {
            vcpu: 0,
            cpu_ns: 3_000_000_000,
            delay_ns: 1_000_000_000,
            preemptions: Some(40),
        }],
    };
    let web = HostVm {
        name: "not-this-name".into(),
        pid: 4242,
        api_up: Some(true),
        cpu_ns: 1,
        preemptions: Some(1),
        cycles_and_instructions: Some((5_000, 6_000)),
        ..HostVm::default()
    };
    let totals = PerfTotals {
        records: 5005,
        lost: 2,
        drain_ns: 250_000_000,
    };
    let host = HostReading {
        cpus: 8,
        kernel: "6.1.0".into(),
        vms: vec![bare, web],
    };
    Reading {
        host: Some(Timed::take(|| Ok(host))),
        perf: Some(Timed::take(|| Ok(totals))),
        hardware: Some(Ok(())),
        ..Reading::of_stats(Ok(fixture()))
    }
}

fn exporter(vcpus: bool, max_series: usize) -> Exporter {
    let exporter = Exporter::new(&Config {
        vcpus: if vcpus {
            VmFilter::all()
        } else {
            VmFilter::None
        },
        limits: Limits {
            max_series,
            ..Limits::default()
        },
        ..Config::default()
    });
    let exporter = exporter.unwrap();
    exporter.count_request("/metrics", 200);
    exporter
}

/// The exposition of `snapshot` as `/metrics` or `/metrics/vm/{vm}` gives it.
fn expose(snapshot: Snapshot, scope: Scope, format: Format) -> String {
    let reading = Reading::of_stats(Ok(snapshot));
    exporter(false, 0).expose(reading, scope, format).unwrap()
}

/// The exposition of [`full_reading`] with per-vCPU families.
fn full(scope: Scope, format: Format) -> String {
    exporter(true, 0)
        .expose(full_reading(), scope, format)
        .unwrap()
}

/// Replaces what differs between two runs.
fn stable(text: &str) -> String {
    let varies = [
        "ecs_exporter_build_info",
        "ecs_exporter_config_last_reload_success_timestamp_seconds",
        "ecs_scrape_collector_duration_seconds",
        "process_",
    ];
    let line = |line: &str| {
        if !varies.iter().any(|name| line.starts_with(name)) {
            return format!("{line}\n");
        }
        let series = line.rsplit_once(' ').unwrap().0;
        let series = if series.contains("version=") {
            "ecs_exporter_build_info{..}"
        } else {
            series
        };
        format!("{series} VARIES\n")
    };
    text.lines().map(line).collect()
}

fn compare(name: &str, text: &str) {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/golden", name]
        .iter()
        .collect();
    let text = stable(text);
    if std::env::var_os("ECS_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    for (number, (now, then)) in text.lines().zip(golden.lines()).enumerate() {
        assert_eq!(
            now,
            then,
            "{name}:{}; ECS_UPDATE_GOLDEN=1 accepts the change",
            number + 1
        );
    }
    assert_eq!(
        text.len(),
        golden.len(),
        "{name}: one is longer than the other"
    );
}

#[test]
fn text_of_the_host() {
    compare("host.prom", &full(Scope::Host, Format::Text));
}

#[test]
fn text_of_one_vm() {
    compare("vm.prom", &full(Scope::Vm("web".into()), Format::Text));
}

#[test]
fn openmetrics_of_the_host() {
    compare(
        "host.openmetrics",
        &expose(fixture(), Scope::Host, Format::OpenMetrics),
    );
}

#[test]
fn every_family_of_the_catalogue_is_exported_with_its_type_and_labels() {
    let text = full(Scope::Host, Format::Text);
    let types: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    let names: BTreeSet<&str> = catalogue::ALL.iter().map(|family| family.name).collect();
    assert_eq!(types.keys().copied().collect::<BTreeSet<_>>(), names);
    for family in catalogue::ALL {
        assert_eq!(types[family.name], family.kind.name(), "{}", family.name);
        let suffix = if family.kind == Kind::Histogram {
            "_count"
        } else {
            ""
        };
        let stem = format!("{}{suffix}", family.name);
        let lines = text
            .lines()
            .filter_map(|line| line.strip_prefix(stem.as_str()));
        for rest in lines.filter(|rest| rest.starts_with(['{', ' '])) {
            let inside = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
            let labels: BTreeSet<&str> = inside
                .map(|(inside, _)| {
                    inside
                        .split(',')
                        .map(|pair| pair.split_once('=').unwrap().0)
                })
                .into_iter()
                .flatten()
                .collect();
            let wanted = family.labels.iter().copied().collect();
            assert_eq!(labels, wanted, "{}{rest}", family.name);
        }
    }
}

#[test]
fn the_identities_can_be_computed_from_the_series_alone() {
    let snapshot = fixture();
    snapshot.check_invariants().unwrap();
    let text = expose(snapshot, Scope::Host, Format::Text);
    let of = |family: &str| value(&text, &format!("{family}{{vm=\"web\"}}")).unwrap();
    let sum = |family: &str| -> f64 {
        let mine = |line: &&str| line.starts_with(family) && line.contains("vm=\"web\"");
        let values = text.lines().filter(mine);
        values
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
            .sum()
    };
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9 && a > 0.0, "{a} {b}");
    near(
        sum("ecs_vm_extension_grants_total"),
        sum("ecs_vm_extensions_ended_total") + of("ecs_vm_extensions_running"),
    );
    near(
        of("ecs_vm_debt_seconds"),
        of("ecs_vm_extension_seconds_total")
            - of("ecs_vm_penalty_seconds_total")
            - of("ecs_vm_forgiven_seconds_total"),
    );
    near(
        of("ecs_vm_fairness_delta_seconds"),
        of("ecs_vm_cpu_seconds_total") - of("ecs_vm_fair_cpu_seconds_total"),
    );
    near(of("ecs_vm_weight_ratio"), 0.75);
}

#[test]
fn what_only_the_host_sees_has_no_figures_of_ecs() {
    let text = full(Scope::Host, Format::Text);
    assert_eq!(
        value(&text, "ecs_vm_cpu_seconds_total{vm=\"bare\"}"),
        Some(3.0)
    );
    assert_eq!(value(&text, "ecs_host_vms{state=\"unserved\"}"), Some(1.0));
    for line in text.lines().filter(|line| line.contains("vm=\"bare\"")) {
        for word in ["extension", "debt", "penalty", "critical", "weight", "fair"] {
            assert!(!line.contains(word), "{line}");
        }
    }
    // Seen by both: one VM, with vmm-ecs' figures.
    assert!(!text.contains("not-this-name"));
    assert_eq!(
        value(&text, "ecs_vm_cpu_seconds_total{vm=\"web\"}"),
        Some(7.5)
    );
    assert_eq!(
        value(&text, "ecs_vm_cycles_total{vm=\"web\"}"),
        Some(5000.0)
    );
}

#[test]
fn without_vmm_ecs_the_host_speaks_for_itself() {
    let absent = ecs_stats::StatsError::Absent {
        path: "/nowhere".into(),
    };
    let reading = Reading {
        host: full_reading().host,
        ..Reading::of_stats(Err(absent))
    };
    let text = exporter(false, 0)
        .expose(reading, Scope::Host, Format::Text)
        .unwrap();
    assert_eq!(value(&text, "ecs_up"), Some(0.0));
    assert_eq!(value(&text, "ecs_host_cpus"), Some(8.0));
    assert_eq!(
        value(&text, "ecs_vm_preemptions_total{vm=\"bare\"}"),
        Some(40.0)
    );
    let only_host = Reading {
        host: full_reading().host,
        ..Reading::default()
    };
    let text = exporter(false, 0)
        .expose(only_host, Scope::Host, Format::Text)
        .unwrap();
    assert_eq!(value(&text, "ecs_up"), None, "switched off is not down");
}

/// Number of series, as Prometheus counts them.
fn series(text: &str) -> usize {
    text.lines().filter(|line| !line.starts_with('#')).count()
}

#[test]
fn the_series_limit_drops_whole_vms_and_says_so() {
    let names: Vec<String> = (0..50).map(|i| format!("vm{i:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let of = |max_series| {
        let reading = Reading::of_stats(Ok(with_vms(&names)));
        let exporter = exporter(false, max_series);
        exporter.expose(reading, Scope::Host, Format::Text).unwrap()
    };
    let all = of(0);
    assert_eq!(value(&all, "ecs_exporter_series_dropped"), Some(0.0));
    let whole = all
        .lines()
        .filter(|line| line.contains("vm=\"vm00\""))
        .count();
    for max in [1, 100, 500, 900, series(&all) + 100] {
        let text = of(max);
        let dropped = value(&text, "ecs_exporter_series_dropped").unwrap();
        assert_eq!(series(&text) as f64 + dropped, series(&all) as f64);
        let kept: BTreeSet<&str> = names
            .iter()
            .copied()
            .filter(|name| text.contains(&format!("vm=\"{name}\"")))
            .collect();
        assert_eq!(dropped, ((names.len() - kept.len()) * whole) as f64);
        assert!(
            kept.iter().eq(names.iter().take(kept.len())),
            "first names stay"
        );
        if !kept.is_empty() {
            assert!(series(&text) <= max, "{max}");
        }
    }
}

#[test]
fn one_vm_may_be_asked_for_whatever_the_filter_says() {
    let filter = VmFilter::matching("we.").unwrap();
    let exporter = Exporter::new(&Config {
        vcpus: filter,
        ..Config::default()
    })
    .unwrap();
    let expose = |scope| {
        let reading = Reading::of_stats(Ok(fixture()));
        exporter.expose(reading, scope, Format::Text).unwrap()
    };
    let host = expose(Scope::Host);
    assert!(
        host.contains("ecs_vcpu_cpu_seconds_total{vcpu=\"0\",vm=\"web\"}")
            || host.contains("ecs_vcpu_cpu_seconds_total{vm=\"web\",vcpu=\"0\"}")
    );
    let vcpu = |text: &str, vm: &str| {
        let has = |line: &&str| line.starts_with("ecs_vcpu_") && line.contains(vm);
        text.lines().any(|line| has(&line))
    };
    assert!(!vcpu(&host, "batch"));
    assert!(vcpu(&expose(Scope::Vm("batch".into())), "batch"));
}

#[test]
fn names_of_any_length_and_content_are_exposed_whole() {
    let long = "x".repeat(10 << 10);
    let name = format!("\"\\\n{long}\u{7f}\t");
    for format in [Format::Text, Format::OpenMetrics] {
        let text = expose(with_vms(&[&name]), Scope::Host, format);
        let escaped = name
            .replace('\\', "\\\\")
            .replace('\n', "\\n")
            .replace('"', "\\\"");
        assert_eq!(
            value(&text, &format!("ecs_vm_vcpus{{vm=\"{escaped}\"}}")),
            Some(0.0)
        );
    }
}

#[test]
fn counters_at_their_limit_do_not_panic() {
    let mut snapshot = fixture();
    snapshot.vms[1].cpu_ns = 0;
    snapshot.vms[1].fair_cpu_ns = u64::MAX;
    snapshot.vms[1].grants.wait = u64::MAX;
    snapshot.vms[1].weight = u32::MAX;
    snapshot.host.decision.buckets = [u64::MAX; ecs_stats::HISTOGRAM_BUCKETS];
    let text = expose(snapshot, Scope::Host, Format::Text);
    let delta = value(&text, "ecs_vm_fairness_delta_seconds{vm=\"web\"}").unwrap();
    assert!(delta < -1.8e10, "{delta}");
}

#[test]
fn without_weights_there_is_no_ratio_rather_than_nan() {
    let mut snapshot = fixture();
    snapshot.vms.iter_mut().for_each(|vm| vm.weight = 0);
    let text = expose(snapshot, Scope::Host, Format::Text);
    assert!(!text.contains("ecs_vm_weight_ratio") && !text.contains("NaN"));
}

#[test]
fn label_values_are_escaped() {
    let name = "a\"b\\c\nd{e=\"f\"},ü";
    for format in [Format::Text, Format::OpenMetrics] {
        let text = expose(with_vms(&[name]), Scope::Host, format);
        let series = r#"ecs_vm_vcpus{vm="a\"b\\c\nd{e=\"f\"},ü"}"#;
        assert_eq!(value(&text, series), Some(0.0), "{text}");
        let broken = |line: &&str| !line.starts_with("# ") && !line.contains(' ');
        assert_eq!(text.lines().find(broken), None);
    }
}

#[test]
fn twins_yield_one_series() {
    let text = expose(with_vms(&["a", "a"]), Scope::Host, Format::Text);
    let count = text
        .lines()
        .filter(|line| line.starts_with("ecs_vm_vcpus{vm=\"a\"}"))
        .count();
    assert_eq!(count, 1);
}

#[test]
fn an_unknown_vm_is_an_error() {
    let error = exporter(false, 0)
        .expose(full_reading(), Scope::Vm("we".into()), Format::Text)
        .unwrap_err();
    assert!(matches!(error, ScrapeError::NoSuchVm(name) if name == "we"));
}
