//! The simulated fleet speaks the catalogue's language, and Prometheus takes it.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use common::tools;
use ecs_exporter::catalogue::{ALL, Kind};
use ecs_sim::Fleet;

/// Labels that Prometheus adds to what it scrapes.
const ADDED: [&str; 2] = ["job", "instance"];

/// Two hours of a small fleet.
fn openmetrics() -> String {
    let fleet: Fleet = "[fleet]\nhosts = 2\ncpus = 8\nvms = 12\nvcpus = [2, 4]\nchurn_pct = 30\n\
        load_pct = [60, 100]\nbusiest_hour = 1\nstart_s = 1767225600\nhours = 2\nstep_s = 60\nseed = 1\n"
        .parse()
        .unwrap();
    let mut text = Vec::new();
    fleet.write_openmetrics(&mut text).unwrap();
    String::from_utf8(text).unwrap()
}

#[test]
fn a_fleet_has_no_series_that_the_catalogue_does_not_know() {
    let text = openmetrics();
    let mut types = BTreeMap::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(types.insert(name, kind).is_none(), "{name} twice");
    }
    for (name, kind) in &types {
        let full = match *kind {
            "counter" => format!("{name}_total"),
            _ => (*name).to_owned(),
        };
        let known = ALL.iter().find(|known| known.name == full);
        let known = known.unwrap_or_else(|| panic!("{full} is not in the catalogue"));
        assert_eq!(known.kind == Kind::Counter, *kind == "counter", "{full}");
    }
    let mut last: Option<(&str, u64)> = None;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, rest) = line.split_once("} ").unwrap();
        let (name, labels) = series.split_once('{').unwrap();
        let known = ALL.iter().find(|known| known.name == name).unwrap();
        let labels: BTreeSet<&str> = labels
            .split("\",")
            .map(|pair| pair.split_once('=').unwrap().0)
            .filter(|label| !ADDED.contains(label))
            .collect();
        assert_eq!(labels, known.labels.iter().copied().collect(), "{name}");
        let (value, time) = rest.split_once(' ').unwrap();
        assert!(value.parse::<f64>().unwrap().is_finite());
        let time: u64 = time.parse().unwrap();
        if let Some((before, earlier)) = last {
            assert!(
                before != series || time > earlier,
                "{series} goes back in time"
            );
        }
        last = Some((series, time));
    }
    assert!(text.ends_with("# EOF\n"));
    assert_eq!(text, openmetrics(), "same seed, same bytes");
}

#[test]
fn promtool_makes_blocks_of_a_fleet() {
    let Some(promtool) = tools::promtool("promtool_makes_blocks_of_a_fleet") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (file, data) = (dir.path().join("fleet.om"), dir.path().join("data"));
    std::fs::write(&file, openmetrics()).unwrap();
    let output = Command::new(&promtool)
        .args(["tsdb", "create-blocks-from", "openmetrics"])
        .args([&file, &data])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let mut blocks = std::fs::read_dir(&data).unwrap();
    let has_index =
        |block: std::io::Result<std::fs::DirEntry>| block.unwrap().path().join("index").exists();
    assert!(blocks.any(has_index), "{said}");
}
