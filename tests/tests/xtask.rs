//! The entry points behave as their documentation says.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ecs_tests::{root, workspace_program};

/// Puts an executable shell script into a folder.
fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&path, executable).unwrap();
    path
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn usage_is_printed_for_whatever_it_does_not_know() {
    let program = workspace_program("xtask").unwrap();
    for (arguments, code) in [
        (vec!["help"], 0),
        (vec![], 2),
        (vec!["magic"], 2),
        (vec!["test", "more"], 2),
    ] {
        let output = Command::new(&program).args(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let said = if code == 0 {
            &output.stdout
        } else {
            &output.stderr
        };
        let said = String::from_utf8_lossy(said);
        for command in ["setup", "check", "test", "test-full", "bench"] {
            assert!(
                said.contains(&format!("\n  {command} ")),
                "{arguments:?} printed {said}"
            );
        }
    }
}

#[test]
fn a_program_that_is_not_there_is_an_error() {
    let error = workspace_program("no-such-program").unwrap_err();
    assert!(
        error.to_string().contains("Cannot build no-such-program"),
        "{error:#}"
    );
}

/// Where the tools are there, set-up changes nothing and says nothing.
#[test]
fn setup_is_silent_where_nothing_is_missing() {
    if let Err(reason) = ecs_tests::cc::Compiler::c("cc") {
        ecs_tests::skip!("setup_is_silent_where_nothing_is_missing", "{reason}");
    }
    let output = Command::new("sh")
        .arg("xtask/setup.sh")
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

/// `sh xtask/setup.sh` where nothing exists but what `tools` (name, script) says.
fn setup_with(tools: &[(&str, &str)]) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in tools {
        script(dir.path(), name, text);
    }
    let output = Command::new("/bin/sh")
        .arg("xtask/setup.sh")
        .current_dir(root())
        .env("PATH", dir.path())
        .env("TOOLS", dir.path())
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

const CARGO: (&str, &str) = ("cargo", "exit 0");
const APT: &str = "echo apt-get \"$@\"";

/// Without what it needs: a clear way out, and nothing is installed.
#[test]
fn setup_says_what_is_missing() {
    for (tools, says) in [
        (vec![], "Rust is missing: install it from https://rustup.rs"),
        (vec![CARGO], "install what your"),
        (vec![CARGO, ("cc", "exit 1")], "install what your"),
        (
            vec![CARGO, ("apt-get", APT), ("id", "echo 1000")],
            "sudo apt-get install",
        ),
        (
            vec![CARGO, ("apt-get", APT), ("id", "echo 0")],
            "still cannot build a program",
        ),
    ] {
        let (code, said) = setup_with(&tools);
        assert_eq!(code, Some(1), "{tools:?}");
        assert!(said.contains(says), "{tools:?}: {said}");
    }
}

#[test]
fn setup_installs_a_compiler_as_root() {
    // Installing brings a compiler that works.
    let apt = format!(
        "{APT}\nif [ \"$1\" = install ]; then\n\
         printf '#!/bin/sh\\nexit 0\\n' > \"$TOOLS/cc\"\n/bin/chmod +x \"$TOOLS/cc\"\nfi"
    );
    let (code, said) = setup_with(&[CARGO, ("id", "echo 0"), ("apt-get", &apt)]);
    assert_eq!(code, Some(0), "{said}");
    let calls: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("apt-get "))
        .collect();
    assert_eq!(
        calls,
        [
            "apt-get update -q",
            "apt-get install -q -y --no-install-recommends gcc libc6-dev linux-libc-dev"
        ]
    );
}

const PASSING: &str = "echo 'running 2 tests
test plain ... ok
test needs_kvm ... ok

successes:

---- needs_kvm stdout ----
SKIPPED: needs_kvm: no /dev/kvm


successes:
    needs_kvm
    plain

test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s'";

/// Folder and name of the test programs there are: one of another package, one that runs alone, and two
/// that run beside another one.
const PROGRAMS: [(&str, &str); 4] = [
    ("vmm-ecs/sim", "host"),
    ("tests", "abi"),
    ("tests", "scx"),
    ("tests", "linux_guest"),
];

/// `cargo xtask COMMAND` with a cargo that only prints, and builds programs that do what `test` says;
/// also returns what each was asked to do.
fn xtask_with(command: &str, test: &str) -> (Output, String) {
    let dir = tempfile::tempdir().unwrap();
    let calls = dir.path().join("calls");
    let log = |name: &str| {
        format!(
            "echo \"{name}$* full=$ECS_TEST_FULL\" >>'{}'",
            calls.display()
        )
    };
    let messages = PROGRAMS.map(|(folder, name)| {
        let program = script(
            dir.path(),
            name,
            &format!("{}\n{test}", log(&format!("run {name} "))),
        );
        let folder = root().join(folder);
        let message = serde_json::json!({
            "manifest_path": folder.join("Cargo.toml"),
            "target": { "name": name, "src_path": folder.join(format!("tests/{name}.rs")) },
            "profile": { "test": true },
            "executable": program,
        });
        format!("echo '{message}'")
    });
    let cargo = format!(
        "{}\ncase \"$1 $2\" in\n'test --no-run') {} ;;\n'test --doc') {test} ;;\nesac",
        log(""),
        messages.join("; "),
    );
    let output = Command::new(workspace_program("xtask").unwrap())
        .arg(command)
        .env("CARGO", script(dir.path(), "cargo", &cargo))
        .env_remove("ECS_TEST_FULL")
        .output()
        .unwrap();
    (output, std::fs::read_to_string(calls).unwrap())
}

/// What was asked of tests, in order, without what builds them.
fn asked(calls: &str) -> Vec<&str> {
    let calls = calls.lines();
    calls
        .filter(|call| call.starts_with("run ") || call.starts_with("test --doc"))
        .collect()
}

#[test]
fn test_counts_every_group_and_runs_what_needs_the_cpus_alone() {
    let (output, calls) = xtask_with("test", PASSING);
    assert!(output.status.success());
    // Three checks, and one test passed and one skipped in each program and in the documentation.
    assert!(
        stdout(&output).ends_with(&format!(
            "\n{}8 passed, 0 failed, 5 skipped\n",
            "SKIPPED: needs_kvm: no /dev/kvm\n".repeat(5)
        )),
        "{}",
        stdout(&output)
    );
    let builds = calls
        .lines()
        .filter(|call| call.starts_with("test --no-run"));
    assert_eq!(builds.count(), 1, "{calls}");
    let asked = asked(&calls);
    let [parallel, serial, paired @ .., doc] = asked.as_slice() else {
        panic!("{calls}");
    };
    assert_eq!(*parallel, "run host --show-output full=");
    assert_eq!(*serial, "run abi --show-output --test-threads=1 full=");
    let mut paired = paired.to_vec();
    paired.sort_unstable();
    assert_eq!(
        paired,
        ["linux_guest", "scx"]
            .map(|name| format!("run {name} --show-output --test-threads=1 full="))
    );
    assert!(
        doc.contains("--no-fail-fast") && doc.ends_with("-- --show-output full="),
        "{doc}"
    );
}

#[test]
fn test_full_asks_for_the_slow_cases() {
    let (output, calls) = xtask_with("test-full", PASSING);
    assert!(output.status.success());
    let asked = asked(&calls);
    assert_eq!(asked.len(), PROGRAMS.len() + 1, "{calls}");
    assert!(asked.iter().all(|call| call.ends_with("full=1")), "{calls}");
}

#[test]
fn whatever_fails_fails_the_whole() {
    for test in [
        // A test program is killed; it ends without a test; a test fails.
        "echo 'running 1 test'; exit 101",
        "exit 101",
        "echo 'running 1 test\ntest t ... FAILED\n\nfailures:\n    t\n\n\
         test result: FAILED. 0 passed; 1 failed; 0 ignored'; exit 101",
    ] {
        let (output, _) = xtask_with("test", test);
        assert_eq!(output.status.code(), Some(1), "{test}");
        // One in each program, and in the documentation.
        assert!(
            stdout(&output).ends_with("\n3 passed, 5 failed, 0 skipped\n"),
            "{test}: {}",
            stdout(&output)
        );
    }
}

#[test]
fn tests_that_cannot_be_built_have_failed() {
    let dir = tempfile::tempdir().unwrap();
    let cargo = script(dir.path(), "cargo", "test \"$1 $2\" != 'test --no-run'");
    let output = Command::new(workspace_program("xtask").unwrap())
        .arg("test")
        .env("CARGO", cargo)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = stdout(&output);
    assert!(
        said.contains("\nFAILED: cargo test --no-run: see above\n")
            && said.ends_with("\n3 passed, 1 failed, 0 skipped\n"),
        "{said}"
    );
}

/// The last line is the totals, whatever make says after them.
#[test]
fn ci_ends_with_the_totals() {
    for (make, code, last) in [
        (
            "echo '7 passed, 0 failed, 1 skipped'",
            0,
            "7 passed, 0 failed, 1 skipped",
        ),
        (
            "echo '6 passed, 1 failed, 0 skipped'; echo 'make: *** Error 1' >&2; exit 2",
            2,
            "6 passed, 1 failed, 0 skipped",
        ),
        (
            "echo 'no rule' >&2; exit 2",
            2,
            "0 passed, 1 failed, 0 skipped",
        ),
        ("sleep 5", 124, "0 passed, 1 failed, 0 skipped"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        script(dir.path(), "make", make);
        let path = std::env::var("PATH").unwrap();
        let output = Command::new(root().join(".ci/run"))
            .env("PATH", format!("{}:{path}", dir.path().display()))
            .env("ECS_CI_TIMEOUT_S", "1")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{make}");
        assert_eq!(stdout(&output).lines().last(), Some(last), "{make}");
    }
}
