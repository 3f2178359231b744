//! Random numbers: xorshift64*, seeded, the same on every machine.

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    /// The stream of a seed; neighbouring seeds give unrelated streams (splitmix64).
    pub(crate) fn new(seed: u64) -> Self {
        let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((z ^ (z >> 31)) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in `0..bound`; 0 for a bound of 0. Off by less than `bound / 2^64`.
    #[inline]
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.next()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }

    /// Uniform in `[0, 1)`.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are exact")]
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_of_a_seed_is_fixed_and_spread_evenly() {
        let mut rng = Rng::new(1);
        assert_eq!(
            (rng.next(), Rng::new(1).next()),
            (Rng::new(1).next(), Rng::new(1).next())
        );
        assert_ne!(Rng::new(1).next(), Rng::new(2).next());
        let mut hits = [0u32; 10];
        for _ in 0..100_000 {
            hits[usize::try_from(rng.below(10)).unwrap()] += 1;
        }
        assert!(
            hits.iter().all(|&hit| (9_500..10_500).contains(&hit)),
            "{hits:?}"
        );
        assert_eq!(rng.below(0), 0);
    }
}
