//! The event queue: the next event of each CPU, as a tournament.
//!
//! Every event happens on some CPU, and of each CPU only the first one matters: it may be moved any
//! time. So the queue is a winner tree with one leaf a CPU; setting a leaf costs log2(CPUs) comparisons
//! and nothing is ever allocated, cancelled or left stale. Events of the same moment come in the order
//! of their CPUs.

use crate::ids::{CpuId, Id};

/// A time that does not come, ns; the highest the clock can hold (208 days).
pub(crate) const NEVER: u64 = (1 << TIME_BITS) - 1;

const TIME_BITS: u32 = 54;
/// Most CPUs of a host: what is left of 64 bits.
pub(crate) const MAX_CPUS: usize = 1 << (64 - TIME_BITS);
const CPU_MASK: u64 = (1 << (64 - TIME_BITS)) - 1;

/// The next event of each CPU.
#[derive(Debug)]
pub(crate) struct Clock {
    /// Node 1 is the root, the children of `n` are `2 n` and `2 n + 1`; each holds the least key below
    /// it. A key is the time with the CPU in its lowest bits.
    nodes: Vec<u64>,
    leaves: usize,
}

impl Clock {
    /// A clock on which nothing happens yet; for up to [`MAX_CPUS`] CPUs.
    pub(crate) fn new(nr_cpus: usize) -> Self {
        let leaves = nr_cpus.next_power_of_two().max(2);
        Self {
            nodes: vec![u64::MAX; 2 * leaves],
            leaves,
        }
    }

    /// The next event: its time, ns, and its CPU.
    #[inline]
    pub(crate) fn first(&self) -> (u64, CpuId) {
        let key = self.nodes.get(1).copied().unwrap_or(u64::MAX);
        let cpu = usize::try_from(key & CPU_MASK).unwrap_or(0);
        (key >> (64 - TIME_BITS), CpuId::of(cpu))
    }

    /// Sets the time of a CPU's next event; [`NEVER`] for none.
    #[inline]
    #[expect(clippy::indexing_slicing, reason = "a path from a leaf to the root")]
    pub(crate) fn set(&mut self, cpu: CpuId, time_ns: u64) {
        let mut key = (time_ns.min(NEVER) << (64 - TIME_BITS)) | cpu.number() as u64;
        let mut node = self.leaves + cpu.number();
        self.nodes[node] = key;
        while node > 1 {
            key = key.min(self.nodes[node ^ 1]);
            node /= 2;
            if self.nodes[node] == key {
                return;
            }
            self.nodes[node] = key;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    #[test]
    fn the_first_event_is_the_least_of_all_in_every_size() {
        let mut rng = Rng::new(3);
        for nr_cpus in [1, 2, 3, 80, MAX_CPUS] {
            let mut clock = Clock::new(nr_cpus);
            let mut times = vec![NEVER; nr_cpus];
            assert_eq!(clock.first().0, NEVER);
            for _ in 0..2_000 {
                let cpu = usize::try_from(rng.below(nr_cpus as u64)).unwrap();
                times[cpu] = if rng.below(8) == 0 {
                    NEVER
                } else {
                    rng.below(1_000)
                };
                clock.set(CpuId::of(cpu), times[cpu]);
                let least = (0..nr_cpus).min_by_key(|&cpu| (times[cpu], cpu)).unwrap();
                let (time, cpu) = clock.first();
                assert_eq!(time, times[least]);
                if time != NEVER {
                    assert_eq!(cpu.number(), least);
                }
            }
        }
    }
}
