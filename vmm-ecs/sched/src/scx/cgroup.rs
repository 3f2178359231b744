//! What a VM's cgroup allows it: the fair class keeps to that by itself, the scheduler in the kernel
//! is told.

use std::path::Path;

use ecs_policy::{WEIGHT_DEFAULT, WEIGHT_RANGE};

const ROOT: &str = "/sys/fs/cgroup";
/// Small weights are multiplied with two digits more.
const HUNDREDTHS: u64 = 100;

/// Limits of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// `cpu.weight` of its cgroup, as a part of those around it: of 50 in 300 it is 150. 100 is the default.
    pub(super) weight: u32,
    /// The strictest `cpu.max` of its cgroup and those around it: quota and period, ns.
    pub(super) quota: Option<(u64, u64)>,
}

/// Reads the limits of a cgroup, a path like `/machine.slice/vm.scope`.
pub(super) fn limits(cgroup: Option<&str>) -> Limits {
    let path = cgroup.unwrap_or("/").trim_start_matches('/');
    limits_in(Path::new(ROOT), path)
}

fn limits_in(root: &Path, cgroup: &str) -> Limits {
    let read = |dir: &Path, file: &str| std::fs::read_to_string(dir.join(file)).ok();
    let own = root.join(cgroup);
    let around = || own.ancestors().take_while(|dir| *dir != root);
    let weight_of = |dir: &Path| -> Option<u64> { read(dir, "cpu.weight")?.trim().parse().ok() };
    // The kernel allows 1 to 10 000, at each level.
    let weight = around()
        .filter_map(weight_of)
        .fold(HUNDREDTHS * u64::from(WEIGHT_DEFAULT), |all, weight| {
            all.saturating_mul(weight) / u64::from(WEIGHT_DEFAULT)
        })
        / HUNDREDTHS;
    let (least, most) = (
        u64::from(*WEIGHT_RANGE.start()),
        u64::from(*WEIGHT_RANGE.end()),
    );
    let quota = around()
        .filter_map(|dir| parse_max(&read(dir, "cpu.max")?))
        // The least share of a CPU, compared without a division.
        .min_by_key(|(quota, period)| u128::from(*quota) * 1_000_000 / u128::from(*period));
    Limits {
        weight: u32::try_from(weight.clamp(least, most)).unwrap_or(WEIGHT_DEFAULT),
        quota,
    }
}

/// `"50000 100000"` in us; `None` for `"max 100000"` and nonsense.
fn parse_max(text: &str) -> Option<(u64, u64)> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    (quota > 0 && period > 0).then_some((quota.checked_mul(1000)?, period.checked_mul(1000)?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_strictest_limit_around_a_cgroup_holds() {
        let root = tempfile::tempdir().unwrap();
        let slice = root.path().join("machine.slice");
        let scope = slice.join("vm.scope");
        std::fs::create_dir_all(&scope).unwrap();
        let unlimited = Limits {
            weight: 100,
            quota: None,
        };
        assert_eq!(limits_in(root.path(), "machine.slice/vm.scope"), unlimited);
        std::fs::write(scope.join("cpu.weight"), "300\n").unwrap();
        std::fs::write(scope.join("cpu.max"), "max 100000\n").unwrap();
        std::fs::write(slice.join("cpu.max"), "50000 100000\n").unwrap();
        assert_eq!(
            limits_in(root.path(), "machine.slice/vm.scope"),
            Limits {
                weight: 300,
                quota: Some((50_000_000, 100_000_000)),
            }
        );
        std::fs::write(slice.join("cpu.weight"), "50\n").unwrap();
        assert_eq!(limits_in(root.path(), "machine.slice/vm.scope").weight, 150);
        std::fs::write(scope.join("cpu.weight"), "1\n").unwrap();
        assert_eq!(limits_in(root.path(), "machine.slice/vm.scope").weight, 1);
        std::fs::write(scope.join("cpu.max"), "10000 50000\n").unwrap();
        let limits = limits_in(root.path(), "machine.slice/vm.scope");
        assert_eq!(limits.quota, Some((10_000_000, 50_000_000)));
    }

    #[test]
    fn nonsense_is_no_limit() {
        for text in [
            "",
            "max",
            "0 100000",
            "5 0",
            "a b",
            "18446744073709551615 1",
        ] {
            assert_eq!(parse_max(text), None, "{text:?}");
        }
    }
}
