//! What the parts of one device share, and how other threads reach its thread.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use ecs_abi::VirtioEcsEvent;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::counters::Counters;
use crate::device::DeviceConfig;
use crate::events::Events;
use crate::limit::Limit;
use crate::state::StateFile;
use crate::view::VmSink;

/// What every part of one device shares.
pub(crate) struct Context {
    pub(crate) config: DeviceConfig,
    pub(crate) sink: Arc<dyn VmSink>,
    pub(crate) counters: Counters,
    pub(crate) state_file: Option<StateFile>,
    log: Mutex<Limit>,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Context {
    pub(crate) fn new(config: DeviceConfig, sink: Arc<dyn VmSink>) -> Self {
        let state_file = config
            .state_dir
            .as_ref()
            .map(|dir| StateFile::new(dir, &config.name));
        Self {
            config,
            sink,
            counters: Counters::default(),
            state_file,
            log: Mutex::new(Limit::log()),
        }
    }

    /// Whether a line may be logged that a guest or front-end can bring about; `Some` with the
    /// number of lines held back before it.
    pub(crate) fn may_log(&self) -> Option<u64> {
        lock(&self.log).check(Instant::now()).ok()
    }

    /// Such a line about something that went wrong.
    pub(crate) fn warn(&self, error: &dyn std::error::Error, message: &str) {
        if let Some(held_back) = self.may_log() {
            let vm = self.config.name.as_str();
            let source = error.source().map(tracing::field::display);
            tracing::warn!(vm, %error, source, held_back, "{message}");
        }
    }
}

/// The other threads' way to the device's thread.
#[derive(Debug)]
pub(crate) struct Handle {
    stop: AtomicBool,
    wake: EventFd,
    mail: Mutex<Events>,
    connection: Mutex<Option<UnixStream>>,
}

/// A panic of another thread leaves nothing half done in these.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handle {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            stop: AtomicBool::new(false),
            wake: EventFd::new(EFD_NONBLOCK)?,
            mail: Mutex::default(),
            connection: Mutex::default(),
        })
    }

    /// Leaves an event for the guest. Returns whether an older one had to go.
    pub(crate) fn notify(&self, event: VirtioEcsEvent) -> bool {
        let dropped = lock(&self.mail).push(event);
        self.wake();
        dropped
    }

    /// Takes the events left, and the wake-up that came with them.
    pub(crate) fn take_mail(&self) -> Events {
        // Nothing to read means that it was not this that woke the thread.
        let _ = self.wake.read();
        std::mem::take(&mut *lock(&self.mail))
    }

    /// The descriptor that becomes readable when there is something to do.
    pub(crate) fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// The connection to end when the device is stopped.
    pub(crate) fn set_connection(&self, connection: Option<UnixStream>) {
        *lock(&self.connection) = connection;
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        // Ends a reply that the front-end does not take.
        if let Some(connection) = lock(&self.connection).as_ref() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        self.wake();
    }

    /// A full eventfd wakes all the same.
    fn wake(&self) {
        let _ = self.wake.write(1);
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}
