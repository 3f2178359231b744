//! What passed, failed and was skipped.

use std::fmt;

/// Result of checks and tests.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Number that passed.
    pub(crate) passed: usize,
    /// Names of those that failed.
    pub(crate) failed: Vec<String>,
    /// `name: reason` of those that were skipped.
    pub(crate) skipped: Vec<String>,
}

impl Tally {
    /// Both together.
    pub(crate) fn and(mut self, other: Self) -> Self {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
        self
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.failed {
            writeln!(f, "FAILED: {name}")?;
        }
        for skip in &self.skipped {
            writeln!(f, "SKIPPED: {skip}")?;
        }
        let (failed, skipped) = (self.failed.len(), self.skipped.len());
        writeln!(
            f,
            "{} passed, {failed} failed, {skipped} skipped",
            self.passed
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_the_last_line() {
        let checks = Tally {
            passed: 2,
            failed: vec!["check fmt".to_owned()],
            skipped: vec![],
        };
        let tests = Tally {
            passed: 40,
            failed: vec![],
            skipped: vec!["kvm: no kvm".to_owned()],
        };
        assert_eq!(
            checks.and(tests).to_string(),
            "FAILED: check fmt\nSKIPPED: kvm: no kvm\n42 passed, 1 failed, 1 skipped\n"
        );
    }
}
