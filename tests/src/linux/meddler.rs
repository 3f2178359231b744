//! A device that misbehaves: ours, with a meddler in the relay between it and QEMU.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use anyhow::Context;
use rustix::event::{EventfdFlags, eventfd};

use super::journal::Journal;
use super::wire::{HEAD, Message, overwrite, request};

/// Bytes before the data in the payload of `GET_CONFIG`.
const CONFIG_HEAD: usize = 12;
/// Flag of a descriptor: another one follows.
const NEXT: u16 = 1;
/// Flag of a descriptor: the device may write there.
const WRITE: u16 = 2;

/// How the device misbehaves.
#[derive(Debug, Clone, Default)]
pub struct Meddling {
    /// Bytes of config space that read as something else, by offset.
    pub config: Vec<(usize, Vec<u8>)>,
    /// Queue whose kicks never reach the device.
    pub deaf: Option<u32>,
    /// What the guest gets on the deaf queue, in place of nothing.
    pub garbage: Option<Garbage>,
}

/// An answer that makes no sense.
#[derive(Debug, Clone)]
pub struct Garbage {
    /// What is written where the answer belongs.
    pub bytes: Vec<u8>,
    /// How long the answer is said to be, bytes.
    pub length: u32,
    /// What is added to the number of the buffer that is given back.
    pub off_by: u32,
}

/// A [`Meddling`] at work.
#[derive(Debug)]
pub(super) struct Meddler {
    meddling: Meddling,
    /// Kick of the deaf queue, where it is answered with garbage.
    kick: Option<OwnedFd>,
    answered: u16,
}

impl Meddler {
    pub(super) fn new(meddling: Meddling) -> Self {
        Self {
            meddling,
            kick: None,
            answered: 0,
        }
    }

    /// Ready when there is something to answer.
    pub(super) fn kick(&self) -> Option<&OwnedFd> {
        self.kick.as_ref()
    }

    /// Keeps the kick of a deaf queue from the device; it is returned.
    pub(super) fn request(
        &mut self,
        message: &mut Message,
    ) -> anyhow::Result<Option<(u32, OwnedFd)>> {
        let queue = message.queue();
        if message.request() != request::SET_VRING_KICK || self.meddling.deaf != Some(queue) {
            return Ok(None);
        }
        let nobody = eventfd(0, EventfdFlags::CLOEXEC)?;
        let kicks = std::mem::replace(&mut message.fds, vec![nobody]);
        let kick = kicks
            .into_iter()
            .next()
            .context("A kick without descriptor")?;
        if self.meddling.garbage.is_some() {
            self.answered = 0;
            self.kick = Some(kick.try_clone()?);
        }
        Ok(Some((queue, kick)))
    }

    /// Changes what a reply says about config space.
    pub(super) fn reply(&self, message: &mut Message) {
        if message.request() != request::GET_CONFIG {
            return;
        }
        let word = |at| usize::try_from(message.u32_at(at)).unwrap_or(0);
        let (from, size) = (word(0), word(4));
        for (offset, value) in &self.meddling.config {
            for (at, byte) in (*offset..).zip(value) {
                if (from..from + size).contains(&at) {
                    let place = HEAD + CONFIG_HEAD + at - from;
                    overwrite(&mut message.bytes, place, &[*byte]);
                }
            }
        }
    }

    /// Answers everything on the deaf queue.
    pub(super) fn answer(&mut self, journal: &Journal) -> anyhow::Result<()> {
        let (Some(queue), Some(garbage)) = (self.meddling.deaf, &self.meddling.garbage) else {
            return Ok(());
        };
        let kick = self.kick.as_ref().context("No kick")?;
        rustix::io::read(kick, &mut [0; 8])?;
        let ring = journal.ring(queue).context("A kick before its queue")?;
        let available = journal.avail_idx(&ring)?;
        while self.answered != available {
            let slot = u64::from(self.answered % ring.size);
            let head = u16::from_le_bytes(journal.load(ring.avail + 4 + 2 * slot)?);
            let mut index = head;
            loop {
                let at = ring.descriptors + 16 * u64::from(index);
                let address = u64::from_le_bytes(journal.load(at)?);
                let flags = u16::from_le_bytes(journal.load(at + 12)?);
                if flags & WRITE != 0 {
                    journal.store_guest(address, &garbage.bytes)?;
                }
                if flags & NEXT == 0 {
                    break;
                }
                index = u16::from_le_bytes(journal.load(at + 14)?);
            }
            let used = [u32::from(head) + garbage.off_by, garbage.length];
            let used = used.map(u32::to_le_bytes).concat();
            journal.store(ring.used + 4 + 8 * slot, &used)?;
            self.answered = self.answered.wrapping_add(1);
            journal.store(ring.used + 2, &self.answered.to_le_bytes())?;
        }
        let call = journal.call(queue).context("Nobody to interrupt")?;
        Ok(File::from(call.try_clone()?).write_all(&1u64.to_ne_bytes())?)
    }
}
