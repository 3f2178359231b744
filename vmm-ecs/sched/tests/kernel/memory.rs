//! Guest memory, as it is shared: for this side, and as the VMM's process has it.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use ecs_shm::GuestMem;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};

use crate::checker::types;

pub(crate) const PAGE: u64 = PAGE_BYTES as u64;
const PAGE_BYTES: usize = 4096;
/// Guest memory: address and size. Two lie side by side, one has no whole number of pages.
pub(crate) const REGIONS: [(u64, u64); 4] = [
    (0, 32 * PAGE),
    (0x10_0000, 2 * PAGE),
    (0x10_2000, PAGE),
    (0x4000_0000, PAGE + 4),
];
/// Lines of guests, words, and words that are waited for, in the first region.
pub(crate) const LINES: u64 = PAGE;
pub(crate) const HOST_LINES: u64 = LINES + 4 * PAGE;
pub(crate) const WORDS: u64 = HOST_LINES + 4 * PAGE;
pub(crate) const LOCKS: u64 = WORDS + PAGE;
/// A page that the VMM's process has no access to.
pub(crate) const FORBIDDEN: u64 = 20 * PAGE;

/// Memory that two mappings share, and that the kernel can pin.
fn memfd() -> File {
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: a new descriptor that nobody else owns.
    unsafe { File::from_raw_fd(fd) }
}

/// Both mappings.
pub(crate) struct Guest {
    pub(crate) ours: Arc<GuestMem>,
    pub(crate) vmm: Vec<Arc<GuestRegionMmap<()>>>,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let (ours, vmm): (Vec<_>, Vec<_>) = REGIONS
            .iter()
            .map(|&(at, len)| {
                let file = memfd();
                file.set_len(len.next_multiple_of(PAGE)).unwrap();
                let map = || {
                    let file = FileOffset::new(file.try_clone().unwrap(), 0);
                    let len = usize::try_from(len).unwrap();
                    Arc::new(
                        GuestRegionMmap::from_range(GuestAddress(at), len, Some(file)).unwrap(),
                    )
                };
                (map(), map())
            })
            .unzip();
        let guest = Self {
            ours: Arc::new(GuestMem::new(ours).unwrap()),
            vmm,
        };
        // A page that nobody has touched is not there for the kernel, which does not wait for it.
        for (region, (_, len)) in guest.vmm.iter().zip(REGIONS) {
            for page in (0..len).step_by(PAGE_BYTES) {
                let _: u8 = region.read_obj(MemoryRegionAddress(page)).unwrap();
            }
        }
        let page = guest.user(FORBIDDEN).unwrap();
        // SAFETY: a page of the mapping above, which nobody in this process reads or writes through
        // that mapping any more.
        let result =
            unsafe { libc::mprotect(page as *mut libc::c_void, PAGE_BYTES, libc::PROT_NONE) };
        assert_eq!(result, 0);
        guest
    }

    /// Where the VMM has an address.
    pub(crate) fn user(&self, gpa: u64) -> Option<u64> {
        let region = self.vmm.iter().find(|region| {
            gpa.checked_sub(region.start_addr().0)
                .is_some_and(|offset| offset < region.len())
        })?;
        let offset = gpa - region.start_addr().0;
        let address = region
            .get_host_address(MemoryRegionAddress(offset))
            .unwrap();
        Some(address as u64)
    }

    pub(crate) fn config(&self, nr_vcpus: usize) -> types::ecs_vm_config {
        let mut config = types::ecs_vm_config {
            epoch: 1,
            nr_vcpus: nr_vcpus.try_into().unwrap(),
            nr_regions: REGIONS.len().try_into().unwrap(),
            ..types::ecs_vm_config::default()
        };
        for (place, (gpa, len)) in config.regions.iter_mut().zip(REGIONS) {
            let user = self.user(gpa).unwrap();
            *place = types::ecs_region { gpa, len, user };
        }
        config
    }
}
