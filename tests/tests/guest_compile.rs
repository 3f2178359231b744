//! Kernels that no guest boots here: the driver builds for them without a warning, and what reads
//! its sources has nothing to say.
#![allow(clippy::unwrap_used)]

use std::fs;

use ecs_tests::{parts, root, skip, slow};

#[test]
fn it_builds_for_6_1_for_preempt_rt_and_for_arm64() {
    slow!("it_builds_for_6_1_for_preempt_rt_and_for_arm64");
    const NAME: &str = "it_builds_for_6_1_for_preempt_rt_and_for_arm64";
    let kernels = match parts!(NAME).headers() {
        Ok(kernels) => kernels,
        Err(reason) => skip!(NAME, "{reason}"),
    };
    for flavour in ["-amd64", "-rt-amd64", "-arm64"] {
        assert!(
            kernels
                .iter()
                .any(|kernel| kernel.version().ends_with(flavour)),
            "no headers of {flavour}"
        );
    }
    for kernel in kernels {
        let built = kernel.modules().unwrap();
        assert_eq!(built.len(), 2, "Linux {}", kernel.version());
        println!("Linux {}: no warning", kernel.version());
    }
}

#[test]
fn sparse_finds_nothing() {
    slow!("sparse_finds_nothing");
    const NAME: &str = "sparse_finds_nothing";
    let kernels = match parts!(NAME).headers() {
        Ok(kernels) => kernels,
        Err(reason) => skip!(NAME, "{reason}"),
    };
    // Debian's sparse does not understand the headers of 7.3.
    for kernel in kernels
        .iter()
        .filter(|kernel| kernel.version().starts_with("6."))
    {
        kernel.sparse().unwrap();
        println!("Linux {}: nothing", kernel.version());
    }
}

/// What is not for a module that builds for many kernels: comparisons of versions, and what only the
/// newest have. fprobe takes names as `const char **`.
const NOT_FOR_US: &str =
    "--ignore=LINUX_VERSION_CODE,CONSTANT_COMPARISON,ALLOC_WITH_SIZEOF,STATIC_CONST_CHAR_ARRAY";

#[test]
fn checkpatch_finds_nothing() {
    slow!("checkpatch_finds_nothing");
    const NAME: &str = "checkpatch_finds_nothing";
    let kernel = match parts!(NAME).debug_kernel() {
        Ok(kernel) => kernel,
        Err(reason) => skip!(NAME, "{reason}"),
    };
    let script = format!(
        "/usr/src/linux-headers-{}/scripts/checkpatch.pl",
        kernel.version()
    );
    let copy = kernel.root().join("src/checkpatch");
    fs::create_dir_all(&copy).unwrap();
    let driver = root().join("guest-driver");
    let mut sources = 0;
    for folder in ["module", "module/tests"] {
        for entry in fs::read_dir(driver.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if !path.extension().is_some_and(|end| end == "c" || end == "h") {
                continue;
            }
            let name = path.file_name().unwrap().to_str().unwrap();
            fs::copy(&path, copy.join(name)).unwrap();
            let file = format!("/src/checkpatch/{name}");
            kernel
                .run(&[
                    "perl",
                    &script,
                    "--no-tree",
                    "--terse",
                    "--no-summary",
                    NOT_FOR_US,
                    "-f",
                    &file,
                ])
                .unwrap();
            sources += 1;
        }
    }
    assert!(sources > 14, "only {sources} files");
    println!("{sources} files, nothing");
}
