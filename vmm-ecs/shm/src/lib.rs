//! Reads a vCPU's slots in guest memory into a [`CsSnapshot`], and writes the host line.
//!
//! # Problem
//! The guest shares a few words and may lie, tear, or point them anywhere. The scheduler reads them
//! at every slice end and must never fault, block or believe nonsense.
//!
//! # Approach
//! [`VcpuSlots::new`] resolves and checks the addresses once, against the memory map of that
//! moment; [`VcpuSlots::read`] then is a handful of bounds-checked volatile loads, each word once.
//! The one address that may change at run time, the wait word, is looked up in the same map.
//!
//! # Invariants
//! No reference into guest memory is ever made. What is unreadable or makes no sense counts as
//! "not in a section" and is counted in [`VcpuSlots::nr_faults`].
//!
//! # What it does not do
//! It takes no decision, and keeps no map up to date: after a memory change the owner builds new
//! slots from the same registration.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ecs_abi::*;
pub use ecs_policy::{CsSnapshot, Wait};
use vm_memory::{
    Bytes, GuestMemoryMmap, GuestMemoryRegion, GuestRegionCollectionError, GuestRegionMmap,
    MemoryRegionAddress,
};

/// Guest memory as the front-end shares it: one immutable map, rebuilt at every change.
#[derive(Debug, Default)]
pub struct GuestMem {
    map: GuestMemoryMmap<()>,
    regions: Vec<Arc<GuestRegionMmap<()>>>,
}

impl GuestMem {
    /// Builds the map from its regions, in any order.
    ///
    /// # Errors
    /// Regions that overlap, or none at all.
    pub fn new(
        mut regions: Vec<Arc<GuestRegionMmap<()>>>,
    ) -> Result<Self, GuestRegionCollectionError> {
        regions.sort_by_key(|region| region.start_addr());
        let map = GuestMemoryMmap::from_arc_regions(regions.clone())?;
        Ok(Self { map, regions })
    }

    /// The same map for virtqueues.
    #[must_use]
    pub fn map(&self) -> &GuestMemoryMmap<()> {
        &self.map
    }

    /// The regions, by ascending address.
    #[must_use]
    pub fn regions(&self) -> &[Arc<GuestRegionMmap<()>>] {
        &self.regions
    }

    fn find(&self, addr: u64) -> Option<&Arc<GuestRegionMmap<()>>> {
        let after = self
            .regions
            .partition_point(|region| region.start_addr().0 <= addr);
        let region = self.regions.get(after.checked_sub(1)?)?;
        (addr - region.start_addr().0 < region.len()).then_some(region)
    }
}

/// One region of guest memory as the front-end itself sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserRegion {
    /// Guest-physical address.
    pub gpa: u64,
    /// Length, bytes.
    pub len: u64,
    /// Virtual address in the front-end's process.
    pub userspace_addr: u64,
}

/// Counts above this are nonsense: no guest nests that deep (2^20).
pub const MAX_COUNT: u32 = 1 << 20;

/// Why a registration is refused; [`SlotError::status`] is the ABI's word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// The address is not in guest memory.
    #[error("Address {0:#x} is not in guest memory")]
    BadAddress(u64),
    /// The address is not aligned.
    #[error("Address {0:#x} is not aligned to {1} bytes")]
    Misaligned(u64, u64),
    /// Two lines share bytes.
    #[error("Line at {0:#x} overlaps another line")]
    Overlap(u64),
    /// Unknown word format.
    #[error("Word format {0} is unknown")]
    BadFormat(u32),
}

impl SlotError {
    /// `VIRTIO_ECS_S_*` for the reply.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::BadAddress(_) => VIRTIO_ECS_S_BAD_ADDR,
            Self::Misaligned(..) => VIRTIO_ECS_S_MISALIGNED,
            Self::Overlap(_) => VIRTIO_ECS_S_OVERLAP,
            Self::BadFormat(_) => VIRTIO_ECS_S_BAD_FORMAT,
        }
    }
}

/// A checked place in guest memory: region and offset, so that a load needs no look-up.
#[derive(Debug, Clone)]
struct Place {
    region: Arc<GuestRegionMmap<()>>,
    offset: u64,
}

impl Place {
    fn new(mem: &GuestMem, addr: u64, len: u64, align: u64) -> Result<Self, SlotError> {
        if !addr.is_multiple_of(align) {
            return Err(SlotError::Misaligned(addr, align));
        }
        let region = mem.find(addr).ok_or(SlotError::BadAddress(addr))?.clone();
        let offset = addr - region.start_addr().0;
        match offset.checked_add(len) {
            Some(end) if end <= region.len() => Ok(Self { region, offset }),
            _ => Err(SlotError::BadAddress(addr)),
        }
    }

    /// Address in this process.
    fn address(&self) -> Option<u64> {
        let at = MemoryRegionAddress(self.offset);
        let address = self.region.get_host_address(at).ok()?;
        Some(address.addr() as u64)
    }

    fn load32(&self, field: u64) -> Option<u32> {
        self.region
            .load(MemoryRegionAddress(self.offset + field), Ordering::Acquire)
            .ok()
    }

    fn load64(&self, field: u64) -> Option<u64> {
        self.region
            .load(MemoryRegionAddress(self.offset + field), Ordering::Acquire)
            .ok()
    }

    /// A failed store means the region is gone; the guest then merely misses a hint.
    fn store32(&self, field: u64, value: u32) {
        let _ = self.region.store(
            value,
            MemoryRegionAddress(self.offset + field),
            Ordering::Release,
        );
    }

    fn store64(&self, field: u64, value: u64) {
        let _ = self.region.store(
            value,
            MemoryRegionAddress(self.offset + field),
            Ordering::Release,
        );
    }
}

/// Slots of one registered vCPU, checked against one memory map.
#[derive(Debug)]
pub struct VcpuSlots {
    mem: Arc<GuestMem>,
    registration: VirtioEcsRegister,
    guest: Place,
    host: Place,
    word: Option<(Place, WordFormat)>,
    counters: Arc<SlotCounters>,
}

/// Addresses of one vCPU's words in this process; `None` for what it has not.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct SlotAddresses {
    /// The line the guest writes.
    pub guest_line: Option<u64>,
    /// The line the host writes.
    pub host_line: Option<u64>,
    /// The word in which the guest's kernel counts.
    pub word: Option<u64>,
}

/// Counters of one vCPU that outlive a rebuild of its slots.
#[derive(Debug, Default)]
pub struct SlotCounters {
    /// Reads that made no sense.
    pub nr_faults: AtomicU64,
    /// Extensions granted.
    pub nr_grants: AtomicU64,
}

/// Offset of a field of a wire structure, resolved at compile time.
macro_rules! at {
    ($ty:ident . $field:ident) => {
        const { std::mem::offset_of!($ty, $field) as u64 }
    };
}

impl VcpuSlots {
    /// Checks a registration against the memory map and resolves its addresses.
    ///
    /// # Errors
    /// [`SlotError`] for an address outside memory, misaligned, overlapping its sibling, or an
    /// unknown word format. Overlap with *other* vCPUs is for the owner of all slots to check
    /// ([`VcpuSlots::overlaps`]).
    pub fn new(
        mem: &Arc<GuestMem>,
        registration: &VirtioEcsRegister,
        counters: Arc<SlotCounters>,
    ) -> Result<Self, SlotError> {
        let line = VIRTIO_ECS_LINE_SIZE as u64;
        let guest = Place::new(mem, registration.guest_line, line, line)?;
        let host = Place::new(mem, registration.host_line, line, line)?;
        if registration.guest_line == registration.host_line {
            return Err(SlotError::Overlap(registration.host_line));
        }
        let word = match registration.word_format {
            VIRTIO_ECS_WORD_NONE => None,
            VIRTIO_ECS_WORD_X86_PREEMPT => Some(WordFormat::X86Preempt),
            VIRTIO_ECS_WORD_X86_PREEMPT64 => Some(WordFormat::X86Preempt64),
            other => return Err(SlotError::BadFormat(other)),
        };
        let word = word
            .map(|format| {
                Place::new(mem, registration.word_addr, 4, 4).map(|place| (place, format))
            })
            .transpose()?;
        Ok(Self {
            mem: mem.clone(),
            registration: *registration,
            guest,
            host,
            word,
            counters,
        })
    }

    /// The registration these slots were built from.
    #[must_use]
    pub fn registration(&self) -> &VirtioEcsRegister {
        &self.registration
    }

    /// Counters shared with later slots of the same vCPU.
    #[must_use]
    pub fn counters(&self) -> &Arc<SlotCounters> {
        &self.counters
    }

    /// Whether one of the two lines is also a line of `other`. Lines are aligned, so equal
    /// addresses are the only overlap.
    #[must_use]
    pub fn overlaps(&self, other: &VirtioEcsRegister) -> bool {
        let mine = [self.registration.guest_line, self.registration.host_line];
        [other.guest_line, other.host_line]
            .iter()
            .any(|line| mine.contains(line))
    }

    /// Reads that made no sense so far.
    #[must_use]
    pub fn nr_faults(&self) -> u64 {
        self.counters.nr_faults.load(Ordering::Relaxed)
    }

    /// Reads every word once and says what the vCPU does. Never fails: see the crate's invariants.
    #[must_use]
    pub fn read(&self) -> CsSnapshot {
        self.try_read().unwrap_or_else(|| {
            self.counters.nr_faults.fetch_add(1, Ordering::Relaxed);
            CsSnapshot::default()
        })
    }

    fn try_read(&self) -> Option<CsSnapshot> {
        let waiting = self.guest.load32(at!(VirtioEcsGuestLine.waiting))?;
        let idle = self.guest.load32(at!(VirtioEcsGuestLine.idle))? != 0;
        let np_count = self.guest.load32(at!(VirtioEcsGuestLine.np_count))?;
        let p_count = self.guest.load32(at!(VirtioEcsGuestLine.p_count))?;
        if np_count > MAX_COUNT || p_count > MAX_COUNT {
            return None;
        }
        let wait = self.read_wait(waiting)?;
        let word = match &self.word {
            Some((place, format)) => format.in_section(place.load32(0)?, wait != Wait::None),
            None => false,
        };
        Some(CsSnapshot {
            non_preemptable: np_count > 0 || word,
            preemptable: p_count > 0,
            wait,
            blocked: waiting == VIRTIO_ECS_WAIT_BLOCK,
            idle,
        })
    }

    fn read_wait(&self, waiting: u32) -> Option<Wait> {
        match waiting {
            VIRTIO_ECS_WAIT_NONE => return Some(Wait::None),
            VIRTIO_ECS_WAIT_ENTER => return Some(Wait::Entering),
            VIRTIO_ECS_WAIT_SPIN | VIRTIO_ECS_WAIT_BLOCK => {}
            _ => return None,
        }
        let holder = match self.guest.load32(at!(VirtioEcsGuestLine.wait_holder))? {
            0 => None,
            n if n <= VIRTIO_ECS_MAX_VCPUS => u16::try_from(n - 1).ok(),
            _ => return None,
        };
        let mask = self.guest.load64(at!(VirtioEcsGuestLine.wait_mask))?;
        if mask == 0 {
            return Some(Wait::Unknown { holder });
        }
        let value = self.guest.load64(at!(VirtioEcsGuestLine.wait_value))?;
        let lock = self.guest.load64(at!(VirtioEcsGuestLine.wait_addr))?;
        let now = match self.guest.load32(at!(VirtioEcsGuestLine.wait_width))? {
            VIRTIO_ECS_WIDTH_32 if lock.is_multiple_of(4) => u64::from(self.load_at::<u32>(lock)?),
            VIRTIO_ECS_WIDTH_64 if lock.is_multiple_of(8) => self.load_at::<u64>(lock)?,
            _ => return None,
        };
        Some(if now & mask == value {
            Wait::Ended { lock }
        } else {
            Wait::Pending { lock, holder }
        })
    }

    fn load_at<T: vm_memory::AtomicAccess>(&self, addr: u64) -> Option<T> {
        let region = self.mem.find(addr)?;
        region
            .load(
                MemoryRegionAddress(addr - region.start_addr().0),
                Ordering::Acquire,
            )
            .ok()
    }

    /// Where the vCPU's words are in this process, for a kernel that pins their pages; valid as long
    /// as these slots are.
    #[must_use]
    pub fn addresses(&self) -> SlotAddresses {
        let word = self.word.as_ref();
        SlotAddresses {
            guest_line: self.guest.address(),
            host_line: self.host.address(),
            word: word.and_then(|(place, _)| place.address()),
        }
    }

    /// Polls of the guest in place of halts: how many paid and were wasted, and how long they took, us.
    /// Each wraps. Zero if it cannot be read.
    #[must_use]
    pub fn polls(&self) -> [u32; 3] {
        [
            at!(VirtioEcsGuestLine.polls_paid),
            at!(VirtioEcsGuestLine.polls_wasted),
            at!(VirtioEcsGuestLine.poll_us),
        ]
        .map(|field| self.guest.load32(field).unwrap_or(0))
    }

    /// Tells the guest that an extension runs (`true`) or ended.
    pub fn set_granted(&self, granted: bool) {
        self.host
            .store32(at!(VirtioEcsHostLine.granted), u32::from(granted));
        if granted {
            let nr = self.counters.nr_grants.fetch_add(1, Ordering::Relaxed) + 1;
            self.host.store64(at!(VirtioEcsHostLine.nr_grants), nr);
        }
    }

    /// Sets the `VIRTIO_ECS_YIELD_*` bits.
    pub fn set_yield(&self, bits: u32) {
        self.host.store32(at!(VirtioEcsHostLine.r#yield), bits);
    }

    /// Tells the guest whether the vCPU is off the CPU although it had work.
    pub fn set_preempted(&self, preempted: bool) {
        self.host
            .store32(at!(VirtioEcsHostLine.preempted), u32::from(preempted));
    }

    /// Tells the guest whether the vCPU's pCPU has more than one runnable task.
    pub fn set_overloaded(&self, overloaded: bool) {
        self.host
            .store32(at!(VirtioEcsHostLine.overloaded), u32::from(overloaded));
    }

    /// Shows that the host is alive: the generation of the device and a changing number.
    pub fn set_heartbeat(&self, generation: u32, beat: u32) {
        self.host
            .store32(at!(VirtioEcsHostLine.generation), generation);
        self.host.store32(at!(VirtioEcsHostLine.heartbeat), beat);
    }

    /// Clears every hint: what the guest must see when the host lets go of it.
    pub fn clear_hints(&self) {
        self.set_granted(false);
        self.set_yield(0);
        self.set_preempted(false);
        self.set_overloaded(false);
    }
}

/// How an existing word of the guest shows sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WordFormat {
    /// Bits 16-19 hardirq, 20-23 NMI, bit 31 the folded need-resched bit.
    X86Preempt,
    /// Bits 16-23 interrupts disabled, 24-27 hardirq, 28-31 NMI.
    X86Preempt64,
}

impl WordFormat {
    /// Whether the word shows a section. A spinning waiter has preemption disabled as a holder has,
    /// perhaps softirqs or interrupts too: one level of each is the wait's own.
    fn in_section(self, word: u32, waits: bool) -> bool {
        const PREEMPT: u32 = 0x0000_00ff;
        const SOFTIRQ: u32 = 0x0000_ff00;
        /// Softirqs disabled once; one that is served counts half of that.
        const SOFTIRQ_DISABLED: u32 = 0x0000_0200;
        let (irqs_disabled, interrupts) = match self {
            Self::X86Preempt => (0, word & 0x00ff_0000),
            Self::X86Preempt64 => (word & 0x00ff_0000, word & 0xff00_0000),
        };
        let own = |bits: u32, level: u32| waits && bits == level;
        let (preempt, softirq) = (word & PREEMPT, word & SOFTIRQ);
        interrupts != 0
            || (irqs_disabled != 0 && !own(irqs_disabled, 0x0001_0000))
            || (softirq != 0 && !own(softirq, SOFTIRQ_DISABLED))
            || (preempt != 0 && !own(preempt, 1))
    }
}

/// Slots of every registered vCPU of one VM; index is the vCPU number.
#[derive(Debug, Default, Clone)]
pub struct VmSlots {
    /// `None` where the vCPU is not registered.
    pub vcpus: Vec<Option<Arc<VcpuSlots>>>,
}

impl VmSlots {
    /// Slots of one vCPU.
    #[must_use]
    pub fn get(&self, vcpu: usize) -> Option<&Arc<VcpuSlots>> {
        self.vcpus.get(vcpu).and_then(Option::as_ref)
    }

    /// Number of registered vCPUs.
    #[must_use]
    pub fn nr_registered(&self) -> usize {
        self.vcpus.iter().flatten().count()
    }
}
