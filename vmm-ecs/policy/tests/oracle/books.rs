//! Oracle of the ledger: the list of everything that was ever booked.

use ecs_policy::{Ledger, Params};

/// One booking.
#[derive(Debug, Clone, Copy)]
pub(super) enum Entry {
    Charged(u64),
    Weight(u32),
    Woke { vclock_ns: u64, slack_ns: u64 },
    Borrowed(u64),
    Repaid { most_ns: u64 },
    Forgiven,
}

/// All bookings of one VM since it appeared.
#[derive(Debug, Clone)]
pub(super) struct Books {
    weight: u32,
    vclock_ns: u64,
    budget_ns: u64,
    entries: Vec<Entry>,
}

/// What the bookings add up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) weight: i128,
    pub(super) vtime: i128,
    pub(super) cpu: i128,
    pub(super) extension: i128,
    pub(super) penalty: i128,
    pub(super) forgiven: i128,
}

impl Sum {
    pub(super) fn debt(&self) -> i128 {
        self.extension - self.penalty - self.forgiven
    }
}

impl Books {
    pub(super) fn new(weight: u32, vclock_ns: u64, params: &Params) -> Self {
        Self {
            weight,
            vclock_ns,
            budget_ns: params.budget_ns,
            entries: Vec::new(),
        }
    }

    pub(super) fn book(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    /// Adds up the whole list from its beginning.
    pub(super) fn sum(&self) -> Sum {
        let mut sum = Sum {
            weight: i128::from(self.weight.max(1)),
            vtime: i128::from(self.vclock_ns),
            cpu: 0,
            extension: 0,
            penalty: 0,
            forgiven: 0,
        };
        // Virtual time: where it last started from, and what ran since, at one weight.
        let (mut start, mut ran) = (sum.vtime, 0i128);
        for entry in &self.entries {
            match *entry {
                Entry::Charged(ns) => {
                    sum.cpu += i128::from(ns);
                    ran += i128::from(ns);
                }
                Entry::Weight(weight) => {
                    (start, ran) = (sum.vtime, 0);
                    sum.weight = i128::from(weight.max(1));
                }
                Entry::Woke {
                    vclock_ns,
                    slack_ns,
                } => {
                    let floor = (i128::from(vclock_ns) - i128::from(slack_ns)).max(0);
                    if sum.vtime < floor {
                        (start, ran) = (floor, 0);
                    }
                }
                Entry::Borrowed(ns) => {
                    sum.extension += i128::from(ns);
                    sum.forgiven += (sum.debt() - i128::from(self.budget_ns)).max(0);
                }
                Entry::Repaid { most_ns } => sum.penalty += sum.debt().min(i128::from(most_ns)),
                Entry::Forgiven => sum.forgiven += sum.debt(),
            }
            sum.vtime = start + ran * 100 / sum.weight;
        }
        sum
    }

    /// Compares a ledger with the list, and checks the invariants.
    pub(super) fn check(&self, ledger: &Ledger) -> Result<(), String> {
        let sum = self.sum();
        let theirs = Sum {
            weight: ledger.weight().into(),
            vtime: ledger.vtime_ns().into(),
            cpu: ledger.cpu_ns().into(),
            extension: ledger.extension_ns().into(),
            penalty: ledger.penalty_ns().into(),
            forgiven: ledger.forgiven_ns().into(),
        };
        if sum != theirs || i128::from(ledger.debt_ns()) != sum.debt() {
            return Err(format!("ledger {ledger:?}, books say {sum:?}"));
        }
        if sum.debt() < 0 || sum.debt() > i128::from(self.budget_ns) {
            return Err(format!(
                "debt {} outside 0..={}",
                sum.debt(),
                self.budget_ns
            ));
        }
        Ok(())
    }
}
