//! The sched_ext scheduler compiles; whether a kernel takes it is for its verifier to say.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

#[test]
fn the_scheduler_compiles_without_a_warning() {
    let skip = |reason: &str| {
        println!("SKIPPED: the_scheduler_compiles_without_a_warning: {reason}");
    };
    if !Path::new("/usr/include/bpf/bpf_core_read.h").exists() {
        return skip("libbpf's headers are not installed (libbpf-dev)");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let object = tempfile::tempdir().unwrap();
    let output = Command::new("clang")
        .args([
            "-g",
            "-O2",
            "-target",
            "bpf",
            "-mcpu=v3",
            "-D__TARGET_ARCH_x86",
        ])
        .args(["-Wall", "-Werror", "-I"])
        .arg(root.join("../../guest-driver/uapi"))
        .args(["-I", "/usr/include/x86_64-linux-gnu", "-c"])
        .arg(root.join("bpf/ecs.bpf.c"))
        .arg("-o")
        .arg(object.path().join("ecs.bpf.o"))
        .output();
    let Ok(output) = output else {
        return skip("clang is not installed");
    };
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
