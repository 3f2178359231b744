//! What `deploy/` holds is what the programs understand.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

use ecs_tests::{root, workspace_program};

fn check_config(program: &Path, text: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("vmm-ecs.toml");
    std::fs::write(&file, text).unwrap();
    Command::new(program)
        .arg("check-config")
        .arg("--config")
        .arg(file)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn example_configuration_shows_the_defaults() {
    let program = workspace_program("vmm-ecs").unwrap();
    let example = std::fs::read_to_string(root().join("deploy/vmm-ecs.toml")).unwrap();
    let defaults = said(&check_config(&program, ""));
    assert_eq!(said(&check_config(&program, &example)), defaults);

    // What is commented out is understood as well: "#key = value", where prose is "# word".
    let all: Vec<&str> = example
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => rest,
            _ => line,
        })
        .collect();
    let everything = said(&check_config(&program, &all.join("\n")));
    assert!(
        everything.contains("web1") && everything != defaults,
        "{everything}"
    );

    let wrong = check_config(&program, "[host]\npcpu = \"0\"\n");
    assert!(!wrong.status.success());
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("pcpu"));
}

/// The programs know every option that a unit gives them.
#[test]
fn units_use_options_that_exist() {
    for (unit, package) in [
        ("vmm-ecs.service", "vmm-ecs"),
        ("ecs-exporter.service", "ecs-exporter"),
    ] {
        let program = workspace_program(package).unwrap();
        let text = std::fs::read_to_string(root().join("deploy/systemd").join(unit)).unwrap();
        let commands: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("Exec"))
            .filter_map(|line| line.split_once(&format!("=/usr/bin/{package} ")))
            .map(|(_, arguments)| arguments)
            .collect();
        assert!(!commands.is_empty(), "{unit}");
        for command in commands {
            // --help ends before anything is done, but after the options were understood.
            let output = Command::new(&program)
                .args(command.split_whitespace())
                .arg("--help")
                .output()
                .unwrap();
            assert!(output.status.success(), "{unit}: {command}");
            let help = String::from_utf8_lossy(&output.stdout);
            for option in command
                .split_whitespace()
                .filter(|word| word.starts_with("--"))
            {
                assert!(
                    help.contains(option),
                    "{unit}: {command}: no {option} in\n{help}"
                );
            }
        }
    }
}
