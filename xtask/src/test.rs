//! Every test of the workspace, in two groups.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::Context;

use crate::{cargo, features};
use crate::libtest::Reader;
use crate::tally::Tally;

/// Which tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All but the slow ones, which report themselves as skipped.
    Usual,
    /// All.
    Full,
}

/// Environment variable that asks tests for their slow cases.
const FULL: &str = "ECS_TEST_FULL";

/// Tests that measure or steer whole CPUs: they run last and one at a time.
const SERIAL_PACKAGE: &str = "ecs-tests";

/// Runs both groups; one that fails does not stop the next.
///
/// # Errors
/// Only if cargo cannot be run at all.
pub(crate) fn run(extent: Extent) -> anyhow::Result<Tally> {
    let mut parallel = vec!["--workspace", "--exclude", SERIAL_PACKAGE];
    parallel.extend(features()?);
    let serial = ["--package", SERIAL_PACKAGE];
    let first = run_group(extent, &parallel, &[])?;
    Ok(first.and(run_group(extent, &serial, &["--test-threads=1"])?))
}

fn run_group(extent: Extent, packages: &[&str], libtest: &[&str]) -> anyhow::Result<Tally> {
    let mut command = cargo(&["test", "--no-fail-fast"]);
    // Without --show-output libtest keeps the SKIPPED lines of a passing test to itself.
    command
        .args(packages)
        .args(["--", "--show-output"])
        .args(libtest);
    match extent {
        Extent::Usual => command.env_remove(FULL),
        Extent::Full => command.env(FULL, "1"),
    };
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("Cannot run cargo test")?;
    let output = child
        .stdout
        .take()
        .context("Cannot read what cargo test prints")?;
    let mut reader = Reader::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("Cannot read what cargo test prints")?;
        let line = String::from_utf8_lossy(&line);
        if reader.line(&line) {
            println!("{line}");
        }
    }
    let status = child.wait().context("Cannot wait for cargo test")?;
    Ok(reader.end(
        status.success(),
        &format!("cargo test {}", packages.join(" ")),
    ))
}
