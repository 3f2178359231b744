//! Figures of the exporter's own process, from /proc.

use std::path::Path;
use std::{fs, io};

/// `USER_HZ`: /proc counts CPU time in 1/100 s on every architecture Linux runs KVM on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Facts of one process.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ProcessStats {
    /// User and system CPU time, s.
    pub(crate) cpu_seconds: f64,
    /// Resident memory, bytes.
    pub(crate) resident_bytes: u64,
    /// Open file descriptors.
    pub(crate) open_fds: u64,
    /// Start, s since the epoch.
    pub(crate) start_seconds: f64,
}

impl ProcessStats {
    /// Reads the facts of this process.
    ///
    /// # Errors
    /// /proc is not mounted, or not as Linux writes it.
    pub(crate) fn read() -> io::Result<Self> {
        Self::read_from(Path::new("/proc"))
    }

    fn read_from(proc: &Path) -> io::Result<Self> {
        let stat = fs::read_to_string(proc.join("self/stat"))?;
        let status = fs::read_to_string(proc.join("self/status"))?;
        let system = fs::read_to_string(proc.join("stat"))?;
        // The listing itself holds one descriptor.
        let open_fds = (fs::read_dir(proc.join("self/fd"))?.count() as u64).saturating_sub(1);
        parse(&stat, &status, &system, open_fds).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "a field is missing in /proc/self",
            )
        })
    }
}

fn parse(stat: &str, status: &str, system: &str, open_fds: u64) -> Option<ProcessStats> {
    // The command name may hold spaces and brackets; it ends at the last bracket. What follows
    // starts with field 3 of proc(5).
    let (_, fields) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let line = |text: &str, key: &str| -> Option<u64> {
        let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
        rest.split_ascii_whitespace().next()?.parse().ok()
    };
    Some(ProcessStats {
        cpu_seconds: (field(14)? + field(15)?) as f64 / TICKS_PER_SECOND,
        resident_bytes: line(status, "VmRSS:")? * 1024,
        open_fds,
        start_seconds: line(system, "btime ")? as f64 + field(22)? as f64 / TICKS_PER_SECOND,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn fields_are_found_behind_a_hostile_command_name() {
        let stat = "7 (a) S 9) R 1 7 7 0 -1 0 0 0 0 0 250 50 0 0 20 0 3 0 1000 0 0\n";
        let status = "Name:\tx\nVmRSS:\t    2048 kB\n";
        let system = "cpu  1 2\nbtime 1700000000\nprocesses 5\n";
        assert_eq!(
            parse(stat, status, system, 4),
            Some(ProcessStats {
                cpu_seconds: 3.0,
                resident_bytes: 2 << 20,
                open_fds: 4,
                start_seconds: 1_700_000_010.0,
            })
        );
        for (stat, status, system) in [
            ("7 (a", status, system),
            (stat, "", system),
            (stat, status, ""),
        ] {
            assert_eq!(parse(stat, status, system, 4), None);
        }
    }

    #[test]
    fn this_process_looks_sane() {
        let stats = ProcessStats::read().unwrap();
        assert!(stats.resident_bytes > 100 << 10, "{stats:?}");
        assert!(stats.open_fds >= 3, "{stats:?}");
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        assert!(
            (now - stats.start_seconds).abs() < 3600.0 * 24.0,
            "{stats:?}"
        );
    }

    #[test]
    fn a_missing_proc_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(ProcessStats::read_from(dir.path()).is_err());
    }
}
