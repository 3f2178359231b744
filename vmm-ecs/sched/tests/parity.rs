//! `bpf/ecs_policy.h` is `ecs-policy`: random histories go through both, and every decision and every
//! book is compared after each operation.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

#[path = "parity/host.rs"]
mod host;
#[path = "parity/op.rs"]
mod op;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};

use host::Host;
use op::{Op, episode, params};

/// Histories, and episodes of each at most.
const HISTORIES: u32 = 200;
const LENGTH: usize = 200;

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

/// What the header makes of the operations, a line each.
fn run(driver: &Path, input: &str) -> Vec<String> {
    let mut child = Command::new(driver)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(
        output.status.success(),
        "the driver ended with {}",
        output.status
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| line.trim().to_owned()).collect()
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
    let histories = (params(), vec(episode(), 1..LENGTH));
    TestRunner::new(config)
        .run(&histories, |(params, episodes)| {
            let start = [
                Op::Params(params),
                Op::New {
                    vm: 0,
                    weight: 100,
                    vclock_ns: 0,
                },
                Op::New {
                    vm: 1,
                    weight: 300,
                    vclock_ns: 0,
                },
            ];
            let ops: Vec<Op> = start
                .into_iter()
                .chain(episodes.into_iter().flatten())
                .collect();
            let input: String = ops.iter().map(|op| op.line() + "\n").collect();
            let theirs = run(&driver, &input);
            prop_assert_eq!(theirs.len(), ops.len());
            let mut host = Host::default();
            for (op, theirs) in ops.iter().zip(&theirs) {
                let ours = host.apply(op);
                prop_assert_eq!(&ours, theirs, "{:?}", op);
            }
            Ok(())
        })
        .unwrap();
    // A history that must contain grants: the comparison is not one of empty books.
    let mut host = Host::default();
    for op in op::granted() {
        host.apply(&op);
    }
    assert_eq!(host.grants(), 1);
}
