//! Guest memory: its layout, and the memfd it lives in.
//!
//! | what | written by |
//! |---|---|
//! | control block | VMM before the start, `stop` later |
//! | lines | guest line: the vCPU; host line: the daemon |
//! | per vCPU | the vCPU |
//! | locks and what they protect | all vCPUs |
//! | virtqueues | the front-end (as the driver) and the daemon |

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize};

use ecs_guest::{BlockingMutex, QueueLock, RwSpinLock, TicketLock, VcpuLines};

use crate::ring::{Buffers, Ring};
use crate::sys::{self, Mapping};

/// Most vCPUs of one VM.
pub const MAX_VCPUS: usize = 64;
/// Buckets of a hand-over histogram.
pub const HANDOFF_BUCKETS: usize = 256;
/// Guest-physical address of guest memory.
pub const RAM_GPA: u64 = 0x10_0000;
/// Stack of a vCPU of a KVM guest, bytes.
pub const STACK_LEN: usize = 64 << 10;
/// Slots of the hash table.
pub const TABLE_SLOTS: usize = 1024;

/// What the VMM tells the guest.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Control {
    /// Non-zero: stop after the current operation.
    pub stop: AtomicU32,
    /// vCPUs that have stopped.
    pub done: AtomicU32,
    /// Doorbell queues; 0: one a vCPU.
    pub nr_doorbells: AtomicU32,
    /// Number of vCPUs.
    pub vcpus: AtomicU32,
    /// Index of the workload in `WorkloadKind::ALL`.
    pub workload: AtomicU32,
    /// Share of reads, percent.
    pub read_pct: AtomicU32,
    /// Non-zero: the locks are annotated.
    pub annotate: AtomicU32,
    /// `Waiters` as a number: 0 wise, 1 halt, 2 poll.
    pub waiters: AtomicU32,
    /// Time stamp ticks per us; 0: there are none.
    pub ticks_per_us: AtomicU32,
    /// `Guest` as a number: 0 honest, 1 pins its counts, 2 lies.
    pub guest: AtomicU32,
    /// Turns of a spin loop per us.
    pub pauses_per_us: AtomicU32,
    /// Iterations of work inside a section.
    pub in_iterations: AtomicU64,
    /// Iterations of work between sections.
    pub out_iterations: AtomicU64,
    /// Stop after so many operations; 0: never.
    pub max_ops: AtomicU64,
    /// KVM: virtual address of the MMIO window.
    pub mmio: AtomicUsize,
}

/// One vCPU's counters and mailbox.
#[repr(C, align(128))]
#[derive(Debug)]
pub struct PerVcpu {
    /// Operations done.
    pub ops: AtomicU64,
    /// Of these, sections that changed protected data.
    pub changes: AtomicU64,
    /// Reads that saw half of a write.
    pub torn_reads: AtomicU64,
    /// KVM: word to sleep for or to wake (virtual address).
    pub halt_word: AtomicU64,
    /// KVM: value to sleep on, or number of vCPUs to wake.
    pub halt_arg: AtomicU32,
    /// Calls served in interrupt context.
    pub served: AtomicU64,
    /// Hand-over times by bucket.
    pub handoff: [AtomicU64; HANDOFF_BUCKETS],
    /// Mailbox: calls sent to this vCPU by the one before it.
    pub request: Line,
    /// Mailbox: calls answered by the next vCPU.
    pub answer: Line,
}

/// A word with a cache line of its own.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Line(pub AtomicU32);

/// What a lock protects.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Protected {
    /// Changes made under the lock, counted without atomic addition.
    pub changes: AtomicU64,
    /// The same again, written at the end of a write section.
    pub changes_again: AtomicU64,
    /// Time stamp of the last release, ticks.
    pub released_at: AtomicU64,
    /// Hash table, open addressing; 0 is an empty slot.
    pub table: [AtomicU64; TABLE_SLOTS],
}

/// Virtqueues and their buffers.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Queues {
    /// Control, event, and one doorbell a vCPU.
    pub rings: [Ring; 2 + MAX_VCPUS],
    /// Messages and replies of the control queue, and event buffers.
    pub buffers: Buffers,
}

/// All of guest memory but the stacks. All zero is the valid initial state of every field.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Shared {
    /// What the VMM tells the guest.
    pub control: Control,
    /// Lines by vCPU.
    pub lines: [VcpuLines; MAX_VCPUS],
    /// Counters by vCPU.
    pub vcpus: [PerVcpu; MAX_VCPUS],
    /// The ticket lock.
    pub ticket: TicketLock,
    /// The queue lock.
    pub queue: QueueLock<MAX_VCPUS>,
    /// The readers-writer lock.
    pub rw: RwSpinLock,
    /// The mutex.
    pub mutex: BlockingMutex,
    /// What they protect.
    pub protected: Protected,
    /// Virtqueues.
    pub queues: Queues,
}

/// Guest memory: a memfd, mapped here.
#[derive(Debug)]
pub struct GuestRam {
    fd: OwnedFd,
    map: Mapping,
}

impl GuestRam {
    /// Fresh guest memory, all zero, with a stack for each of `vcpus` vCPUs.
    ///
    /// # Errors
    /// The kernel refuses the memory.
    pub fn new(vcpus: usize) -> io::Result<Self> {
        let len = (size_of::<Shared>() + vcpus * STACK_LEN).next_multiple_of(sys::PAGE);
        let fd = sys::memfd("ecs-microvm", len)?;
        let map = Mapping::of_file(&fd, len)?;
        Ok(Self { fd, map })
    }

    /// The memory as the guest sees it.
    #[must_use]
    pub fn shared(&self) -> &Shared {
        // SAFETY: the mapping is page-aligned, readable, writable and at least as long as `Shared`
        // (`new`), and lives as long as `self`. `Shared` consists of atomics and arrays of atomics
        // only, for which every bit pattern is valid, so neither the zeroed file nor any write by the
        // guest or another process through the memfd can invalidate the reference.
        unsafe { &*self.map.as_ptr().cast::<Shared>() }
    }

    /// The memfd.
    #[must_use]
    pub fn raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// Address of the memory in this process.
    #[must_use]
    pub fn addr(&self) -> usize {
        self.map.as_ptr().addr()
    }

    /// Length, bytes, a whole number of pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Never: there is always a control block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Highest address of a vCPU's stack plus one, or `None` without such a vCPU.
    #[must_use]
    pub fn stack_top(&self, vcpu: usize) -> Option<usize> {
        let end = size_of::<Shared>() + vcpu.checked_add(1)?.checked_mul(STACK_LEN)?;
        (end <= self.len()).then(|| self.addr() + end)
    }

    /// Guest-physical address of something that lies in guest memory.
    #[must_use]
    pub fn gpa_of<T>(&self, thing: &T) -> u64 {
        (std::ptr::from_ref(thing).addr() as u64).wrapping_add(self.gpa_offset())
    }

    /// What to add to an address here to get a guest-physical one, modulo 2^64.
    #[must_use]
    pub fn gpa_offset(&self) -> u64 {
        RAM_GPA.wrapping_sub(self.addr() as u64)
    }

    /// The aligned word at `addr`, if it lies in guest memory.
    #[must_use]
    pub fn word_at(&self, addr: u64) -> Option<&AtomicU32> {
        let offset = usize::try_from(addr).ok()?.checked_sub(self.addr())?;
        if offset % 4 != 0 || offset.checked_add(4)? > self.len() {
            return None;
        }
        // SAFETY: offset and length were checked against the mapping, which is page-aligned and lives
        // as long as `self`; the word is aligned, and guest memory is only seen through atomics.
        Some(unsafe { &*self.map.as_ptr().add(offset).cast::<AtomicU32>() })
    }
}
