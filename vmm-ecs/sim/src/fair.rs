//! What the kernel's fair class knows of one that runs, and the sums over a CPU's queue it decides by.
//!
//! EEVDF as in Linux 6.18: whoever's virtual time is not past the average of the queue is eligible, and
//! the eligible one with the earliest deadline runs. Times here are virtual: CPU time by weight.

use ecs_policy::WEIGHT_DEFAULT;

use crate::ids::VcpuId;

/// Who can be on a CPU under the stock scheduler: a vCPU, or a thread of the host, by its place in the
/// CPU's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Runner {
    Vcpu(VcpuId),
    Thread(usize),
}

/// A `sched_entity`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entity {
    pub(crate) vruntime_ns: i64,
    pub(crate) deadline_ns: i64,
    /// While it is eligible it keeps the CPU up to here (`RUN_TO_PARITY`).
    pub(crate) protected_ns: i64,
    /// How far behind the average it was when it fell asleep.
    pub(crate) lag_ns: i64,
    pub(crate) weight: u32,
    /// It sleeps, and stays in the queue until it has paid for what it had too much (`DELAY_DEQUEUE`).
    pub(crate) delayed: bool,
}

impl Entity {
    pub(crate) fn new(vruntime_ns: i64, slice_ns: u64, weight: u32) -> Self {
        let mut entity = Self {
            vruntime_ns,
            deadline_ns: 0,
            protected_ns: 0,
            lag_ns: 0,
            weight,
            delayed: false,
        };
        entity.renew(slice_ns);
        entity
    }

    fn virtual_ns(&self, ns: u64) -> i64 {
        let ns = ns * u64::from(WEIGHT_DEFAULT) / u64::from(self.weight.max(1));
        i64::try_from(ns).unwrap_or(i64::MAX)
    }

    /// It ran.
    #[inline]
    pub(crate) fn ran(&mut self, ns: u64) {
        self.vruntime_ns += self.virtual_ns(ns);
    }

    /// Asks for a slice from now on.
    pub(crate) fn renew(&mut self, slice_ns: u64) {
        self.deadline_ns = self.vruntime_ns + self.virtual_ns(slice_ns);
    }

    /// Its lag in a queue: none is kept beyond two slices or a tick.
    pub(crate) fn lag(&self, queue: &Sum, slice_ns: u64, tick_ns: u64) -> i64 {
        let most_ns = self.virtual_ns((2 * slice_ns).max(tick_ns));
        let lag_ns = queue.average_ns().map_or(0, |ns| ns - self.vruntime_ns);
        lag_ns.clamp(-most_ns, most_ns)
    }

    /// Comes to a queue, that does not count it yet, with the lag it had.
    pub(crate) fn place(&mut self, queue: &Sum, slice_ns: u64) {
        if let Some(average_ns) = queue.average_ns() {
            // Its coming moves the average: what it adds is put on top.
            let own = i64::from(self.weight);
            let lag_ns = self.lag_ns * (queue.weight + own) / queue.weight;
            self.vruntime_ns = average_ns - lag_ns;
        }
        self.renew(slice_ns);
    }
}

/// Sums over those of a queue that want the CPU, the running one included.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum {
    pub(crate) nr: usize,
    weight: i64,
    /// Virtual times are counted from that of the first.
    base_ns: i64,
    key: i64,
}

impl Sum {
    #[inline]
    pub(crate) fn add(&mut self, entity: &Entity) {
        if self.nr == 0 {
            self.base_ns = entity.vruntime_ns;
        }
        let weight = i64::from(entity.weight);
        self.nr += 1;
        self.weight += weight;
        self.key += (entity.vruntime_ns - self.base_ns) * weight;
    }

    /// Average virtual time by weight, of a queue that is not empty.
    pub(crate) fn average_ns(&self) -> Option<i64> {
        (self.weight > 0).then(|| self.base_ns + self.key.div_euclid(self.weight))
    }

    /// Whether it has not had more than its share.
    #[inline]
    pub(crate) fn has_eligible(&self, entity: &Entity) -> bool {
        self.key >= (entity.vruntime_ns - self.base_ns) * self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(of: &[Entity]) -> Sum {
        let mut sum = Sum::default();
        of.iter().for_each(|entity| sum.add(entity));
        sum
    }

    #[test]
    fn the_average_is_by_weight_and_splits_the_queue() {
        let of = [Entity::new(-300, 1000, 100), Entity::new(100, 1000, 300)];
        let queue = sum(&of);
        assert_eq!(queue.average_ns(), Some(0));
        assert!(queue.has_eligible(&of[0]) && !queue.has_eligible(&of[1]));
        assert_eq!(of[1].deadline_ns, 100 + 333);
        assert_eq!(sum(&[]).average_ns(), None);
    }

    #[test]
    fn who_comes_back_has_the_lag_it_went_with() {
        let others = [Entity::new(5_000, 1000, 100), Entity::new(9_000, 1000, 200)];
        for lag_ns in [-1_500, 0, 1_500] {
            let mut entity = Entity {
                lag_ns,
                ..Entity::new(77, 1000, 150)
            };
            entity.place(&sum(&others), 1000);
            let queue = sum(&[others[0], others[1], entity]);
            assert!((entity.lag(&queue, 1000, 4000) - lag_ns).abs() <= 1);
        }
    }

    #[test]
    fn lag_is_kept_up_to_a_tick() {
        let entity = Entity::new(0, 1000, 100);
        let queue = sum(&[entity, Entity::new(90_000, 1000, 100)]);
        assert_eq!(entity.lag(&queue, 1000, 4000), 4000);
        assert_eq!(entity.lag(&queue, 3000, 4000), 6000);
    }
}
