//! What an operator may choose.

/// Weight of a VM that asks for nothing else (cgroup `cpu.weight`).
pub const WEIGHT_DEFAULT: u32 = 100;
/// Lowest and highest weight (cgroup `cpu.weight`).
pub const WEIGHT_RANGE: core::ops::RangeInclusive<u32> = 1..=10_000;

/// Parameters of the policy; [`Params::validate`] holds before any decision is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    /// Time a vCPU runs before another one gets the pCPU, ns.
    pub slice_ns: u64,
    /// Longest extension, ns: a hard stop.
    pub extension_ns: u64,
    /// Debt at which a VM gets no more extensions, ns.
    pub budget_ns: u64,
    /// Longest cool-down of a vCPU whose extensions expire, slices.
    pub cooldown_max: u32,
    /// Whether extensions are given at all.
    pub extensions: bool,
    /// Whether the queue rules apply: a hopeless spinner steps aside, heads run first, waiters
    /// whose head runs are protected, release hands back.
    pub queue_rules: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            slice_ns: 3_000_000,
            extension_ns: 1_000_000,
            budget_ns: 32_000_000,
            cooldown_max: 64,
            extensions: true,
            queue_rules: true,
        }
    }
}

/// A parameter outside its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadParam {
    /// Name of the parameter.
    pub name: &'static str,
    /// What it must be.
    pub must: &'static str,
}

impl core::fmt::Display for BadParam {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} must be {}", self.name, self.must)
    }
}

impl core::error::Error for BadParam {}

impl Params {
    /// Checks every range.
    ///
    /// # Errors
    /// The first parameter outside its range, and what it must be.
    pub fn validate(&self) -> Result<(), BadParam> {
        let checks = [
            (
                (500_000..=100_000_000).contains(&self.slice_ns),
                "slice",
                "0.5 to 100 ms",
            ),
            (
                (10_000..=self.slice_ns).contains(&self.extension_ns),
                "extension",
                "10 us to one slice",
            ),
            (
                (self.extension_ns..=1_000_000_000).contains(&self.budget_ns),
                "budget",
                "one extension to 1 s",
            ),
            (
                (1..=1024).contains(&self.cooldown_max),
                "cooldown_max",
                "1 to 1024 slices",
            ),
        ];
        match checks.iter().find(|(ok, ..)| !ok) {
            Some(&(_, name, must)) => Err(BadParam { name, must }),
            None => Ok(()),
        }
    }
}
