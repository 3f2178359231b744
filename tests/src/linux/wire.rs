//! vhost-user messages as they are on the socket, with the descriptors that come with them.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::Context;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Requests of the front-end.
pub(super) mod request {
    pub(in crate::linux) const GET_FEATURES: u32 = 1;
    pub(in crate::linux) const SET_FEATURES: u32 = 2;
    pub(in crate::linux) const SET_OWNER: u32 = 3;
    pub(in crate::linux) const SET_MEM_TABLE: u32 = 5;
    pub(in crate::linux) const SET_LOG_BASE: u32 = 6;
    pub(in crate::linux) const SET_LOG_FD: u32 = 7;
    pub(in crate::linux) const SET_VRING_NUM: u32 = 8;
    pub(in crate::linux) const SET_VRING_ADDR: u32 = 9;
    pub(in crate::linux) const SET_VRING_BASE: u32 = 10;
    pub(in crate::linux) const GET_VRING_BASE: u32 = 11;
    pub(in crate::linux) const SET_VRING_KICK: u32 = 12;
    pub(in crate::linux) const SET_VRING_CALL: u32 = 13;
    pub(in crate::linux) const SET_VRING_ERR: u32 = 14;
    pub(in crate::linux) const GET_PROTOCOL_FEATURES: u32 = 15;
    pub(in crate::linux) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(in crate::linux) const GET_QUEUE_NUM: u32 = 17;
    pub(in crate::linux) const SET_VRING_ENABLE: u32 = 18;
    pub(in crate::linux) const SET_BACKEND_REQ_FD: u32 = 21;
    pub(in crate::linux) const GET_CONFIG: u32 = 24;
    pub(in crate::linux) const GET_INFLIGHT_FD: u32 = 31;
    pub(in crate::linux) const SET_INFLIGHT_FD: u32 = 32;
    pub(in crate::linux) const GET_MAX_MEM_SLOTS: u32 = 36;
    pub(in crate::linux) const ADD_MEM_REG: u32 = 37;
    pub(in crate::linux) const REM_MEM_REG: u32 = 38;
    pub(in crate::linux) const SET_STATUS: u32 = 39;
    pub(in crate::linux) const GET_STATUS: u32 = 40;
}

/// Bytes of a message's head: request, flags, length.
pub(super) const HEAD: usize = 12;
/// Flags: version 1 of the protocol, and a reply.
const REPLY: u32 = 0x1 | 0x4;
/// Flag: the sender wants to hear how it went.
const NEED_REPLY: u32 = 0x8;
/// Most descriptors in one message.
const MOST_FDS: usize = 32;

/// One message with the descriptors that came with it.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

impl Message {
    /// An answer to a request.
    pub(super) fn reply(request: u32, payload: &[u8]) -> Self {
        let length = u32::try_from(payload.len()).unwrap_or(0);
        let mut bytes = Vec::new();
        for word in [request, REPLY, length] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend(payload);
        Self {
            bytes,
            fds: Vec::new(),
        }
    }

    pub(super) fn request(&self) -> u32 {
        word(&self.bytes, 0)
    }

    pub(super) fn payload(&self) -> &[u8] {
        self.bytes.get(HEAD..).unwrap_or_default()
    }

    /// The 32 bits at `at` in the payload, zero behind its end.
    pub(super) fn u32_at(&self, at: usize) -> u32 {
        word(self.payload(), at)
    }

    /// The 64 bits at `at` in the payload, zero behind its end.
    pub(super) fn u64_at(&self, at: usize) -> u64 {
        let bytes = self.payload().get(at..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    }

    /// Queue that a request about one queue names: for those with a descriptor in the low byte.
    pub(super) fn queue(&self) -> u32 {
        self.u32_at(0) & 0xff
    }

    /// Whether its sender waits for an answer.
    pub(super) fn wants_reply(&self) -> bool {
        const GETS: [u32; 8] = [
            request::GET_FEATURES,
            request::GET_VRING_BASE,
            request::GET_PROTOCOL_FEATURES,
            request::GET_QUEUE_NUM,
            request::GET_CONFIG,
            request::GET_INFLIGHT_FD,
            request::GET_MAX_MEM_SLOTS,
            request::GET_STATUS,
        ];
        GETS.contains(&self.request()) || word(&self.bytes, 4) & NEED_REPLY != 0
    }

    /// The same message from a sender who does not ask how it went.
    pub(super) fn quiet(&self) -> anyhow::Result<Self> {
        let mut bytes = self.bytes.clone();
        let flags = word(&bytes, 4) & !NEED_REPLY;
        overwrite(&mut bytes, 4, &flags.to_ne_bytes());
        let fds = self.fds.iter().map(OwnedFd::try_clone);
        Ok(Self {
            bytes,
            fds: fds.collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn receive(stream: &UnixStream) -> anyhow::Result<Self> {
        let mut bytes = vec![0; HEAD];
        let mut fds = Vec::new();
        fill(stream, &mut bytes, &mut fds)?;
        let mut payload = vec![0; usize::try_from(word(&bytes, 8))?];
        fill(stream, &mut payload, &mut fds)?;
        bytes.append(&mut payload);
        Ok(Self { bytes, fds })
    }

    pub(super) fn send(&self, stream: &UnixStream) -> anyhow::Result<()> {
        let fds: Vec<BorrowedFd<'_>> = self.fds.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&fds));
        }
        let bytes = [IoSlice::new(&self.bytes)];
        let sent = sendmsg(stream, &bytes, &mut control, SendFlags::NOSIGNAL)?;
        anyhow::ensure!(sent == self.bytes.len(), "A message was cut");
        Ok(())
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..).and_then(<[u8]>::first_chunk);
    bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// Puts `value` at `at`, as far as there is room.
pub(super) fn overwrite(bytes: &mut [u8], at: usize, value: &[u8]) {
    let room = bytes.get_mut(at..).unwrap_or_default();
    for (place, byte) in room.iter_mut().zip(value) {
        *place = *byte;
    }
}

/// Reads until `bytes` is full, and collects descriptors.
fn fill(stream: &UnixStream, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> anyhow::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let rest = bytes.get_mut(done..).context("No room")?;
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(stream, &mut [IoSliceMut::new(rest)], &mut control, flags)?;
        anyhow::ensure!(received.bytes > 0, "The other side is gone");
        done += received.bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
    }
    Ok(())
}
