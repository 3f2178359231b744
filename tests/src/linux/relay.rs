//! A VMM that keeps its device when the daemon goes away: QEMU with a relay before it.
//!
//! QEMU's test device does not connect again. To QEMU the relay is a backend that never goes; to
//! the daemon it is a front-end that does what Cloud Hypervisor does: it connects every 100 ms
//! until somebody listens, and tells a new backend features, memory and queues again.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::journal::Journal;
use super::meddler::{Meddler, Meddling};
use super::wire::{Message, request};
use crate::process::until;

/// Time between two tries to connect.
const RETRY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};
/// Time a backend has for an answer while it is told everything again.
const ANSWER: Duration = Duration::from_secs(5);

/// A relay on a socket of its own.
#[derive(Debug)]
pub struct Relay {
    socket: PathBuf,
    shared: Arc<Shared>,
    _dir: tempfile::TempDir,
}

#[derive(Debug, Default)]
struct Shared {
    /// Where the backend listens.
    behind: Mutex<PathBuf>,
    /// The connection with it, to be cut.
    back: Mutex<Option<UnixStream>>,
    connects: AtomicU64,
    held: AtomicU64,
    /// Kicks of deaf queues, by queue.
    kicks: Mutex<Vec<(u32, OwnedFd)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Relay {
    /// Waits for QEMU, and connects it with the backend that listens at `behind`.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn new(behind: &Path) -> anyhow::Result<Self> {
        Self::meddling(behind, Meddling::default())
    }

    /// The same, for a device that misbehaves.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn meddling(behind: &Path, meddling: Meddling) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("ecs-relay-").tempdir()?;
        let socket = dir.path().join("relay.sock");
        let listener = UnixListener::bind(&socket)?;
        let shared = Arc::new(Shared::default());
        behind.clone_into(&mut lock(&shared.behind));
        let kept = Arc::clone(&shared);
        // Detached: it waits for the next boot until the test program ends.
        thread::spawn(move || {
            for front in listener.incoming().map_while(Result::ok) {
                let mut session = Session {
                    front,
                    back: None,
                    journal: Journal::default(),
                    owed: None,
                    meddler: Meddler::new(meddling.clone()),
                    shared: Arc::clone(&kept),
                };
                if let Err(error) = session.serve() {
                    println!("The relay failed: {error:#}");
                }
                session.lose();
            }
        });
        Ok(Self {
            socket,
            shared,
            _dir: dir,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Times a backend has been told everything.
    #[must_use]
    pub fn connects(&self) -> u64 {
        self.shared.connects.load(Ordering::Relaxed)
    }

    /// Waits until a backend has been told everything more often than `before` times.
    ///
    /// # Errors
    /// If it is not so within `limit`.
    pub fn wait_for_more_than(&self, before: u64, limit: Duration) -> anyhow::Result<()> {
        until("the relay to connect again", limit, || {
            (self.connects() > before).then_some(())
        })
    }

    /// Requests that only a backend can answer and that came when there was none. The VMM stood
    /// still for them: Cloud Hypervisor would have ended.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// Leaves the backend for the one that listens at `behind`, as a VMM that is moved does.
    pub fn turn_to(&self, behind: &Path) {
        behind.clone_into(&mut lock(&self.shared.behind));
        if let Some(back) = lock(&self.shared.back).take() {
            let _ = back.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Whether the guest has kicked a deaf queue, and nobody has answered it since.
    #[must_use]
    pub fn was_kicked(&self, queue: u32) -> bool {
        let kicks = lock(&self.shared.kicks);
        kicks.iter().any(|(of, kick)| {
            let mut fds = [PollFd::new(kick, PollFlags::IN)];
            *of == queue && poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
        })
    }
}

/// One QEMU, from its first message to its end.
struct Session {
    front: UnixStream,
    back: Option<UnixStream>,
    journal: Journal,
    /// The request QEMU waits for an answer to.
    owed: Option<Message>,
    meddler: Meddler,
    shared: Arc<Shared>,
}

impl Session {
    /// Ends when QEMU does.
    fn serve(&mut self) -> anyhow::Result<()> {
        loop {
            if self.back.is_none() {
                self.connect()?;
            }
            let ready = {
                let back = self.back.as_ref().unwrap_or(&self.front);
                let mut fds = vec![
                    PollFd::new(&self.front, PollFlags::IN),
                    PollFd::new(back, PollFlags::IN),
                ];
                fds.extend(
                    self.meddler
                        .kick()
                        .map(|kick| PollFd::new(kick, PollFlags::IN)),
                );
                poll(&mut fds, Some(&RETRY))?;
                let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
                [ready(0), self.back.is_some() && ready(1), ready(2)]
            };
            let [front, back, kick] = ready;
            if front {
                let Ok(message) = Message::receive(&self.front) else {
                    return Ok(());
                };
                self.request(message)?;
            }
            if back {
                self.reply()?;
            }
            if kick {
                self.meddler.answer(&self.journal)?;
            }
        }
    }

    fn request(&mut self, mut message: Message) -> anyhow::Result<()> {
        if let Some((queue, kick)) = self.meddler.request(&mut message)? {
            lock(&self.shared.kicks).push((queue, kick));
        }
        self.journal.note(&message)?;
        let sent = self
            .back
            .as_ref()
            .is_some_and(|back| message.send(back).is_ok());
        if message.wants_reply() {
            self.owed = Some(message);
        }
        if !sent {
            self.lose();
            self.answer_alone()?;
        }
        Ok(())
    }

    fn reply(&mut self) -> anyhow::Result<()> {
        let message = self.back.as_ref().map(Message::receive);
        let Some(Ok(mut message)) = message else {
            self.lose();
            return self.answer_alone();
        };
        self.owed = None;
        self.meddler.reply(&mut message);
        message.send(&self.front)
    }

    fn lose(&mut self) {
        self.back = None;
        *lock(&self.shared.back) = None;
    }

    /// What a VMM knows without its backend. Whatever else QEMU wants must wait for the next one.
    fn answer_alone(&mut self) -> anyhow::Result<()> {
        let Some(owed) = self.owed.take() else {
            return Ok(());
        };
        let answer = match owed.request() {
            request::GET_VRING_BASE => {
                let ring = self.journal.ring(owed.queue());
                let base = ring.map_or(Ok(0), |ring| self.journal.avail_idx(&ring))?;
                let words = [owed.queue(), u32::from(base)];
                words.map(u32::to_ne_bytes).concat()
            }
            request::GET_FEATURES | request::GET_PROTOCOL_FEATURES => {
                self.owed = Some(owed);
                return Ok(());
            }
            _ if Journal::keeps(&owed) => 0u64.to_ne_bytes().to_vec(),
            _ => {
                self.shared.held.fetch_add(1, Ordering::Relaxed);
                self.owed = Some(owed);
                return Ok(());
            }
        };
        Message::reply(owed.request(), &answer).send(&self.front)
    }

    /// Tries to connect, and tells the backend everything. Fails only if guest memory cannot be
    /// read; a backend that is not there, or goes away again, is tried again.
    fn connect(&mut self) -> anyhow::Result<()> {
        let behind = lock(&self.shared.behind).clone();
        let Ok(back) = UnixStream::connect(&behind) else {
            return Ok(());
        };
        back.set_read_timeout(Some(ANSWER))?;
        for message in self.journal.replay()? {
            let told = message.send(&back);
            // QEMU has had these answers.
            if told.is_err() || (message.wants_reply() && Message::receive(&back).is_err()) {
                return Ok(());
            }
        }
        if let Some(owed) = &self.owed
            && owed.send(&back).is_err()
        {
            return Ok(());
        }
        back.set_read_timeout(None)?;
        *lock(&self.shared.back) = Some(back.try_clone()?);
        self.back = Some(back);
        self.shared.connects.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}
