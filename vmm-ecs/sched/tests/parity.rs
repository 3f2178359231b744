//! `bpf/ecs_policy.h` is `ecs-policy`: random histories go through both, and every decision and every
//! book is compared after each operation.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "parity/draw.rs"]
mod draw;
#[path = "parity/golden.rs"]
mod golden;
#[path = "parity/host.rs"]
mod host;
#[path = "parity/op.rs"]
mod op;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, FileFailurePersistence, RngAlgorithm, TestRng, TestRunner};

use draw::{SLOTS, VCPUS, VMS};
use golden::Golden;
use host::Host;
use op::Op;

/// Histories, and episodes of each at most.
const HISTORIES: u32 = 200;
const LENGTH: usize = 200;
/// Golden traces, and episodes of each at most.
const GOLDEN: usize = 6;
const GOLDEN_LENGTH: usize = 40;

/// Compiles the driver around the header; the reason where this machine cannot.
fn driver(dir: &Path) -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = dir.join("driver");
    let works = |command: &mut Command| {
        command
            .output()
            .map_err(|error| format!("no C compiler: {error}"))
    };
    let probe = dir.join("probe.c");
    std::fs::write(
        &probe,
        "#include <linux/types.h>\nint main(void){return 0;}\n",
    )
    .unwrap();
    let output = works(Command::new("cc").arg("-o").arg(&program).arg(&probe))?;
    if !output.status.success() {
        return Err("cc cannot build a program with the kernel's headers".to_owned());
    }
    let output = works(
        Command::new("cc")
            .args(["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-I"])
            .arg(root.join("bpf"))
            .arg("-o")
            .arg(&program)
            .arg(root.join("tests/parity/driver.c")),
    )?;
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(program)
}

/// What the header makes of the operations, an answer each.
fn run<'a>(driver: &Path, ops: impl IntoIterator<Item = &'a Op>) -> Vec<Vec<u64>> {
    let input: String = ops.into_iter().map(|op| op.line() + "\n").collect();
    let mut child = Command::new(driver)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(
        output.status.success(),
        "the driver ended with {}",
        output.status
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(golden::numbers).collect()
}

#[test]
fn the_header_decides_and_books_as_the_policy_does() {
    let dir = tempfile::tempdir().unwrap();
    let driver = match driver(dir.path()) {
        Ok(driver) => driver,
        Err(reason) => {
            println!("SKIPPED: the_header_decides_and_books_as_the_policy_does: {reason}");
            return;
        }
    };
    let config = Config {
        cases: HISTORIES,
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource(
            "proptest-regressions",
        ))),
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&draw::history(LENGTH), |ops| {
            let theirs = run(&driver, &ops);
            prop_assert_eq!(theirs.len(), ops.len());
            let mut host = Host::new(VMS, VCPUS, SLOTS);
            for (op, theirs) in ops.iter().zip(&theirs) {
                prop_assert_eq!(&Op::parse(&op.line()), op);
                let ours = host.apply(op);
                prop_assert_eq!(&ours, theirs, "{:?}", op);
            }
            Ok(())
        })
        .unwrap();
    for trace in Golden::all() {
        let theirs = run(&driver, trace.ops());
        assert_eq!(theirs, trace.answers());
    }
}

/// Draws the golden traces anew, after a change of the policy or of the operations.
fn write_golden() {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let line = |host: &mut Host, op: &Op| {
        let answer: String = host.apply(op).iter().map(|n| format!(" {n}")).collect();
        format!("{} ={answer}\n", op.line())
    };
    let traces = (0..GOLDEN).map(|_| {
        let drawn = draw::history(GOLDEN_LENGTH).new_tree(&mut runner).unwrap();
        let mut host = Host::new(VMS, VCPUS, SLOTS);
        let ops = drawn.current();
        ops.iter().map(|op| line(&mut host, op)).collect::<String>()
    });
    let text = traces.collect::<Vec<_>>().join("\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/golden.txt");
    std::fs::write(path, text).unwrap();
}

/// With `ECS_GOLDEN` set it writes them instead.
#[test]
fn golden_traces_are_what_the_policy_decides() {
    if std::env::var_os("ECS_GOLDEN").is_some() {
        return write_golden();
    }
    let mut grants = 0;
    for trace in Golden::all() {
        let mut host = Host::new(VMS, VCPUS, SLOTS);
        for (op, answer) in &trace.0 {
            assert_eq!(&host.apply(op), answer, "{op:?}");
        }
        grants += host
            .vms()
            .iter()
            .flat_map(|vm| vm.counters.grants)
            .sum::<u64>();
    }
    assert!(grants > 0);
}
