//! A guest that runs commands for a test.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::{Kernel, Parts};
use crate::process::{Process, until};

/// Time a guest has to boot: five seconds alone, many times that on a loaded machine.
const BOOT: Duration = Duration::from_secs(60);
/// Boots tried.
const TRIES: u32 = 3;
/// Time a command has.
const PATIENCE: Duration = Duration::from_secs(90);
/// Virtio device id: QEMU's test device takes only ids that it knows the name of.
const DEVICE_ID: u32 = 45;

/// Runs whatever comes on the second serial line, and ends each answer with its exit status.
const INIT: &str = r#"#!/bin/sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t debugfs debugfs /sys/kernel/debug
mount -t devtmpfs devtmpfs /dev
stty -F /dev/ttyS1 raw -echo
exec </dev/ttyS1 >/dev/ttyS1 2>&1
echo ECS-READY
while read -r command; do
	( eval "$command" )
	echo "ECS-DONE $?"
done
poweroff -f
"#;

/// A machine to boot.
#[derive(Debug, Clone)]
pub struct Machine {
    /// CPUs.
    pub cpus: usize,
    /// Size of the device's config space, and its queues; the defaults fit our device.
    pub queues: usize,
    /// Words for the kernel's command line.
    pub append: String,
    /// Counts instructions in place of time: the guest's clock goes on by one nanosecond with each,
    /// so that what it measures repeats. For one CPU.
    pub count_instructions: bool,
    /// Programs to have in `/bin`.
    pub programs: Vec<PathBuf>,
    /// Memory, in MiB.
    pub memory: usize,
    /// How many times the usual time a boot and a command have.
    pub patience: u32,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            cpus: 4,
            queues: 6,
            append: String::new(),
            count_instructions: false,
            programs: Vec::new(),
            memory: 256,
            patience: 1,
        }
    }
}

/// A running guest. Dropping it ends it.
#[derive(Debug)]
pub struct Guest {
    qemu: Process,
    dir: tempfile::TempDir,
    line: UnixStream,
    /// What has arrived and was not asked for yet.
    rest: Vec<u8>,
    /// See [`Machine`].
    patience: u32,
}

impl Guest {
    /// Boots a kernel with the modules in `/`, attached to the device at `socket`. Now and then an
    /// emulated kernel crashes while it boots, with nothing of ours in it: that is tried again.
    ///
    /// # Errors
    /// With the console, if it does not come up.
    pub fn boot(
        parts: &Parts,
        kernel: &Kernel,
        machine: &Machine,
        socket: &Path,
    ) -> anyhow::Result<Self> {
        let mut tries = 1;
        loop {
            match Self::try_boot(parts, kernel, machine, socket) {
                Err(error) if tries < TRIES => {
                    println!(
                        "Boot {tries} of Linux {} failed: {error:#}",
                        kernel.version()
                    );
                    tries += 1;
                }
                done => return done,
            }
        }
    }

    fn try_boot(
        parts: &Parts,
        kernel: &Kernel,
        machine: &Machine,
        socket: &Path,
    ) -> anyhow::Result<Self> {
        let modules = kernel.modules()?;
        let dir = tempfile::Builder::new().prefix("ecs-guest-").tempdir()?;
        let initramfs = dir.path().join("initramfs");
        pack(parts, &modules, &machine.programs, dir.path(), &initramfs)?;
        let shell = dir.path().join("shell");
        let path = |path: &Path| path.display().to_string();
        let mut command = parts.qemu();
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(if machine.count_instructions {
                ["-accel", "tcg,thread=single", "-icount", "shift=0"].as_slice()
            } else {
                ["-accel", "tcg,thread=multi,tb-size=256"].as_slice()
            })
            // With the hypervisor bit Linux uses a spinlock without contention tracepoints, unless
            // KVM's paravirtual one is there.
            .args(["-cpu", "max,-hypervisor", "-m", &format!("{}M", machine.memory)])
            .args(["-smp", &machine.cpus.to_string()])
            .args(["-machine", "q35,memory-backend=ram"])
            .arg("-object")
            .arg(format!("memory-backend-memfd,id=ram,size={}M,share=on", machine.memory))
            .args(["-kernel", &path(&kernel.image()), "-initrd", &path(&initramfs)])
            .arg("-append")
            .arg(format!(
                "console=ttyS0 loglevel=7 panic=-1 oops=panic {}",
                machine.append
            ))
            .args(["-serial", &format!("file:{}", path(&console(dir.path())))])
            .args(["-serial", &format!("unix:{},server=on,wait=off", path(&shell))])
            .args(["-chardev", &format!("socket,id=ecs,path={}", path(socket))])
            .arg("-device")
            .arg(format!(
                "vhost-user-test-device-pci,chardev=ecs,virtio-id={DEVICE_ID},num_vqs={},config_size=64",
                machine.queues
            ))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("qemu.log"))?);
        let mut qemu = Process::spawn("QEMU", &mut command)?;
        let line = until("QEMU's serial line", BOOT, || {
            if let Ok(Some(_)) = qemu.ended() {
                return Some(None);
            }
            UnixStream::connect(&shell).ok().map(Some)
        })?;
        let Some(line) = line else {
            bail!("QEMU ended at once:\n{}", qemu_log(dir.path()));
        };
        let mut guest = Self {
            qemu,
            dir,
            line,
            rest: Vec::new(),
            patience: machine.patience,
        };
        guest.read_until("ECS-READY\n", BOOT)?;
        Ok(guest)
    }

    /// Runs a shell command in the guest; what it printed.
    ///
    /// # Errors
    /// If it fails, or does not end: with what it printed and the end of the console.
    pub fn sh(&mut self, command: &str) -> anyhow::Result<String> {
        match self.try_sh(command)? {
            (0, said) => Ok(said),
            (status, said) => bail!(
                "In the guest, {command:?} ended with {status}:\n{said}\n{}",
                self.console_end()
            ),
        }
    }

    /// The same, for a command that may fail: its exit status too.
    ///
    /// # Errors
    /// If it does not end.
    pub fn try_sh(&mut self, command: &str) -> anyhow::Result<(i32, String)> {
        writeln!(self.line, "{command}").context("The guest is gone")?;
        let said = self
            .read_until("ECS-DONE ", PATIENCE)
            .with_context(|| format!("In the guest: {command}"))?;
        let status = self.read_until("\n", PATIENCE)?;
        Ok((status.trim().parse()?, said))
    }

    /// Loads the driver; `parameters` are added to those it needs here.
    ///
    /// # Errors
    /// If it does not load.
    pub fn load_driver(&mut self, parameters: &str) -> anyhow::Result<()> {
        self.sh(&Self::insmod(parameters)).map(|_| ())
    }

    /// The shell command that does it.
    #[must_use]
    pub fn insmod(parameters: &str) -> String {
        format!("insmod /virtio_ecs.ko virtio_id={DEVICE_ID} {parameters}")
    }

    /// Everything the kernel said.
    #[must_use]
    pub fn console(&self) -> String {
        let bytes = fs::read(console(self.dir.path())).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Complaints of the kernel: warnings, bugs, oopses, hung tasks.
    #[must_use]
    pub fn complaints(&self) -> Vec<String> {
        const SIGNS: [&str; 12] = [
            "WARNING:",
            "INFO: trying to register",
            "locking correctness validator",
            "suspected memory leaks",
            "BUG:",
            "Oops",
            "Call Trace",
            "soft lockup",
            "detected stall",
            "INFO: task",
            "general protection",
            "refcount_t",
        ];
        let console = self.console();
        let complains = |line: &&str| SIGNS.iter().any(|sign| line.contains(sign));
        console
            .lines()
            .filter(complains)
            .map(str::to_owned)
            .collect()
    }

    fn console_end(&self) -> String {
        let console = self.console();
        let from = console.len().saturating_sub(3000);
        console.get(from..).unwrap_or(&console).to_owned()
    }

    /// What arrives before `end`.
    fn read_until(&mut self, end: &str, limit: Duration) -> anyhow::Result<String> {
        let limit = limit * self.patience;
        let deadline = Instant::now() + limit;
        loop {
            let text = String::from_utf8_lossy(&self.rest).into_owned();
            if let Some((before, after)) = text.split_once(end) {
                let (before, after) = (before.to_owned(), after.as_bytes().to_vec());
                self.rest = after;
                return Ok(before);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    "No answer within {limit:?}:\n{text}\n{}",
                    self.console_end()
                );
            }
            self.line.set_read_timeout(Some(left))?;
            let mut bytes = [0; 4096];
            match self.line.read(&mut bytes) {
                Ok(0) => self.ended(&text)?,
                Ok(nr) => self
                    .rest
                    .extend(bytes.iter().take(nr).filter(|&&byte| byte != b'\r')),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => self.ended(&text)?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn ended(&self, said: &str) -> anyhow::Result<()> {
        bail!(
            "The guest ended:\n{said}\n{}{}",
            self.console_end(),
            qemu_log(self.dir.path())
        )
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// What the system says.
    pub fn is_alive(&mut self) -> anyhow::Result<bool> {
        Ok(self.qemu.ended()?.is_none())
    }
}

fn console(dir: &Path) -> PathBuf {
    dir.join("console")
}

fn qemu_log(dir: &Path) -> String {
    fs::read_to_string(dir.join("qemu.log")).unwrap_or_default()
}

/// Writes an initramfs: busybox, the modules, the programs and our init.
fn pack(
    parts: &Parts,
    modules: &[PathBuf],
    programs: &[PathBuf],
    dir: &Path,
    initramfs: &Path,
) -> anyhow::Result<()> {
    let root = dir.join("root");
    for folder in ["bin", "proc", "sys", "dev", "tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::copy(parts.busybox(), root.join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", root.join("bin/sh"))?;
    let copies = modules.iter().map(|module| (module, root.clone()));
    for (file, folder) in copies.chain(programs.iter().map(|file| (file, root.join("bin")))) {
        let name = file.file_name().context("A program without a name")?;
        fs::copy(file, folder.join(name))
            .with_context(|| format!("Cannot copy {}", file.display()))?;
    }
    let init = root.join("init");
    fs::write(&init, INIT)?;
    fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let script = "cd \"$1\" && find . | \"$0\" cpio -o -H newc >\"$2\"";
    let output = Command::new("sh")
        .args(["-c", script])
        .arg(parts.busybox())
        .arg(&root)
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
