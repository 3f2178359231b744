//! The programs in the kernel: loaded, attached, and their memory.

use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::ptr::{NonNull, addr_of, addr_of_mut};

use ecs_shm::SlotAddresses;
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags};

use super::Looks;
use crate::scx::{named, wait_for_programs};
use crate::sys::{Tid, thread_fd};

/// The loader that is generated from `bpf/tell.bpf.c`.
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    missing_docs,
    unreachable_pub
)]
mod compiled {
    include!(concat!(env!("OUT_DIR"), "/tell.skel.rs"));
}

use compiled::{TellSkel, TellSkelBuilder, types};

/// They tell until they are dropped.
pub(super) struct Programs {
    skel: TellSkel<'static>,
    bss: NonNull<types::bss>,
}

// SAFETY: the skeleton is Send and Sync by its own word; the memory behind `bss` is shared with the
// kernel, mapped as long as the skeleton lives, and accessed by volatile reads and writes of plain numbers.
unsafe impl Send for Programs {}
// SAFETY: as above.
unsafe impl Sync for Programs {}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Programs")
    }
}

impl Programs {
    pub(super) fn start(looks: Looks) -> Result<Self, String> {
        let say = |error: libbpf_rs::Error| format!("{error:#}");
        // A few words, once a start of a controller: what borrows them has no lifetime of its own.
        let place = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = TellSkelBuilder::default().open(place).map_err(say)?;
        let Some(rodata) = open.maps.rodata_data.as_deref_mut() else {
            return Err("they have no constants".to_owned());
        };
        rodata.looker = match looks {
            Looks::FromAbove => i32::try_from(std::process::id()).unwrap_or(0),
            Looks::Beside => 0,
        };
        let mut skel = open.load().map_err(say)?;
        let Some(bss) = skel.maps.bss_data.as_deref_mut().map(NonNull::from) else {
            return Err("they have no variables".to_owned());
        };
        skel.attach().map_err(say)?;
        Ok(Self { skel, bss })
    }

    pub(super) fn show(&self, tid: Tid, index: usize, words: SlotAddresses) -> Result<(), String> {
        let number = u64::try_from(index).unwrap_or(u64::MAX).saturating_add(1);
        let thread = thread_fd(tid).map_err(|error| error.to_string())?;
        let name = |words| {
            self.skel.maps.threads.update(
                &thread.as_raw_fd().to_ne_bytes(),
                named::value(number, words).as_flattened(),
                MapFlags::ANY,
            )
        };
        // Pages that the kernel cannot pin: it is at least counted how long the vCPU ran.
        name(words)
            .or_else(|_| name(SlotAddresses::default()))
            .map_err(|error| format!("{error:#}"))
    }

    pub(super) fn remove(&self, tid: Tid) {
        // It may have ended before: then there is nothing to remove.
        if let Ok(thread) = thread_fd(tid) {
            let threads = &self.skel.maps.threads;
            let _ = threads.delete(&thread.as_raw_fd().to_ne_bytes());
        }
    }

    /// `None` beyond the last place.
    #[allow(clippy::indexing_slicing, reason = "compared with the array's length")]
    pub(super) fn overloaded_ns(&self, index: usize) -> Option<u64> {
        const fn len<const N: usize>(_: fn(&types::bss) -> &[u64; N]) -> usize {
            N
        }
        const PLACES: usize = len(|bss| &bss.overloaded_ns);
        // SAFETY: see `Programs`; the index is in range.
        let read =
            || unsafe { addr_of!((*self.bss.as_ptr()).overloaded_ns[index]).read_volatile() };
        (index < PLACES).then(read)
    }

    /// Says whether the daemon makes vCPUs wait on a CPU.
    #[allow(clippy::indexing_slicing, reason = "compared with the array's length")]
    pub(super) fn crowd(&self, cpu: u32, crowded: bool) {
        const fn len<const N: usize>(_: fn(&types::bss) -> &[types::tell_cpu; N]) -> usize {
            N
        }
        const PLACES: usize = len(|bss| &bss.cpus);
        let cpu = cpu as usize;
        if cpu < PLACES {
            let crowded = std::mem::MaybeUninit::new(crowded);
            // SAFETY: see `Programs`; the index is in range, and nobody else writes this byte.
            unsafe { addr_of_mut!((*self.bss.as_ptr()).cpus[cpu].crowded).write_volatile(crowded) };
        }
    }

    pub(super) fn settle(&self) {
        wait_for_programs();
    }
}
