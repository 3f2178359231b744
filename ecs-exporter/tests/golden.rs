//! The exposition of a fixed snapshot, compared byte by byte with committed files.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use common::{fixture, value, with_vms};
use ecs_exporter::catalogue::{self, Kind};
use ecs_exporter::{Exporter, Format, Reading, Scope, ScrapeError};
use ecs_stats::Snapshot;

/// The exposition of `snapshot` as `/metrics` or `/metrics/vm/{vm}` gives it.
fn expose(snapshot: Snapshot, scope: Scope, format: Format) -> String {
    let exporter = Exporter::new("unused".into(), Duration::ZERO, false).unwrap();
    exporter.count_request("/metrics", 200);
    let reading = Reading {
        result: Ok(snapshot),
        took: Duration::ZERO,
    };
    exporter.expose(reading, scope, format).unwrap()
}

fn host(vcpus: bool) -> Scope {
    Scope::Host { vcpus }
}

/// Replaces what differs between two runs.
fn stable(text: &str) -> String {
    let varies = [
        "ecs_exporter_build_info",
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
    compare("host.prom", &expose(fixture(), host(true), Format::Text));
}

#[test]
fn text_of_one_vm() {
    compare(
        "vm.prom",
        &expose(fixture(), Scope::Vm("web".into()), Format::Text),
    );
}

#[test]
fn openmetrics_of_the_host() {
    compare(
        "host.openmetrics",
        &expose(fixture(), host(false), Format::OpenMetrics),
    );
}

#[test]
fn every_family_of_the_catalogue_is_exported_with_its_type_and_labels() {
    let text = expose(fixture(), host(true), Format::Text);
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
fn the_identities_of_the_snapshot_survive() {
    let snapshot = fixture();
    snapshot.check_invariants().unwrap();
    let text = expose(snapshot.clone(), host(false), Format::Text);
    let sum = |family: &str, label: &str, values: &[&str]| -> f64 {
        let series = |v: &&str| format!("{family}{{vm=\"web\",{label}=\"{v}\"}}");
        values
            .iter()
            .map(|v| value(&text, &series(v)).unwrap())
            .sum()
    };
    let of = |family: &str| value(&text, &format!("{family}{{vm=\"web\"}}")).unwrap();
    let web = &snapshot.vms[1];
    let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
    near(
        sum(
            "ecs_vm_extension_grants_total",
            "section",
            &["non_preemptable", "preemptable", "wait"],
        ),
        sum(
            "ecs_vm_extensions_ended_total",
            "outcome",
            &["yielded", "expired", "revoked", "aborted"],
        ) + web.running as f64,
    );
    near(
        of("ecs_vm_debt_seconds"),
        of("ecs_vm_extension_seconds_total")
            - of("ecs_vm_penalty_seconds_total")
            - web.forgiven_ns as f64 / 1e9,
    );
    near(
        of("ecs_vm_fairness_delta_seconds"),
        of("ecs_vm_cpu_seconds_total") - of("ecs_vm_fair_cpu_seconds_total"),
    );
    near(of("ecs_vm_weight_ratio"), 0.75);
    near(
        of("ecs_vm_avoided_preemptions_total"),
        web.ended.yielded as f64,
    );
}

#[test]
fn counters_at_their_limit_do_not_panic() {
    let mut snapshot = fixture();
    snapshot.vms[1].cpu_ns = 0;
    snapshot.vms[1].fair_cpu_ns = u64::MAX;
    snapshot.vms[1].grants.wait = u64::MAX;
    snapshot.vms[1].weight = u32::MAX;
    snapshot.host.decision.buckets = [u64::MAX; ecs_stats::HISTOGRAM_BUCKETS];
    let text = expose(snapshot, host(true), Format::Text);
    let delta = value(&text, "ecs_vm_fairness_delta_seconds{vm=\"web\"}").unwrap();
    assert!(delta < -1.8e10, "{delta}");
}

#[test]
fn without_weights_there_is_no_ratio_rather_than_nan() {
    let mut snapshot = fixture();
    snapshot.vms.iter_mut().for_each(|vm| vm.weight = 0);
    let text = expose(snapshot, host(false), Format::Text);
    assert!(!text.contains("ecs_vm_weight_ratio") && !text.contains("NaN"));
}

#[test]
fn label_values_are_escaped() {
    let name = "a\"b\\c\nd{e=\"f\"},ü";
    for format in [Format::Text, Format::OpenMetrics] {
        let text = expose(with_vms(&[name]), host(false), format);
        let series = r#"ecs_vm_vcpus{vm="a\"b\\c\nd{e=\"f\"},ü"}"#;
        assert_eq!(value(&text, series), Some(0.0), "{text}");
        let broken = |line: &&str| !line.starts_with("# ") && !line.contains(' ');
        assert_eq!(text.lines().find(broken), None);
    }
}

#[test]
fn twins_yield_one_series() {
    let text = expose(with_vms(&["a", "a"]), host(false), Format::Text);
    let count = text
        .lines()
        .filter(|line| line.starts_with("ecs_vm_vcpus{vm=\"a\"}"))
        .count();
    assert_eq!(count, 1);
}

#[test]
fn an_unknown_vm_is_an_error() {
    let exporter = Exporter::new("unused".into(), Duration::ZERO, false).unwrap();
    let reading = Reading {
        result: Ok(fixture()),
        took: Duration::ZERO,
    };
    let error = exporter
        .expose(reading, Scope::Vm("we".into()), Format::Text)
        .unwrap_err();
    assert!(matches!(error, ScrapeError::NoSuchVm(name) if name == "we"));
}

#[test]
fn per_vcpu_families_only_where_asked_for() {
    for (scope, wanted) in [
        (host(false), false),
        (host(true), true),
        (Scope::Vm("web".into()), true),
    ] {
        let text = expose(fixture(), scope.clone(), Format::Text);
        assert_eq!(text.contains("ecs_vcpu_"), wanted, "{scope:?}");
    }
}
