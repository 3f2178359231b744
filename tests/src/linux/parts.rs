//! What `tests/stacks/setup.sh` fetched, and modules built with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// The cache of real parts.
#[derive(Debug, Clone)]
pub struct Parts {
    cache: PathBuf,
}

impl Parts {
    /// Finds the parts.
    ///
    /// # Errors
    /// Why a test must be skipped: one of them is not there, or this user may not use them.
    pub fn find() -> Result<Self, String> {
        let cache = cache().ok_or("no cache directory: set ECS_CACHE_DIR")?;
        for part in ["qemu", "linux-7.3", "linux-6.12"] {
            if !cache.join(part).join("version").exists() {
                return Err(format!(
                    "{part} is not in {}: run tests/stacks/setup.sh, which says why it cannot be had",
                    cache.display()
                ));
            }
        }
        if !nix::unistd::geteuid().is_root() {
            return Err("modules are built in a chroot, which needs root".to_owned());
        }
        Ok(Self { cache })
    }

    /// A kernel, by the beginning of its version: `7.3` or `6.12`.
    ///
    /// # Errors
    /// If its version cannot be read.
    pub fn kernel(&self, name: &str) -> anyhow::Result<Kernel> {
        let dir = self.cache.join(format!("linux-{name}"));
        let version = fs::read_to_string(dir.join("version"))
            .with_context(|| format!("No kernel {name} in {}", self.cache.display()))?;
        Ok(Kernel {
            version: version.trim().to_owned(),
            dir,
        })
    }

    /// A statically linked busybox, for the host and for guests.
    #[must_use]
    pub fn busybox(&self) -> PathBuf {
        self.cache.join("qemu/usr/bin/busybox")
    }

    /// A command that runs QEMU with its own libraries and firmware.
    #[must_use]
    pub fn qemu(&self) -> Command {
        let root = self.cache.join("qemu");
        let mut command = Command::new(root.join("lib64/ld-linux-x86-64.so.2"));
        command
            .arg("--library-path")
            .arg(root.join("usr/lib/x86_64-linux-gnu"))
            .arg(root.join("usr/bin/qemu-system-x86_64"));
        for dir in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(root.join(dir));
        }
        command
    }
}

fn cache() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(dir) = var("ECS_CACHE_DIR") {
        return Some(dir.into());
    }
    let base = var("XDG_CACHE_HOME").map_or_else(
        || var("HOME").map(|home| PathBuf::from(home).join(".cache")),
        |dir| Some(dir.into()),
    )?;
    Some(base.join("vmm-ecs"))
}

/// A kernel, and what builds modules for it.
#[derive(Debug, Clone)]
pub struct Kernel {
    version: String,
    dir: PathBuf,
}

impl Kernel {
    /// As `uname -r` says it.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Its image.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// A module of the kernel itself, compressed with xz.
    ///
    /// # Errors
    /// If it has none of that name.
    pub fn stock_module(&self, name: &str) -> anyhow::Result<PathBuf> {
        let folder = self.dir.join("kernel");
        let output = Command::new("find")
            .arg(&folder)
            .args(["-name", &format!("{name}.ko.xz"), "-print", "-quit"])
            .output()
            .context("Cannot run find")?;
        let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if found.is_empty() {
            bail!("No module {name} in {}", folder.display());
        }
        Ok(found.into())
    }

    /// Builds `virtio_ecs.ko` and `ecs_test.ko` from this tree, without a warning, and returns
    /// where they are. What is up to date is not built again.
    ///
    /// # Errors
    /// With what make said.
    pub fn modules(&self) -> anyhow::Result<[PathBuf; 2]> {
        let source = self.dir.join("build/src/guest-driver");
        let driver = crate::root().join("guest-driver");
        for folder in ["module", "uapi"] {
            mirror(&driver.join(folder), &source.join(folder))?;
        }
        self.make("/src/guest-driver/module", &["ECS_TEST=1", "W=1"])?;
        let module = source.join("module");
        Ok([
            module.join("virtio_ecs.ko"),
            module.join("tests/ecs_test.ko"),
        ])
    }

    /// Builds with Kbuild in a folder of the build root; a warning is an error.
    fn make(&self, folder: &str, arguments: &[&str]) -> anyhow::Result<()> {
        let headers = format!("/usr/src/linux-headers-{}", self.version);
        let folder = format!("M={folder}");
        let mut command = vec!["make", "-C", &headers, &folder];
        command.extend(arguments);
        let said = self.run(&command)?;
        if said.contains("warning:") {
            bail!("Warnings for Linux {}:\n{said}", self.version);
        }
        Ok(())
    }

    /// Root of a Debian with what builds modules for this kernel.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.dir.join("build")
    }

    /// Runs a command in the build root; what it said.
    ///
    /// # Errors
    /// With what it said, if it fails.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let script = "for dir in dev proc; do mount --bind /$dir \"$0/$dir\" || exit; done; \
                      exec chroot \"$0\" \"$@\"";
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", script])
            .arg(self.root())
            .args(["/usr/bin/env", "-i", "LC_ALL=C", "PATH=/usr/bin:/usr/sbin"])
            .args(arguments)
            .output()
            .context("Cannot run unshare (util-linux)")?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        if !output.status.success() {
            bail!("{arguments:?} for Linux {} failed:\n{said}", self.version);
        }
        Ok(said)
    }
}

/// Copies what has changed, so that make sees nothing else as new, and removes sources that are gone.
fn mirror(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(to)? {
        let path = entry?.path();
        let is_source = path.extension().is_some_and(|end| end == "c" || end == "h");
        if is_source
            && path
                .file_name()
                .is_some_and(|name| !from.join(name).exists())
        {
            // Not what make generates, NAME.mod.c.
            if path
                .file_stem()
                .is_some_and(|stem| Path::new(stem).extension().is_none())
            {
                fs::remove_file(path)?;
            }
        }
    }
    for entry in fs::read_dir(from).with_context(|| format!("Cannot read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            mirror(&entry.path(), &target)?;
            continue;
        }
        let content = fs::read(entry.path())?;
        if fs::read(&target).ok().as_ref() != Some(&content) {
            fs::write(&target, content)?;
        }
    }
    Ok(())
}
