//! Compiles the sched_ext scheduler and generates its loader, for the feature `scx`.

fn main() {
    #[cfg(feature = "scx")]
    scx::build();
}

#[cfg(feature = "scx")]
mod scx {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use libbpf_cargo::SkeletonBuilder;

    /// The kernel's headers for this architecture lie here on Debian and its kin.
    const MULTIARCH: &str = "/usr/include/x86_64-linux-gnu";
    /// Older ones drop the type tag that lets the kernel pin pages of guest memory.
    const OLDEST_CLANG: u32 = 18;

    pub(crate) fn build() {
        let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
        let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo"));
        let uapi = root.join("../../guest-driver/uapi");
        println!("cargo:rerun-if-changed={}", root.join("bpf").display());
        println!("cargo:rerun-if-changed={}", uapi.display());
        println!("cargo:rerun-if-env-changed=ECS_CLANG");
        let mut arguments = vec!["-Wall".into(), "-Werror".into(), "-mcpu=v3".into()];
        for dir in [uapi.as_path(), Path::new(MULTIARCH)] {
            arguments.push("-I".into());
            arguments.push(dir.as_os_str().to_owned());
        }
        // The scheduler, hints beside any scheduler, and what tests and benchmarks run in any kernel.
        for name in ["ecs", "tell", "check"] {
            SkeletonBuilder::new()
                .source(root.join(format!("bpf/{name}.bpf.c")))
                .clang(clang())
                .clang_args(arguments.clone())
                .build_and_generate(out.join(format!("{name}.skel.rs")))
                .unwrap_or_else(|error| panic!("Cannot build {name}.bpf.c: {error:#}"));
        }
    }

    /// The newest clang there is, or the one in `$ECS_CLANG`.
    fn clang() -> String {
        if let Ok(clang) = std::env::var("ECS_CLANG") {
            return clang;
        }
        let numbered = (OLDEST_CLANG..30).rev().map(|n| format!("clang-{n}"));
        for name in numbered.chain(["clang".to_owned()]) {
            if version(&name).is_some_and(|version| version >= OLDEST_CLANG) {
                return name;
            }
        }
        panic!(
            "The feature scx needs clang {OLDEST_CLANG} or newer: install Debian's clang-19, or \
             name one in ECS_CLANG"
        );
    }

    /// Major version of a clang; `None` if it does not run.
    fn version(name: &str) -> Option<u32> {
        let output = Command::new(name).arg("-dumpversion").output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        text.trim().split('.').next()?.parse().ok()
    }
}
