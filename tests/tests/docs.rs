//! The pages point at things that are there.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use ecs_tests::root;

/// Folders with pages of their own.
const FOLDERS: [&str; 6] = [
    ".",
    "docs",
    "docs/adr",
    "dashboards",
    "deploy",
    "guest-driver",
];

fn pages() -> Vec<PathBuf> {
    FOLDERS
        .iter()
        .filter_map(|folder| std::fs::read_dir(root().join(folder)).ok())
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect()
}

/// Targets of `[text](target)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once(')')?.0))
}

#[test]
fn relative_links_lead_somewhere() {
    let mut nr_links = 0;
    let mut broken = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        let folder = page.parent().unwrap_or(Path::new("."));
        for link in links(&text).filter(|link| !link.contains("://") && !link.starts_with('#')) {
            nr_links += 1;
            let target = link.split('#').next().unwrap_or(link);
            if !folder.join(target).exists() {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(
        nr_links > 10,
        "only {nr_links} links were found: the pages are not where they were"
    );
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

/// Files that a page names in `code` with a path of this tree.
#[test]
fn named_files_exist() {
    let tops = [
        "guest-driver/",
        "vmm-ecs/",
        "ecs-exporter/",
        "tests/",
        "deploy/",
        "docs/",
        "xtask/",
    ];
    let mut missing = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        // Odd parts lie between backticks; fences leave empty ones, and commands have spaces.
        for name in text
            .lines()
            .flat_map(|line| line.split('`').skip(1).step_by(2))
        {
            let is_path = tops.iter().any(|top| name.starts_with(top))
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
            if is_path && !root().join(name).exists() {
                missing.push(format!("{}: {name}", page.display()));
            }
        }
    }
    assert!(
        missing.is_empty(),
        "named but not there:\n{}",
        missing.join("\n")
    );
}
