//! Context-switch records of one CPU, out of a perf ring buffer.
//!
//! # Problem
//! Who ran on a CPU, from when to when, and whether it left because it wanted to? `schedstat`
//! knows sums, not order, and tracepoints need tracefs or BPF.
//!
//! # Approach
//! A perf software event with `context_switch` set writes one record when a thread leaves the CPU
//! (with a bit that says whether it was preempted) and one when a thread comes. Reading them is
//! reading memory: no system call. `perf-event` has no ring reader, so this is a small one over
//! `perf-event-open-sys`.
//!
//! # Invariants
//! Records come in order; those the kernel had to drop are counted in [`SwitchRing::lost`].

// Sizes and bit fields of a C structure: every cast below is of a value that fits by definition.
#![allow(clippy::cast_possible_truncation)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use perf_event_open_sys as perf;
use perf_event_open_sys::bindings;

use crate::Tid;

/// What a process needs to read context-switch records, in words.
pub const PRIVILEGE: &str = "root, or CAP_PERFMON and kernel.perf_event_paranoid of 2 or less (Debian's kernels start with 3)";

/// A thread came to or left the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// `CLOCK_MONOTONIC`, ns.
    pub time_ns: u64,
    /// The thread; 0 is the idle task.
    pub tid: Tid,
    /// What it did.
    pub kind: SwitchKind,
}

/// What a [`Switch`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwitchKind {
    /// The thread got the CPU.
    In,
    /// The thread was descheduled although it could have run on.
    Preempted,
    /// The thread went to sleep.
    Blocked,
}

/// Pages of the ring; a record has 48 bytes, so a page holds some 85 records.
const DATA_PAGES: usize = 64;
const PAGE: usize = 4096;

/// The ring of one CPU.
#[derive(Debug)]
pub struct SwitchRing {
    /// Keeps the event open.
    _fd: OwnedFd,
    base: NonNull<u8>,
    lost: u64,
    records: u64,
}

// SAFETY: the mapping belongs to this object alone; moving it to another thread changes nothing.
unsafe impl Send for SwitchRing {}

impl SwitchRing {
    /// Opens the ring of one CPU.
    ///
    /// # Errors
    /// `EACCES` without CAP_PERFMON (or root), `ENODEV`/`EINVAL` for a CPU that is not online.
    pub fn open(cpu: u32) -> io::Result<Self> {
        let mut attr = bindings::perf_event_attr {
            type_: bindings::PERF_TYPE_SOFTWARE,
            size: size_of::<bindings::perf_event_attr>() as u32,
            config: u64::from(bindings::PERF_COUNT_SW_DUMMY),
            sample_type: u64::from(bindings::PERF_SAMPLE_TID | bindings::PERF_SAMPLE_TIME),
            clockid: libc::CLOCK_MONOTONIC,
            ..Default::default()
        };
        attr.set_sample_id_all(1);
        attr.set_context_switch(1);
        attr.set_use_clockid(1);
        attr.set_exclude_kernel(0);
        let cpu = i32::try_from(cpu).map_err(io::Error::other)?;
        // SAFETY: `attr` is a valid perf_event_attr of the size it states.
        let fd = unsafe {
            perf::perf_event_open(
                &raw mut attr,
                -1,
                cpu,
                -1,
                u64::from(bindings::PERF_FLAG_FD_CLOEXEC) as _,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just created and nobody else owns it.
        let fd_owned = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a fresh shared mapping of a perf event; the kernel checks the size.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                (1 + DATA_PAGES) * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at zero"))?;
        Ok(Self {
            _fd: fd_owned,
            base,
            lost: 0,
            records: 0,
        })
    }

    /// Records the kernel had to drop because the ring was full.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Records read.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Hands every new record to `f`, oldest first.
    pub fn drain(&mut self, mut f: impl FnMut(Switch)) {
        let meta = self.base.as_ptr().cast::<bindings::perf_event_mmap_page>();
        // SAFETY: the first page of the mapping is the metadata page; `data_head` is written by the
        // kernel and `data_tail` by us alone, both aligned u64, so they may be used as atomics.
        let (head_cell, tail_cell) = unsafe {
            (
                AtomicU64::from_ptr(&raw mut (*meta).data_head),
                AtomicU64::from_ptr(&raw mut (*meta).data_tail),
            )
        };
        let head = head_cell.load(Ordering::Acquire);
        let mut tail = tail_cell.load(Ordering::Relaxed);
        while tail < head {
            let header = self.word(tail);
            let kind = header as u32;
            let misc = (header >> 32) as u16;
            let size = header >> 48;
            if size < 8 {
                break;
            }
            match kind {
                bindings::PERF_RECORD_SWITCH_CPU_WIDE => {
                    // header, next_prev_pid/tid, then the sample id: pid/tid, time
                    let kind = if u32::from(misc) & bindings::PERF_RECORD_MISC_SWITCH_OUT == 0 {
                        SwitchKind::In
                    } else if u32::from(misc) & bindings::PERF_RECORD_MISC_SWITCH_OUT_PREEMPT != 0 {
                        SwitchKind::Preempted
                    } else {
                        SwitchKind::Blocked
                    };
                    self.records += 1;
                    f(Switch {
                        time_ns: self.word(tail + 24),
                        tid: ((self.word(tail + 16) >> 32) as u32).cast_signed(),
                        kind,
                    });
                }
                bindings::PERF_RECORD_LOST => self.lost += self.word(tail + 16),
                _ => {}
            }
            tail += size;
        }
        // Release: the kernel may overwrite the records once it sees the new tail.
        tail_cell.store(head, Ordering::Release);
    }

    /// The aligned word at a running offset; records are multiples of 8 bytes, so none straddles
    /// the end of the ring.
    fn word(&self, offset: u64) -> u64 {
        let index = ((offset as usize) % (DATA_PAGES * PAGE)) & !7;
        // SAFETY: the data area starts one page into the mapping and has DATA_PAGES pages; `index`
        // is a multiple of 8 below its size, so the aligned load is inside it.
        unsafe {
            self.base
                .as_ptr()
                .add(PAGE + index)
                .cast::<u64>()
                .read_volatile()
        }
    }
}

impl Drop for SwitchRing {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `open` with this size and nobody else holds it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), (1 + DATA_PAGES) * PAGE) };
    }
}
