//! What VM to run: parsed once, checked once.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::shared::MAX_VCPUS;

/// How the vCPUs run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// KVM where a probe shows that it works, threads elsewhere.
    #[default]
    Auto,
    /// A KVM guest, or an error.
    Kvm,
    /// Plain threads.
    Thread,
}

impl FromStr for Kind {
    type Err = ConfigError;

    fn from_str(name: &str) -> Result<Self, ConfigError> {
        match name {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "thread" => Ok(Self::Thread),
            _ => Err(ConfigError::UnknownKind(name.to_owned())),
        }
    }
}

/// How the guest behaves towards the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guest {
    /// It says what it does.
    #[default]
    Honest,
    /// It claims to be in a section for ever.
    PinCounts,
    /// It writes nonsense into its lines all the time.
    Lies,
}

/// What a vCPU does that waits for a lock it could also wait for asleep (workload `blocking`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Waiters {
    /// As annotated locks do: it spins while the host says that this is wise. Without annotation it
    /// sleeps.
    #[default]
    Wise,
    /// It sleeps at once.
    Halt,
    /// It spins, whoever else wants the CPU.
    Poll,
}

/// What starts the work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Gate {
    /// The line `go` on standard input.
    #[default]
    Stdin,
    /// Nothing: at once.
    Open,
}

/// What the vCPUs do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadKind {
    /// A hash table under a ticket lock.
    #[default]
    Ticket,
    /// A hash table under a queue (MCS) lock.
    Queue,
    /// A pair of words under a readers-writer spinlock.
    RwLock,
    /// Calls to the next vCPU, served there in interrupt context; the caller spins for the answer.
    Irq,
    /// A hash table under a mutex whose waiters sleep.
    Blocking,
    /// Computing, without any lock.
    Compute,
}

impl WorkloadKind {
    /// Every workload.
    pub const ALL: [Self; 6] = [
        Self::Ticket,
        Self::Queue,
        Self::RwLock,
        Self::Irq,
        Self::Blocking,
        Self::Compute,
    ];

    /// Name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ticket => "ticket",
            Self::Queue => "queue",
            Self::RwLock => "rwlock",
            Self::Irq => "irq",
            Self::Blocking => "blocking",
            Self::Compute => "compute",
        }
    }
}

impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WorkloadKind {
    type Err = ConfigError;

    fn from_str(name: &str) -> Result<Self, ConfigError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| ConfigError::UnknownWorkload(name.to_owned()))
    }
}

/// What the vCPUs do, and for how long at a time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Kind of section.
    pub kind: WorkloadKind,
    /// Work inside the section, us of CPU time.
    pub in_us: f64,
    /// Work between two sections, us of CPU time.
    pub out_us: f64,
    /// Share of sections that only read, percent (`rwlock`).
    #[serde(default = "default_read_pct")]
    pub read_pct: u8,
}

fn default_read_pct() -> u8 {
    90
}

impl Workload {
    /// A workload with `in_us` inside and `out_us` outside its sections.
    #[must_use]
    pub fn new(kind: WorkloadKind, in_us: f64, out_us: f64) -> Self {
        Self {
            kind,
            in_us,
            out_us,
            read_pct: default_read_pct(),
        }
    }
}

impl FromStr for Workload {
    type Err = ConfigError;

    /// A name alone: 5 us inside, 5 us outside.
    fn from_str(name: &str) -> Result<Self, ConfigError> {
        Ok(Self::new(name.parse()?, 5.0, 5.0))
    }
}

/// One VM. As JSON, fields with a default may be left out; unknown ones are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Name, for messages and reports.
    pub name: String,
    /// How the vCPUs run.
    #[serde(default)]
    pub kind: Kind,
    /// Number of vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpus: u32,
    /// Socket of the eCS device; none: the VM has no such device.
    #[serde(default)]
    pub socket: Option<PathBuf>,
    /// What the vCPUs do.
    pub workload: Workload,
    /// Time after which the VM stops by itself, ms.
    pub duration_ms: u64,
    /// CPUs the vCPU threads may use; empty: all.
    #[serde(default)]
    pub cpus: Vec<u32>,
    /// vCPU `i` runs on `cpus[i % len]` only.
    #[serde(default)]
    pub pin: bool,
    /// Threads of other processes are never on the CPUs of its cores meanwhile: the process has a
    /// cookie of its own, as a VM of Cloud Hypervisor has by default (used by [`crate::run`]).
    #[serde(default)]
    pub core_scheduling: bool,
    /// Whether the locks tell the host what they do.
    #[serde(default = "yes")]
    pub annotate: bool,
    /// How it waits for locks that it could wait for asleep.
    #[serde(default)]
    pub waiters: Waiters,
    /// How the guest behaves.
    #[serde(default)]
    pub guest: Guest,
    /// What starts the work (used by [`crate::run`]).
    #[serde(default)]
    pub sync: Gate,
    /// Time between two progress lines, ms; 0: none.
    #[serde(default)]
    pub report_ms: u64,
    /// Longest time to wait for the device before the VM counts as ready, ms. It then runs without,
    /// and takes the device up when it comes.
    #[serde(default = "default_device_wait_ms")]
    pub device_wait_ms: u64,
    /// Loop iterations of work per us of CPU time; none: measured at start. VMs that are compared
    /// should be given the same number (`work::calibrate`).
    #[serde(default)]
    pub iterations_per_us: Option<f64>,
}

fn yes() -> bool {
    true
}

fn default_device_wait_ms() -> u64 {
    2_000
}

impl VmConfig {
    /// A VM of `vcpus` vCPUs that runs `workload` for a second, without a device.
    #[must_use]
    pub fn new(name: &str, vcpus: u32, workload: Workload) -> Self {
        Self {
            name: name.to_owned(),
            kind: Kind::Auto,
            vcpus,
            socket: None,
            workload,
            duration_ms: 1_000,
            cpus: Vec::new(),
            pin: false,
            core_scheduling: false,
            annotate: true,
            waiters: Waiters::default(),
            guest: Guest::Honest,
            sync: Gate::Stdin,
            report_ms: 0,
            device_wait_ms: default_device_wait_ms(),
            iterations_per_us: None,
        }
    }

    /// Checks every value that the types leave open.
    ///
    /// # Errors
    /// The first value out of range.
    pub fn check(&self) -> Result<(), ConfigError> {
        if self.vcpus == 0 || usize::try_from(self.vcpus).is_ok_and(|nr| nr > MAX_VCPUS) {
            return Err(ConfigError::Vcpus(self.vcpus));
        }
        for us in [self.workload.in_us, self.workload.out_us] {
            if !(0.0..=1_000_000.0).contains(&us) {
                return Err(ConfigError::WorkTime(us));
            }
        }
        if self.workload.in_us + self.workload.out_us < 0.1 {
            return Err(ConfigError::WorkTime(
                self.workload.in_us + self.workload.out_us,
            ));
        }
        if self.workload.read_pct > 100 {
            return Err(ConfigError::ReadShare(self.workload.read_pct));
        }
        if let Some(rate) = self.iterations_per_us
            && !(0.001..=1e6).contains(&rate)
        {
            return Err(ConfigError::Calibration(rate));
        }
        if self.duration_ms == 0 {
            return Err(ConfigError::Duration);
        }
        if self.pin && self.cpus.is_empty() {
            return Err(ConfigError::PinWithoutCpus);
        }
        Ok(())
    }
}

/// A configuration that makes no sense.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// No such kind.
    #[error("Unknown kind of VM {0:?}: use auto, kvm or thread")]
    UnknownKind(String),
    /// No such workload.
    #[error("Unknown workload {0:?}: use ticket, queue, rwlock, irq, blocking or compute")]
    UnknownWorkload(String),
    /// Too few or too many vCPUs.
    #[error("Cannot run {0} vCPUs: use 1 to {MAX_VCPUS}")]
    Vcpus(u32),
    /// Work out of range.
    #[error("Work of {0} us is out of range: use up to 1000000 us, and 0.1 us in all at least")]
    WorkTime(f64),
    /// Not a percentage.
    #[error("A share of {0} % reads is out of range: use 0 to 100")]
    ReadShare(u8),
    /// Not a plausible rate.
    #[error("{0} iterations per us is out of range: leave it out to have it measured")]
    Calibration(f64),
    /// No time to run.
    #[error("The VM would run for 0 ms: set a duration")]
    Duration,
    /// Nothing to pin to.
    #[error("Cannot pin vCPUs without CPUs: list them")]
    PinWithoutCpus,
}
