//! Dashboards, rules and alerts, with the real Prometheus and Alertmanager.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "../common/mod.rs"]
mod common;

mod alertmanager;
mod deploy;
mod federation;
mod files;
mod grafana;
mod helm;
mod names;
mod panels;
mod rules;
mod schema;
mod synthetic;

use std::path::PathBuf;

/// A path of the source tree.
fn tree(path: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", path].iter().collect()
}

/// Text of a file of the source tree.
fn read(path: &str) -> String {
    let path = tree(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
