//! Whether the spinners of a VM stay on their pCPUs where they wait without hope: where it is so far behind
//! that it runs together (docs/adr/0010-together.md), or they stepped aside too often
//! (docs/adr/0011-asides.md).
//!
//! A spinner without hope that steps aside lets a queue dissolve, in a few switches. A VM whose vCPUs
//! do it all the time waits for something else than a queue, answers of other vCPUs for example: there
//! a spinner may be what the next one waits for, and each switch costs more than it brings.

use crate::pace::TOGETHER_SLICES;

/// Times in a row.
const BURST: u64 = 32;

/// Turns that vCPUs which halt for a lock may give away, a slice (docs/adr/0012-halts.md).
const HALTS_A_SLICE: u64 = 4;

/// What is left of a VM's allowance: one time in each period, and up to 32 in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Asides {
    /// When all of it will be left again, ns.
    whole_at_ns: u64,
}

impl Asides {
    /// Whether a vCPU may step aside now.
    fn are_left(&self, now_ns: u64, period_ns: u64) -> bool {
        self.whole_at_ns.saturating_sub(now_ns) <= (BURST - 1).saturating_mul(period_ns)
    }

    /// One does.
    fn take(&mut self, now_ns: u64, period_ns: u64) {
        self.whole_at_ns = self.whole_at_ns.max(now_ns).saturating_add(period_ns);
    }
}

/// What decides whether the spinners of one VM stay, and those that halt keep their turns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Patience {
    together: bool,
    asides: Asides,
    halts: Asides,
}

impl Patience {
    /// Notes where the VM stands in virtual time, and where the least of the others does, ns.
    pub fn stands(&mut self, vtime_ns: u64, others_ns: u64, slice_ns: u64) {
        self.together = vtime_ns + TOGETHER_SLICES * slice_ns < others_ns;
    }

    /// Notes that one of its vCPUs steps aside.
    pub fn step_aside(&mut self, now_ns: u64, slice_ns: u64) {
        self.asides.take(now_ns, slice_ns);
    }

    /// Whether they stay now.
    #[must_use]
    pub fn holds(&self, now_ns: u64, slice_ns: u64) -> bool {
        self.together || !self.asides.are_left(now_ns, slice_ns)
    }

    /// Notes that one of its vCPUs, about to halt for a lock, gives its turn away.
    pub fn halt(&mut self, now_ns: u64, slice_ns: u64) {
        self.halts.take(now_ns, slice_ns / HALTS_A_SLICE);
    }

    /// Whether it may do so now.
    #[must_use]
    pub fn may_halt(&self, now_ns: u64, slice_ns: u64) -> bool {
        !self.together && self.halts.are_left(now_ns, slice_ns / HALTS_A_SLICE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: u64 = 3_000_000;

    #[test]
    fn many_in_a_row_and_then_one_a_slice() {
        let mut asides = Asides::default();
        let now = 1_000_000_000;
        for _ in 0..BURST {
            assert!(asides.are_left(now, SLICE));
            asides.take(now, SLICE);
        }
        assert!(!asides.are_left(now, SLICE));
        assert!(!asides.are_left(now + SLICE - 1, SLICE));
        assert!(asides.are_left(now + SLICE, SLICE));
        asides.take(now + SLICE, SLICE);
        assert!(!asides.are_left(now + SLICE, SLICE));
        assert!(asides.are_left(now + 2 * SLICE, SLICE));
    }

    #[test]
    fn rest_brings_all_of_it_back_and_no_more() {
        let mut asides = Asides::default();
        (0..100).for_each(|_| asides.take(0, SLICE));
        let later = 1_000 * SLICE;
        for _ in 0..BURST {
            assert!(asides.are_left(later, SLICE));
            asides.take(later, SLICE);
        }
        assert!(!asides.are_left(later, SLICE));
    }

    #[test]
    fn spinners_stay_far_behind_and_after_too_many_asides() {
        let mut patience = Patience::default();
        let far = TOGETHER_SLICES * SLICE;
        patience.stands(0, far, SLICE);
        assert!(!patience.holds(0, SLICE), "not quite far enough");
        patience.stands(0, far + 1, SLICE);
        assert!(patience.holds(0, SLICE));
        patience.stands(far, far, SLICE);
        assert!(!patience.holds(0, SLICE));
        (0..BURST).for_each(|_| patience.step_aside(0, SLICE));
        assert!(patience.holds(0, SLICE));
        assert!(!patience.holds(SLICE, SLICE));
    }

    #[test]
    fn turns_are_given_away_four_times_a_slice_whatever_spinners_do() {
        let mut patience = Patience::default();
        (0..BURST).for_each(|_| patience.step_aside(0, SLICE));
        for _ in 0..BURST {
            assert!(patience.may_halt(0, SLICE));
            patience.halt(0, SLICE);
        }
        assert!(!patience.may_halt(0, SLICE));
        for quarter in 1..=8 {
            let now = quarter * SLICE / HALTS_A_SLICE;
            assert!(patience.may_halt(now, SLICE), "{quarter}");
            patience.halt(now, SLICE);
            assert!(!patience.may_halt(now, SLICE), "{quarter}");
        }
        patience.stands(0, TOGETHER_SLICES * SLICE + 1, SLICE);
        assert!(!patience.may_halt(1000 * SLICE, SLICE), "it runs together");
    }
}
