//! Sets of CPUs, as the kernel lists them and as affinities.

use std::io;

use crate::Tid;

/// A set of CPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuSet(Vec<u32>);

impl CpuSet {
    /// From CPU numbers, in any order.
    #[must_use]
    pub fn new(mut cpus: Vec<u32>) -> Self {
        cpus.sort_unstable();
        cpus.dedup();
        Self(cpus)
    }

    /// The CPUs, ascending.
    #[must_use]
    pub fn cpus(&self) -> &[u32] {
        &self.0
    }

    /// Whether the CPU is in the set.
    #[must_use]
    pub fn contains(&self, cpu: u32) -> bool {
        self.0.binary_search(&cpu).is_ok()
    }

    /// The kernel's list form, e.g. `0-3,8`.
    ///
    /// # Errors
    /// The part that is no number or range.
    pub fn parse(list: &str) -> Result<Self, String> {
        let mut cpus = Vec::new();
        for part in list.trim().split(',').filter(|part| !part.is_empty()) {
            let number = |text: &str| text.trim().parse::<u32>().map_err(|_| part.to_owned());
            let (first, last) = match part.split_once('-') {
                Some((first, last)) => (number(first)?, number(last)?),
                None => (number(part)?, number(part)?),
            };
            if first > last || last >= 8192 {
                return Err(part.to_owned());
            }
            cpus.extend(first..=last);
        }
        Ok(Self::new(cpus))
    }

    /// CPUs that are online now.
    ///
    /// # Errors
    /// If sysfs cannot be read.
    pub fn online() -> io::Result<Self> {
        let text = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
        Self::parse(&text).map_err(io::Error::other)
    }

    /// Affinity of a thread.
    ///
    /// # Errors
    /// `ESRCH` if the thread is gone.
    pub fn of_thread(tid: Tid) -> io::Result<Self> {
        let mut words = [0u64; 128];
        // SAFETY: `words` is valid for writes of the size given.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_sched_getaffinity,
                tid,
                size_of::<[u64; 128]>(),
                words.as_mut_ptr(),
            )
        };
        let bytes = usize::try_from(rc).map_err(|_| io::Error::last_os_error())?;
        let cpus = words
            .iter()
            .take(bytes / 8)
            .zip(0u32..)
            .flat_map(|(word, base)| {
                (0..64)
                    .filter(move |bit| word & (1 << bit) != 0)
                    .map(move |bit| base * 64 + bit)
            })
            .collect();
        Ok(Self(cpus))
    }

    /// Binds a thread to the set.
    ///
    /// # Errors
    /// `ESRCH` if the thread is gone, `EINVAL` if no CPU of the set is allowed to it.
    pub fn bind(&self, tid: Tid) -> io::Result<()> {
        let mut words = [0u64; 128];
        for &cpu in &self.0 {
            if let Some(word) = words.get_mut(cpu as usize / 64) {
                *word |= 1 << (cpu % 64);
            }
        }
        // SAFETY: `words` is valid for reads of the size given.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_sched_setaffinity,
                tid,
                size_of::<[u64; 128]>(),
                words.as_ptr(),
            )
        };
        if rc < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl std::fmt::Display for CpuSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rest = self.0.as_slice();
        let mut comma = "";
        while let [first, ..] = rest {
            let (run, last) = rest
                .iter()
                .zip(*first..)
                .take_while(|(cpu, expect)| *cpu == expect)
                .fold((0, *first), |(run, _), (cpu, _)| (run + 1, *cpu));
            if run == 1 {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
            comma = ",";
            rest = rest.get(run..).unwrap_or_default();
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_survive_a_round_trip() {
        for list in ["0", "0-3", "0-3,8", "1,3,5-6"] {
            assert_eq!(CpuSet::parse(list).unwrap().to_string(), list);
        }
        assert_eq!(CpuSet::parse("3-1"), Err("3-1".to_owned()));
        assert_eq!(CpuSet::parse("x"), Err("x".to_owned()));
    }

    #[test]
    fn own_affinity_can_be_read_and_set_back() {
        let cpus = CpuSet::of_thread(0).unwrap();
        cpus.bind(0).unwrap();
        assert_eq!(CpuSet::of_thread(0).unwrap(), cpus);
    }
}
