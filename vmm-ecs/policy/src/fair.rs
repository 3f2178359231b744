//! What each VM was entitled to: weighted max-min fairness over one interval.

/// One VM's claim on an interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Claim {
    /// Weight, at least 1.
    pub weight: u32,
    /// Time its vCPUs ran or were runnable, ns: it cannot be entitled to more.
    pub demand_ns: u64,
    /// Result: time it was entitled to, ns.
    pub entitled_ns: u64,
}

/// Splits `capacity_ns` among the claims: by weight, never above a claim's demand, and what one VM
/// does not want goes to the others. The entitlements sum up to
/// `min(capacity, sum of demands)`, but for less than one nanosecond a claim.
pub fn split_fairly(capacity_ns: u64, claims: &mut [Claim]) {
    let mut left = u128::from(capacity_ns);
    let mut open: u128 = claims
        .iter()
        .map(|claim| u128::from(claim.weight.max(1)))
        .sum();
    for claim in claims.iter_mut() {
        claim.entitled_ns = u64::MAX;
    }
    // Each round settles every claim whose demand is below its share; at most one round a claim.
    loop {
        let (mut settled, mut taken, mut closed) = (false, 0u128, 0u128);
        for claim in claims
            .iter_mut()
            .filter(|claim| claim.entitled_ns == u64::MAX)
        {
            let weight = u128::from(claim.weight.max(1));
            if u128::from(claim.demand_ns) * open <= left * weight {
                claim.entitled_ns = claim.demand_ns;
                taken += u128::from(claim.demand_ns);
                closed += weight;
                settled = true;
            }
        }
        left -= taken.min(left);
        open -= closed;
        if open == 0 {
            return;
        }
        if !settled {
            break;
        }
    }
    for claim in claims
        .iter_mut()
        .filter(|claim| claim.entitled_ns == u64::MAX)
    {
        let share = left * u128::from(claim.weight.max(1)) / open;
        claim.entitled_ns = u64::try_from(share).unwrap_or(u64::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split<const N: usize>(capacity: u64, claims: [(u32, u64); N]) -> [u64; N] {
        let mut claims = claims.map(|(weight, demand_ns)| Claim {
            weight,
            demand_ns,
            entitled_ns: 0,
        });
        split_fairly(capacity, &mut claims);
        claims.map(|claim| claim.entitled_ns)
    }

    #[test]
    fn equal_weights_share_equally() {
        assert_eq!(split(100, [(100, 100), (100, 100)]), [50, 50]);
    }

    #[test]
    fn weights_are_kept() {
        assert_eq!(split(100, [(100, 100), (300, 100)]), [25, 75]);
    }

    #[test]
    fn what_an_idle_vm_leaves_goes_to_the_others() {
        assert_eq!(split(90, [(100, 10), (100, 100), (100, 100)]), [10, 40, 40]);
        assert_eq!(split(100, [(100, 0), (100, 70)]), [0, 70]);
    }

    #[test]
    fn a_demand_met_in_a_later_round_is_met() {
        // Shares of 25 each; the first leaves 20, which lifts the others to 31 > 30.
        assert_eq!(
            split(100, [(1, 5), (1, 30), (1, 100), (1, 100)]),
            [5, 30, 32, 32]
        );
    }
}
