//! Dashboards against the types that Grafana publishes.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::tools::npm;
use crate::files;

/// Exact versions: the types change with Grafana.
const PACKAGES: [&str; 2] = ["@grafana/schema@13.2.3", "typescript@5.9.3"];

#[test]
fn dashboards_have_the_types_of_grafana() {
    let test = "dashboards_have_the_types_of_grafana";
    if std::env::var_os("ECS_TEST_FULL").is_none() {
        println!("SKIPPED: {test}: slow; ECS_TEST_FULL=1 runs it");
        return;
    }
    let packages = match npm("grafana-schema-13.2.3", &PACKAGES) {
        Ok(packages) => packages,
        Err(reason) => {
            println!("SKIPPED: {test}: no types of Grafana: {reason}");
            return;
        }
    };
    let dashboards: String = files::dashboards()
        .iter()
        .enumerate()
        .map(|(index, (_, json))| format!("export const d{index}: Checked = {json:#};\n"))
        .collect();
    let complaints = type_check(&packages, &dashboards);
    assert_eq!(complaints, None);
    // It would notice.
    for (right, wrong) in [
        ("\"mode\": \"dashed\"", "\"mode\": \"dotted\""),
        ("\"colorMode\": \"value\"", "\"colourMode\": \"value\""),
        ("\"schemaVersion\": 42", "\"schemaVersion\": \"42\""),
    ] {
        assert!(dashboards.contains(right), "{right}");
        let complaints = type_check(&packages, &dashboards.replace(right, wrong));
        assert!(complaints.is_some(), "{wrong} passes");
    }
}

/// What the TypeScript compiler says against constants of type `Checked`, if anything.
fn type_check(packages: &Path, constants: &str) -> Option<String> {
    // In the packages' folder, where the compiler finds them.
    let dir = tempfile::tempdir_in(packages).unwrap();
    let file = dir.path().join("check.ts");
    fs::write(&file, format!("{}{constants}", include_str!("schema.ts"))).unwrap();
    let output = Command::new("node")
        .arg(packages.join("node_modules/typescript/bin/tsc"))
        .args([
            "--noEmit",
            "--strict",
            "--skipLibCheck",
            "--target",
            "es2022",
        ])
        .args(["--module", "esnext", "--moduleResolution", "bundler"])
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (!output.status.success()).then_some(said)
}
