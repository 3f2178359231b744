//! Every test of the workspace: built by one command, then run in groups.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use serde_json::Value;

use crate::libtest::Reader;
use crate::tally::Tally;
use crate::{cargo, features, root};

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

/// Folder of the package whose tests measure or steer whole CPUs: they run one at a time.
const SERIAL_PACKAGE: &str = "tests";

/// Programs that run two at a time, by folder of the package and name, those that take longest first:
/// all they do is in emulated machines, they assert counts and order or the emulator's own time, and
/// each leaves half of two CPUs idle; or they wait for programs that wait.
const PAIRED: [(&str, &str); 5] = [
    (SERIAL_PACKAGE, "linux_guest"),
    (SERIAL_PACKAGE, "guest_bad_input"),
    (SERIAL_PACKAGE, "scx"),
    (SERIAL_PACKAGE, "scx_replay"),
    ("ecs-exporter", "mixin"),
];
/// How many that is.
const AT_ONCE: usize = 2;

/// Which programs one runs beside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// None.
    Alone,
    /// Another one of [`PAIRED`], where it has this place.
    Paired(usize),
}

/// A test program that cargo has built.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Program {
    place: Place,
    /// Whether its tests run one after the other.
    serial: bool,
    /// Folder of its package.
    folder: PathBuf,
    /// Its source, in that folder.
    source: String,
    path: PathBuf,
}

/// Builds and runs every group; one that fails does not stop the next.
///
/// # Errors
/// Only if cargo or a program cannot be run at all.
pub(crate) fn run(extent: Extent) -> anyhow::Result<Tally> {
    let (mut tally, programs) = build()?;
    let (paired, alone): (Vec<_>, Vec<_>) = programs
        .into_iter()
        .partition(|program| matches!(program.place, Place::Paired(_)));
    for program in alone {
        tally = tally.and(program.run(extent, |line| println!("{line}"))?);
    }
    tally = tally.and(run_paired(extent, paired)?);
    Ok(tally.and(run_doc_tests(extent)?))
}

/// Builds all test programs by one command: cargo chooses features by the packages it is asked for,
/// and would build what they share once for each choice.
fn build() -> anyhow::Result<(Tally, Vec<Program>)> {
    let mut command = cargo(&["test", "--no-run", "--workspace"]);
    command
        .args(features()?)
        .arg("--message-format=json-render-diagnostics");
    let mut programs = Vec::new();
    let success = read_lines(&mut command, "cargo test", |line| {
        programs.extend(program(line));
    })?;
    programs.sort();
    let mut tally = Tally::default();
    if !success || programs.is_empty() {
        let what = "cargo test --no-run: see above";
        tally.failed.push(what.to_owned());
    }
    Ok((tally, programs))
}

/// The test program that one of cargo's messages is about.
fn program(message: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(message).ok()?;
    if !message.pointer("/profile/test")?.as_bool()? {
        return None;
    }
    let text = |pointer: &str| message.pointer(pointer)?.as_str();
    let folder = Path::new(text("/manifest_path")?).parent()?;
    let source = Path::new(text("/target/src_path")?);
    let name = text("/target/name")?;
    let is_in = |of: &str| is_same(folder, &root().join(of));
    let is_it = |(of, its): &(&str, &str)| is_in(of) && name == *its;
    let place = PAIRED.iter().position(is_it);
    Some(Program {
        place: place.map_or(Place::Alone, Place::Paired),
        serial: is_in(SERIAL_PACKAGE),
        folder: folder.to_owned(),
        source: source
            .strip_prefix(folder)
            .unwrap_or(source)
            .display()
            .to_string(),
        path: PathBuf::from(text("/executable")?),
    })
}

/// Whether two folders are one, whatever links lead there.
fn is_same(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    real(one) == real(other)
}

impl Program {
    /// Runs it; `show` gets what a person wants to see, line by line.
    fn run(&self, extent: Extent, mut show: impl FnMut(&str)) -> anyhow::Result<Tally> {
        let package = self.folder.strip_prefix(root()).unwrap_or(&self.folder);
        let what = package.join(&self.source).display().to_string();
        show(&format!("     Running {what} ({})", self.path.display()));
        let mut command = Command::new(&self.path);
        // As cargo runs it. Without --show-output libtest keeps the SKIPPED lines of a passing test
        // to itself.
        command
            .arg("--show-output")
            .current_dir(&self.folder)
            .env("CARGO_MANIFEST_DIR", &self.folder);
        if self.serial {
            command.arg("--test-threads=1");
        }
        read(&mut command, extent, &what, show)
    }
}

/// Runs programs [`AT_ONCE`] at a time, in their order; what each has to say comes at its end.
fn run_paired(extent: Extent, programs: Vec<Program>) -> anyhow::Result<Tally> {
    let queue = Mutex::new(VecDeque::from(programs));
    let printer = Mutex::new(());
    let work = || -> anyhow::Result<Tally> {
        let mut tally = Tally::default();
        loop {
            let next = lock(&queue).pop_front();
            let Some(program) = next else {
                return Ok(tally);
            };
            let mut lines = Vec::new();
            let found = program.run(extent, |line| lines.push(line.to_owned()));
            let _alone = lock(&printer);
            println!("{}", lines.join("\n"));
            tally = tally.and(found?);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        let mut tally = Tally::default();
        for worker in workers {
            let found = worker
                .join()
                .map_err(|_| anyhow::anyhow!("A thread that runs tests panicked"))?;
            tally = tally.and(found?);
        }
        Ok(tally)
    })
}

/// Examples in the documentation, which are no programs until rustdoc has made them.
fn run_doc_tests(extent: Extent) -> anyhow::Result<Tally> {
    let mut command = cargo(&["test", "--doc", "--workspace", "--no-fail-fast"]);
    command.args(features()?).args(["--", "--show-output"]);
    read(&mut command, extent, "cargo test --doc", |line| {
        println!("{line}");
    })
}

/// Runs a command that prints as libtest does; what came of its tests.
fn read(
    command: &mut Command,
    extent: Extent,
    what: &str,
    mut show: impl FnMut(&str),
) -> anyhow::Result<Tally> {
    match extent {
        Extent::Usual => command.env_remove(FULL),
        Extent::Full => command.env(FULL, "1"),
    };
    let mut reader = Reader::default();
    let success = read_lines(command, what, |line| {
        if reader.line(line) {
            show(line);
        }
    })?;
    Ok(reader.end(success, what))
}

/// Runs a command, and takes what it prints line by line; whether it succeeded.
fn read_lines(
    command: &mut Command,
    what: &str,
    mut take: impl FnMut(&str),
) -> anyhow::Result<bool> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("Cannot run {what}"))?;
    let output = child
        .stdout
        .take()
        .with_context(|| format!("Cannot read what {what} prints"))?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.with_context(|| format!("Cannot read what {what} prints"))?;
        take(&String::from_utf8_lossy(&line));
    }
    let status = child
        .wait()
        .with_context(|| format!("Cannot wait for {what}"))?;
    Ok(status.success())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// What cargo says of a target.
    fn message(folder: &str, source: &str, name: &str, test: bool) -> String {
        let folder = root().join(folder);
        serde_json::json!({
            "reason": "compiler-artifact",
            "manifest_path": folder.join("Cargo.toml"),
            "target": { "name": name, "src_path": folder.join(source) },
            "profile": { "test": test },
            "executable": "/somewhere",
        })
        .to_string()
    }

    #[test]
    fn a_program_knows_its_place() {
        for (folder, source, name, place, serial) in [
            ("vmm-ecs/sim", "tests/host.rs", "host", Place::Alone, false),
            // Of the same name, in another package.
            ("vmm-ecs/sim", "tests/scx.rs", "scx", Place::Alone, false),
            ("tests", "src/lib.rs", "ecs_tests", Place::Alone, true),
            ("tests", "tests/scx.rs", "scx", Place::Paired(2), true),
            (
                "ecs-exporter",
                "tests/mixin/main.rs",
                "mixin",
                Place::Paired(4),
                false,
            ),
        ] {
            let found = program(&message(folder, source, name, true)).unwrap();
            assert_eq!((found.place, found.serial), (place, serial), "{source}");
        }
    }

    #[test]
    fn what_is_no_test_program_is_none() {
        assert_eq!(
            program(&message("tests", "src/lib.rs", "ecs_tests", false)),
            None
        );
        let library =
            message("tests", "src/lib.rs", "ecs_tests", true).replace("\"/somewhere\"", "null");
        assert_eq!(program(&library), None);
        assert_eq!(
            program("{\"reason\":\"build-finished\",\"success\":true}"),
            None
        );
        assert_eq!(program("warning: not a message"), None);
    }

    /// A renamed test would otherwise lose its place without a word.
    #[test]
    fn every_program_that_runs_beside_another_exists() {
        for (folder, name) in PAIRED {
            let tests = root().join(folder).join("tests");
            let sources = [format!("{name}.rs"), format!("{name}/main.rs")];
            assert!(
                sources.iter().any(|source| tests.join(source).exists()),
                "{name}"
            );
        }
    }
}
