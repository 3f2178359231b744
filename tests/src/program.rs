//! Programs of this workspace.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};

/// Builds the program `name` of the workspace, in the profile of the running test, and returns its
/// path.
///
/// # Errors
/// If cargo cannot build it, with cargo's own words.
pub fn workspace_program(name: &str) -> anyhow::Result<PathBuf> {
    let mut command = cargo();
    // All of the workspace, as the tests are built: with other packages cargo chooses other features,
    // and builds most of what they share again.
    command.args(["build", "--workspace", "--bin", name]);
    command.args(["--profile", &profile()?]);
    if scx_is_missing()?.is_none() {
        command.args(["--features", "vmm-ecs/scx"]);
    }
    executable(command, name)
}

/// Builds the program `name` of the package of the same name as it is released, whatever the
/// profile of the running test, and returns its path: what steers CPUs is tested as it will run.
///
/// # Errors
/// If cargo cannot build it, with cargo's own words.
pub fn release_program(name: &str) -> anyhow::Result<PathBuf> {
    build_released(name, name)
}

/// Builds a program of `tests/src/bin`, which runs within a host, and returns its path. As released:
/// the embedded KVM guest cannot run code with debug checks.
///
/// # Errors
/// If cargo cannot build it, with cargo's own words.
pub fn host_program(name: &str) -> anyhow::Result<PathBuf> {
    build_released("ecs-tests", name)
}

/// Builds `vmm-ecs` as it is released, with the controller in the kernel; the reason where this
/// machine cannot build that.
///
/// # Errors
/// If cargo cannot build it, with cargo's own words.
pub fn scx_program() -> anyhow::Result<Result<PathBuf, String>> {
    match scx_is_missing()? {
        Some(reason) => Ok(Err(reason)),
        None => Ok(Ok(release_program("vmm-ecs")?)),
    }
}

/// Why the feature `scx` cannot be built here; `None` where it can.
fn scx_is_missing() -> anyhow::Result<Option<String>> {
    let output = Command::new("sh")
        .arg("xtask/scx.sh")
        .current_dir(crate::root())
        .output()
        .context("Cannot run sh")?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok((!output.status.success()).then_some(said))
}

/// Builds a test program of a package, with all its libraries in it, for a guest that has none, and
/// returns its path.
///
/// # Errors
/// If cargo cannot build it, with cargo's own words.
pub fn static_test(package: &str, name: &str) -> anyhow::Result<PathBuf> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let mut command = cargo();
    command
        .args(["test", "--no-run", "--package", package, "--test", name])
        .args(["--target", TARGET])
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    executable(command, name)
}

fn build_released(package: &str, name: &str) -> anyhow::Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--release", "--package", package, "--bin", name]);
    // One and the same program in all tests: building it twice takes a minute.
    if name == "vmm-ecs" && scx_is_missing()?.is_none() {
        command.args(["--features", "scx"]);
    }
    executable(command, name)
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")))
}

/// Runs a cargo command, and returns the program `name` that it built.
fn executable(mut command: Command, name: &str) -> anyhow::Result<PathBuf> {
    // Cargo says where the program is: the target directory may be anywhere.
    let output = command
        .args(["--quiet", "--message-format=json-render-diagnostics"])
        .current_dir(crate::root())
        .output()
        .context("Cannot run cargo")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "Cannot build {name}: cargo ended with {}\n{said}",
            output.status
        );
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| {
            message
                .pointer("/target/name")
                .is_some_and(|found| found == name)
        })
        .find_map(|message| Some(PathBuf::from(message.get("executable")?.as_str()?)))
        .with_context(|| format!("Cargo built no program {name}"))
}

/// Cargo profile of the running test: test programs lie in `PROFILE/deps/`.
fn profile() -> anyhow::Result<String> {
    let program = std::env::current_exe().context("Cannot find the running test")?;
    let folder = program
        .ancestors()
        .nth(2)
        .and_then(|folder| folder.file_name())
        .and_then(|name| name.to_str())
        .with_context(|| format!("Cannot tell the cargo profile from {}", program.display()))?;
    // The one profile whose folder has another name.
    Ok(if folder == "debug" { "dev" } else { folder }.to_owned())
}
