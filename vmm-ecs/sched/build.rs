//! Compiles the sched_ext scheduler and generates its loader, for the feature `scx`.

fn main() {
    #[cfg(feature = "scx")]
    scx::build();
}

#[cfg(feature = "scx")]
mod scx {
    use std::path::{Path, PathBuf};

    use libbpf_cargo::SkeletonBuilder;

    /// The kernel's headers for this architecture lie here on Debian and its kin.
    const MULTIARCH: &str = "/usr/include/x86_64-linux-gnu";

    pub(crate) fn build() {
        let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
        let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo"));
        let uapi = root.join("../../guest-driver/uapi");
        println!("cargo:rerun-if-changed={}", root.join("bpf").display());
        println!("cargo:rerun-if-changed={}", uapi.display());
        let mut arguments = vec!["-Wall".into(), "-Werror".into(), "-mcpu=v3".into()];
        for dir in [uapi.as_path(), Path::new(MULTIARCH)] {
            arguments.push("-I".into());
            arguments.push(dir.as_os_str().to_owned());
        }
        SkeletonBuilder::new()
            .source(root.join("bpf/ecs.bpf.c"))
            .clang_args(arguments)
            .build_and_generate(out.join("ecs.skel.rs"))
            .unwrap_or_else(|error| {
                panic!("Cannot build the sched_ext scheduler, is clang installed? {error:#}")
            });
    }
}
