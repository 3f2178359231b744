//! Split virtqueues in guest memory, and the driver's side of them.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::shared::GuestRam;

/// Descriptors of a queue.
pub(crate) const QUEUE_LEN: usize = QUEUE_LEN_U16 as usize;
/// The same, as the protocol has it.
pub(crate) const QUEUE_LEN_U16: u16 = 16;
/// Control messages that can be under way: each needs two descriptors.
pub(crate) const CONTROL_SLOTS: usize = QUEUE_LEN / 2;
/// Words of a control message buffer.
const MESSAGE_WORDS: usize = 8;

const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;

/// `struct virtq_desc`.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct Desc {
    addr: AtomicU64,
    len: AtomicU32,
    flags: AtomicU16,
    next: AtomicU16,
}

/// `struct virtq_avail`.
#[repr(C, align(2))]
#[derive(Debug)]
pub struct Avail {
    flags: AtomicU16,
    idx: AtomicU16,
    ring: [AtomicU16; QUEUE_LEN],
    used_event: AtomicU16,
}

/// `struct virtq_used_elem`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct UsedElem {
    id: AtomicU32,
    len: AtomicU32,
}

/// `struct virtq_used`.
#[repr(C, align(4))]
#[derive(Debug)]
pub struct Used {
    flags: AtomicU16,
    idx: AtomicU16,
    ring: [UsedElem; QUEUE_LEN],
    avail_event: AtomicU16,
}

/// One split virtqueue.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Ring {
    /// Descriptor table.
    pub desc: [Desc; QUEUE_LEN],
    /// Driver's ring.
    pub avail: Avail,
    /// Device's ring.
    pub used: Used,
}

/// Buffers of the control and event queues.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Buffers {
    messages: [[AtomicU64; MESSAGE_WORDS]; CONTROL_SLOTS],
    replies: [[AtomicU64; 4]; CONTROL_SLOTS],
    events: [[AtomicU64; 2]; QUEUE_LEN],
}

impl Ring {
    /// Where the driver's next buffer goes: the ring base after a reconnect.
    pub(crate) fn avail_idx(&self) -> u16 {
        self.avail.idx.load(Ordering::Acquire)
    }

    fn set_desc(&self, index: usize, addr: u64, len: usize, flags: u16, next: usize) {
        let Some(desc) = self.desc.get(index) else {
            return;
        };
        desc.addr.store(addr, Ordering::Relaxed);
        desc.len
            .store(u32::try_from(len).unwrap_or(0), Ordering::Relaxed);
        desc.flags.store(flags, Ordering::Relaxed);
        desc.next
            .store(u16::try_from(next).unwrap_or(0), Ordering::Relaxed);
    }

    fn offer(&self, head: usize) {
        let idx = self.avail.idx.load(Ordering::Relaxed);
        if let Some(entry) = self.avail.ring.get(usize::from(idx) % QUEUE_LEN) {
            entry.store(u16::try_from(head).unwrap_or(0), Ordering::Relaxed);
        }
        self.avail.idx.store(idx.wrapping_add(1), Ordering::Release);
    }

    /// Head and length of the next used buffer after `seen`, if there is one.
    fn take_used(&self, seen: &mut u16) -> Option<(usize, usize)> {
        if self.used.idx.load(Ordering::Acquire) == *seen {
            return None;
        }
        let entry = self.used.ring.get(usize::from(*seen) % QUEUE_LEN)?;
        *seen = seen.wrapping_add(1);
        let id = usize::try_from(entry.id.load(Ordering::Relaxed)).ok()?;
        let len = usize::try_from(entry.len.load(Ordering::Relaxed)).ok()?;
        Some((id, len))
    }
}

fn put(words: &[AtomicU64], bytes: &[u8]) {
    for (word, chunk) in words.iter().zip(bytes.chunks(8)) {
        let mut le = [0; 8];
        for (to, from) in le.iter_mut().zip(chunk) {
            *to = *from;
        }
        word.store(u64::from_le_bytes(le), Ordering::Relaxed);
    }
}

fn get(words: &[AtomicU64]) -> Vec<u8> {
    words
        .iter()
        .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
        .collect()
}

/// The driver of the control queue: one message at a time, each in buffers of its own, so that an
/// answer that comes late (after the device was restarted) cannot be taken for another one's.
#[derive(Debug, Default)]
pub(crate) struct ControlDriver {
    next_slot: usize,
    used_seen: u16,
}

impl ControlDriver {
    /// Posts a message; returns the slot in which the reply will be.
    pub(crate) fn send(&mut self, ram: &GuestRam, message: &[u8]) -> usize {
        let queues = &ram.shared().queues;
        let [ring, ..] = &queues.rings;
        let slot = self.next_slot % CONTROL_SLOTS;
        self.next_slot = self.next_slot.wrapping_add(1);
        let buffers = (
            queues.buffers.messages.get(slot),
            queues.buffers.replies.get(slot),
        );
        if let (Some(out), Some(back)) = buffers {
            put(out, message);
            put(back, &[0; 32]);
            let head = slot * 2;
            ring.set_desc(head, ram.gpa_of(out), message.len(), DESC_F_NEXT, head + 1);
            ring.set_desc(
                head + 1,
                ram.gpa_of(back),
                size_of_val(back),
                DESC_F_WRITE,
                0,
            );
            ring.offer(head);
        }
        slot
    }

    /// The reply in `slot`, once the device has written it.
    pub(crate) fn reply(&mut self, ram: &GuestRam, slot: usize) -> Option<Vec<u8>> {
        let queues = &ram.shared().queues;
        let [ring, ..] = &queues.rings;
        while let Some((head, len)) = ring.take_used(&mut self.used_seen) {
            if head == slot * 2 {
                let mut bytes = get(queues.buffers.replies.get(slot)?);
                bytes.truncate(len);
                return Some(bytes);
            }
        }
        None
    }
}

/// The driver of the event queue: keeps every buffer posted.
#[derive(Debug, Default)]
pub(crate) struct EventDriver {
    used_seen: u16,
}

impl EventDriver {
    /// Posts every buffer, for a device that knows of none.
    pub(crate) fn post_all(&mut self, ram: &GuestRam) {
        let queues = &ram.shared().queues;
        let [_, ring, ..] = &queues.rings;
        self.used_seen = ring.used.idx.load(Ordering::Acquire);
        for index in 0..QUEUE_LEN {
            Self::post(ram, ring, index);
        }
    }

    fn post(ram: &GuestRam, ring: &Ring, index: usize) {
        if let Some(buffer) = ram.shared().queues.buffers.events.get(index) {
            ring.set_desc(
                index,
                ram.gpa_of(buffer),
                size_of_val(buffer),
                DESC_F_WRITE,
                0,
            );
            ring.offer(index);
        }
    }

    /// Bytes of the next event, if there is one; its buffer is posted again.
    pub(crate) fn take(&mut self, ram: &GuestRam) -> Option<Vec<u8>> {
        let queues = &ram.shared().queues;
        let [_, ring, ..] = &queues.rings;
        let (index, len) = ring.take_used(&mut self.used_seen)?;
        let mut bytes = get(queues.buffers.events.get(index)?);
        bytes.truncate(len);
        Self::post(ram, ring, index);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn layout_is_that_of_the_specification() {
        assert_eq!(size_of::<Desc>(), 16);
        assert_eq!(offset_of!(Avail, ring), 4);
        assert_eq!(offset_of!(Avail, used_event), 4 + 2 * QUEUE_LEN);
        assert_eq!(size_of::<UsedElem>(), 8);
        assert_eq!(offset_of!(Used, ring), 4);
        assert_eq!(offset_of!(Used, avail_event), 4 + 8 * QUEUE_LEN);
    }
}
