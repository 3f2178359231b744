//! Formatting, lints and documentation.

use std::process::Stdio;
use std::time::Instant;

use anyhow::Context;

use crate::{cargo, features};
use crate::tally::Tally;

/// One cargo command that must succeed.
struct Step {
    name: &'static str,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    /// Cargo command and rustup component it needs, beyond what every Rust has.
    needs: Option<(&'static str, &'static str)>,
    /// Whether it takes features, as many as can be built here.
    with_features: bool,
}

const STEPS: [Step; 3] = [
    Step {
        name: "fmt",
        arguments: &["fmt", "--all", "--check"],
        environment: &[],
        needs: Some(("fmt", "rustfmt")),
        with_features: false,
    },
    Step {
        name: "clippy",
        arguments: &["clippy", "--workspace", "--all-targets"],
        environment: &[],
        needs: Some(("clippy", "clippy")),
        with_features: true,
    },
    Step {
        name: "doc",
        arguments: &["doc", "--workspace", "--no-deps"],
        environment: &[("RUSTDOCFLAGS", "-D warnings")],
        needs: None,
        with_features: true,
    },
];

/// Runs every step; one that fails does not stop the next.
///
/// # Errors
/// Only if cargo cannot be run at all.
pub(crate) fn run() -> anyhow::Result<Tally> {
    let mut tally = Tally::default();
    for step in STEPS {
        let name = format!("check {}", step.name);
        if let Some((command, component)) = step.needs
            && !is_installed(command)?
        {
            tally.skipped.push(format!(
                "{name}: {component} is not installed: rustup component add {component}"
            ));
            continue;
        }
        let start = Instant::now();
        let mut command = cargo(step.arguments);
        if step.with_features {
            command.args(features()?);
        }
        if step.name == "clippy" {
            command.args(["--", "-D", "warnings"]);
        }
        let success = command
            .envs(step.environment.iter().copied())
            .status()
            .with_context(|| format!("Cannot run cargo {}", step.name))?
            .success();
        let result = if success { "ok" } else { "FAILED" };
        println!(
            "{name} ... {result} ({:.1} s)",
            start.elapsed().as_secs_f64()
        );
        if success {
            tally.passed += 1;
        } else {
            tally.failed.push(name);
        }
    }
    Ok(tally)
}

fn is_installed(command: &str) -> anyhow::Result<bool> {
    let status = cargo(&[command, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context("Cannot run cargo: install Rust from https://rustup.rs")?;
    Ok(status.success())
}
