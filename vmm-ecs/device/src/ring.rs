//! One virtqueue: where it lies, whether it runs, and what is in a chain.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::memory::MemTable;

/// Longest queue offered.
const MAX_SIZE: u16 = 1024;

/// Why a queue cannot be set up or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RingError {
    #[error("Queue size {0} is not a power of two up to {MAX_SIZE}")]
    Size(u32),
    #[error("The queue has no addresses yet")]
    NoAddresses,
    #[error("A ring of the queue is not in the memory table")]
    NotInMemory,
    #[error("The queue does not make sense")]
    Queue(#[from] virtio_queue::Error),
}

/// Addresses of the three parts, in the front-end's process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RingAddresses {
    pub(crate) descriptors: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
}

/// One virtqueue of a connected front-end.
#[derive(Debug)]
pub(crate) struct Ring {
    queue: Queue,
    addresses: Option<RingAddresses>,
    base: u16,
    pub(crate) enabled: bool,
    pub(crate) kick: Option<Arc<OwnedFd>>,
    pub(crate) call: Option<File>,
}

impl Ring {
    pub(crate) fn new() -> Result<Self, RingError> {
        Ok(Self {
            queue: Queue::new(MAX_SIZE)?,
            addresses: None,
            base: 0,
            enabled: false,
            kick: None,
            call: None,
        })
    }

    pub(crate) fn set_size(&mut self, size: u32) -> Result<(), RingError> {
        let small = u16::try_from(size).map_err(|_| RingError::Size(size))?;
        self.queue
            .try_set_size(small)
            .map_err(|_| RingError::Size(size))
    }

    pub(crate) fn set_addresses(&mut self, addresses: RingAddresses) {
        self.addresses = Some(addresses);
    }

    pub(crate) fn set_base(&mut self, base: u16) {
        self.base = base;
    }

    /// Starts the queue where the guest's used ring says it was left. The base a front-end gives
    /// after a reconnect counts buffers as taken that never were; messages are answered in order
    /// and none is open between two requests, so `used_idx` is exact.
    pub(crate) fn start(&mut self, table: &MemTable) -> Result<(), RingError> {
        let addresses = self.addresses.ok_or(RingError::NoAddresses)?;
        let place = |address| table.translate(address).ok_or(RingError::NotInMemory);
        self.queue
            .try_set_desc_table_address(place(addresses.descriptors)?)?;
        self.queue
            .try_set_avail_ring_address(place(addresses.avail)?)?;
        self.queue
            .try_set_used_ring_address(place(addresses.used)?)?;
        if !self.fits(table) {
            return Err(RingError::NotInMemory);
        }
        let used = self.queue.used_idx(table.mem().map(), Ordering::Acquire)?.0;
        self.queue.set_next_avail(used);
        self.queue.set_next_used(used);
        self.queue.set_ready(true);
        Ok(())
    }

    /// Whether all three parts lie in the table.
    pub(crate) fn fits(&self, table: &MemTable) -> bool {
        let size = usize::from(self.queue.size());
        [
            (self.queue.desc_table(), 16 * size),
            (self.queue.avail_ring(), 6 + 2 * size),
            (self.queue.used_ring(), 6 + 8 * size),
        ]
        .into_iter()
        .all(|(at, len)| GuestMemoryBackend::check_range(table.mem().map(), GuestAddress(at), len))
    }

    /// Stops the queue and says where to go on.
    pub(crate) fn stop(&mut self) -> u16 {
        if self.queue.ready() {
            self.base = self.queue.next_avail();
        }
        self.queue.set_ready(false);
        self.base
    }

    pub(crate) fn started(&self) -> bool {
        self.queue.ready()
    }

    /// Set up, enabled, not paused.
    pub(crate) fn runs(&self) -> bool {
        self.queue.ready() && self.enabled
    }

    pub(crate) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Buffers the device has given back so far, modulo 2^16.
    pub(crate) fn nr_used(&self) -> u16 {
        self.queue.next_used()
    }

    /// The chains the guest has made available, at most the queue's size of them.
    ///
    /// # Errors
    /// An available index that is further ahead than the queue is long.
    pub(crate) fn chains<'a>(
        &mut self,
        map: &'a GuestMemoryMmap<()>,
        most: usize,
    ) -> Result<Vec<DescriptorChain<&'a GuestMemoryMmap<()>>>, RingError> {
        Ok(self.queue.iter(map)?.take(most).collect())
    }

    /// Gives a chain back with `len` bytes written into it.
    pub(crate) fn give_back(
        &mut self,
        map: &GuestMemoryMmap<()>,
        head: u16,
        len: u32,
    ) -> Result<(), RingError> {
        Ok(self.queue.add_used(map, head, len)?)
    }

    /// Interrupts the guest. An eventfd that would block is one the guest is being told of anyway.
    pub(crate) fn interrupt(&self) {
        let Some(mut call) = self.call.as_ref() else {
            return;
        };
        let mut room = [PollFd::new(call.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut room, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            let _ = call.write(&1u64.to_ne_bytes());
        }
    }
}

/// What is wrong with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChainFault {
    #[error("A descriptor chain loops, or leaves the table")]
    Endless,
    #[error("A descriptor the device may read follows one it may write")]
    Order,
    #[error("A descriptor is not in guest memory")]
    NotInMemory,
    #[error("A buffer has less room than the device needs")]
    NoRoom,
}

/// The buffers of one chain: what the guest says, and where there is room for an answer.
#[derive(Debug)]
pub(crate) struct Buffers {
    /// The readable bytes, `most + 1` of them at most.
    pub(crate) message: Vec<u8>,
    room: Vec<(GuestAddress, usize)>,
}

impl Buffers {
    /// Walks a chain once and copies what is readable. `most` is the longest message and `need`
    /// the room for the answer, bytes.
    pub(crate) fn of(
        chain: DescriptorChain<&GuestMemoryMmap<()>>,
        most: usize,
        need: usize,
    ) -> Result<Self, ChainFault> {
        let map = chain.memory();
        let mut message = Vec::new();
        let mut room = Vec::new();
        let mut found = 0usize;
        // An iteration that ends early ends on a descriptor that has a next one, or on none.
        let mut open = true;
        for descriptor in chain.clone() {
            open = descriptor.has_next();
            let len = usize::try_from(descriptor.len()).map_err(|_| ChainFault::NotInMemory)?;
            if descriptor.is_write_only() {
                let take = len.min(need - found);
                if !GuestMemoryBackend::check_range(map, descriptor.addr(), take) {
                    return Err(ChainFault::NotInMemory);
                }
                room.push((descriptor.addr(), take));
                found += take;
                continue;
            }
            if !room.is_empty() {
                return Err(ChainFault::Order);
            }
            let old = message.len();
            message.resize(old + len.min(most + 1 - old), 0);
            if let Some(part) = message.get_mut(old..) {
                map.read_slice(part, descriptor.addr())
                    .map_err(|_| ChainFault::NotInMemory)?;
            }
        }
        if open {
            return Err(ChainFault::Endless);
        }
        if found < need {
            return Err(ChainFault::NoRoom);
        }
        Ok(Self { message, room })
    }

    /// Writes the answer, no longer than the room that was asked for. Returns the bytes written.
    pub(crate) fn write(
        &self,
        map: &GuestMemoryMmap<()>,
        answer: &[u8],
    ) -> Result<u32, ChainFault> {
        let mut rest = answer;
        let mut written = 0u32;
        for (at, len) in &self.room {
            let (part, tail) = rest.split_at(rest.len().min(*len));
            map.write_slice(part, *at)
                .map_err(|_| ChainFault::NotInMemory)?;
            written += u32::try_from(part.len()).unwrap_or(0);
            rest = tail;
        }
        Ok(written)
    }
}
