//! Which CPUs are near each other: a vCPU that moves between them keeps what it has in their cache. And
//! which are one core.

use std::path::Path;

use crate::sys::CpuSet;

const ROOT: &str = "/sys/devices/system";

/// The domain of each CPU, by its number: CPUs of one share a last-level cache, or where the kernel
/// does not say, a NUMA node.
pub(super) fn domains(nr_cpus: usize) -> Vec<u16> {
    domains_in(Path::new(ROOT), nr_cpus)
}

/// A domain is named after its first CPU; one that nobody knows of, after the first CPU of all.
fn domains_in(root: &Path, nr_cpus: usize) -> Vec<u16> {
    let nodes = nodes(root);
    let domain = |cpu: usize| {
        let cache = root.join(format!("cpu/cpu{cpu}/cache/index3/shared_cpu_list"));
        let is_here = |node: &&CpuSet| u32::try_from(cpu).is_ok_and(|cpu| node.contains(cpu));
        let near = list(&cache).or_else(|| nodes.iter().find(is_here).cloned());
        let first = near.and_then(|cpus| cpus.cpus().first().copied());
        u16::try_from(first.unwrap_or(0)).unwrap_or(0)
    };
    (0..nr_cpus).map(domain).collect()
}

/// The next CPU of the core of each CPU, by its number; after the last comes the first. A CPU that is a core
/// of its own comes after itself.
pub(super) fn next_siblings(nr_cpus: usize) -> Vec<u16> {
    next_siblings_in(Path::new(ROOT), nr_cpus)
}

fn next_siblings_in(root: &Path, nr_cpus: usize) -> Vec<u16> {
    let next = |cpu: usize| {
        let own = u32::try_from(cpu).ok()?;
        let core = list(&root.join(format!("cpu/cpu{cpu}/topology/thread_siblings_list")))?;
        let mut after = core.cpus().iter().filter(|sibling| **sibling > own);
        let next = after.next().or_else(|| core.cpus().first())?;
        u16::try_from(*next).ok()
    };
    let number = |cpu| u16::try_from(cpu).unwrap_or(0);
    (0..nr_cpus)
        .map(|cpu| next(cpu).unwrap_or_else(|| number(cpu)))
        .collect()
}

/// CPUs of each NUMA node.
fn nodes(root: &Path) -> Vec<CpuSet> {
    let Ok(entries) = std::fs::read_dir(root.join("node")) else {
        return Vec::new();
    };
    let lists = entries.flatten().map(|entry| entry.path().join("cpulist"));
    lists.filter_map(|path| list(&path)).collect()
}

/// CPUs of a list like `0-3,8`; `None` where there is none.
fn list(path: &Path) -> Option<CpuSet> {
    CpuSet::parse(&std::fs::read_to_string(path).ok()?).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_cpus_of_a_core_come_one_after_the_other() {
        let root = tempfile::tempdir().unwrap();
        for (cpu, list) in [(0, "0,4"), (4, "0,4"), (1, "1-3"), (2, "1-3"), (3, "1-3")] {
            let dir = root.path().join(format!("cpu/cpu{cpu}/topology"));
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("thread_siblings_list"), list).unwrap();
        }
        assert_eq!(next_siblings_in(root.path(), 6), [4, 2, 3, 1, 0, 5]);
    }

    #[test]
    fn the_cache_counts_more_than_the_node_and_either_more_than_nothing() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(domains_in(root.path(), 3), [0, 0, 0]);
        write("node/node0/cpulist", "0-3\n");
        write("node/node1/cpulist", "4-5\n");
        write("node/possible", "0-1\n");
        assert_eq!(domains_in(root.path(), 7), [0, 0, 0, 0, 4, 4, 0]);
        for (cpu, list) in [(0, "0-1"), (1, "0-1"), (2, "2-3"), (3, "2-3")] {
            write(&format!("cpu/cpu{cpu}/cache/index3/shared_cpu_list"), list);
        }
        assert_eq!(domains_in(root.path(), 6), [0, 0, 2, 2, 4, 4]);
    }
}
