//! `vmm-ecs bench` as a user runs it: a scenario file in, a result, a page and tables out.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::process::Output;

use ecs_tests::{Rig, rig};
use serde_json::Value;

const SCENARIO: &str = r#"
name = "Two arms"
duration_ms = 300
runs = 2

[host]
cores = 2

[bench]
kind = "thread"
alone = false
arms = ["stock", "long-slice", "ecs"]
bar = [{ figure = "throughput_ratio", at_least = AT_LEAST }]

[[vm]]
count = 2
vcpus = 2
workload = { kind = "ticket", in_us = 5, out_us = 5 }
"#;

fn bench(rig: &Rig, arguments: &[&str]) -> Output {
    rig.command().arg("bench").args(arguments).output().unwrap()
}

#[test]
fn a_scenario_file_becomes_a_result_a_page_and_tables() {
    let rig = rig!("a_scenario_file_becomes_a_result_a_page_and_tables");
    let path = |name: &str| rig.dir().join(name).to_str().unwrap().to_owned();
    let [file, json, html, page] = ["two.toml", "r.json", "r.html", "page.md"].map(path);
    std::fs::write(&file, SCENARIO.replace("AT_LEAST", "0")).unwrap();
    std::fs::write(&page, "# A\n<!-- bench: two -->old<!-- end -->\nB\n").unwrap();

    let output = bench(
        &rig,
        &[&file, "--json", &json, "--html", &html, "--docs", &page],
    );
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    assert!(said.ends_with("1 bars, 0 missed\n"), "{said}");

    let found: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let arms = found["files"][0]["cells"][0]["arms"].as_array().unwrap();
    let names: Vec<&str> = arms
        .iter()
        .map(|arm| arm["arm"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["stock", "long-slice", "ecs"]);
    for arm in arms {
        let ops = arm["ops_per_s"].as_array().unwrap();
        assert_eq!(ops.len(), 2, "{arm}");
        assert!(ops.iter().all(|ops| ops.as_f64().unwrap() > 0.0), "{arm}");
    }
    let filled = std::fs::read_to_string(&page).unwrap();
    assert!(
        filled.contains("| 2 x 2 ticket, 5/5 us, thread |"),
        "{filled}"
    );
    assert!(!filled.contains("old") && filled.ends_with("<!-- end -->\nB\n"));
    let shown = std::fs::read_to_string(&html).unwrap();
    assert!(shown.contains("<svg role=\"img\"") && shown.contains("Two arms"));

    // The same again, of the result alone.
    let again = bench(&rig, &["--from", &json]);
    assert_eq!(String::from_utf8_lossy(&again.stdout), said);
}

#[test]
fn a_missed_bar_fails_and_bad_files_are_named() {
    let rig = rig!("a_missed_bar_fails_and_bad_files_are_named");
    let file = rig.dir().join("bar.toml");
    let file = file.to_str().unwrap();
    std::fs::write(file, SCENARIO.replace("AT_LEAST", "1e9")).unwrap();
    let output = bench(&rig, &[file, "--runs", "1"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 bars, 1 missed"));

    let unlike = SCENARIO
        .replace("AT_LEAST", "0")
        .replace("count = 2", "count = 1")
        + "[[vm]]\nvcpus = 1\nworkload = { kind = \"irq\", in_us = 5, out_us = 5 }\n";
    std::fs::write(file, unlike).unwrap();
    for (name, part) in [(file, "not alike"), ("bench/nothing", "bench/nothing")] {
        let output = bench(&rig, &[name]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(part), "{said}");
    }
}
