//! Two CPUs, a runtime directory, and what runs there.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use ecs_microvm::{VmConfig, Workload, WorkloadKind};
use ecs_sched::sys::CpuSet;
use ecs_stats::{Snapshot, VmState, VmStats, read_snapshot};
use tempfile::TempDir;

use crate::daemon::{Daemon, read};
use crate::process::{Process, until};
use crate::release_program;
use crate::vm::TestVm;

/// Time anything has on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Time others have to leave the CPUs alone.
const OTHERS: Duration = Duration::from_secs(120);
/// A VM that nobody stops ends by itself, ms.
const LONGEST_MS: u64 = 600_000;

/// One test at a time has the CPUs.
static ALONE: Mutex<()> = Mutex::new(());

/// What one test works with.
#[derive(Debug)]
pub struct Rig {
    dir: TempDir,
    program: PathBuf,
    pcpus: [u32; 2],
    _alone: MutexGuard<'static, ()>,
}

impl Rig {
    /// Builds the daemon and waits until no other one manages CPUs here. The inner error says what
    /// this machine lacks.
    ///
    /// # Errors
    /// If the daemon cannot be built, or another one does not go away.
    pub fn new() -> anyhow::Result<Result<Self, String>> {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let program = release_program("vmm-ecs")?;
        let allowed = CpuSet::of_thread(0).context("Cannot read which CPUs we may use")?;
        let &[first, second, ..] = allowed.cpus() else {
            return Ok(Err("two CPUs are needed".to_owned()));
        };
        let check = Command::new(&program).arg("check").output()?;
        let check = String::from_utf8_lossy(&check.stdout).into_owned();
        if !check.contains("would use: userspace") {
            return Ok(Err(format!("this user cannot steer vCPUs here:\n{check}")));
        }
        until("CPUs that no other vmm-ecs manages", OTHERS, || {
            [first, second].into_iter().all(is_free).then_some(())
        })?;
        Ok(Ok(Self {
            dir: tempfile::Builder::new().prefix("ecs-tests-").tempdir()?,
            program,
            pcpus: [first, second],
            _alone: alone,
        }))
    }

    /// Runtime directory of its daemons.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The CPUs it manages.
    #[must_use]
    pub fn pcpus(&self) -> [u32; 2] {
        self.pcpus
    }

    /// A command of `vmm-ecs`.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.stdin(Stdio::null());
        command
    }

    /// The program itself.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Where statistics are served.
    #[must_use]
    pub fn stats_socket(&self) -> PathBuf {
        self.dir().join("stats.sock")
    }

    /// Socket of a VM.
    #[must_use]
    pub fn socket(&self, vm: &str) -> PathBuf {
        self.dir().join(format!("{vm}.sock"))
    }

    /// A configuration for its CPUs and runtime directory; `host` is added to `[host]`.
    #[must_use]
    pub fn config(&self, host: &str, vms: &[&str]) -> String {
        let [first, second] = self.pcpus;
        let mut text = format!(
            "[host]\npcpus = \"{first},{second}\"\nruntime_dir = {:?}\n{host}\n",
            self.dir()
        );
        for vm in vms {
            // Writing to a string cannot fail.
            let _ = write!(text, "[[vm]]\nname = {vm:?}\ndoorbells = 2\n");
        }
        text
    }

    fn write(&self, config: &str) -> anyhow::Result<PathBuf> {
        let path = self.dir().join("config.toml");
        fs::write(&path, config)?;
        Ok(path)
    }

    /// Starts a daemon that steers, and waits until it answers.
    ///
    /// # Errors
    /// With its log, if it does not.
    pub fn steer(&self, vms: &[&str]) -> anyhow::Result<Daemon> {
        self.serve(&self.config("controller = \"userspace\"", vms))
    }

    /// Starts a daemon with a configuration, and waits until it answers.
    ///
    /// # Errors
    /// With its log, if it does not.
    pub fn serve(&self, config: &str) -> anyhow::Result<Daemon> {
        self.serve_by(self.command(), config)
    }

    /// The same by a command that runs `vmm-ecs` with the arguments it is given.
    ///
    /// # Errors
    /// With its log, if it does not.
    pub fn serve_by(&self, mut command: Command, config: &str) -> anyhow::Result<Daemon> {
        let log = self.dir().join("daemon.log");
        command
            .args(["serve", "--config"])
            .arg(self.write(config)?)
            .stdout(Stdio::null())
            .stderr(OpenOptions::new().create(true).append(true).open(&log)?);
        let process = Process::spawn("the daemon", &mut command)?;
        let mut daemon = Daemon { process, log };
        let answers = until("an answer of the daemon", PATIENCE, || {
            // What answers must be this one, not one before it.
            match daemon.is_alive() {
                Ok(true) => self.snapshot().ok().map(|_| true),
                _ => Some(false),
            }
        });
        match answers {
            Ok(true) => Ok(daemon),
            Ok(false) => bail!("The daemon did not start:\n{}", daemon.said()),
            Err(error) => Err(error.context(daemon.said())),
        }
    }

    /// Starts a daemon that must refuse to run; returns what it said.
    ///
    /// # Errors
    /// If it runs, or ends as if all were well.
    pub fn refused(&self, config: &str) -> anyhow::Result<String> {
        let config = self.write(config)?;
        self.fails(self.command().args(["serve", "--config"]).arg(config))
    }

    /// Runs a command that must fail; returns what it said.
    ///
    /// # Errors
    /// If it does not.
    pub fn fails(&self, command: &mut Command) -> anyhow::Result<String> {
        let log = self.dir().join("refused.log");
        command.stdout(Stdio::null()).stderr(File::create(&log)?);
        let mut process = Process::spawn("the command", command)?;
        let status = process
            .wait(PATIENCE)
            .with_context(|| format!("It goes on:\n{}", read(&log)))?;
        if status.success() {
            bail!("It ended as if all were well:\n{}", read(&log));
        }
        Ok(read(&log))
    }

    /// What the daemon counts.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn snapshot(&self) -> anyhow::Result<Snapshot> {
        Ok(read_snapshot(&self.stats_socket(), PATIENCE)?)
    }

    /// What the daemon counts of one VM, once it is as `wanted`.
    ///
    /// # Errors
    /// If it never is.
    pub fn stats_when(
        &self,
        vm: &str,
        wanted: impl Fn(&VmStats) -> bool,
    ) -> anyhow::Result<VmStats> {
        let mut last = None;
        until("what is wanted", PATIENCE, || {
            last = self
                .snapshot()
                .ok()?
                .vms
                .into_iter()
                .find(|stats| stats.name == vm);
            last.clone().filter(&wanted)
        })
        .with_context(|| format!("The daemon knows of {vm}: {last:?}"))
    }

    /// What the daemon counts of one VM, once it has found so many vCPU threads, and the guest has
    /// registered.
    ///
    /// # Errors
    /// If it does not find them.
    pub fn registered(&self, vm: &str, vcpus: usize) -> anyhow::Result<VmStats> {
        self.stats_when(vm, |stats| {
            stats.vcpus.len() == vcpus && stats.state == VmState::Active
        })
    }

    /// A VM of two vCPUs on the CPUs of the rig: 5 us inside the section, 5 us outside, until it is
    /// stopped.
    #[must_use]
    pub fn vm_config(&self, name: &str, kind: WorkloadKind) -> VmConfig {
        VmConfig {
            socket: Some(self.socket(name)),
            cpus: self.pcpus.to_vec(),
            duration_ms: LONGEST_MS,
            report_ms: 50,
            ..VmConfig::new(name, 2, Workload::new(kind, 5.0, 5.0))
        }
    }

    /// Starts a VM, and waits until it is ready.
    ///
    /// # Errors
    /// With what it said, if it is not.
    pub fn vm(&self, config: &VmConfig) -> anyhow::Result<TestVm> {
        let log = self.dir().join(format!("{}.log", config.name));
        let mut command = Command::new(&self.program);
        command
            .arg("microvm")
            .arg(serde_json::to_string(config)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?);
        TestVm::new(
            &config.name,
            Process::spawn(&config.name, &mut command)?,
            log,
        )
    }
}

/// Whether no daemon manages a CPU: each holds a lock for every one it does.
fn is_free(cpu: u32) -> bool {
    match File::open(format!("/run/vmm-ecs/cpu{cpu}.lock")) {
        Ok(lock) => lock.try_lock_shared().is_ok(),
        Err(_) => true,
    }
}
