//! `pick` against comparing every pair.

use super::config;
use ecs_policy::{Candidate, Params, Rank, pick};
use proptest::prelude::*;

/// Whether `a` is to run rather than `b`; `None` if nothing tells them apart.
fn goes_before(a: &Candidate, b: &Candidate, boost: i128) -> Option<bool> {
    let useless = |c: &Candidate| c.rank == Rank::Hopeless;
    if useless(a) != useless(b) {
        return Some(useless(b));
    }
    let stands_at =
        |c: &Candidate| i128::from(c.vm_vtime_ns) - if c.rank == Rank::Head { boost } else { 0 };
    if stands_at(a) != stands_at(b) {
        return Some(stands_at(a) < stands_at(b));
    }
    (a.vcpu_cpu_ns != b.vcpu_cpu_ns).then_some(a.vcpu_cpu_ns < b.vcpu_cpu_ns)
}

fn candidate() -> impl Strategy<Value = Candidate> {
    let rank = prop_oneof![Just(Rank::Head), Just(Rank::Ready), Just(Rank::Hopeless)];
    // Few values, so that ties and the exact boost are common, and now and then any.
    let vtime = prop_oneof![4 => (0u64..8).prop_map(|n| n * 3_000_000), 1 => any::<u64>()];
    (vtime, prop_oneof![0u64..3, any::<u64>()], rank).prop_map(
        |(vm_vtime_ns, vcpu_cpu_ns, rank)| Candidate {
            vm_vtime_ns,
            vcpu_cpu_ns,
            rank,
        },
    )
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn the_chosen_one_goes_before_every_other(
        candidates in prop::collection::vec(candidate(), 0..12),
    ) {
        let params = Params::default();
        let boost = i128::from(params.slice_ns) * 2;
        let expected = (0..candidates.len()).find(|&me| {
            (0..candidates.len()).all(|other| {
                me == other
                    || goes_before(&candidates[me], &candidates[other], boost)
                        .unwrap_or(me < other)
            })
        });
        prop_assert_eq!(pick(candidates.iter().copied(), &params), expected);
    }

    #[test]
    fn nobody_waits_for_a_head_longer_than_two_slices(
        candidates in prop::collection::vec(candidate(), 1..12),
    ) {
        let params = Params::default();
        let chosen = candidates[pick(candidates.iter().copied(), &params).unwrap()];
        for other in candidates.iter().filter(|c| c.rank != Rank::Hopeless) {
            prop_assert!(chosen.rank != Rank::Hopeless);
            let ahead = i128::from(chosen.vm_vtime_ns) - i128::from(other.vm_vtime_ns);
            prop_assert!(ahead <= 2 * i128::from(params.slice_ns));
        }
    }
}
