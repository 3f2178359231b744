//! A booted kernel that runs shell commands for a test.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::{Initramfs, Kernel, Parts};
use crate::process::{Process, until};

/// Time a kernel has to boot: five seconds alone, many times that on a loaded machine.
const BOOT: Duration = Duration::from_secs(120);
/// Boots tried.
const TRIES: u32 = 3;
/// Time a command has where nothing else is said.
const PATIENCE: Duration = Duration::from_secs(90);

/// What a kernel is booted on.
#[derive(Debug)]
pub(super) struct Hardware {
    /// CPUs.
    pub(super) cpus: usize,
    /// CPUs of each core.
    pub(super) threads: usize,
    /// NUMA nodes, each with a socket and its part of CPUs and memory.
    pub(super) nodes: usize,
    /// Memory, MiB.
    pub(super) memory: usize,
    /// Words for the kernel's command line.
    pub(super) append: String,
    /// The accelerator, and what else QEMU is told.
    pub(super) arguments: Vec<String>,
    /// How many times the usual time a boot and a command have.
    pub(super) patience: u32,
}

impl Hardware {
    /// CPUs and memory, in QEMU's words. The memory is shared, for devices that other processes serve.
    fn places(&self) -> Vec<String> {
        let ram = |id: &str, size: usize| {
            format!("-object memory-backend-memfd,id={id},size={size}M,share=on")
        };
        let (cpus, nodes) = (self.cpus, self.nodes);
        let places = format!("-smp {cpus},sockets={nodes},threads={}", self.threads);
        let mut words = vec![places, "-machine".to_owned()];
        if nodes == 1 {
            words.extend(["q35,memory-backend=ram".to_owned(), ram("ram", self.memory)]);
        } else {
            words.push("q35".to_owned());
            for node in 0..nodes {
                let (first, next) = (node * cpus / nodes, (node + 1) * cpus / nodes);
                let last = next - 1;
                words.push(ram(&format!("ram{node}"), self.memory / nodes));
                words.push(format!(
                    "-numa node,nodeid={node},cpus={first}-{last},memdev=ram{node}"
                ));
            }
        }
        let words = words.iter().flat_map(|words| words.split(' '));
        words.map(str::to_owned).collect()
    }
}

/// A running kernel with busybox, under QEMU's emulation. Dropping it ends it.
#[derive(Debug)]
pub struct Shell {
    qemu: Process,
    dir: tempfile::TempDir,
    line: UnixStream,
    /// What has arrived and was not asked for yet.
    rest: Vec<u8>,
    /// See [`Hardware`].
    patience: u32,
}

impl Shell {
    /// Boots a kernel. Now and then an emulated kernel crashes while it boots, with nothing of ours
    /// in it: that is tried again.
    ///
    /// # Errors
    /// With the console, if it does not come up.
    pub(super) fn boot(
        parts: &Parts,
        kernel: &Kernel,
        initramfs: &Initramfs,
        hardware: &Hardware,
    ) -> anyhow::Result<Self> {
        let image = initramfs.pack()?;
        let mut tries = 1;
        loop {
            match Self::try_boot(parts, kernel, &image, hardware) {
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
        initramfs: &Path,
        hardware: &Hardware,
    ) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("ecs-linux-").tempdir()?;
        let shell = dir.path().join("shell");
        let path = |path: &Path| path.display().to_string();
        let memory = hardware.memory;
        let mut command = parts.qemu();
        command
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .args(["-m", &format!("{memory}M")])
            .args(hardware.places())
            .args(&hardware.arguments)
            .args([
                "-kernel",
                &path(&kernel.image()),
                "-initrd",
                &path(initramfs),
            ])
            // On a busy machine its timer may seem not to work, which ends the boot.
            .arg("-append")
            .arg(format!(
                "console=ttyS0 loglevel=7 panic=-1 oops=panic no_timer_check {}",
                hardware.append
            ))
            .args(["-serial", &format!("file:{}", path(&console(dir.path())))])
            .args([
                "-serial",
                &format!("unix:{},server=on,wait=off", path(&shell)),
            ])
            .args([
                "-qmp",
                &format!("unix:{},server=on,wait=off", path(&monitor(dir.path()))),
            ])
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
        let mut shell = Self {
            qemu,
            dir,
            line,
            rest: Vec::new(),
            patience: hardware.patience,
        };
        shell.read_until("ECS-READY\n", BOOT)?;
        Ok(shell)
    }

    /// Runs a shell command, of one line; what it printed.
    ///
    /// # Errors
    /// If it fails, or does not end: with what it printed and the end of the console.
    pub fn sh(&mut self, command: &str) -> anyhow::Result<String> {
        self.sh_within(command, PATIENCE)
    }

    /// The same, with a time limit of its own.
    ///
    /// # Errors
    /// If it fails, or does not end within `limit`. Then it may still run, and nothing more can be
    /// asked of this machine.
    pub fn sh_within(&mut self, command: &str, limit: Duration) -> anyhow::Result<String> {
        match self.try_sh(command, limit)? {
            (0, said) => Ok(said),
            (status, said) => bail!(
                "On the emulated machine, {command:?} ended with {status}:\n{said}\n{}",
                self.console_end()
            ),
        }
    }

    /// The same, for a command that may fail: its exit status too.
    ///
    /// # Errors
    /// If it does not end within `limit`.
    pub fn try_sh(&mut self, command: &str, limit: Duration) -> anyhow::Result<(i32, String)> {
        if command.contains('\n') {
            bail!("A command is one line: {command:?}");
        }
        writeln!(self.line, "{command}").context("The emulated machine is gone")?;
        let said = self
            .read_until("ECS-DONE ", limit)
            .with_context(|| format!("On the emulated machine: {command}"))?;
        let status = self.read_until("\n", PATIENCE)?;
        Ok((status.trim().parse()?, said))
    }

    /// Waits until its shell answers, after the serial line has lost what was sent: it does while
    /// the machine sleeps.
    ///
    /// # Errors
    /// If it does not.
    pub fn hear_again(&mut self) -> anyhow::Result<()> {
        const TRIES: u32 = 45;
        const EACH: Duration = Duration::from_secs(2);
        let mut last = Ok(());
        for tried in 0..TRIES {
            // Each time another word: answers to those before may come late.
            let word = format!("ECS-HEARS-{tried}");
            write!(self.line, "\necho {word}\n").context("The emulated machine is gone")?;
            last = self
                .read_until(&format!("{word}\nECS-DONE 0\n"), EACH)
                .map(|_| ());
            if last.is_ok() {
                break;
            }
        }
        last
    }

    /// Stops every CPU.
    ///
    /// # Errors
    /// What QEMU says.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.monitor("stop").map(|_| ())
    }

    /// Lets the CPUs run on.
    ///
    /// # Errors
    /// What QEMU says.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.monitor("cont").map(|_| ())
    }

    /// Runs a command of QEMU's monitor; what it returned.
    ///
    /// # Errors
    /// What QEMU says.
    pub fn monitor(&self, command: &str) -> anyhow::Result<serde_json::Value> {
        super::monitor::command(&monitor(self.dir.path()), command)
    }

    /// Content of a file. For files of up to a megabyte or so: it comes over the serial line.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read_file(&mut self, path: &str) -> anyhow::Result<Vec<u8>> {
        let digits = self.sh(&format!("xxd -p '{path}'"))?;
        let digits: Vec<u8> = digits.bytes().filter(u8::is_ascii_hexdigit).collect();
        let bytes = digits.chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair)?;
            Ok(u8::from_str_radix(pair, 16)?)
        });
        bytes.collect()
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
            "The emulated machine ended:\n{said}\n{}{}",
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

fn monitor(dir: &Path) -> PathBuf {
    dir.join("monitor")
}

fn qemu_log(dir: &Path) -> String {
    fs::read_to_string(dir.join("qemu.log")).unwrap_or_default()
}
