//! The outcomes that a scenario can have: where the host puts vCPUs at the start, and leaves them, makes
//! throughputs that lie apart, each with a spread of its own.
//!
//! The simulated runs say which there are. A real run belongs to the one whose range it is in or nearest to.

use crate::demo::median;

/// Throughputs that lie next to each other and differ by less than this factor are of one outcome.
const APART: f64 = 1.15;
/// Of the simulated runs, the least part that is an outcome.
const LEAST_PART: f64 = 0.03;

/// Outcomes, by rising throughput.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Outcomes {
    /// Simulated throughputs of each, in order.
    simulated: Vec<Vec<f64>>,
}

impl Outcomes {
    /// Those of simulated runs, by their throughputs.
    pub(super) fn of(simulated: &[f64]) -> Self {
        let mut sorted = simulated.to_vec();
        sorted.sort_by(f64::total_cmp);
        let mut groups: Vec<Vec<f64>> = Vec::new();
        for ops in sorted {
            match groups.last_mut() {
                Some(group) if group.last().is_some_and(|last| ops < last * APART) => {
                    group.push(ops)
                }
                _ => groups.push(vec![ops]),
            }
        }
        let least = LEAST_PART * simulated.len() as f64;
        groups.retain(|group| group.len() as f64 >= least);
        Self { simulated: groups }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.simulated.len()
    }

    /// Median throughput of one, and its part of the simulated runs that have one.
    pub(super) fn predicted(&self, outcome: usize) -> Option<(f64, f64)> {
        let group = self.simulated.get(outcome)?;
        let all: usize = self.simulated.iter().map(Vec::len).sum();
        Some((median(group), group.len() as f64 / all as f64))
    }

    /// Real throughputs by outcome.
    pub(super) fn split(&self, real: &[f64]) -> Vec<Vec<f64>> {
        let mut split = vec![Vec::new(); self.len()];
        for &ops in real {
            let distance = |group: &[f64]| {
                let below = group.first().map_or(0.0, |first| (first / ops).ln());
                let above = group.last().map_or(0.0, |last| (ops / last).ln());
                below.max(above).max(0.0)
            };
            let groups = self.simulated.iter().zip(&mut split);
            let nearest = groups.min_by(|(a, _), (b, _)| distance(a).total_cmp(&distance(b)));
            if let Some((_, runs)) = nearest {
                runs.push(ops);
            }
        }
        split
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn gaps_make_outcomes_and_strays_do_not() {
        let simulated: Vec<f64> = (0..60)
            .map(|run| 100.0 + f64::from(run) / 10.0)
            .chain((0..39).map(|run| 200.0 + f64::from(run)))
            .chain([1_000.0])
            .collect();
        let outcomes = Outcomes::of(&simulated);
        assert_eq!(outcomes.len(), 2, "one run in a hundred is a stray");
        let (median, part) = outcomes.predicted(1).unwrap();
        assert!((median - 219.0).abs() < 1e-9);
        assert!((part - 39.0 / 99.0).abs() < 1e-9);
        assert_eq!(
            outcomes.split(&[90.0, 104.0, 120.0, 190.0, 900.0]),
            [vec![90.0, 104.0, 120.0], vec![190.0, 900.0]]
        );
    }

    #[test]
    fn a_wide_spread_without_a_gap_is_one_outcome() {
        let simulated: Vec<f64> = (0..101).map(|run| 1.05_f64.powi(run)).collect();
        assert_eq!(Outcomes::of(&simulated).len(), 1);
    }
}
