//! The driver's package, installed as its users do.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;

use ecs_tests::{parts, root};

#[test]
fn dkms_builds_installs_and_removes_the_driver() {
    let parts = parts!("dkms_builds_installs_and_removes_the_driver");
    let folder = root().join("guest-driver/module");
    let version = env!("CARGO_PKG_VERSION");
    let made = Command::new("sh")
        .arg(folder.join("package-deb.sh"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let package = folder.join(format!("dist/virtio-ecs-dkms_{version}_all.deb"));
    for name in ["7.3", "6.12"] {
        let kernel = parts.kernel(name).unwrap();
        let unpacked = Command::new("dpkg-deb")
            .arg("-x")
            .args([&package, &kernel.root()])
            .output()
            .unwrap();
        assert!(unpacked.status.success(), "{unpacked:?}");
        fs::create_dir_all(kernel.root().join("var/lib/dkms")).unwrap();
        let dkms = |action: &str, more: &[&str]| {
            let mut command = vec!["dkms", action, "-m", "virtio-ecs", "-v", version];
            command.extend(more);
            kernel.run(&command).unwrap()
        };
        // What a run that was cut short left behind.
        let tree = kernel.root().join("var/lib/dkms/virtio-ecs");
        if tree.exists() {
            fs::remove_dir_all(tree).unwrap();
        }
        dkms("add", &[]);
        dkms("build", &["-k", kernel.version()]);
        dkms("install", &["-k", kernel.version()]);
        let status = kernel.run(&["dkms", "status"]).unwrap();
        assert!(
            status.contains(kernel.version()) && status.contains("installed"),
            "{status}"
        );
        let installed = kernel
            .root()
            .join("lib/modules")
            .join(kernel.version())
            .join("updates/dkms");
        let is_ours = |entry: fs::DirEntry| {
            entry
                .file_name()
                .to_string_lossy()
                .starts_with("virtio_ecs.ko")
        };
        assert!(
            fs::read_dir(&installed)
                .unwrap()
                .any(|entry| is_ours(entry.unwrap()))
        );
        dkms("remove", &["--all"]);
        let left = fs::read_dir(&installed);
        assert!(left.is_err() || !left.unwrap().any(|entry| is_ours(entry.unwrap())));
    }
}
