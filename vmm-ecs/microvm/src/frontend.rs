//! The vhost-user front-end: connects as Cloud Hypervisor does, and plays the guest's driver.
//!
//! The VMM side keeps a connection: it retries every 100 ms for 60 s, at the start and whenever the
//! backend dies, and replays features, memory table and rings. The driver side negotiates in config
//! space and registers each vCPU's lines; after a reconnect it does so again only if the device has
//! lost them. Everything happens in one background thread: the VM runs on meanwhile.

use std::io;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use ecs_abi::*;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend as Channel, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::machine::Machine;
use crate::report::DeviceReport;
use crate::ring::{ControlDriver, EventDriver, QUEUE_LEN, QUEUE_LEN_U16};
use crate::shared::RAM_GPA;
use crate::sys;

const RETRY_EVERY: Duration = Duration::from_millis(100);
const RETRY_FOR: Duration = Duration::from_secs(60);
/// Longest wait for an answer on the socket or the control queue.
const ANSWER_TIME: Duration = Duration::from_secs(5);
const POLL_MS: i32 = 500;

const VIRTIO_F_VERSION_1: u64 = 1 << 32;
/// What this driver can do.
const DRIVER_FEATURES: u64 = VIRTIO_ECS_F_LINES
    | VIRTIO_ECS_F_WAIT
    | VIRTIO_ECS_F_DOORBELL
    | VIRTIO_ECS_F_HINTS
    | VIRTIO_ECS_F_EVENTS;

/// Why a connection came to nothing.
#[derive(Debug, thiserror::Error)]
enum DeviceError {
    #[error("Cannot connect to {0}: start vmm-ecs, or check the path and its permissions")]
    Connect(PathBuf, #[source] io::Error),
    #[error("The backend broke off at {0}")]
    Protocol(&'static str, #[source] vhost::Error),
    #[error("The backend offers features {0:#x}: it does not speak vhost-user protocol features")]
    Features(u64),
    #[error("The backend offers {0} queues: the device needs 3 at least")]
    Queues(usize),
    #[error("Config space is not that of an eCS device: {0}")]
    Config(String),
    #[error("The device refuses the driver: config status {0}")]
    Refused(u32),
    #[error("The device does not answer on its control queue")]
    NoReply,
    #[error("The device refuses vCPU {vcpu}: status {status}")]
    Register { vcpu: u32, status: u16 },
    #[error("The backend went away")]
    Gone,
    #[error("Cannot make or use an eventfd")]
    Event(#[source] io::Error),
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

#[derive(Debug, Default)]
struct Status {
    report: Mutex<DeviceReport>,
    /// The connection, to be cut at the end.
    stream: Mutex<Option<UnixStream>>,
    stop: AtomicBool,
}

impl Status {
    fn update(&self, change: impl FnOnce(&mut DeviceReport)) {
        change(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn set_stream(&self, stream: Option<UnixStream>) {
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = stream;
    }
}

/// The front-end of a running VM.
#[derive(Debug)]
pub(crate) struct Frontend {
    status: Arc<Status>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Frontend {
    /// Starts connecting in the background.
    pub(crate) fn spawn(socket: PathBuf, machine: Arc<Machine>) -> io::Result<Self> {
        let status = Arc::new(Status::default());
        let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let mut driver = Driver::new(machine, Arc::clone(&status))?;
        let stop = Arc::clone(&wake);
        let body = move || driver.serve(&socket, &stop);
        let thread = Builder::new().name("frontend".to_owned()).spawn(body)?;
        Ok(Self {
            status,
            wake,
            thread: Some(thread),
        })
    }

    /// What became of the device so far.
    pub(crate) fn report(&self) -> DeviceReport {
        self.status
            .report
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Frontend {
    fn drop(&mut self) {
        self.status.stop.store(true, Ordering::Release);
        let _ = self.wake.write(1);
        let stream = self
            .status
            .stream
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(stream) = stream {
            // Ends a read that waits for a backend which does not answer.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The VMM's and the guest driver's state, which outlives a connection.
struct Driver {
    machine: Arc<Machine>,
    status: Arc<Status>,
    control: ControlDriver,
    events: EventDriver,
    kicks: [EventFd; 2],
    calls: [EventFd; 2],
    /// A call nobody waits for: doorbell queues have no buffers.
    doorbell_call: EventFd,
    cookie: u32,
    activated: bool,
    /// Generation of the device that has every vCPU.
    registered: Option<u32>,
}

impl Driver {
    fn new(machine: Arc<Machine>, status: Arc<Status>) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK);
        Ok(Self {
            machine,
            status,
            control: ControlDriver::default(),
            events: EventDriver::default(),
            kicks: [event()?, event()?],
            calls: [event()?, event()?],
            doorbell_call: event()?,
            cookie: 0,
            activated: false,
            registered: None,
        })
    }

    fn stopping(&self) -> bool {
        self.status.stop.load(Ordering::Acquire)
    }

    /// Keeps a connection until told to stop, or for 60 s without one.
    fn serve(&mut self, socket: &Path, stop: &EventFd) {
        let mut lost_at = Instant::now();
        while !self.stopping() && lost_at.elapsed() < RETRY_FOR {
            let error = match self.connect(socket) {
                Ok(mut channel) => {
                    let result = self.session(&mut channel, stop);
                    self.status.set_stream(None);
                    let was_up = self
                        .status
                        .report
                        .lock()
                        .is_ok_and(|report| report.registered);
                    self.status.update(|report| report.registered = false);
                    if was_up {
                        lost_at = Instant::now();
                    }
                    match result {
                        Ok(()) => return,
                        Err(error) => error,
                    }
                }
                Err(error) => error,
            };
            if self.stopping() {
                return;
            }
            let text = chain(&error);
            tracing::debug!(error = text, "eCS device not usable");
            self.status.update(|report| report.error = Some(text));
            let _ = sys::poll(
                [stop.as_raw_fd()],
                i32::try_from(RETRY_EVERY.as_millis()).unwrap_or(100),
            );
        }
        if !self.stopping() {
            tracing::warn!(socket = %socket.display(), "eCS device given up, the VM runs on without");
        }
    }

    fn connect(&self, socket: &Path) -> Result<Channel, DeviceError> {
        let failed = |error| DeviceError::Connect(socket.to_owned(), error);
        let stream = UnixStream::connect(socket).map_err(failed)?;
        stream.set_read_timeout(Some(ANSWER_TIME)).map_err(failed)?;
        stream
            .set_write_timeout(Some(ANSWER_TIME))
            .map_err(failed)?;
        self.status
            .set_stream(Some(stream.try_clone().map_err(failed)?));
        let nr_queues = self.machine.ram.shared().queues.rings.len();
        Ok(Channel::from_stream(stream, nr_queues as u64))
    }

    /// One connection, from the first message until it breaks. `Ok` when told to stop.
    fn session(&mut self, channel: &mut Channel, stop: &EventFd) -> Result<(), DeviceError> {
        self.activate(channel)?;
        self.status.update(|report| report.nr_connects += 1);
        self.negotiate_and_register(channel)?;
        let connection = channel.as_raw_fd();
        loop {
            let fds = [connection, self.calls[1].as_raw_fd(), stop.as_raw_fd()];
            let [gone, event, _] = sys::poll(fds, POLL_MS).map_err(DeviceError::Event)?;
            if self.stopping() {
                return Ok(());
            }
            if gone {
                return Err(DeviceError::Gone);
            }
            if event {
                let _ = self.calls[1].read();
                self.take_events(channel)?;
            }
        }
    }

    /// Features, memory table and rings, in the order of Cloud Hypervisor.
    fn activate(&mut self, channel: &mut Channel) -> Result<(), DeviceError> {
        let at = |what| move |error| DeviceError::Protocol(what, error);
        channel.set_owner().map_err(at("SET_OWNER"))?;
        let offered = channel.get_features().map_err(at("GET_FEATURES"))?;
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        if offered & protocol == 0 {
            return Err(DeviceError::Features(offered));
        }
        let can = channel
            .get_protocol_features()
            .map_err(at("GET_PROTOCOL_FEATURES"))?;
        let wanted = VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::REPLY_ACK;
        channel
            .set_protocol_features(can & wanted)
            .map_err(at("SET_PROTOCOL_FEATURES"))?;
        if can.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            channel.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let rings = self.machine.ram.shared().queues.rings.len();
        let mut queues = 2 + self.machine.nr_vcpus;
        if can.contains(VhostUserProtocolFeatures::MQ) {
            let offered = channel.get_queue_num().map_err(at("GET_QUEUE_NUM"))?;
            queues = queues.min(usize::try_from(offered).unwrap_or(rings));
        }
        if queues < 3 {
            return Err(DeviceError::Queues(queues));
        }
        let config = self.read_config(channel)?;
        let nr_doorbells = (queues - 2).min(usize::from(config.nr_doorbells));
        if nr_doorbells == 0 {
            return Err(DeviceError::Config(
                "it offers no doorbell queue".to_owned(),
            ));
        }

        channel
            .set_features(offered & (VIRTIO_F_VERSION_1 | protocol))
            .map_err(at("SET_FEATURES"))?;
        let ram = &self.machine.ram;
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: RAM_GPA,
            memory_size: ram.len() as u64,
            userspace_addr: ram.addr() as u64,
            mmap_offset: 0,
            mmap_handle: ram.raw_fd(),
        };
        channel
            .set_mem_table(&[region])
            .map_err(at("SET_MEM_TABLE"))?;
        if !self.activated {
            self.events.post_all(ram);
        }
        for queue in 0..2 + nr_doorbells {
            self.set_up_queue(channel, queue)?;
        }
        for queue in 0..2 + nr_doorbells {
            channel
                .set_vring_enable(queue, true)
                .map_err(at("SET_VRING_ENABLE"))?;
        }
        let nr_doorbells = u32::try_from(nr_doorbells).unwrap_or(0);
        ram.shared()
            .control
            .nr_doorbells
            .store(nr_doorbells, Ordering::Relaxed);
        self.activated = true;
        Ok(())
    }

    fn set_up_queue(&self, channel: &Channel, queue: usize) -> Result<(), DeviceError> {
        let at = |what| move |error| DeviceError::Protocol(what, error);
        let Some(ring) = self.machine.ram.shared().queues.rings.get(queue) else {
            return Err(DeviceError::Queues(queue));
        };
        let (kick, call) = match (self.kicks.get(queue), self.calls.get(queue)) {
            (Some(kick), Some(call)) => (kick, call),
            _ => match self.machine.doorbells.get(queue - 2) {
                Some(doorbell) => (doorbell, &self.doorbell_call),
                None => return Err(DeviceError::Queues(queue)),
            },
        };
        let addr_of = |addr: usize| addr as u64;
        let config = VringConfigData {
            queue_max_size: QUEUE_LEN_U16,
            queue_size: QUEUE_LEN_U16,
            flags: 0,
            desc_table_addr: addr_of(std::ptr::from_ref(&ring.desc).addr()),
            used_ring_addr: addr_of(std::ptr::from_ref(&ring.used).addr()),
            avail_ring_addr: addr_of(std::ptr::from_ref(&ring.avail).addr()),
            log_addr: None,
        };
        // Cloud Hypervisor starts a new queue at 0, and resumes at the driver's index.
        let base = if self.activated { ring.avail_idx() } else { 0 };
        channel
            .set_vring_num(queue, QUEUE_LEN_U16)
            .map_err(at("SET_VRING_NUM"))?;
        channel
            .set_vring_addr(queue, &config)
            .map_err(at("SET_VRING_ADDR"))?;
        channel
            .set_vring_base(queue, base)
            .map_err(at("SET_VRING_BASE"))?;
        channel
            .set_vring_call(queue, call)
            .map_err(at("SET_VRING_CALL"))?;
        channel
            .set_vring_kick(queue, kick)
            .map_err(at("SET_VRING_KICK"))
    }

    fn read_config(&self, channel: &mut Channel) -> Result<VirtioEcsConfig, DeviceError> {
        let size = u32::try_from(VirtioEcsConfig::SIZE).unwrap_or(0);
        let blank = [0; VirtioEcsConfig::SIZE];
        let (_, bytes) = channel
            .get_config(0, size, VhostUserConfigFlags::WRITABLE, &blank)
            .map_err(|error| DeviceError::Protocol("GET_CONFIG", error))?;
        let config = VirtioEcsConfig::from_bytes(&bytes)
            .ok_or_else(|| DeviceError::Config(format!("it has {} bytes", bytes.len())))?;
        if config.magic != VIRTIO_ECS_MAGIC {
            return Err(DeviceError::Config(format!("magic {:#x}", config.magic)));
        }
        if !(config.version_min..=config.version_max).contains(&VIRTIO_ECS_VERSION) {
            let versions = (config.version_min, config.version_max);
            return Err(DeviceError::Config(format!(
                "versions {} to {}",
                versions.0, versions.1
            )));
        }
        Ok(config)
    }

    /// Negotiates and registers, unless the device still has everything.
    fn negotiate_and_register(&mut self, channel: &mut Channel) -> Result<(), DeviceError> {
        let mut config = self.read_config(channel)?;
        let known =
            config.status == VIRTIO_ECS_NEG_OK && self.registered == Some(config.generation);
        if !known {
            config = self.negotiate(channel, &config)?;
            self.register_all(channel)?;
            self.registered = Some(config.generation);
        }
        tracing::info!(generation = config.generation, known, "eCS device in use");
        self.status.update(|report| {
            report.nr_registrations += u64::from(!known);
            report.generation = config.generation;
            report.registered = true;
            report.error = None;
        });
        Ok(())
    }

    fn negotiate(
        &self,
        channel: &mut Channel,
        config: &VirtioEcsConfig,
    ) -> Result<VirtioEcsConfig, DeviceError> {
        let mut write = |offset: usize, bytes: &[u8]| {
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            channel
                .set_config(offset, VhostUserConfigFlags::WRITABLE, bytes)
                .map_err(|error| DeviceError::Protocol("SET_CONFIG", error))
        };
        let version = VIRTIO_ECS_VERSION.to_le_bytes();
        write(offset_of!(VirtioEcsConfig, driver_version), &version)?;
        let features = (config.features & DRIVER_FEATURES).to_le_bytes();
        write(offset_of!(VirtioEcsConfig, driver_features), &features)?;
        let config = self.read_config(channel)?;
        if config.status != VIRTIO_ECS_NEG_OK {
            return Err(DeviceError::Refused(config.status));
        }
        Ok(config)
    }

    fn register_all(&mut self, channel: &Channel) -> Result<(), DeviceError> {
        let machine = Arc::clone(&self.machine);
        let lines = machine.ram.shared().lines.iter().take(machine.nr_vcpus);
        for (vcpu, lines) in lines.enumerate() {
            let vcpu = u32::try_from(vcpu).unwrap_or(u32::MAX);
            self.cookie = self.cookie.wrapping_add(1);
            let message = VirtioEcsRegister {
                op: VIRTIO_ECS_CTRL_REGISTER,
                cookie: self.cookie,
                vcpu,
                guest_line: machine.ram.gpa_of(&lines.guest),
                host_line: machine.ram.gpa_of(&lines.host),
                ..Default::default()
            };
            let reply = self.ask(channel, &message.to_bytes())?;
            if reply.status != VIRTIO_ECS_S_OK {
                return Err(DeviceError::Register {
                    vcpu,
                    status: reply.status,
                });
            }
        }
        Ok(())
    }

    /// Sends a control message and waits for its reply.
    fn ask(
        &mut self,
        channel: &Channel,
        message: &[u8],
    ) -> Result<VirtioEcsCtrlReply, DeviceError> {
        let ram = &self.machine.ram;
        let slot = self.control.send(ram, message);
        self.kicks[0].write(1).map_err(DeviceError::Event)?;
        let deadline = Instant::now() + ANSWER_TIME;
        while Instant::now() < deadline && !self.status.stop.load(Ordering::Acquire) {
            if let Some(bytes) = self.control.reply(ram, slot) {
                let reply = VirtioEcsCtrlReply::from_bytes(&bytes).ok_or(DeviceError::NoReply)?;
                return if reply.cookie == self.cookie {
                    Ok(reply)
                } else {
                    Err(DeviceError::NoReply)
                };
            }
            let fds = [channel.as_raw_fd(), self.calls[0].as_raw_fd()];
            let [gone, called] = sys::poll(fds, POLL_MS).map_err(DeviceError::Event)?;
            if called {
                let _ = self.calls[0].read();
            } else if gone {
                return Err(DeviceError::Gone);
            }
        }
        Err(DeviceError::NoReply)
    }

    fn take_events(&mut self, channel: &mut Channel) -> Result<(), DeviceError> {
        let mut restart = false;
        // A backend that floods the queue gets its turn again at the next call.
        for _ in 0..QUEUE_LEN {
            let Some(bytes) = self.events.take(&self.machine.ram) else {
                break;
            };
            let Some(event) = VirtioEcsEvent::from_bytes(&bytes) else {
                continue;
            };
            self.status.update(|report| report.nr_events += 1);
            restart |= event.r#type == VIRTIO_ECS_EV_RESTART;
            tracing::debug!(
                kind = event.r#type,
                vcpu = event.vcpu,
                data = event.data,
                "event"
            );
        }
        self.kicks[1].write(1).map_err(DeviceError::Event)?;
        if restart {
            self.registered = None;
            self.negotiate_and_register(channel)?;
        }
        Ok(())
    }
}
