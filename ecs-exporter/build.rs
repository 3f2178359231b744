//! Records what `ecs_exporter_build_info` tells: target, compiler and revision.

use std::path::Path;
use std::process::Command;

fn main() {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    // "rustc 1.88.0 (hash date)": the number is what matters.
    let rustc = output(&rustc, &["--version"])
        .and_then(|line| line.split(' ').nth(1).map(str::to_owned))
        .unwrap_or_default();
    let target = std::env::var("TARGET").unwrap_or_default();
    // A package build outside a git tree names its revision in the environment.
    let revision = std::env::var("ECS_REVISION")
        .ok()
        .or_else(|| output("git", &["rev-parse", "--short=12", "HEAD"]))
        .unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=ECS_BUILD_RUSTC={rustc}");
    println!("cargo::rustc-env=ECS_BUILD_TARGET={target}");
    println!("cargo::rustc-env=ECS_BUILD_REVISION={revision}");
    println!("cargo::rerun-if-env-changed=ECS_REVISION");
    println!("cargo::rerun-if-changed=build.rs");
    // Written at every commit and checkout. Cargo runs a script again for each path that is
    // missing, so only a log that exists is named.
    if let Some(log) = output("git", &["rev-parse", "--git-path", "logs/HEAD"])
        && Path::new(&log).exists()
    {
        println!("cargo::rerun-if-changed={log}");
    }
}

/// Trimmed standard output of a command that succeeds.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
