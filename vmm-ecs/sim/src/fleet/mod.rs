//! A fleet of hosts over hours: far more than can be simulated event by event.
//!
//! Coarse on purpose. In each step a VM wants a share of its vCPUs that follows the hour, its own habit
//! and chance; its host splits its CPUs by [`ecs_policy::split_fairly`], as the daemon reckons
//! entitlements; and what happens in a second of CPU time at that over-commit (preemptions, grants, their
//! outcomes and lengths, stalls) is what the detailed simulator gave for it ([`rates`]). VMs end and are
//! replaced under new names. Hosts do not influence each other, and no VM moves.

mod openmetrics;
mod rates;

use ecs_policy::{Claim, split_fairly};
use serde::Deserialize;

use crate::rng::Rng;
use crate::scenario::ScenarioError;
pub use openmetrics::FleetError;
use rates::{Rates, Row};

/// A fleet file, `[fleet]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// Hosts.
    pub hosts: usize,
    /// CPUs a host.
    pub cpus: usize,
    /// VMs at any time.
    pub vms: usize,
    /// Sizes of VMs, vCPUs, evenly mixed.
    pub vcpus: Vec<usize>,
    /// VMs that end and are replaced, percent of the fleet an hour.
    pub churn_pct: f64,
    /// Share of its vCPUs a VM wants at the quietest and at the busiest hour, percent; its own habit
    /// moves that by up to half.
    pub load_pct: [f64; 2],
    /// The busiest hour of the day, 0 to 23, UTC.
    pub busiest_hour: u32,
    /// Begin, s since 1970.
    pub start_s: u64,
    /// Length, hours.
    pub hours: u64,
    /// Time between two samples, s.
    pub step_s: u64,
    /// Seed of all randomness.
    pub seed: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    fleet: Fleet,
}

impl std::str::FromStr for Fleet {
    type Err = ScenarioError;

    /// Reads and checks a fleet file.
    fn from_str(text: &str) -> Result<Self, ScenarioError> {
        let file: File =
            toml::from_str(text).map_err(|error| ScenarioError::Parse(Box::new(error)))?;
        file.fleet.check()?;
        Ok(file.fleet)
    }
}

impl Fleet {
    /// Whether a file is of a fleet, rather than of one host.
    #[must_use]
    pub fn is_named_in(text: &str) -> bool {
        toml::from_str::<toml::Table>(text).is_ok_and(|table| table.contains_key("fleet"))
    }

    fn check(&self) -> Result<(), ScenarioError> {
        use crate::scenario::range;
        let percent = |field: &str, value: f64| {
            let must = "0 to 100 percent";
            if (0.0..=100.0).contains(&value) {
                Ok(())
            } else {
                Err(crate::scenario::out_of_range(field, value, must))
            }
        };
        range("fleet.hosts", self.hosts as u64, 1, 100_000)?;
        range("fleet.cpus", self.cpus as u64, 1, 1024)?;
        range("fleet.vms", self.vms as u64, 1, 1_000_000)?;
        range("sizes in fleet.vcpus", self.vcpus.len() as u64, 1, 100)?;
        for &vcpus in &self.vcpus {
            range("fleet.vcpus", vcpus as u64, 1, 256)?;
        }
        percent("fleet.churn_pct", self.churn_pct)?;
        percent("fleet.load_pct", self.load_pct[0])?;
        percent("fleet.load_pct", self.load_pct[1])?;
        range("fleet.busiest_hour", self.busiest_hour.into(), 0, 23)?;
        range("fleet.start_s", self.start_s, 0, 1 << 40)?;
        range("fleet.hours", self.hours, 1, 8784)?;
        range("fleet.step_s", self.step_s, 1, 3600)
    }

    fn nr_steps(&self) -> u64 {
        self.hours * 3600 / self.step_s
    }

    /// Share of their vCPUs that VMs want at a moment, in the mean: a sine of the hour.
    fn load(&self, time_s: u64) -> f64 {
        let hour = f64::from(u32::try_from(time_s % 86_400).unwrap_or(0)) / 3600.0;
        let phase = (hour - f64::from(self.busiest_hour)) / 24.0 * std::f64::consts::TAU;
        let [quiet, busy] = self.load_pct;
        (quiet + (busy - quiet) * (1.0 + phase.cos()) / 2.0) / 100.0
    }
}

/// Counters of one VM since it began; the identities of [`crate::Policy`] hold.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Books {
    cpu_ns: u64,
    fair_ns: u64,
    delay_ns: u64,
    stall_ns: u64,
    preemptions: u64,
    denied: u64,
    grants: u64,
    yielded: u64,
    expired: u64,
    revoked: u64,
    aborted: u64,
    extension_ns: u64,
    penalty_ns: u64,
}

/// A VM at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// VM slot of the fleet, and how many VMs had it before.
    slot: usize,
    generation: u32,
    vcpus: usize,
    /// Steps since the fleet began.
    step: u64,
    books: Books,
}

/// One VM slot of a host.
struct Slot {
    number: usize,
    generation: u32,
    vcpus: usize,
    /// Its habit: how much more or less than others it wants.
    habit: f64,
    /// Whether its guests use locks.
    locks: bool,
    /// CPU time it is ahead of its entitlement, ns.
    ahead_ns: i64,
    rng: Rng,
    books: Books,
}

impl Slot {
    fn new(fleet: &Fleet, number: usize) -> Self {
        let mut slot = Self {
            number,
            generation: 0,
            vcpus: 1,
            habit: 1.0,
            locks: true,
            ahead_ns: 0,
            rng: Rng::new(fleet.seed ^ (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            books: Books::default(),
        };
        slot.begin(fleet);
        slot
    }

    /// A new VM takes the slot.
    fn begin(&mut self, fleet: &Fleet) {
        let size = usize::try_from(self.rng.below(fleet.vcpus.len() as u64)).unwrap_or(0);
        self.vcpus = fleet.vcpus.get(size).copied().unwrap_or(1);
        self.habit = 0.5 + self.rng.unit();
        self.locks = self.rng.below(10) < 7;
        self.ahead_ns = 0;
        self.books = Books::default();
    }

    /// What it wants of a step, ns of CPU time.
    fn demand_ns(&mut self, load: f64, step_ns: u64) -> u64 {
        let chance = 0.8 + 0.4 * self.rng.unit();
        let share = (load * self.habit * chance).min(1.0);
        scaled(self.vcpus as u64 * step_ns, share)
    }

    /// Books a step in which it wanted and was entitled to so much.
    fn book(&mut self, demand_ns: u64, entitled_ns: u64, row: &Row) {
        // Rotation moves a VM by up to a few slices from its entitlement, and back.
        let target_ns = i64::try_from(self.rng.below(20_000_000)).unwrap_or(0) - 10_000_000;
        let cpu_ns = entitled_ns.saturating_add_signed(target_ns - self.ahead_ns);
        self.ahead_ns = target_ns.max(self.ahead_ns - i64::try_from(entitled_ns).unwrap_or(0));
        let books = &mut self.books;
        books.fair_ns += entitled_ns;
        books.cpu_ns += cpu_ns;
        books.delay_ns += demand_ns - entitled_ns;
        let rng = &mut self.rng;
        let mut draw = |per_cpu_s: f64| whole(per_cpu_s * cpu_ns as f64 / 1e9, rng);
        books.preemptions += draw(row.preemptions);
        if !self.locks {
            return;
        }
        let (yielded, expired) = (draw(row.yielded), draw(row.expired));
        let (revoked, aborted) = (draw(row.revoked), draw(row.aborted));
        let grants = yielded + expired + revoked + aborted;
        books.yielded += yielded;
        books.expired += expired;
        books.revoked += revoked;
        books.aborted += aborted;
        books.grants += grants;
        books.denied += draw(row.denied);
        books.stall_ns += scaled(cpu_ns, row.stall);
        // What was lent in the last of these steps is not all taken back.
        let lent_ns = scaled(grants * 1000, row.extension_us);
        let debt_ns = lent_ns.min(scaled(1_000_000, rng.unit()));
        books.extension_ns += lent_ns;
        books.penalty_ns = books.penalty_ns.max(books.extension_ns - debt_ns);
    }
}

/// Runs one host, and shows every sample of every VM: slot by slot in the end, as series are written.
fn run_host(fleet: &Fleet, host: usize, rates: &Rates) -> Vec<Sample> {
    let numbers = (host..fleet.vms).step_by(fleet.hosts);
    let mut slots: Vec<Slot> = numbers.map(|number| Slot::new(fleet, number)).collect();
    let step_ns = fleet.step_s * 1_000_000_000;
    let capacity_ns = fleet.cpus as u64 * step_ns;
    let churn = fleet.churn_pct / 100.0 * fleet.step_s as f64 / 3600.0;
    let mut samples = Vec::new();
    let mut claims: Vec<Claim> = Vec::new();
    for step in 0..fleet.nr_steps() {
        let load = fleet.load(fleet.start_s + step * fleet.step_s);
        claims.clear();
        for slot in &mut slots {
            if slot.rng.unit() < churn {
                slot.generation += 1;
                slot.begin(fleet);
            }
            claims.push(Claim {
                weight: ecs_policy::WEIGHT_DEFAULT,
                demand_ns: slot.demand_ns(load, step_ns),
                entitled_ns: 0,
            });
        }
        let demand_ns: u64 = claims.iter().map(|claim| claim.demand_ns).sum();
        split_fairly(capacity_ns, &mut claims);
        let row = rates.at(demand_ns as f64 / capacity_ns as f64);
        for (slot, claim) in slots.iter_mut().zip(&claims) {
            slot.book(claim.demand_ns, claim.entitled_ns, &row);
            samples.push(Sample {
                slot: slot.number,
                generation: slot.generation,
                vcpus: slot.vcpus,
                step,
                books: slot.books,
            });
        }
    }
    samples.sort_by_key(|sample| (sample.slot, sample.generation, sample.step));
    samples
}

/// `value` times `factor`, which is not negative.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a model exact to far less than its assumptions"
)]
fn scaled(value: u64, factor: f64) -> u64 {
    (value as f64 * factor) as u64
}

/// A whole number whose mean is `value`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative, and far below 2^53"
)]
fn whole(value: f64, rng: &mut Rng) -> u64 {
    let floor = value.floor();
    floor as u64 + u64::from(rng.unit() < value - floor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Fleet {
        "[fleet]\nhosts = 3\ncpus = 8\nvms = 31\nvcpus = [1, 4]\nchurn_pct = 20\nload_pct = [20, 100]\n\
         busiest_hour = 14\nstart_s = 1767225600\nhours = 6\nstep_s = 60\nseed = 4\n"
            .parse()
            .unwrap()
    }

    #[test]
    fn every_vm_keeps_its_identities_and_only_grows() {
        let fleet = small();
        let rates = Rates::simulated().unwrap();
        for host in 0..fleet.hosts {
            let samples = run_host(&fleet, host, &rates);
            for pair in samples.windows(2) {
                let (before, now) = (&pair[0], &pair[1]);
                let books = &now.books;
                let ended = books.yielded + books.expired + books.revoked + books.aborted;
                assert_eq!(books.grants, ended);
                assert!(books.penalty_ns <= books.extension_ns);
                let off_ns = books.cpu_ns.abs_diff(books.fair_ns);
                assert!(off_ns <= 10_000_000, "{off_ns}");
                if (before.slot, before.generation) == (now.slot, now.generation) {
                    assert!(books.cpu_ns >= before.books.cpu_ns);
                    assert!(books.penalty_ns >= before.books.penalty_ns);
                    assert!(books.preemptions >= before.books.preemptions);
                }
            }
        }
    }

    #[test]
    fn the_busiest_hour_is_the_busiest() {
        let fleet = small();
        let at = |hour: u64| fleet.load(1_767_225_600 + hour * 3600);
        assert!((at(14) - 1.0).abs() < 1e-9 && (at(2) - 0.2).abs() < 1e-9);
    }
}
