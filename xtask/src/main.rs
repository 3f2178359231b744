//! Entry points that CI and people share: `cargo xtask COMMAND`.
//!
//! # Problem
//! What a person runs before a commit and what CI runs afterwards drift apart, and a test that the
//! machine could not run looks like one that passed.
//!
//! # Approach
//! One program runs the checks through plain cargo, has cargo build the tests, runs them, reads
//! libtest's own output, and ends with the tests that failed, those that were skipped and why, and
//! one line of totals.
//!
//! # Invariants
//! - The exit status is zero exactly if the last line says `0 failed`.
//! - A test that printed `SKIPPED: name: reason` counts as skipped, not as passed; a test program
//!   that died without a result counts as failed.
//! - Tests that need whole CPUs (package `ecs-tests`) run alone, one after the other. Only those that
//!   are named in `test.rs` run beside another one.
//!
//! # What it does not do
//! It decides nothing about the product, and has no time limit of its own: `.ci/run` has one.
#![forbid(unsafe_code)]

mod check;
mod libtest;
mod tally;
mod test;

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::OnceLock;

use anyhow::Context;
use tally::Tally;

const USAGE: &str = "\
Usage: cargo xtask COMMAND

Commands:
  setup      Install the C compiler and headers, if they are missing
  stacks     Fetch kernels and QEMU for the tests of Linux guests into a cache
             --headers       headers of kernels the driver is only compiled with
             --debug-kernel  builds a guest kernel that looks on: KASAN, lockdep, kmemleak, KUnit
             --cores-kernel  builds a host kernel with core scheduling
  check      Formatting, lints and documentation
  test       check, then every test
  bench      Every benchmark scenario, into target/bench.json and target/bench.html; options and names
             are those of vmm-ecs bench
  test-full  test, with the slow cases
";

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let tally = match arguments.as_slice() {
        ["setup"] => return Ok(exit_code(script("xtask/setup.sh")?)),
        ["stacks"] => return Ok(exit_code(script(STACKS)?)),
        ["stacks", "--headers"] => return Ok(exit_code(script(HEADERS)?)),
        ["stacks", "--debug-kernel"] => return Ok(exit_code(own_kernel("debug")?)),
        ["stacks", "--cores-kernel"] => return Ok(exit_code(own_kernel("cores")?)),
        ["check"] => check::run()?,
        ["bench", options @ ..] => return bench(options),
        ["test"] => everything(test::Extent::Usual)?,
        ["test-full"] => everything(test::Extent::Full)?,
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            return Ok(ExitCode::SUCCESS);
        }
        _ => {
            eprint!("{USAGE}");
            return Ok(ExitCode::from(2));
        }
    };
    Ok(close(&tally))
}

/// Builds the programs as a user would, and runs `vmm-ecs bench`.
fn bench(options: &[&str]) -> anyhow::Result<ExitCode> {
    let mut build = cargo(&["build", "--release", "--package", "vmm-ecs"]);
    if !build.args(features()?).status()?.success() {
        return Ok(ExitCode::FAILURE);
    }
    let mut command = Command::new(root().join("target/release/vmm-ecs"));
    command.arg("bench").current_dir(root());
    if !options.iter().any(|option| option.starts_with("--from")) {
        command.args(["--json", "target/bench.json", "--html", "target/bench.html"]);
    }
    let status = command.args(options).status();
    let status = status.context("Cannot run vmm-ecs bench")?;
    Ok(exit_code(status.success()))
}

/// Fetches what tests of Linux guests need.
const STACKS: &str = "tests/stacks/setup.sh";
/// Fetches headers of more kernels.
const HEADERS: &str = "tests/stacks/headers.sh";
/// Builds kernels that Debian has not.
const OWN_KERNEL: &str = "tests/stacks/own-kernel.sh";

/// Checks and tests.
fn everything(extent: test::Extent) -> anyhow::Result<Tally> {
    let checked = check::run()?;
    // Without them the tests skip themselves, by name, and say why.
    script(STACKS)?;
    if extent == test::Extent::Full {
        script(HEADERS)?;
        own_kernel("debug")?;
        own_kernel("cores")?;
    }
    Ok(checked.and(test::run(extent)?))
}

fn own_kernel(name: &str) -> anyhow::Result<bool> {
    script_with(OWN_KERNEL, &[name])
}

/// Runs a shell script of the tree; whether it succeeded.
fn script(path: &str) -> anyhow::Result<bool> {
    script_with(path, &[])
}

fn script_with(path: &str, arguments: &[&str]) -> anyhow::Result<bool> {
    let status = Command::new("sh")
        .arg(path)
        .args(arguments)
        .current_dir(root())
        .status()
        .with_context(|| format!("Cannot run sh {path}"))?;
    Ok(status.success())
}

/// Cargo features that this machine can build: `scx` needs clang. Says once what is missing.
fn features() -> anyhow::Result<&'static [&'static str]> {
    static FOUND: OnceLock<bool> = OnceLock::new();
    let found = match FOUND.get() {
        Some(found) => *found,
        None => {
            let found = script("xtask/scx.sh")?;
            *FOUND.get_or_init(|| found)
        }
    };
    Ok(if found {
        &["--features", "vmm-ecs/scx"]
    } else {
        &[]
    })
}

/// Prints what failed, what was skipped, and the totals as the last line.
fn close(tally: &Tally) -> ExitCode {
    print!("\n{tally}");
    exit_code(tally.failed.is_empty())
}

fn exit_code(success: bool) -> ExitCode {
    if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Root of the workspace.
fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// A cargo command in the root of the workspace: the cargo that runs us, if one does.
fn cargo(arguments: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command.args(arguments).current_dir(root());
    command
}
