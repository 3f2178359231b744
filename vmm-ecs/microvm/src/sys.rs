//! The system calls std has no name for.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// Page size of x86-64 and of the kernels this runs on elsewhere.
pub(crate) const PAGE: usize = 4096;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Gives the threads of this process, and those they start, a core scheduling cookie of their own.
pub(crate) fn take_cores() -> io::Result<()> {
    /// `PIDTYPE_TGID`: all threads of a process.
    const PROCESS: libc::c_ulong = 1;
    let (this, unused): (libc::c_ulong, libc::c_ulong) = (0, 0);
    // SAFETY: no pointer is passed.
    check(unsafe {
        libc::prctl(
            libc::PR_SCHED_CORE,
            libc::PR_SCHED_CORE_CREATE,
            this,
            PROCESS,
            unused,
        )
    })?;
    Ok(())
}

/// A mapping of this process, unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    ptr: *mut u8,
    len: usize,
}

// SAFETY: the mapping is owned by the value and stays valid wherever it is moved or shared; what it
// holds is only accessed through atomics or by the one owner while it builds page tables.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a file, shared.
    pub(crate) fn of_file(fd: &OwnedFd, len: usize) -> io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        Self::map(len, prot, libc::MAP_SHARED, fd.as_raw_fd())
    }

    /// Zeroed private memory.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        Self::map(len, libc::PROT_READ | libc::PROT_WRITE, flags, -1)
    }

    /// Addresses that nobody else will use and that hold nothing.
    pub(crate) fn reserved(len: usize) -> io::Result<Self> {
        Self::map(
            len,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
        )
    }

    fn map(len: usize, prot: i32, flags: i32, fd: i32) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let ptr = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, fd, 0) };
        if ptr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            ptr: ptr.cast(),
            len,
        })
    }

    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `ptr` and `len` are those of a mapping this value made and owns; everything that
        // borrows from it is gone.
        unsafe { libc::munmap(self.ptr.cast(), self.len) };
    }
}

/// A memory file of `len` bytes.
pub(crate) fn memfd(name: &str, len: usize) -> io::Result<OwnedFd> {
    let name = std::ffi::CString::new(name)?;
    // SAFETY: `name` is a terminated string that outlives the call.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) })?;
    // SAFETY: the descriptor was just made and belongs to nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is open; ftruncate touches no memory of this process.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), len) })?;
    Ok(fd)
}

/// Lets the calling thread run on these CPUs only.
pub(crate) fn set_affinity(cpus: &[u32]) -> io::Result<()> {
    // SAFETY: an all-zero cpu_set_t is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &cpu in cpus {
        let cpu = cpu as usize;
        if cpu >= libc::CPU_SETSIZE as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: `cpu` is below CPU_SETSIZE, so the bit lies inside the set.
        unsafe { libc::CPU_SET(cpu, &mut set) };
    }
    // SAFETY: `set` is a valid set of the size given; 0 is the calling thread.
    check(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) })?;
    Ok(())
}

/// Thread id of the calling thread.
pub(crate) fn gettid() -> i32 {
    // SAFETY: gettid has no arguments and cannot fail.
    unsafe { libc::gettid() }
}

/// CPU time of a thread of this process, ns; `None` once it is gone.
pub(crate) fn thread_cpu_ns(tid: i32) -> Option<u64> {
    /// Kernel ABI: a per-thread clock that counts time on the CPU.
    const PER_THREAD_SCHED: i32 = 4 | 2;
    let clock = (!tid << 3) | PER_THREAD_SCHED;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the result; an unknown clock is an error, not a fault.
    check(unsafe { libc::clock_gettime(clock, &raw mut time) }).ok()?;
    let seconds = u64::try_from(time.tv_sec).ok()?;
    Some(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec).ok()?)
}

/// How a futex wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Woken {
    /// By a wake-up, a signal, or because the word had another value.
    Up,
    /// By the time-out.
    TimedOut,
}

/// Sleeps while `*word == expected`, at most for `timeout`.
pub(crate) fn futex_wait(word: &AtomicU32, expected: u32, timeout: Duration) -> Woken {
    let time = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: libc::c_long::from(timeout.subsec_nanos().cast_signed()),
    };
    let op = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
    // SAFETY: the word is an aligned u32 that outlives the call, and so does `time`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            op,
            expected,
            &raw const time,
        )
    };
    if result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ETIMEDOUT) {
        return Woken::TimedOut;
    }
    Woken::Up
}

/// Wakes up to `nr` threads of this process that sleep on `word`.
pub(crate) fn futex_wake(word: &AtomicU32, nr: u32) {
    let op = libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG;
    let nr = i32::try_from(nr).unwrap_or(i32::MAX);
    // SAFETY: the word is an aligned u32 that outlives the call; waking touches no memory.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), op, nr) };
}

/// Waits until one of the descriptors is readable or hung up, at most for `timeout_ms`. Returns which
/// ones are.
pub(crate) fn poll<const N: usize>(fds: [i32; N], timeout_ms: i32) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| libc::pollfd {
        fd,
        events: libc::POLLIN | libc::POLLRDHUP,
        revents: 0,
    });
    let nr = libc::nfds_t::try_from(N).unwrap_or(0);
    // SAFETY: `polled` is an array of `nr` valid entries that outlives the call.
    match check(unsafe { libc::poll(polled.as_mut_ptr(), nr, timeout_ms) }) {
        Ok(_) => Ok(polled.map(|entry| entry.revents != 0)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok([false; N]),
        Err(error) => Err(error),
    }
}
