//! What `deploy/` holds is what the programs understand.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::Path;
use std::process::{Command, Output};

use ecs_tests::{release_program, root, workspace_program};

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
    let program = release_program("vmm-ecs").unwrap();
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
    for (unit, package, program) in [
        ("vmm-ecs.service", "vmm-ecs", release_program("vmm-ecs")),
        (
            "ecs-exporter.service",
            "ecs-exporter",
            workspace_program("ecs-exporter"),
        ),
    ] {
        let program = program.unwrap();
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

#[test]
fn the_exporters_example_shows_its_defaults() {
    let program = workspace_program("ecs-exporter").unwrap();
    let check = |arguments: &[&str]| {
        said(
            &Command::new(&program)
                .arg("check-config")
                .args(arguments)
                .output()
                .unwrap(),
        )
    };
    let example = root().join("deploy/ecs-exporter.yaml");
    assert_eq!(
        check(&["--config.file", example.to_str().unwrap()]),
        check(&[])
    );
}

/// Instructions of the container file: name, and the rest on one line.
fn container() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join("deploy/container/Containerfile")).unwrap();
    let text = text.replace("\\\n", " ");
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
        .collect()
}

/// What linters of container files ask for, where none is to be had.
#[test]
fn the_container_file_keeps_the_rules_of_its_trade() {
    let all = container();
    let of = |name: &str| {
        all.iter()
            .filter(|(it, _)| it == name)
            .map(|(_, rest)| rest.as_str())
            .collect::<Vec<_>>()
    };
    for image in of("FROM") {
        let tag = image.split(' ').next().unwrap().split_once(':');
        assert!(
            tag.is_some_and(|(_, tag)| tag != "latest"),
            "{image} has no version"
        );
    }
    assert_eq!(all.first().unwrap().0, "FROM");
    let last = all.iter().rposition(|(name, _)| name == "FROM").unwrap();
    let built = all.get(last..).unwrap();
    // Not root, and by number: Kubernetes cannot look a name up.
    let user = built.iter().find(|(name, _)| name == "USER").unwrap();
    assert!(
        user.1
            .split(':')
            .all(|id| id.parse::<u32>().is_ok_and(|id| id > 0))
    );
    assert_eq!(
        (
            of("ENTRYPOINT").len(),
            of("CMD").len(),
            of("HEALTHCHECK").len()
        ),
        (1, 1, 1)
    );
    assert!(of("ADD").is_empty(), "COPY says what it does");
    for from_here in of("COPY")
        .into_iter()
        .filter(|copy| !copy.starts_with("--from"))
    {
        let words: Vec<&str> = from_here.split(' ').collect();
        let (_, sources) = words.split_last().unwrap();
        for source in sources {
            assert!(root().join(source).exists(), "there is no {source}");
        }
    }
    // The program knows what it is told.
    let words = |json: &str| serde_json::from_str::<Vec<String>>(json).unwrap();
    let program = workspace_program("ecs-exporter").unwrap();
    let health = of("HEALTHCHECK")[0].split_once("CMD ").unwrap().1;
    for command in [words(of("CMD")[0]), words(health).split_off(1)] {
        let output = Command::new(&program)
            .args(&command)
            .arg("--help")
            .output()
            .unwrap();
        let help = said(&output);
        for option in command.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(option.split('=').next().unwrap()), "{option}");
        }
    }
}
