//! What a VMM knows of a vhost-user device: told again to a backend that starts anew.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use anyhow::Context;

use super::wire::{HEAD, Message, overwrite, request};

/// Place of a message among those that are told again: phase, queue or region, step.
type Place = (u8, u64, u8);

/// Place of a queue's kick, which starts it.
const KICK: u8 = 5;
/// Phase in which queues are set up.
const QUEUES: u8 = 4;

/// The last message of each kind that sets something, in the order in which a VMM sends them.
#[derive(Debug, Default)]
pub(super) struct Journal(BTreeMap<Place, Message>);

/// A virtqueue in the guest's memory: its size, and where its parts lie in QEMU's process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ring {
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
}

fn place(message: &Message) -> Option<Place> {
    let queue = u64::from(message.queue());
    Some(match message.request() {
        request::SET_OWNER => (0, 0, 0),
        request::GET_FEATURES => (1, 0, 0),
        request::GET_PROTOCOL_FEATURES => (1, 0, 1),
        request::SET_PROTOCOL_FEATURES => (1, 0, 2),
        request::SET_FEATURES => (1, 0, 3),
        request::SET_BACKEND_REQ_FD => (1, 0, 4),
        request::SET_MEM_TABLE => (2, 0, 0),
        request::ADD_MEM_REG | request::REM_MEM_REG => (2, message.u64_at(8), 1),
        request::SET_LOG_BASE => (3, 0, 0),
        request::SET_LOG_FD => (3, 0, 1),
        request::SET_INFLIGHT_FD => (3, 0, 2),
        request::SET_VRING_NUM => (QUEUES, queue, 0),
        request::SET_VRING_ADDR => (QUEUES, queue, 1),
        request::SET_VRING_BASE => (QUEUES, queue, 2),
        request::SET_VRING_CALL => (QUEUES, queue, 3),
        request::SET_VRING_ERR => (QUEUES, queue, 4),
        request::SET_VRING_KICK => (QUEUES, queue, KICK),
        request::SET_VRING_ENABLE => (5, queue, 0),
        request::SET_STATUS => (6, 0, 0),
        _ => return None,
    })
}

impl Journal {
    /// Whether a message sets something that is told again.
    pub(super) fn keeps(message: &Message) -> bool {
        place(message).is_some()
    }

    /// Keeps what a message of the front-end sets.
    pub(super) fn note(&mut self, message: &Message) -> anyhow::Result<()> {
        let queue = u64::from(message.queue());
        match (message.request(), place(message)) {
            (request::GET_VRING_BASE, _) => {
                self.0.remove(&(QUEUES, queue, KICK));
            }
            (request::REM_MEM_REG, Some(place)) => {
                self.0.remove(&place);
            }
            (_, Some(place)) => {
                self.0.insert(place, message.quiet()?);
            }
            _ => {}
        }
        Ok(())
    }

    /// What to tell a backend that knows nothing. Queues go on where the guest's driver is, as with
    /// Cloud Hypervisor, which does not know where the former backend was.
    pub(super) fn replay(&self) -> anyhow::Result<Vec<Message>> {
        let messages = self.0.values().map(|message| {
            let mut message = message.quiet()?;
            if message.request() == request::SET_VRING_BASE
                && let Some(ring) = self.ring(message.queue())
            {
                let base = u32::from(self.avail_idx(&ring)?);
                overwrite(&mut message.bytes, HEAD + 4, &base.to_ne_bytes());
            }
            Ok(message)
        });
        messages.collect()
    }

    /// A queue that has been set up.
    pub(super) fn ring(&self, queue: u32) -> Option<Ring> {
        let queue = u64::from(queue);
        let size = self.0.get(&(QUEUES, queue, 0))?.u32_at(4);
        let addresses = self.0.get(&(QUEUES, queue, 1))?;
        Some(Ring {
            size: u16::try_from(size).ok()?,
            descriptors: addresses.u64_at(8),
            used: addresses.u64_at(16),
            avail: addresses.u64_at(24),
        })
    }

    /// Descriptor that interrupts the guest for a queue.
    pub(super) fn call(&self, queue: u32) -> Option<&OwnedFd> {
        let call = self.0.get(&(QUEUES, u64::from(queue), 3))?;
        call.fds.first()
    }

    /// Buffers the guest has made available on a queue so far, modulo 2^16.
    pub(super) fn avail_idx(&self, ring: &Ring) -> anyhow::Result<u16> {
        Ok(u16::from_le_bytes(self.load(ring.avail + 2)?))
    }

    /// Reads guest memory at an address of QEMU's process.
    pub(super) fn load<const N: usize>(&self, address: u64) -> anyhow::Result<[u8; N]> {
        let (file, offset) = self.locate(address)?;
        let mut bytes = [0; N];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Writes guest memory at an address of QEMU's process.
    pub(super) fn store(&self, address: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let (file, offset) = self.locate(address)?;
        Ok(file.write_all_at(bytes, offset)?)
    }

    /// The same, at a guest physical address.
    pub(super) fn store_guest(&self, address: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let (file, offset) = self.find(address, 0)?;
        Ok(file.write_all_at(bytes, offset)?)
    }

    fn locate(&self, address: u64) -> anyhow::Result<(File, u64)> {
        self.find(address, 16)
    }

    /// File and offset of an address, whose kind of address is at `field` of a region.
    fn find(&self, address: u64, field: usize) -> anyhow::Result<(File, u64)> {
        const REGION: usize = 32;
        const SIZE: usize = 8;
        const OFFSET: usize = 24;
        for message in self
            .0
            .range((2, 0, 0)..(3, 0, 0))
            .map(|(_, message)| message)
        {
            for (index, file) in message.fds.iter().enumerate() {
                let at = 8 + index * REGION;
                let from = message.u64_at(at + field);
                if (from..from + message.u64_at(at + SIZE)).contains(&address) {
                    let offset = address - from + message.u64_at(at + OFFSET);
                    return Ok((file.try_clone()?.into(), offset));
                }
            }
        }
        None.context("An address outside of guest memory")
    }
}
