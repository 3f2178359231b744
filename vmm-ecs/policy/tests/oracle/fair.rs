//! `split_fairly` against filling all claims from a slowly rising water level.

use super::config;
use ecs_policy::{Claim, split_fairly};
use proptest::prelude::*;

/// Steps of the water level per ns and unit of weight.
const SCALE: u128 = 1 << 20;

/// Entitlements at the highest level at which they fit, found by bisection.
fn fill(capacity_ns: u64, claims: &[Claim]) -> Vec<u64> {
    let at = |level: u128| -> Vec<u128> {
        let filled =
            |c: &Claim| (level * u128::from(c.weight.max(1))).min(u128::from(c.demand_ns) * SCALE);
        claims.iter().map(filled).collect()
    };
    let (mut fits, mut spills) = (0u128, 1u128 << 80);
    while spills - fits > 1 {
        let middle = fits.midpoint(spills);
        if at(middle).iter().sum::<u128>() <= u128::from(capacity_ns) * SCALE {
            fits = middle;
        } else {
            spills = middle;
        }
    }
    at(fits)
        .into_iter()
        .map(|scaled| (scaled / SCALE) as u64)
        .collect()
}

fn claims(max_demand: u64) -> impl Strategy<Value = Vec<Claim>> {
    let weight = prop_oneof![Just(100u32), 0u32..=10_000];
    let demand = prop_oneof![Just(0), 0u64..100, 0u64..max_demand, Just(max_demand)];
    let claim = (weight, demand, any::<u64>()).prop_map(|(weight, demand_ns, entitled_ns)| Claim {
        weight,
        demand_ns,
        entitled_ns,
    });
    prop::collection::vec(claim, 0..9)
}

/// What must hold of any split, exactly.
fn check_split(capacity_ns: u64, claims: &[Claim]) -> Result<(), TestCaseError> {
    let wide = |ns: u64| u128::from(ns);
    let given: u128 = claims.iter().map(|c| wide(c.entitled_ns)).sum();
    let wanted: u128 = claims.iter().map(|c| wide(c.demand_ns)).sum();
    let due = wanted.min(wide(capacity_ns));
    prop_assert!(given <= due, "{given} given, {due} due");
    prop_assert!(
        claims.is_empty() || given + claims.len() as u128 > due,
        "{given} of {due}"
    );
    for mine in claims {
        prop_assert!(mine.entitled_ns <= mine.demand_ns);
        if mine.entitled_ns == mine.demand_ns {
            continue;
        }
        // Who did not get all it wanted has at least as much per weight as anybody else.
        for theirs in claims {
            let left = wide(theirs.entitled_ns) * wide(mine.weight.max(1).into());
            let right = (wide(mine.entitled_ns) + 1) * wide(theirs.weight.max(1).into());
            prop_assert!(left <= right, "{theirs:?} has more than {mine:?}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn the_split_is_the_water_level(
        capacity_ns in prop_oneof![0u64..100, 0u64..1 << 40],
        mut claims in claims(1 << 40),
    ) {
        let expected = fill(capacity_ns, &claims);
        split_fairly(capacity_ns, &mut claims);
        for (claim, level) in claims.iter().zip(expected) {
            prop_assert!(claim.entitled_ns.abs_diff(level) <= 1, "{claim:?}, level {level}");
        }
        check_split(capacity_ns, &claims)?;
    }

    #[test]
    fn the_split_holds_at_the_end_of_the_number_range(
        capacity_ns in prop_oneof![Just(u64::MAX), Just(u64::MAX - 1), any::<u64>()],
        mut claims in claims(u64::MAX),
    ) {
        split_fairly(capacity_ns, &mut claims);
        check_split(capacity_ns, &claims)?;
    }
}
