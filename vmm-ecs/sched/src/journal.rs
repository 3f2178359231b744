//! How every steered thread was scheduled before, on disk, so that anyone can put it back.
//!
//! # Problem
//! The daemon may be killed at any instant. A vCPU left in a real-time class, or behind everybody
//! else, is worse than no eCS.
//!
//! # Approach
//! Before the daemon changes a thread for the first time, it appends one line to the journal: the
//! thread (id and start time), its scheduling attributes and its affinity. Three readers put
//! threads back from it: the watchdog process when the daemon dies ([`watch`]), the daemon itself
//! at its next start, and `vmm-ecs restore`.
//!
//! # Invariants
//! A thread is never changed before its line is written. A line whose thread is gone, or whose id
//! has been given to another thread, is skipped.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::sys::{CpuSet, SchedAttr, Tid};
use crate::threads::start_time;

/// Why the journal cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("Cannot {doing} the journal {path}")]
pub struct JournalError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// How one thread was scheduled before it was steered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Thread id.
    pub tid: Tid,
    /// Start time of the thread, clock ticks since boot.
    pub start_time: u64,
    /// Its attributes.
    pub attr: SchedAttr,
    /// Its affinity.
    pub cpus: CpuSet,
}

impl Record {
    /// Reads how a thread is scheduled now.
    ///
    /// # Errors
    /// If the thread is gone.
    pub fn of(tid: Tid) -> io::Result<Self> {
        Ok(Self {
            tid,
            start_time: start_time(tid)?,
            attr: SchedAttr::get(tid)?,
            cpus: CpuSet::of_thread(tid)?,
        })
    }

    /// Puts the thread back; `false` if it is gone.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn restore(&self) -> io::Result<bool> {
        if !start_time(self.tid).is_ok_and(|time| time == self.start_time) {
            return Ok(false);
        }
        let gone = |error: &io::Error| error.raw_os_error() == Some(libc::ESRCH);
        match self
            .attr
            .set(self.tid)
            .and_then(|()| self.cpus.bind(self.tid))
        {
            Ok(()) => Ok(true),
            Err(error) if gone(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn to_line(&self) -> String {
        let SchedAttr {
            policy,
            flags,
            nice,
            priority,
            runtime_ns,
            ..
        } = self.attr;
        format!(
            "{} {} {policy} {flags} {nice} {priority} {runtime_ns} {}\n",
            self.tid, self.start_time, self.cpus
        )
    }

    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let mut next = || fields.next();
        let record = Self {
            tid: next()?.parse().ok()?,
            start_time: next()?.parse().ok()?,
            attr: SchedAttr::from_parts(
                next()?.parse().ok()?,
                next()?.parse().ok()?,
                next()?.parse().ok()?,
                next()?.parse().ok()?,
                next()?.parse().ok()?,
            ),
            cpus: CpuSet::parse(next()?).ok()?,
        };
        Some(record)
    }
}

/// The journal of one daemon, locked against a second one for as long as it lives.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    records: Vec<Record>,
}

impl Journal {
    /// Opens the journal, and puts back what an earlier daemon left in it.
    ///
    /// # Errors
    /// If it cannot be written, or another daemon holds it.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let fail = |doing| {
            move |source| JournalError {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .map_err(fail("open"))?;
        // SAFETY: flock has no memory preconditions; the descriptor is open.
        let rc = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        crate::sys::check(i64::from(rc)).map_err(fail("lock (does another vmm-ecs run?)"))?;
        restore(path)?;
        file.set_len(0).map_err(fail("empty"))?;
        Ok(Self {
            file,
            path: path.to_owned(),
            records: Vec::new(),
        })
    }

    /// Notes how a thread is scheduled, before it is changed.
    ///
    /// # Errors
    /// If the thread is gone or the journal cannot be written; the thread must then be left alone.
    pub fn note(&mut self, tid: Tid) -> io::Result<&Record> {
        let record = Record::of(tid)?;
        self.file.write_all(record.to_line().as_bytes())?;
        self.records.push(record);
        self.records
            .last()
            .ok_or_else(|| io::Error::other("nothing noted"))
    }

    /// Puts one thread back and forgets it.
    pub fn restore_one(&mut self, tid: Tid) {
        let Some(index) = self.records.iter().position(|record| record.tid == tid) else {
            return;
        };
        let record = self.records.swap_remove(index);
        if let Err(error) = record.restore() {
            tracing::error!(tid, %error, "Cannot put the thread back; see vmm-ecs restore");
        }
        if self.records.is_empty() {
            // A journal that cannot be emptied only makes the watchdog restore once more.
            let _ = self.file.set_len(0);
        }
    }

    /// Puts every thread back and empties the journal.
    pub fn restore_all(&mut self) {
        while let Some(tid) = self.records.last().map(|record| record.tid) {
            self.restore_one(tid);
        }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Puts back every thread of a journal, the oldest record of each thread last, so that it wins.
/// Returns how many threads were put back.
///
/// # Errors
/// If the journal cannot be read; threads the kernel refuses are logged.
pub fn restore(path: &Path) -> Result<usize, JournalError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(source) => {
            return Err(JournalError {
                doing: "read",
                path: path.to_owned(),
                source,
            });
        }
    };
    let mut restored = 0;
    for record in text.lines().rev().filter_map(Record::parse) {
        match record.restore() {
            Ok(true) => restored += 1,
            Ok(false) => {}
            Err(error) => tracing::error!(tid = record.tid, %error, "Cannot put the thread back"),
        }
    }
    Ok(restored)
}

/// Time without a sign of life after which the daemon counts as hung, ms.
pub const WATCHDOG_TIMEOUT_MS: i32 = 2_000;
/// Time without a sign of life after which the watchdog looks whether the daemon is being killed,
/// ms: five beats.
const WATCHDOG_LOOK_MS: i32 = 100;

/// Whether a process is gone, or is being killed.
///
/// The pipe of a killed daemon ends with its last thread. Its ordinary threads need the CPU to die,
/// and its last real-time vCPUs have the CPUs to themselves: that takes up to a second, which is
/// what the kernel makes ordinary threads wait for. The threads that steer outrank the vCPUs and
/// are dead at once.
fn is_dying(pid: u32) -> bool {
    /// PF_EXITING among the flags of a task.
    const EXITING: u64 = 0x4;
    /// SIGKILL in a mask of signals.
    const KILL: u64 = 1 << (libc::SIGKILL - 1);
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return true;
    };
    // The name, in parentheses, may hold anything; field 3, the state, is the first after it.
    let Some((_, rest)) = stat.rsplit_once(')') else {
        return false;
    };
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let has = |number: usize, bit: u64| {
        let mask = fields.get(number - 3).and_then(|mask| mask.parse().ok());
        mask.is_some_and(|mask: u64| mask & bit != 0)
    };
    // Flags are field 9, signals that wait for the thread field 31.
    matches!(fields.first(), Some(&("Z" | "X"))) || has(9, EXITING) || has(31, KILL)
}

/// Body of the watchdog process: waits until `alive` (a pipe the daemon writes to) ends or the
/// daemon is being killed; if the pipe stays silent for [`WATCHDOG_TIMEOUT_MS`], kills the daemon
/// itself. Then puts every thread back. Runs above every steered thread, and touches nothing else.
///
/// # Errors
/// If the journal cannot be read.
pub fn watch(mut alive: File, daemon: u32, journal: &Path) -> Result<usize, JournalError> {
    // Without the right to it, the watchdog still works, only later.
    let _ = SchedAttr::fifo(crate::userspace::PRIORITY_WATCHDOG).set(0);
    let mut buffer = [0u8; 64];
    let mut silent_ms = 0;
    loop {
        let mut poll = libc::pollfd {
            fd: alive.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `poll` is valid for reads and writes of its one entry.
        match unsafe { libc::poll(&raw mut poll, 1, WATCHDOG_LOOK_MS) } {
            0 if is_dying(daemon) => break,
            0 => {
                silent_ms += WATCHDOG_LOOK_MS;
                if silent_ms == WATCHDOG_TIMEOUT_MS {
                    tracing::error!(daemon, "The daemon hangs: ending it");
                    // SAFETY: kill has no memory preconditions; the daemon is our parent, so its id
                    // cannot have been reused while the pipe is open.
                    unsafe { libc::kill(daemon.cast_signed(), libc::SIGKILL) };
                } else if silent_ms >= 2 * WATCHDOG_TIMEOUT_MS {
                    // It cannot even be killed.
                    break;
                }
            }
            n if n < 0 => {}
            _ => match alive.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => silent_ms = 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            },
        }
    }
    restore(journal)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_line() {
        let record = Record::of(crate::sys::gettid()).unwrap();
        assert_eq!(Record::parse(record.to_line().trim_end()), Some(record));
        assert_eq!(Record::parse("7 8 broken"), None);
    }

    #[test]
    fn a_thread_that_is_gone_is_skipped() {
        let record = Record {
            start_time: 1,
            ..Record::of(crate::sys::gettid()).unwrap()
        };
        assert!(!record.restore().unwrap());
    }

    #[test]
    fn a_process_that_is_killed_is_told_from_one_that_lives() {
        assert!(!is_dying(std::process::id()));
        assert!(is_dying(u32::MAX >> 2), "no such process");
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        assert!(!is_dying(child.id()));
        child.kill().unwrap();
        // Not yet waited for: it is dying, or a zombie, as soon as it has seen the signal.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !is_dying(child.id()) {
            assert!(std::time::Instant::now() < deadline, "still alive");
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }

    #[test]
    fn a_second_daemon_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let _first = Journal::open(&path).unwrap();
        let error = Journal::open(&path).unwrap_err();
        assert!(
            error.to_string().contains("does another vmm-ecs run"),
            "{error}"
        );
    }
}
