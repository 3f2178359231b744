//! What `tests/stacks/setup.sh` fetched, and modules built with it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};

use super::Host;

/// The cache of real parts.
#[derive(Debug, Clone)]
pub struct Parts {
    cache: PathBuf,
}

impl Parts {
    /// Finds QEMU and the kernels for guests with our driver.
    ///
    /// # Errors
    /// Why a test must be skipped: one of them is not there, or this user may not use them.
    pub fn find() -> Result<Self, String> {
        let parts = Self::with(&["7.3", "6.12"])?;
        if !nix::unistd::geteuid().is_root() {
            return Err("modules are built in a chroot, which needs root".to_owned());
        }
        Ok(parts)
    }

    /// Finds QEMU and these kernels.
    ///
    /// # Errors
    /// Why a test must be skipped: one of them is not there.
    pub fn with(kernels: &[&str]) -> Result<Self, String> {
        let cache = cache().ok_or("no cache directory: set ECS_CACHE_DIR")?;
        let kernels = kernels.iter().map(|kernel| format!("linux-{kernel}"));
        for part in std::iter::once("qemu".to_owned()).chain(kernels) {
            if !cache.join(&part).join("version").exists() {
                return Err(format!(
                    "{part} is not in {}: run tests/stacks/setup.sh, which says why it cannot be had",
                    cache.display()
                ));
            }
        }
        Ok(Self { cache })
    }

    /// A kernel, by the beginning of its version: `7.3`, `7.2` or `6.12`.
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

    /// The kernel that looks on: KASAN, lockdep, kmemleak, KUnit.
    ///
    /// # Errors
    /// Why a test must be skipped: it was not built.
    pub fn debug_kernel(&self) -> Result<Kernel, String> {
        self.kernel("debug").map_err(|_| {
            "no debug kernel; cargo xtask stacks --debug-kernel builds it, in half an hour"
                .to_owned()
        })
    }

    /// The host kernel with core scheduling.
    ///
    /// # Errors
    /// Why a test must be skipped: it was not built.
    pub fn cores_kernel(&self) -> Result<Kernel, String> {
        self.kernel("cores").map_err(|_| {
            "no kernel with core scheduling; cargo xtask stacks --cores-kernel builds it, in a \
             quarter of an hour"
                .to_owned()
        })
    }

    /// Kernels of which only headers are there: 6.1, PREEMPT_RT, arm64.
    ///
    /// # Errors
    /// Why a test must be skipped: they were not fetched.
    pub fn headers(&self) -> Result<Vec<Kernel>, String> {
        let mut kernels = Vec::new();
        for part in ["headers-bookworm", "headers-trixie"] {
            let dir = self.cache.join(part);
            let versions = fs::read_to_string(dir.join("versions"))
                .map_err(|_| format!("no {part}; cargo xtask stacks --headers fetches them"))?;
            kernels.extend(versions.lines().map(|version| Kernel {
                version: version.to_owned(),
                dir: dir.clone(),
            }));
        }
        Ok(kernels)
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

    /// Has QEMU on a host, with its own libraries and firmware; returns the command that runs it there.
    ///
    /// # Errors
    /// If it cannot be asked for its libraries.
    pub fn qemu_for(&self, host: &mut Host) -> anyhow::Result<String> {
        const THERE: &str = "/qemu";
        let root = self.cache.join("qemu");
        let loader = root.join("lib64/ld-linux-x86-64.so.2");
        let program = root.join("usr/bin/qemu-system-x86_64");
        let output = Command::new(&loader)
            .arg("--library-path")
            .arg(root.join("usr/lib/x86_64-linux-gnu"))
            .arg("--list")
            .arg(&program)
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        // "NAME => PATH (ADDRESS)".
        let libraries = said.lines().filter_map(|line| {
            let path = line.split_once(" => ")?.1.split_whitespace().next()?;
            Some(PathBuf::from(path))
        });
        let firmware = [
            "seabios/bios-256k.bin",
            "qemu/kvmvapic.bin",
            "qemu/linuxboot_dma.bin",
        ];
        let firmware = firmware.map(|file| root.join("usr/share").join(file));
        for file in [loader, program]
            .into_iter()
            .chain(libraries)
            .chain(firmware)
        {
            let name = file.file_name().context("A file without a name")?;
            let there = format!("{THERE}/{}", name.display());
            host.files.push((file, there));
        }
        Ok(format!(
            "{THERE}/ld-linux-x86-64.so.2 --library-path {THERE} {THERE}/qemu-system-x86_64 -L {THERE}"
        ))
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

/// Modules: name of the file, and what is in it.
pub type Modules = Arc<[(OsString, Vec<u8>)]>;

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

    /// The configuration it was built with, where its headers are there.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        let headers = format!("usr/src/linux-headers-{}", self.version);
        self.root().join(headers).join(".config")
    }

    /// Whether it comes with modules. Those that are built here have all that hosts need built in.
    #[must_use]
    pub fn has_modules(&self) -> bool {
        self.dir.join("kernel").exists()
    }

    /// File of a module that comes with the kernel, as Debian packs it.
    ///
    /// # Errors
    /// If it has none of this name.
    pub(super) fn stock_module(&self, name: &str) -> anyhow::Result<PathBuf> {
        let file = format!("{name}.ko.xz");
        let mut folders = vec![self.dir.join("kernel")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                } else if entry.file_name() == *file {
                    return Ok(entry.path());
                }
            }
        }
        bail!("Linux {} has no module {name}", self.version)
    }

    /// Builds `virtio_ecs.ko`, `ecs_test.ko` and, for a kernel with KUnit, `ecs_kunit.ko` from this
    /// tree, without a warning, and returns them. What is up to date is not built again, and once
    /// built, a test program keeps them.
    ///
    /// # Errors
    /// With what make said.
    pub fn modules(&self) -> anyhow::Result<Modules> {
        static BUILT: Mutex<BTreeMap<PathBuf, Modules>> = Mutex::new(BTreeMap::new());
        let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
        let module = self.root().join(self.source()).join("module");
        if let Some(modules) = built.get(&module) {
            return Ok(Arc::clone(modules));
        }
        // Another test program may build there, also one of another tree.
        let _alone = self.claim()?;
        self.make(&[])?;
        let mut modules = Vec::new();
        for name in ["virtio_ecs.ko", "tests/ecs_test.ko", "tests/ecs_kunit.ko"] {
            let path = module.join(name);
            if path.exists() {
                let name = path.file_name().context("A file without a name")?;
                modules.push((name.to_owned(), fs::read(&path)?));
            }
        }
        let modules = Modules::from(modules);
        built.insert(module, Arc::clone(&modules));
        Ok(modules)
    }

    /// The build root to oneself, until what is returned is dropped.
    fn claim(&self) -> anyhow::Result<File> {
        let path = self.root().join("ecs-tests.lock");
        let file =
            File::create(&path).with_context(|| format!("Cannot make {}", path.display()))?;
        file.lock()
            .with_context(|| format!("Cannot lock {}", path.display()))?;
        Ok(file)
    }

    /// Checks the driver's and the tests' sources with sparse while it builds them all again.
    ///
    /// # Errors
    /// With what it said, if it warns.
    pub fn sparse(&self) -> anyhow::Result<()> {
        let _alone = self.claim()?;
        self.make(&["clean"])?;
        self.make(&["C=2"])
    }

    /// The copy of the driver's sources in the build root: headers share a root.
    fn source(&self) -> String {
        format!("src/{}/guest-driver", self.version)
    }

    /// Builds with Kbuild in the build root; a warning is an error.
    fn make(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let driver = crate::root().join("guest-driver");
        for folder in ["module", "uapi"] {
            mirror(
                &driver.join(folder),
                &self.root().join(self.source()).join(folder),
            )?;
        }
        let headers = format!("/usr/src/linux-headers-{}", self.version);
        let folder = format!("M=/{}/module", self.source());
        let mut command = vec![
            "make",
            "-C",
            &headers,
            &folder,
            "ECS_TEST=1",
            "W=1",
            "KCFLAGS=-Werror",
        ];
        if self.version.contains("-arm64") {
            command.extend(["ARCH=arm64", "CROSS_COMPILE=aarch64-linux-gnu-"]);
        }
        command.extend(arguments);
        let said = self.run(&command)?;
        let warns = |line: &&str| line.contains("warning:") && !line.contains("pahole version");
        if said.lines().any(|line| warns(&line)) {
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
