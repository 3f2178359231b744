//! A guest of one vCPU whose memory is a memfd, mapped twice: by the guest and by the host, as
//! between Cloud Hypervisor and the daemon.

use ecs_abi::*;
use ecs_shm::{CsSnapshot, GuestMem, VcpuSlots};
use std::fs::File;
use std::sync::Arc;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestRegionMmap};

/// Start and size of the memory of [`Guest::new`], bytes.
pub(crate) const START: u64 = 0x10_0000;
pub(crate) const SIZE: usize = 0x4000;
/// Where its lines and words lie.
pub(crate) const GUEST_LINE: u64 = START + 0x1000;
pub(crate) const HOST_LINE: u64 = START + 0x1040;
pub(crate) const WORD: u64 = START + 0x2000;
pub(crate) const LOCK: u64 = START + 0x3000;

/// Memory of a guest as a file.
pub(crate) fn memfd(size: usize) -> File {
    let fd = rustix::fs::memfd_create("ecs-shm-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(size as u64).unwrap();
    file
}

/// One mapping of it.
pub(crate) fn region(file: &File, start: u64, size: usize) -> Arc<GuestRegionMmap<()>> {
    let offset = FileOffset::new(file.try_clone().unwrap(), 0);
    Arc::new(GuestRegionMmap::from_range(GuestAddress(start), size, Some(offset)).unwrap())
}

/// A map of memfd regions.
pub(crate) fn memory(regions: &[(u64, usize)]) -> Arc<GuestMem> {
    let regions = regions
        .iter()
        .map(|&(start, size)| region(&memfd(size), start, size))
        .collect();
    Arc::new(GuestMem::new(regions).unwrap())
}

/// The registration of [`Guest::new`], without a word.
pub(crate) fn registration() -> VirtioEcsRegister {
    VirtioEcsRegister {
        op: VIRTIO_ECS_CTRL_REGISTER,
        guest_line: GUEST_LINE,
        host_line: HOST_LINE,
        ..Default::default()
    }
}

/// The same with a `preempt_count` word.
pub(crate) fn registration_with_word() -> VirtioEcsRegister {
    VirtioEcsRegister {
        word_addr: WORD,
        word_format: VIRTIO_ECS_WORD_X86_PREEMPT,
        ..registration()
    }
}

/// A wait on the 32-bit word at [`LOCK`] that ends when it becomes `value`.
pub(crate) fn waits_for(value: u64) -> VirtioEcsGuestLine {
    VirtioEcsGuestLine {
        waiting: VIRTIO_ECS_WAIT_SPIN,
        wait_addr: LOCK,
        wait_mask: 0xffff,
        wait_value: value,
        wait_width: VIRTIO_ECS_WIDTH_32,
        ..Default::default()
    }
}

/// Guest and host side of one vCPU.
pub(crate) struct Guest {
    /// The guest's own mapping.
    pub(crate) own: GuestMem,
    /// The host's slots over its own mapping.
    pub(crate) slots: VcpuSlots,
}

impl Guest {
    pub(crate) fn new(registration: &VirtioEcsRegister) -> Self {
        let file = memfd(SIZE);
        let own = GuestMem::new(vec![region(&file, START, SIZE)]).unwrap();
        let host = Arc::new(GuestMem::new(vec![region(&file, START, SIZE)]).unwrap());
        let slots = VcpuSlots::new(&host, registration, Arc::default()).unwrap();
        Self { own, slots }
    }

    /// The guest stores its whole line.
    pub(crate) fn publish(&self, line: &VirtioEcsGuestLine) {
        self.store(GUEST_LINE, &line.to_bytes());
    }

    /// The guest stores bytes.
    pub(crate) fn store(&self, addr: u64, bytes: &[u8]) {
        self.own
            .map()
            .write_slice(bytes, GuestAddress(addr))
            .unwrap();
    }

    /// The guest loads bytes.
    pub(crate) fn load<const N: usize>(&self, addr: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.own
            .map()
            .read_slice(&mut bytes, GuestAddress(addr))
            .unwrap();
        bytes
    }

    /// What the host reads of `line`; it must make sense.
    pub(crate) fn shows(&self, line: &VirtioEcsGuestLine) -> CsSnapshot {
        self.publish(line);
        let before = self.slots.nr_faults();
        let snap = self.slots.read();
        assert_eq!(self.slots.nr_faults(), before, "{line:?} is no fault");
        snap
    }
}
