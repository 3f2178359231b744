//! The few system calls that the standard library does not offer: scheduling attributes, the
//! monotonic clock, and a wait with nanoseconds.

// Sizes of small C structures: every cast below is of a value that fits by definition.
#![allow(clippy::cast_possible_truncation)]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

pub use ecs_threads::{CpuSet, Tid};

/// `CLOCK_MONOTONIC`, ns.
#[must_use]
pub fn now_ns() -> u64 {
    let mut ts = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: `ts` is valid for writes; CLOCK_MONOTONIC always exists, so the call fills it.
    let ts = unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC, ts.as_mut_ptr());
        ts.assume_init()
    };
    // Both fields of a monotonic time are non-negative.
    ts.tv_sec.cast_unsigned() * 1_000_000_000 + ts.tv_nsec.cast_unsigned()
}

/// Id of the calling thread.
#[must_use]
pub fn gettid() -> Tid {
    // SAFETY: gettid has no preconditions and cannot fail.
    unsafe { libc::gettid() }
}

/// CPU time of the calling thread, ns.
#[must_use]
pub fn thread_cpu_ns() -> u64 {
    let mut ts = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: `ts` is valid for writes; CLOCK_THREAD_CPUTIME_ID always exists.
    let ts = unsafe {
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, ts.as_mut_ptr());
        ts.assume_init()
    };
    ts.tv_sec.cast_unsigned() * 1_000_000_000 + ts.tv_nsec.cast_unsigned()
}

/// Scheduling attributes of a thread, as `sched_setattr(2)` takes them.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedAttr {
    size: u32,
    /// `SCHED_*`.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Nice value, -20 to 19, for the fair class.
    pub nice: i32,
    /// Priority, 1 to 99, for the real-time classes.
    pub priority: u32,
    /// EEVDF slice, ns, for the fair class; 0: the kernel's own.
    pub runtime_ns: u64,
    deadline_ns: u64,
    period_ns: u64,
}

/// Children of the thread do not inherit a real-time class.
const RESET_ON_FORK: u64 = 1;

impl SchedAttr {
    /// `SCHED_FIFO` with a priority of 1 to 99; threads it creates are ordinary ones.
    #[must_use]
    pub fn fifo(priority: u32) -> Self {
        Self {
            policy: 1,
            priority,
            flags: RESET_ON_FORK,
            ..Self::sized()
        }
    }

    /// `SCHED_OTHER`.
    #[must_use]
    pub fn other(nice: i32) -> Self {
        Self {
            policy: 0,
            nice,
            ..Self::sized()
        }
    }

    /// `SCHED_OTHER` with an EEVDF slice of its own, ns (Linux 6.12; 0.1 to 100 ms).
    #[must_use]
    pub fn long_slice(runtime_ns: u64) -> Self {
        Self {
            runtime_ns,
            ..Self::other(0)
        }
    }

    /// `SCHED_BATCH`: does not preempt when it wakes up.
    #[must_use]
    pub fn batch() -> Self {
        Self {
            policy: 3,
            ..Self::sized()
        }
    }

    /// `SCHED_RR` with a priority of 1 to 99; threads it creates are ordinary ones.
    #[must_use]
    pub fn round_robin(priority: u32) -> Self {
        Self {
            policy: 2,
            ..Self::fifo(priority)
        }
    }

    /// `SCHED_IDLE`: runs when nobody else of the fair class wants to.
    #[must_use]
    pub fn idle() -> Self {
        Self {
            policy: 5,
            nice: 19,
            ..Self::sized()
        }
    }

    /// `SCHED_EXT`: a sched_ext scheduler's in any case, not only where it takes all threads.
    #[cfg(feature = "scx")]
    pub(crate) fn ext() -> Self {
        Self {
            policy: 7,
            ..Self::sized()
        }
    }

    /// From the fields that describe a thread, e.g. out of a journal.
    #[must_use]
    pub fn from_parts(policy: u32, flags: u64, nice: i32, priority: u32, runtime_ns: u64) -> Self {
        Self {
            policy,
            flags,
            nice,
            priority,
            runtime_ns,
            ..Self::sized()
        }
    }

    fn sized() -> Self {
        Self {
            size: size_of::<Self>() as u32,
            ..Self::default()
        }
    }

    /// Reads the attributes of a thread.
    ///
    /// # Errors
    /// `ESRCH` if the thread is gone.
    pub fn get(tid: Tid) -> io::Result<Self> {
        let mut attr = Self::sized();
        // SAFETY: `attr` is valid for writes of the size given; the kernel writes no more than that.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_sched_getattr,
                tid,
                &raw mut attr,
                size_of::<Self>(),
                0,
            )
        };
        check(rc)?;
        Ok(attr)
    }

    /// Gives a thread these attributes.
    ///
    /// # Errors
    /// `ESRCH` if the thread is gone, `EPERM` without CAP_SYS_NICE or where the thread's cgroup has
    /// no real-time bandwidth.
    pub fn set(&self, tid: Tid) -> io::Result<()> {
        let attr = Self {
            size: size_of::<Self>() as u32,
            ..*self
        };
        // SAFETY: `attr` is valid for reads of `attr.size` bytes.
        check(unsafe { libc::syscall(libc::SYS_sched_setattr, tid, &raw const attr, 0) })
    }
}

/// An epoll instance whose descriptors are edge-triggered: an eventfd need never be read.
#[derive(Debug)]
pub(crate) struct Poller(OwnedFd);

impl Poller {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no preconditions; the result is checked before it is owned.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        check(i64::from(fd))?;
        // SAFETY: `fd` was just created and nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Adds a descriptor; `key` comes back when it becomes readable.
    pub(crate) fn add(&self, fd: RawFd, key: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLET).cast_unsigned(),
            u64: key,
        };
        // SAFETY: `event` is valid for reads; a bad `fd` makes the call fail.
        check(i64::from(unsafe {
            libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event)
        }))
    }

    /// Removes a descriptor; one that is not there is no error.
    pub(crate) fn remove(&self, fd: RawFd) {
        // SAFETY: a null event is allowed for EPOLL_CTL_DEL; a bad `fd` makes the call fail.
        unsafe {
            libc::epoll_ctl(
                self.0.as_raw_fd(),
                libc::EPOLL_CTL_DEL,
                fd,
                std::ptr::null_mut(),
            );
        }
    }

    /// Waits for at most `timeout_ns`; the keys that fired, none at a timeout or a signal.
    pub(crate) fn wait(&self, timeout_ns: u64) -> impl Iterator<Item = u64> + use<> {
        let mut events = [const { libc::epoll_event { events: 0, u64: 0 } }; 16];
        let timeout = libc::timespec {
            tv_sec: (timeout_ns / 1_000_000_000).cast_signed(),
            tv_nsec: (timeout_ns % 1_000_000_000).cast_signed(),
        };
        // SAFETY: `events` is valid for writes of its 16 entries, `timeout` for reads, and a null
        // signal mask means none is changed.
        let n = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.0.as_raw_fd(),
                events.as_mut_ptr(),
                events.len(),
                &raw const timeout,
                std::ptr::null::<libc::sigset_t>(),
                8usize,
            )
        };
        events
            .into_iter()
            .take(usize::try_from(n).unwrap_or(0))
            .map(|event| event.u64)
    }
}

/// Turns a C result below zero into the error it stands for.
/// A descriptor of one thread (Linux 6.9 or newer).
#[cfg(feature = "scx")]
pub(crate) fn thread_fd(tid: Tid) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd;
    /// `PIDFD_THREAD`.
    const THREAD: libc::c_uint = libc::O_EXCL.cast_unsigned();
    // SAFETY: the call takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, tid, THREAD) };
    check(fd)?;
    let fd = i32::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}

/// Waits until every CPU has been through a point at which no program of the kernel's schedulers runs.
#[cfg(feature = "scx")]
pub(crate) fn membarrier_all() -> io::Result<()> {
    /// `MEMBARRIER_CMD_GLOBAL`: a grace period of RCU.
    const GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes three integers.
    check(unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) })
}

pub(crate) fn check(rc: i64) -> io::Result<()> {
    check_len(rc).map(|_| ())
}

/// Turns a C result below zero into the error it stands for, any other into a length.
pub(crate) fn check_len(rc: i64) -> io::Result<usize> {
    usize::try_from(rc).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn own_attributes_can_be_read_and_set_back() {
        let attr = SchedAttr::get(0).unwrap();
        attr.set(0).unwrap();
        assert_eq!(SchedAttr::get(0).unwrap(), attr);
    }
}
