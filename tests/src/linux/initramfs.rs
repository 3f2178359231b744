//! What an emulated machine has for files.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, bail};

use super::{Kernel, Modules, Parts};

/// Mounts what programs expect, loads the kernel's own modules, runs whatever comes on the second
/// serial line, or the one the kernel's command line names as `ecs_line`, and ends each answer with
/// its exit status.
const INIT: &str = r#"#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm
mount -t tmpfs tmpfs /dev/shm
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
for module in $(cat /lib/modules/order); do
	insmod "/lib/modules/$module.ko"
done
line=/dev/${ecs_line:-ttyS1}
stty -F $line raw -echo
exec <$line >$line 2>&1
echo ECS-READY
# Not by the first process, which hears of the end of every orphan: a signal in the middle of a line
# makes read forget what it has of it.
(
	while read -r command; do
		( eval "$command" ) </dev/null
		echo "ECS-DONE $?"
	done
)
poweroff -f
"#;

/// The root folder of an emulated machine, kept in its memory: busybox and what a test adds.
#[derive(Debug)]
pub struct Initramfs {
    dir: tempfile::TempDir,
    busybox: PathBuf,
    /// The kernel's own modules, in the order to load them.
    modules: Vec<String>,
}

impl Initramfs {
    /// Busybox alone.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn new(parts: &Parts) -> anyhow::Result<Self> {
        let files = Self {
            dir: tempfile::Builder::new()
                .prefix("ecs-initramfs-")
                .tempdir()?,
            busybox: parts.busybox(),
            modules: Vec::new(),
        };
        for folder in ["proc", "sys", "dev", "tmp", "run", "lib/modules"] {
            fs::create_dir_all(files.root().join(folder))?;
        }
        files.add(&parts.busybox(), "/bin/busybox")?;
        symlink("busybox", files.root().join("bin/sh"))?;
        Ok(files)
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Copies a file to a path of the machine.
    ///
    /// # Errors
    /// If it cannot be copied.
    pub fn add(&self, file: &Path, path: impl AsRef<Path>) -> anyhow::Result<()> {
        let path = path.as_ref();
        let target = self.root().join(path.strip_prefix("/").unwrap_or(path));
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(file, target).with_context(|| format!("Cannot copy {}", file.display()))?;
        Ok(())
    }

    /// Copies a file into a folder of the machine.
    pub(super) fn add_to(&self, file: &Path, folder: &str) -> anyhow::Result<()> {
        let name = file.file_name().context("A file without a name")?;
        self.add(file, Path::new(folder).join(name))
    }

    /// Has modules of this tree in `/`; nobody loads them.
    pub(super) fn add_modules(&self, modules: &Modules) -> anyhow::Result<()> {
        for (name, content) in modules.iter() {
            fs::write(self.root().join(name), content)?;
        }
        Ok(())
    }

    /// Copies a program to `/bin`, with the shared libraries it needs.
    pub(super) fn add_program(&self, program: &Path) -> anyhow::Result<()> {
        for library in libraries(program)? {
            if !self.root().join(library.strip_prefix("/")?).exists() {
                self.add(&library, &library)?;
            }
        }
        self.add_to(program, "/bin")
    }

    /// Has a module of the kernel loaded at start, after those it needs.
    pub(super) fn add_module(&mut self, kernel: &Kernel, name: &str) -> anyhow::Result<()> {
        if self.modules.iter().any(|have| have == name) {
            return Ok(());
        }
        let file = kernel.stock_module(name)?;
        let output = Command::new(&self.busybox)
            .arg("xzcat")
            .arg(&file)
            .output()?;
        check(&output, || format!("unpack {}", file.display()))?;
        for needed in dependencies(&output.stdout)? {
            self.add_module(kernel, &needed)?;
        }
        let target = self.root().join(format!("lib/modules/{name}.ko"));
        fs::write(target, output.stdout)?;
        self.modules.push(name.to_owned());
        Ok(())
    }

    /// Writes the archive, and says where it is. It goes away with this object.
    ///
    /// # Errors
    /// If it cannot be packed.
    pub fn pack(&self) -> anyhow::Result<PathBuf> {
        let root = self.root();
        fs::write(root.join("lib/modules/order"), self.modules.join("\n"))?;
        let init = root.join("init");
        fs::write(&init, INIT)?;
        fs::set_permissions(&init, Permissions::from_mode(0o755))?;
        let archive = self.dir.path().join("initramfs");
        let script = "cd \"$1\" && find . | \"$0\" cpio -o -H newc >\"$2\"";
        let output = Command::new("sh")
            .args(["-c", script])
            .arg(&self.busybox)
            .arg(&root)
            .arg(&archive)
            .output()?;
        check(&output, || "pack the initramfs".to_owned())?;
        Ok(archive)
    }
}

fn check(output: &Output, what: impl Fn() -> String) -> anyhow::Result<()> {
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("Cannot {}: {said}", what());
    }
    Ok(())
}

/// Shared libraries and loader of a program, by the word of this machine's own loader; none for a
/// static program.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .context("Cannot run ldd (libc-bin)")?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    if said.contains("not a dynamic executable") || said.contains("statically linked") {
        return Ok(Vec::new());
    }
    if !output.status.success() || said.contains("not found") {
        bail!("{} lacks a library:\n{said}", program.display());
    }
    // "NAME => PATH (ADDRESS)", "PATH (ADDRESS)" for the loader, and the kernel's own without a path.
    let paths = said.lines().filter_map(|line| {
        let path = line.rsplit("=> ").next()?.split_whitespace().next()?;
        path.starts_with('/').then(|| PathBuf::from(path))
    });
    Ok(paths.collect())
}

/// Modules that a module says it needs.
fn dependencies(module: &[u8]) -> anyhow::Result<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let from = module
        .windows(KEY.len())
        .position(|window| window == KEY)
        .context("A module without a list of what it needs")?;
    let text = module.get(from + KEY.len()..).unwrap_or_default();
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    let names = std::str::from_utf8(text)?.split(',');
    Ok(names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect())
}
