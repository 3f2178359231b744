//! What a VM's cgroup allows it. The fair class keeps to that by itself; the scheduler in the kernel reads limits
//! (`cpu.max`) where the kernel has them, and is told weights.

use std::path::Path;

use ecs_policy::{WEIGHT_DEFAULT, WEIGHT_RANGE};

const ROOT: &str = "/sys/fs/cgroup";
/// Small weights are multiplied with two digits more.
const HUNDREDTHS: u64 = 100;

/// `cpu.weight` of a cgroup, a path like `/machine.slice/vm.scope`, as a part of those around it: of 50 in 300 it
/// is 150. 100 is the default.
pub(super) fn weight(cgroup: Option<&str>) -> u32 {
    let path = cgroup.unwrap_or("/").trim_start_matches('/');
    weight_in(Path::new(ROOT), path)
}

fn weight_in(root: &Path, cgroup: &str) -> u32 {
    let own = root.join(cgroup);
    let around = own.ancestors().take_while(|dir| *dir != root);
    let weight_of = |dir: &Path| -> Option<u64> {
        let text = std::fs::read_to_string(dir.join("cpu.weight")).ok()?;
        text.trim().parse().ok()
    };
    // The kernel allows 1 to 10 000, at each level.
    let weight = around
        .filter_map(weight_of)
        .fold(HUNDREDTHS * u64::from(WEIGHT_DEFAULT), |all, weight| {
            all.saturating_mul(weight) / u64::from(WEIGHT_DEFAULT)
        })
        / HUNDREDTHS;
    let (least, most) = (
        u64::from(*WEIGHT_RANGE.start()),
        u64::from(*WEIGHT_RANGE.end()),
    );
    u32::try_from(weight.clamp(least, most)).unwrap_or(WEIGHT_DEFAULT)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_counts_among_those_around_it() {
        let root = tempfile::tempdir().unwrap();
        let slice = root.path().join("machine.slice");
        let scope = slice.join("vm.scope");
        std::fs::create_dir_all(&scope).unwrap();
        let weight = || weight_in(root.path(), "machine.slice/vm.scope");
        assert_eq!(weight(), 100);
        std::fs::write(scope.join("cpu.weight"), "300\n").unwrap();
        assert_eq!(weight(), 300);
        std::fs::write(slice.join("cpu.weight"), "50\n").unwrap();
        assert_eq!(weight(), 150);
        std::fs::write(scope.join("cpu.weight"), "1\n").unwrap();
        assert_eq!(weight(), 1);
        std::fs::write(scope.join("cpu.weight"), "heavy\n").unwrap();
        assert_eq!(weight(), 50, "nonsense is no weight");
    }
}
