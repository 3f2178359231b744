//! Log-linear histogram of durations.

/// Buckets an octave: a percentile is exact to half of 1/16, 3 %.
const PER_OCTAVE: u64 = 16;
const BUCKETS: usize = 64 * 16;

/// Counts durations in ns.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    pub(crate) fn new() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            total: 0,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.counts.fill(0);
        self.total = 0;
    }

    #[inline]
    pub(crate) fn add(&mut self, ns: u64) {
        let ns = ns.max(PER_OCTAVE);
        let octave = u64::from(ns.ilog2());
        let part = (ns >> (octave - u64::from(PER_OCTAVE.ilog2()))) & (PER_OCTAVE - 1);
        let bucket = usize::try_from(octave * PER_OCTAVE + part).unwrap_or(0);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
            self.total += 1;
        }
    }

    /// Durations counted.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The duration below which `per_mille` of all are, ns, exact to 3 %; 0 without any.
    pub(crate) fn quantile_ns(&self, per_mille: u64) -> u64 {
        let target = u128::from(self.total) * u128::from(per_mille) / 1000;
        let mut seen = 0u128;
        let bucket = self.counts.iter().position(|&count| {
            seen += u128::from(count);
            seen > target
        });
        bucket.map_or(0, |bucket| {
            let (octave, part) = (bucket as u64 / PER_OCTAVE, bucket as u64 % PER_OCTAVE);
            // Middle of the bucket.
            let low = (PER_OCTAVE + part) << (octave - u64::from(PER_OCTAVE.ilog2()));
            low + ((1u64 << octave) / PER_OCTAVE) / 2
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_exact_to_three_percent() {
        let mut histogram = Histogram::new();
        assert_eq!(histogram.quantile_ns(500), 0);
        for ns in 1..=100_000u64 {
            histogram.add(ns);
        }
        for (per_mille, exact) in [(500, 50_000.0), (990, 99_000.0), (999, 99_900.0)] {
            #[expect(clippy::cast_precision_loss, reason = "a test")]
            let found = histogram.quantile_ns(per_mille) as f64;
            assert!((found / exact - 1.0).abs() < 0.035, "{found} for {exact}");
        }
        histogram.add(0);
        histogram.add(u64::MAX);
        assert_eq!(histogram.total(), 100_002);
    }
}
