//! One device as the daemon holds it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use ecs_abi::VirtioEcsEvent;

use crate::context::{Context, Handle};
use crate::counters::{DeviceCounters, count};
use crate::server::Server;
use crate::socket::{self, BoundSocket, SocketError};
use crate::view::VmSink;
use crate::watch::{WatchError, check_name};

/// Doorbell queues at most: queue indices of vhost-user are bytes.
const MAX_DOORBELLS: u16 = 254;
/// Longest wait for the device's thread to end.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// How one device is set up.
#[derive(Debug, Clone)]
pub struct DeviceConfig {
    /// Name of the VM; see [`check_name`].
    pub name: String,
    /// Path of the socket, at most 107 bytes.
    pub socket: PathBuf,
    /// Permissions of the socket, e.g. `0o660`.
    pub socket_mode: u32,
    /// Doorbell queues offered, the queues from index 2 on; at most 254.
    pub nr_doorbells: u16,
    /// Longest extension, ns, for the guest's information.
    pub extension_ns: u32,
    /// Default slice, ns, for the guest's information.
    pub slice_ns: u32,
    /// Where registrations are kept, so that a restarted daemon goes on without the guest's help;
    /// an existing directory that does not outlive the host's boot. `None`: nowhere.
    pub state_dir: Option<PathBuf>,
}

/// Why a device cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The name.
    #[error(transparent)]
    Name(#[from] WatchError),
    /// Too many doorbells.
    #[error("VM {name:?}: {nr_doorbells} doorbells are more than the {MAX_DOORBELLS} there can be")]
    Doorbells {
        /// Name of the VM.
        name: String,
        /// Doorbells asked for.
        nr_doorbells: u16,
    },
    /// The directory for saved state.
    #[error("The state directory {0} does not exist: create it, or configure none")]
    StateDir(PathBuf),
    /// Descriptors or the thread.
    #[error("VM {name:?}: cannot start the device")]
    Start {
        /// Name of the VM.
        name: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// A bound device with its thread; it stops when it is dropped.
#[derive(Debug)]
pub struct Device {
    context: Arc<Context>,
    handle: Arc<Handle>,
    thread: Option<JoinHandle<()>>,
    ended: Receiver<()>,
    socket: Option<BoundSocket>,
}

impl Device {
    /// Binds the socket and starts to serve front-ends, one after the other.
    ///
    /// # Errors
    /// [`DeviceError`]: bad configuration, a socket that is in use or cannot be made, no resources.
    pub fn bind(config: DeviceConfig, sink: Arc<dyn VmSink>) -> Result<Self, DeviceError> {
        check_name(&config.name)?;
        if config.nr_doorbells > MAX_DOORBELLS {
            return Err(DeviceError::Doorbells {
                name: config.name,
                nr_doorbells: config.nr_doorbells,
            });
        }
        if let Some(dir) = config.state_dir.as_ref().filter(|dir| !dir.is_dir()) {
            return Err(DeviceError::StateDir(dir.clone()));
        }
        let (listener, socket) = socket::bind(&config.socket, config.socket_mode)?;
        let name = config.name.clone();
        let fail = |source| DeviceError::Start { name, source };
        let start = || {
            let handle = Arc::new(Handle::new()?);
            let context = Arc::new(Context::new(config, sink));
            let server = Server::new(context.clone(), handle.clone(), listener)?;
            let (end, ended) = channel();
            let thread = std::thread::Builder::new()
                .name("ecs-device".to_owned())
                .spawn(move || {
                    server.run();
                    drop(end);
                })?;
            Ok((context, handle, thread, ended))
        };
        let (context, handle, thread, ended) = start().map_err(fail)?;
        tracing::info!(
            vm = context.config.name,
            socket = %context.config.socket.display(),
            "Waiting for a front-end"
        );
        Ok(Self {
            context,
            handle,
            thread: Some(thread),
            ended,
            socket: Some(socket),
        })
    }

    /// Name of the VM.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.context.config.name
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> DeviceCounters {
        self.context.counters.read()
    }

    /// Sends an event to the guest. It waits if the guest has posted no buffer; the latest few are
    /// kept. Never blocks.
    pub fn notify(&self, event: VirtioEcsEvent) {
        if self.handle.notify(event) {
            count(&self.context.counters.dropped_events, 1);
        }
    }

    /// Ends the connection and the thread, and removes the socket.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.handle.stop();
        // The thread drops its end when it is done; it never sends.
        match self.ended.recv_timeout(STOP_LIMIT) {
            Err(RecvTimeoutError::Timeout) => tracing::error!(
                vm = self.context.config.name,
                "The device does not stop; its thread is left behind"
            ),
            _ => {
                if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
                    tracing::error!(
                        vm = self.context.config.name,
                        "The device's thread panicked"
                    );
                }
            }
        }
        drop(self.socket.take());
    }
}
