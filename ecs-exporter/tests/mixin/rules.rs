//! Rules and alerts by promtool's word, and its unit tests under changed thresholds.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Mutex;

use ecs_exporter::mixin::{Span, Thresholds, files_with};
use serde_json::{Value, json};

use crate::common::tools;
use crate::{files, tree};

/// The rules of `thresholds` and the unit tests, side by side as in dashboards/.
fn lay_out(thresholds: &Thresholds) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for folder in ["rules", "tests"] {
        fs::create_dir(dir.path().join(folder)).unwrap();
    }
    for (path, text) in files_with(thresholds) {
        if path.starts_with("rules/") {
            fs::write(dir.path().join(path), text).unwrap();
        }
    }
    for test in unit_tests() {
        let from = tree("dashboards/tests").join(&test);
        fs::copy(from, dir.path().join("tests").join(&test)).unwrap();
    }
    dir
}

/// Names of the files in dashboards/tests/.
fn unit_tests() -> BTreeSet<String> {
    let entries = fs::read_dir(tree("dashboards/tests")).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn promtool(program: &Path, args: &[&str], dir: &Path) -> Output {
    Command::new(program)
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn promtool_accepts_the_rules() {
    let Some(program) = tools::promtool("promtool_accepts_the_rules") else {
        return;
    };
    let dir = lay_out(&Thresholds::default());
    let args = [
        "check",
        "rules",
        "--lint-fatal",
        "rules/alerts.yaml",
        "rules/recording.yaml",
    ];
    let output = promtool(&program, &args, dir.path());
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn every_alert_fires_and_stays_quiet_as_its_unit_test_says() {
    let test = "every_alert_fires_and_stays_quiet_as_its_unit_test_says";
    let Some(program) = tools::promtool(test) else {
        return;
    };
    let dir = lay_out(&Thresholds::default());
    let tests: Vec<String> = unit_tests()
        .iter()
        .map(|test| format!("tests/{test}"))
        .collect();
    let args: Vec<&str> = ["test", "rules"]
        .into_iter()
        .chain(tests.iter().map(String::as_str))
        .collect();
    let output = promtool(&program, &args, dir.path());
    assert!(output.status.success(), "{}", said(&output));
}

/// The threshold half as large again, or a third smaller. What is close to 1 is a distance from 1.
fn changed(value: &Value, up: bool) -> Value {
    let by = |number: f64| if up { number * 1.5 } else { number / 1.5 };
    match value {
        Value::String(span) => {
            let seconds = span.parse::<Span>().unwrap().as_seconds();
            json!(format!("{}s", by(f64::from(seconds)).round()))
        }
        number => {
            let number = number.as_f64().unwrap();
            let near_one = (0.9..1.0).contains(&number);
            json!(if near_one {
                1.0 - by(1.0 - number)
            } else {
                by(number)
            })
        }
    }
}

/// The unit tests of what a change of thresholds changes: of alerts that differ first, then of
/// those that depend on a recorded series that differs.
fn concerned(thresholds: &Thresholds) -> Vec<String> {
    let usual = Thresholds::default();
    let path = "rules/recording.yaml";
    let mut series: Vec<String> = Vec::new();
    let depends = |rule: &Value, series: &[String]| {
        let text = rule["expr"].as_str().unwrap();
        series.iter().any(|series| text.contains(series.as_str()))
    };
    let recordings = files::rules(thresholds, path);
    for (now, then) in recordings.iter().zip(files::rules(&usual, path)) {
        if *now != then || depends(now, &series) {
            series.push(now["record"].as_str().unwrap().to_owned());
        }
    }
    let (mut direct, mut indirect) = (Vec::new(), Vec::new());
    for ((name, now), (_, then)) in files::alerts(thresholds).iter().zip(files::alerts(&usual)) {
        if *now != then {
            direct.push(name.clone());
        } else if depends(now, &series) {
            indirect.push(name.clone());
        }
    }
    if !series.is_empty() {
        direct.push("recording".to_owned());
    }
    let tests = unit_tests();
    let of = |name: &String| {
        let tests = tests.iter().filter(|test| test.starts_with(name.as_str()));
        tests.cloned().collect::<Vec<_>>()
    };
    direct.iter().chain(&indirect).flat_map(of).collect()
}

#[test]
fn a_change_of_any_threshold_makes_a_unit_test_fail() {
    let test = "a_change_of_any_threshold_makes_a_unit_test_fail";
    let Some(program) = tools::promtool(test) else {
        return;
    };
    let Value::Object(usual) = serde_json::to_value(Thresholds::default()).unwrap() else {
        panic!("thresholds are fields");
    };
    let mutants = usual.iter().flat_map(|(name, value)| {
        [true, false].map(|up| (name.clone(), json!({ name: changed(value, up) })))
    });
    let mutants: Mutex<Vec<(String, Value)>> = Mutex::new(mutants.collect());
    let unseen = Mutex::new(Vec::new());
    let work = || {
        while let Some((name, mutant)) = { mutants.lock().unwrap().pop() } {
            let thresholds: Thresholds = serde_json::from_value(mutant.clone()).unwrap();
            let dir = lay_out(&thresholds);
            let seen = concerned(&thresholds).iter().any(|test| {
                let args = ["test", "rules", &format!("tests/{test}")];
                let output = promtool(&program, &args, dir.path());
                let said = said(&output);
                let failed = !output.status.success();
                // A mutant must be seen by a wrong answer, not by a rule that cannot be read.
                assert!(!failed || said.contains("exp:"), "{name}: {said}");
                failed
            });
            if !seen {
                unseen.lock().unwrap().push(mutant.to_string());
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        work();
    });
    let unseen = unseen.into_inner().unwrap();
    assert!(unseen.is_empty(), "no unit test notices {unseen:?}");
}
