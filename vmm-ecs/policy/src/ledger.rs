//! What a VM received, what it owes, and where it stands in virtual time.
//!
//! Two things keep VMs even. **Virtual time** carries the long-run share: every nanosecond a vCPU
//! runs, extension or not, advances its VM's virtual time by `100 / weight`, and the VM with the
//! least runs next. The **debt** carries the order of repayment: extension time really used is owed,
//! and is taken back from the VM's next slices, to the benefit of the VM that runs next. A guest
//! that pins its counts therefore gains nothing: what it takes early is missing later.

use crate::pace::CREDIT_SLICES;
use crate::params::{Params, WEIGHT_DEFAULT};

/// Slices that each vCPU of a VM can receive before others are looked at.
const TURNS_AT_ONCE: u64 = 4;
/// The longest leash, ns.
const LEASH_MAX_NS: u64 = 1_000_000_000;

/// The books of one VM. `debt = extension - penalty - forgiven` always holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ledger {
    weight: u32,
    vtime_ns: u64,
    /// Remainder of the weighted division, so that nothing is lost to rounding.
    vtime_rest: u64,
    cpu_ns: u64,
    extension_ns: u64,
    penalty_ns: u64,
    forgiven_ns: u64,
}

/// Every book of a ledger by name, as another implementation of it keeps them; all times in ns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Books {
    /// See [`Ledger::weight`].
    pub weight: u32,
    /// See [`Ledger::vtime_ns`].
    pub vtime_ns: u64,
    /// Remainder of the last weighted division.
    pub vtime_rest: u64,
    /// See [`Ledger::cpu_ns`].
    pub cpu_ns: u64,
    /// See [`Ledger::extension_ns`].
    pub extension_ns: u64,
    /// See [`Ledger::penalty_ns`].
    pub penalty_ns: u64,
    /// See [`Ledger::forgiven_ns`].
    pub forgiven_ns: u64,
}

impl Ledger {
    /// The ledger with these books. What was taken back and forgiven is at most what was extended.
    #[must_use]
    pub fn from_books(books: Books) -> Self {
        let penalty_ns = books.penalty_ns.min(books.extension_ns);
        Self {
            weight: books.weight.max(1),
            vtime_ns: books.vtime_ns,
            vtime_rest: books.vtime_rest,
            cpu_ns: books.cpu_ns,
            extension_ns: books.extension_ns,
            penalty_ns,
            forgiven_ns: books.forgiven_ns.min(books.extension_ns - penalty_ns),
        }
    }

    /// A VM that just appeared: it starts level with the others, without credit or debt.
    #[must_use]
    pub fn new(weight: u32, vclock_ns: u64) -> Self {
        Self {
            weight: weight.max(1),
            vtime_ns: vclock_ns,
            vtime_rest: 0,
            cpu_ns: 0,
            extension_ns: 0,
            penalty_ns: 0,
            forgiven_ns: 0,
        }
    }

    /// Weight, 100 is the default.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight
    }

    /// Changes the weight; what has been received so far keeps its price.
    pub fn set_weight(&mut self, weight: u32) {
        self.weight = weight.max(1);
        self.vtime_rest = 0;
    }

    /// Virtual time: CPU time received, scaled by `100 / weight`, ns.
    #[must_use]
    pub fn vtime_ns(&self) -> u64 {
        self.vtime_ns
    }

    /// CPU time received, ns.
    #[must_use]
    pub fn cpu_ns(&self) -> u64 {
        self.cpu_ns
    }

    /// CPU time spent inside extensions, ns.
    #[must_use]
    pub fn extension_ns(&self) -> u64 {
        self.extension_ns
    }

    /// CPU time taken back, ns.
    #[must_use]
    pub fn penalty_ns(&self) -> u64 {
        self.penalty_ns
    }

    /// Extension time written off, ns.
    #[must_use]
    pub fn forgiven_ns(&self) -> u64 {
        self.forgiven_ns
    }

    /// Extension time not yet taken back, ns.
    #[must_use]
    pub fn debt_ns(&self) -> u64 {
        self.extension_ns - self.penalty_ns - self.forgiven_ns
    }

    /// Charges CPU time that one of the VM's vCPUs ran, extension time included.
    pub fn charge(&mut self, ran_ns: u64) {
        self.cpu_ns = self.cpu_ns.saturating_add(ran_ns);
        let scaled = ran_ns
            .saturating_mul(u64::from(WEIGHT_DEFAULT))
            .saturating_add(self.vtime_rest);
        self.vtime_ns = self
            .vtime_ns
            .saturating_add(scaled / u64::from(self.weight));
        self.vtime_rest = scaled % u64::from(self.weight);
    }

    /// Books extension time that was really used. What would lift the debt above the budget (a hard
    /// stop that came late) is forgiven, and counted as such; virtual time has it all the same.
    pub fn borrow(&mut self, used_ns: u64, params: &Params) {
        self.extension_ns = self.extension_ns.saturating_add(used_ns);
        let over = self.debt_ns().saturating_sub(params.budget_ns);
        self.forgiven_ns += over;
    }

    /// Whether one more full extension stays inside the budget, should the `nr_running` ones that
    /// are not booked yet last to their hard stop.
    #[must_use]
    pub fn may_borrow(&self, nr_running: u64, params: &Params) -> bool {
        let reserved_ns = params
            .extension_ns
            .saturating_mul(nr_running.saturating_add(1));
        self.debt_ns().saturating_add(reserved_ns) <= params.budget_ns
    }

    /// Takes back up to `most_ns` of the debt; returns what was taken.
    pub fn repay(&mut self, most_ns: u64) -> u64 {
        let taken = self.debt_ns().min(most_ns);
        self.penalty_ns += taken;
        taken
    }

    /// Writes the debt off, for a VM that goes away; returns what was forgiven.
    pub fn forgive(&mut self) -> u64 {
        let debt = self.debt_ns();
        self.forgiven_ns += debt;
        debt
    }

    /// The VM was wholly idle and has work again: time it did not use is no credit. It may stand at
    /// most `slack_ns` behind the clock.
    pub fn wake(&mut self, vclock_ns: u64, slack_ns: u64) {
        let floor = vclock_ns.saturating_sub(slack_ns);
        if self.vtime_ns < floor {
            self.vtime_ns = floor;
            self.vtime_rest = 0;
        }
    }

    /// The VM waits for a CPU on which another one stands at `vclock_ns`: what it received elsewhere, or
    /// while nobody else wanted it, is no reason to wait for ever. It may stand at most
    /// [`Ledger::leash_ns`] ahead.
    pub fn rein(&mut self, vclock_ns: u64, nr_vcpus: u64, params: &Params) {
        let limit = vclock_ns.saturating_add(self.leash_ns(nr_vcpus, params));
        if self.vtime_ns > limit {
            self.vtime_ns = limit;
            self.vtime_rest = 0;
        }
    }

    /// How far a VM may stand ahead of one it waits for, ns of virtual time: what its vCPUs can receive
    /// at once, and the credit that the other one may have, [`CREDIT_SLICES`]; at most a second.
    #[must_use]
    pub fn leash_ns(&self, nr_vcpus: u64, params: &Params) -> u64 {
        let slices = nr_vcpus.saturating_mul(TURNS_AT_ONCE);
        let ahead = params
            .slice_ns
            .saturating_mul(slices.saturating_add(CREDIT_SLICES));
        let scaled = ahead.saturating_mul(u64::from(WEIGHT_DEFAULT)) / u64::from(self.weight);
        scaled.min(LEASH_MAX_NS)
    }
}
