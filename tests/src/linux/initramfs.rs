//! What a guest boots into: busybox, and a shell that a test talks to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use super::Parts;

/// Runs whatever comes on the second serial line, or the one the kernel's command line names as
/// `ecs_line`, and ends each answer with its exit status.
const INIT: &str = r#"#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t debugfs debugfs /sys/kernel/debug
mount -t devtmpfs devtmpfs /dev
line=/dev/${ecs_line:-ttyS1}
stty -F $line raw -echo
exec <$line >$line 2>&1
echo ECS-READY
while read -r command; do
	( eval "$command" )
	echo "ECS-DONE $?"
done
poweroff -f
"#;

/// Writes an initramfs: busybox, files of the host in places of the guest, and our init.
///
/// # Errors
/// If a file cannot be read or written.
pub fn pack(parts: &Parts, files: &[(PathBuf, PathBuf)], initramfs: &Path) -> anyhow::Result<()> {
    let dir = tempfile::Builder::new().prefix("ecs-root-").tempdir()?;
    let root = dir.path();
    for folder in ["bin", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy(parts.busybox(), root.join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", root.join("bin/sh"))?;
    for (file, place) in files {
        let place = root.join(place.strip_prefix("/").unwrap_or(place));
        fs::create_dir_all(place.parent().unwrap_or(root))?;
        fs::copy(file, place).with_context(|| format!("Cannot copy {}", file.display()))?;
    }
    let init = root.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let script = "cd \"$1\" && find . | \"$0\" cpio -o -H newc >\"$2\"";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(parts.busybox())
        .arg(root)
        .arg(initramfs)
        .output()?;
    if !output.status.success() {
        bail!(
            "Cannot pack the initramfs: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
