//! A device that misbehaves: ours, with a meddler on the socket between it and QEMU.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// vhost-user requests the meddler knows.
mod request {
    pub(super) const SET_VRING_KICK: u32 = 12;
    pub(super) const GET_CONFIG: u32 = 24;
}

/// Bytes of a message's head: request, flags, length.
const HEAD: usize = 12;
/// Bytes before the data in the payload of `GET_CONFIG`.
const CONFIG_HEAD: usize = 12;

/// How the device misbehaves.
#[derive(Debug, Clone, Default)]
pub struct Meddling {
    /// Bytes of config space that read as something else, by offset.
    pub config: Vec<(usize, Vec<u8>)>,
    /// Queues whose kicks never reach the device: nothing on them is answered.
    pub deaf: Vec<u8>,
}

/// A meddler on a socket of its own.
#[derive(Debug)]
pub struct Meddler {
    socket: PathBuf,
    /// Kicks of deaf queues, by queue.
    kicks: Arc<Mutex<HashMap<u8, OwnedFd>>>,
    _dir: tempfile::TempDir,
}

impl Meddler {
    /// Waits for QEMU, and connects it with the device at `behind`.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn new(behind: &Path, meddling: Meddling) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("ecs-meddler-").tempdir()?;
        let socket = dir.path().join("meddler.sock");
        let listener = UnixListener::bind(&socket)?;
        let kicks = Arc::<Mutex<HashMap<u8, OwnedFd>>>::default();
        let (behind, kept) = (behind.to_owned(), kicks.clone());
        // Detached: it waits for the next boot until the test program ends.
        thread::spawn(move || {
            for front in listener.incoming().map_while(Result::ok) {
                if let Ok(back) = UnixStream::connect(&behind) {
                    let _ = connect(&front, &back, meddling.clone(), &kept);
                }
            }
        });
        Ok(Self {
            socket,
            kicks,
            _dir: dir,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether the guest has kicked a deaf queue.
    #[must_use]
    pub fn was_kicked(&self, queue: u8) -> bool {
        let kicks = self.kicks.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(kick) = kicks.get(&queue) else {
            return false;
        };
        let mut fds = [PollFd::new(kick, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }
}

/// One message with the descriptors that came with it.
struct Message {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Message {
    fn request(&self) -> u32 {
        self.bytes
            .first_chunk::<4>()
            .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }
}

fn connect(
    front: &UnixStream,
    back: &UnixStream,
    meddling: Meddling,
    kicks: &Mutex<HashMap<u8, OwnedFd>>,
) -> anyhow::Result<()> {
    let (to_front, from_back) = (front.try_clone()?, back.try_clone()?);
    let config = meddling.config;
    thread::spawn(move || {
        while let Ok(mut message) = receive(&from_back) {
            if message.request() == request::GET_CONFIG {
                for (offset, value) in &config {
                    overwrite(&mut message.bytes, *offset, value);
                }
            }
            if send(&to_front, &message).is_err() {
                break;
            }
        }
        let _ = to_front.shutdown(std::net::Shutdown::Both);
    });
    while let Ok(mut message) = receive(front) {
        let queue = message.bytes.get(HEAD).copied().unwrap_or_default();
        if message.request() == request::SET_VRING_KICK && meddling.deaf.contains(&queue) {
            let nobody = eventfd(0, EventfdFlags::CLOEXEC)?;
            for kick in std::mem::replace(&mut message.fds, vec![nobody]) {
                let mut kicks = kicks.lock().unwrap_or_else(PoisonError::into_inner);
                kicks.insert(queue, kick);
            }
        }
        send(back, &message)?;
    }
    let _ = back.shutdown(std::net::Shutdown::Both);
    Ok(())
}

/// Changes what a reply says about config space at `offset`.
fn overwrite(reply: &mut [u8], offset: usize, value: &[u8]) {
    let field = |at: usize| -> Option<usize> {
        let bytes = reply.get(HEAD + at..)?.first_chunk::<4>()?;
        usize::try_from(u32::from_ne_bytes(*bytes)).ok()
    };
    let (Some(from), Some(size)) = (field(0), field(4)) else {
        return;
    };
    for (at, byte) in (offset..).zip(value) {
        if (from..from + size).contains(&at)
            && let Some(place) = reply.get_mut(HEAD + CONFIG_HEAD + at - from)
        {
            *place = *byte;
        }
    }
}

fn receive(stream: &UnixStream) -> anyhow::Result<Message> {
    let mut bytes = vec![0; HEAD];
    let mut fds = Vec::new();
    fill(stream, &mut bytes, &mut fds)?;
    let length = bytes
        .get(8..)
        .and_then(|rest| rest.first_chunk::<4>())
        .context("A head without a length")?;
    let mut payload = vec![0; usize::try_from(u32::from_ne_bytes(*length))?];
    fill(stream, &mut payload, &mut fds)?;
    bytes.append(&mut payload);
    Ok(Message { bytes, fds })
}

/// Most descriptors in one message.
const MOST_FDS: usize = 32;

/// Reads until `bytes` is full, and collects descriptors.
fn fill(stream: &UnixStream, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> anyhow::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let rest = bytes.get_mut(done..).unwrap_or_default();
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

fn send(stream: &UnixStream, message: &Message) -> anyhow::Result<()> {
    let fds: Vec<BorrowedFd<'_>> = message.fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let bytes = [IoSlice::new(&message.bytes)];
    let sent = sendmsg(stream, &bytes, &mut control, SendFlags::NOSIGNAL)?;
    anyhow::ensure!(sent == message.bytes.len(), "A message was cut");
    Ok(())
}
