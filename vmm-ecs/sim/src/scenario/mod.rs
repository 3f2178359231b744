//! What is simulated: a TOML file, parsed once into types, checked once.
//!
//! [`Scenario`] is the file as it is written; every field has a default but the VMs.
//! [`Scenario::check`] says what is wrong with it, in the words of the file.

mod sweep;

use std::fmt;

use ecs_policy::{BadParam, MAX_VCPUS, Params, WEIGHT_RANGE};
use serde::{Deserialize, Serialize};

use crate::clock::MAX_CPUS;
pub use sweep::{Point, points};

/// Why a scenario is refused.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// It is no TOML, or has a field that is not known or of another type.
    #[error("Cannot understand the scenario")]
    Parse(#[source] Box<toml::de::Error>),
    /// A number is out of its range.
    #[error("{field} = {value} is out of range: it must be {must}")]
    Range {
        /// Where it stands in the file.
        field: String,
        /// What it is.
        value: String,
        /// What it must be.
        must: String,
    },
    /// A parameter of the policy is out of its range.
    #[error("In [policy]")]
    Params(#[from] BadParam),
    /// A list of CPUs cannot be read.
    #[error(
        "vm {vm}: pcpus = {list:?} is no list of this host's CPUs at {part:?}: write \"0-3,8\""
    )]
    Pcpus {
        /// Index of the `[[vm]]`.
        vm: usize,
        /// What stands there.
        list: String,
        /// The part that is wrong.
        part: String,
    },
    /// A sweep names what is not there.
    #[error("In [sweep]: {0:?} does not name a value: write \"policy.slice_us\" or \"vm.0.count\"")]
    SweepPath(String),
    /// A sweep has no values, or more points than anybody wants.
    #[error("In [sweep]: {0} points, use 1 to {MAX_POINTS}")]
    SweepSize(usize),
}

/// Most points of a sweep.
pub(crate) const MAX_POINTS: usize = 10_000;

/// The scheduler that is simulated; the arms of `vmm-ecs demo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arm {
    /// A weighted fair scheduler like the host's own, with ticks; nobody steers.
    Stock,
    /// The controller rotates vCPUs, without extensions and queue rules.
    Rotate,
    /// The controller extends holders, without the queue rules.
    HolderOnly,
    /// All of eCS.
    Ecs,
}

impl Arm {
    /// Whether a controller steers.
    #[must_use]
    pub fn steers(self) -> bool {
        self != Self::Stock
    }

    /// Name in files and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Rotate => "rotate",
            Self::HolderOnly => "holder-only",
            Self::Ecs => "ecs",
        }
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A scenario file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is for, one line.
    #[serde(default)]
    pub name: String,
    /// Time that is measured, ms of simulated time.
    #[serde(default = "default_duration_ms")]
    pub duration_ms: u64,
    /// Time before that, in which convoys form, ms of simulated time.
    #[serde(default = "default_warmup_ms")]
    pub warmup_ms: u64,
    /// Seed of all randomness.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Runs, with seeds one apart; figures are their medians.
    #[serde(default = "default_runs")]
    pub runs: u32,
    /// The host.
    #[serde(default)]
    pub host: HostSection,
    /// The stock arm's scheduler.
    #[serde(default)]
    pub stock: StockSection,
    /// The controller's policy, as in the daemon's configuration.
    #[serde(default)]
    pub policy: PolicySection,
    /// `[bench]`: what a real run of it compares and promises. The simulator leaves it to `vmm-ecs
    /// bench`.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    pub bench: toml::Table,
    /// The VMs.
    #[serde(rename = "vm")]
    pub vms: Vec<VmSection>,
}

fn default_duration_ms() -> u64 {
    2_000
}

fn default_warmup_ms() -> u64 {
    200
}

fn default_seed() -> u64 {
    1
}

fn default_runs() -> u32 {
    1
}

/// `[host]`: CPUs, and what switching costs. The default costs are of a bare-metal x86-64 server;
/// they are assumptions, not measurements (docs/simulation.md).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostSection {
    /// Sockets.
    pub sockets: usize,
    /// Cores a socket; CPUs of one socket are numbered one after another.
    pub cores: usize,
    /// How much longer the guests' work takes than it says, percent of it: what SMT siblings, frequency
    /// and steal take from a CPU second.
    pub slowdown_pct: u64,
    /// A context switch between two vCPUs, exit and entry of the guest included, ns.
    pub switch_ns: u64,
    /// CPU time of a controller that wakes up by its timer, ns.
    pub look_ns: u64,
    /// CPU time of a controller that wakes up by a doorbell, ns.
    pub doorbell_ns: u64,
    /// From the wake-up of a halted vCPU to its first instruction on an idle CPU, ns.
    pub wake_ns: u64,
    /// From a release to the next owner's first instruction in the section, on one socket, ns.
    pub handoff_ns: u64,
    /// The same from one socket to another, ns.
    pub remote_handoff_ns: u64,
}

impl Default for HostSection {
    fn default() -> Self {
        Self {
            sockets: 1,
            cores: 2,
            slowdown_pct: 0,
            switch_ns: 2_000,
            look_ns: 3_000,
            doorbell_ns: 2_000,
            wake_ns: 5_000,
            handoff_ns: 100,
            remote_handoff_ns: 300,
        }
    }
}

/// `[stock]`: ticks and slices of the stock arm.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StockSection {
    /// Time between two ticks, us: 4000 with HZ=250.
    pub tick_us: u64,
    /// Time a vCPU runs before a tick or a wake-up may take its CPU, us (EEVDF's base slice).
    pub slice_us: u64,
    /// Ticks come up to so much late, us, each by a random part of it.
    pub tick_jitter_us: u64,
    /// The observing daemon's thread sleeps for so long between two looks, us; 0: nobody observes. It is
    /// on one CPU of the host, by chance which.
    pub observer_sleep_us: u64,
    /// CPU time of one of its looks, us.
    pub observer_look_us: u64,
    /// Wake-ups of the host's other threads on each CPU, a second; 0: none.
    pub wakeups_per_s: u64,
    /// CPU time of one of them, us.
    pub wakeup_us: u64,
    /// The vCPUs of a VM begin on CPUs of their own, as far as there are so many; otherwise the CPUs have
    /// equally many vCPUs, whichever VM they are of, as the kernel deals them.
    pub apart: bool,
}

impl Default for StockSection {
    fn default() -> Self {
        Self {
            tick_us: 4_000,
            slice_us: 2_800,
            tick_jitter_us: 20,
            observer_sleep_us: 1_060,
            observer_look_us: 35,
            wakeups_per_s: 50,
            wakeup_us: 100,
            apart: false,
        }
    }
}

/// `[policy]`: the parameters of [`ecs_policy::Params`]; what an arm switches off is off.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySection {
    /// Slice, us.
    pub slice_us: u64,
    /// Longest extension, us.
    pub extension_us: u64,
    /// Debt at which a VM gets no more extensions, us.
    pub budget_us: u64,
    /// Longest cool-down of a vCPU whose extensions expire, slices.
    pub cooldown_max: u32,
}

impl Default for PolicySection {
    fn default() -> Self {
        let params = Params::default();
        Self {
            slice_us: params.slice_ns / 1000,
            extension_us: params.extension_ns / 1000,
            budget_us: params.budget_ns / 1000,
            cooldown_max: params.cooldown_max,
        }
    }
}

/// How a guest behaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guest {
    /// It says what is true.
    #[default]
    Honest,
    /// It claims to be in a section for ever.
    PinCounts,
}

/// `[[vm]]`: some VMs that are all alike.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSection {
    /// How many of them.
    #[serde(default = "one")]
    pub count: usize,
    /// vCPUs each.
    pub vcpus: usize,
    /// CPU weight.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// CPUs they may use, e.g. `"0-3,8"`; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pcpus: Option<String>,
    /// Whether the guest annotates its sections.
    #[serde(default = "yes")]
    pub enlightened: bool,
    /// How it behaves.
    #[serde(default)]
    pub guest: Guest,
    /// What it does.
    pub workload: Workload,
}

fn one() -> usize {
    1
}

fn default_weight() -> u32 {
    ecs_policy::WEIGHT_DEFAULT
}

fn yes() -> bool {
    true
}

/// What the vCPUs of a VM do; the workloads of `ecs-microvm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A ticket lock: waiters spin, first come first served.
    Ticket,
    /// An MCS queue lock: the same, each waits for a word of its own.
    Queue,
    /// A spinning lock of readers and writers; a waiting writer keeps new readers out.
    RwLock,
    /// Calls to the next vCPU, answered in interrupt context while the caller spins.
    Irq,
    /// A mutex whose waiters halt.
    Blocking,
    /// No locks.
    Compute,
}

impl Kind {
    /// Name in scenarios and on the command line.
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

/// Workload of a VM; times are CPU time.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Kind of section.
    pub kind: Kind,
    /// Time inside a section, us.
    pub in_us: f64,
    /// Time between two sections, us.
    pub out_us: f64,
    /// Sections that only read, percent (`rwlock`).
    #[serde(default = "default_read_pct")]
    pub read_pct: u8,
    /// Locks of the VM; each section takes one at random.
    #[serde(default = "one")]
    pub locks: usize,
    /// Times between sections vary evenly by up to so much, percent.
    #[serde(default = "default_jitter_pct")]
    pub jitter_pct: u8,
}

fn default_read_pct() -> u8 {
    90
}

fn default_jitter_pct() -> u8 {
    2
}

impl std::str::FromStr for Scenario {
    type Err = ScenarioError;

    /// Reads and checks a scenario without a `[sweep]`.
    fn from_str(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self =
            toml::from_str(text).map_err(|error| ScenarioError::Parse(Box::new(error)))?;
        scenario.check()?;
        Ok(scenario)
    }
}

impl Scenario {
    /// CPUs of the host.
    #[must_use]
    pub fn nr_cpus(&self) -> usize {
        self.host.sockets.saturating_mul(self.host.cores)
    }

    /// Parameters of the policy in an arm.
    #[must_use]
    pub fn params(&self, arm: Arm) -> Params {
        let policy = &self.policy;
        Params {
            slice_ns: policy.slice_us.saturating_mul(1000),
            extension_ns: policy.extension_us.saturating_mul(1000),
            budget_ns: policy.budget_us.saturating_mul(1000),
            cooldown_max: policy.cooldown_max,
            extensions: matches!(arm, Arm::HolderOnly | Arm::Ecs),
            queue_rules: arm == Arm::Ecs,
        }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// The first that is out of its range.
    pub fn check(&self) -> Result<(), ScenarioError> {
        self.params(Arm::Ecs).validate()?;
        let cpus = self.nr_cpus() as u64;
        let host = &self.host;
        for (field, value, least, most) in [
            ("duration_ms", self.duration_ms, 1, 86_400_000),
            ("warmup_ms", self.warmup_ms, 0, 3_600_000),
            ("runs", u64::from(self.runs), 1, 1000),
            ("host.sockets x host.cores", cpus, 1, MAX_CPUS as u64),
            ("host.slowdown_pct", host.slowdown_pct, 0, 900),
            ("host.switch_ns", host.switch_ns, 0, 1_000_000),
            ("host.look_ns", host.look_ns, 0, 1_000_000),
            ("host.doorbell_ns", host.doorbell_ns, 0, 1_000_000),
            ("host.wake_ns", host.wake_ns, 0, 10_000_000),
            ("host.handoff_ns", host.handoff_ns, 0, 1_000_000),
            (
                "host.remote_handoff_ns",
                host.remote_handoff_ns,
                0,
                1_000_000,
            ),
            ("stock.tick_us", self.stock.tick_us, 100, 100_000),
            ("stock.slice_us", self.stock.slice_us, 0, 1_000_000),
            (
                "stock.tick_jitter_us",
                self.stock.tick_jitter_us,
                0,
                self.stock.tick_us / 2,
            ),
            (
                "stock.observer_sleep_us",
                self.stock.observer_sleep_us,
                0,
                10_000_000,
            ),
            (
                "stock.observer_look_us",
                self.stock.observer_look_us,
                1,
                100_000,
            ),
            ("stock.wakeups_per_s", self.stock.wakeups_per_s, 0, 100_000),
            ("stock.wakeup_us", self.stock.wakeup_us, 1, 100_000),
        ] {
            range(field, value, least, most)?;
        }
        let mut nr_vcpus = 0u64;
        for (index, vm) in self.vms.iter().enumerate() {
            vm.check(index, self.nr_cpus())?;
            nr_vcpus = nr_vcpus.saturating_add((vm.count * vm.vcpus) as u64);
        }
        range("vCPUs of all VMs", nr_vcpus, 1, 1_000_000)
    }
}

impl VmSection {
    fn check(&self, index: usize, nr_cpus: usize) -> Result<(), ScenarioError> {
        let name = |field: &str| format!("vm.{index}.{field}");
        let (light, heavy) = (*WEIGHT_RANGE.start(), *WEIGHT_RANGE.end());
        range(&name("count"), self.count as u64, 1, 100_000)?;
        range(&name("vcpus"), self.vcpus as u64, 1, MAX_VCPUS as u64)?;
        range(
            &name("weight"),
            u64::from(self.weight),
            light.into(),
            heavy.into(),
        )?;
        let work = &self.workload;
        for (field, us) in [("in_us", work.in_us), ("out_us", work.out_us)] {
            if !(0.0..=1e6).contains(&us) {
                return Err(out_of_range(&name(field), us, "0 to 1000000 us"));
            }
        }
        if work.in_us + work.out_us < 0.1 {
            let sum = work.in_us + work.out_us;
            return Err(out_of_range(
                &name("in_us + out_us"),
                sum,
                "0.1 us at least",
            ));
        }
        range(&name("workload.read_pct"), work.read_pct.into(), 0, 100)?;
        range(&name("workload.jitter_pct"), work.jitter_pct.into(), 0, 100)?;
        range(&name("workload.locks"), work.locks as u64, 1, 100_000)?;
        self.cpus(index, nr_cpus).map(drop)
    }

    /// The CPUs it may use, by number.
    pub(crate) fn cpus(&self, vm: usize, nr_cpus: usize) -> Result<Vec<usize>, ScenarioError> {
        let Some(list) = &self.pcpus else {
            return Ok((0..nr_cpus).collect());
        };
        let mut cpus = Vec::new();
        for part in list.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (first.trim().parse::<usize>(), last.trim().parse::<usize>()) {
                (Ok(first), Ok(last)) if first <= last && last < nr_cpus => {
                    cpus.extend(first..=last)
                }
                _ => {
                    return Err(ScenarioError::Pcpus {
                        vm,
                        list: list.clone(),
                        part: part.to_owned(),
                    });
                }
            }
        }
        cpus.sort_unstable();
        cpus.dedup();
        Ok(cpus)
    }
}

pub(crate) fn range(field: &str, value: u64, least: u64, most: u64) -> Result<(), ScenarioError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(out_of_range(field, value, &format!("{least} to {most}")))
}

pub(crate) fn out_of_range(field: &str, value: impl fmt::Display, must: &str) -> ScenarioError {
    ScenarioError::Range {
        field: field.to_owned(),
        value: value.to_string(),
        must: must.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str =
        "[[vm]]\nvcpus = 2\nworkload = { kind = \"ticket\", in_us = 5, out_us = 5 }\n";

    #[test]
    fn defaults_are_the_policys() {
        let scenario: Scenario = SMALL.parse().unwrap();
        assert_eq!(scenario.params(Arm::Ecs), Params::default());
        assert!(!scenario.params(Arm::Rotate).extensions);
        assert_eq!((scenario.nr_cpus(), scenario.vms[0].count), (2, 1));
    }

    #[test]
    fn bad_input_is_named() {
        for (text, part) in [
            ("".to_owned(), "missing field `vm`"),
            ("vm = []".to_owned(), "vCPUs of all VMs = 0"),
            (format!("hots = 1\n{SMALL}"), "unknown field `hots`"),
            (
                format!("[host]\ncores = 1025\n{SMALL}"),
                "1025 is out of range",
            ),
            (format!("[policy]\nslice_us = 1\n{SMALL}"), "slice must be"),
            (format!("{SMALL}weight = 0"), "vm.0.weight = 0"),
            (format!("{SMALL}pcpus = \"0-2\""), "\"0-2\""),
            (SMALL.replace("= 5", "= 0"), "0.1 us at least"),
            (
                SMALL.replace("ticket", "tickets"),
                "unknown variant `tickets`",
            ),
        ] {
            let error = text.parse::<Scenario>().unwrap_err();
            let source = std::error::Error::source(&error).map(ToString::to_string);
            let said = format!("{error}: {}", source.unwrap_or_default());
            assert!(said.contains(part), "{text:?} gave {said:?}");
        }
    }
}
