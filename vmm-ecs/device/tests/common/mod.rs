//! A front-end with guest memory and a driver in it, and a sink that remembers.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation
)]

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use ecs_abi::*;
use ecs_device::{Device, DeviceConfig, DeviceCounters, VmSink, VmView};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(5);
pub const DOORBELLS: u16 = 2;
pub const NR_QUEUES: usize = 2 + DOORBELLS as usize;
pub const QUEUE_SIZE: u16 = 16;
pub const RAM: usize = 0x20_0000;
/// Where the driver of these tests puts lines.
pub const LINES: u64 = 0x1_0000;
/// A hot-plugged region.
pub const HOT: u64 = 0x1000_0000;
pub const HOT_LEN: usize = 0x1_0000;

const MESSAGE: u64 = 0xc000;
const REPLY: u64 = 0xd000;
const EVENTS: u64 = 0xe000;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;

/// What the sink was told.
#[derive(Debug, Clone)]
pub enum Told {
    Update(Box<VmView>),
    Gone,
}

#[derive(Debug, Default)]
pub struct Recorder {
    told: Mutex<Vec<Told>>,
    more: Condvar,
}

impl VmSink for Recorder {
    fn update(&self, view: VmView) {
        self.told.lock().unwrap().push(Told::Update(Box::new(view)));
        self.more.notify_all();
    }

    fn gone(&self, _name: &str) {
        self.told.lock().unwrap().push(Told::Gone);
        self.more.notify_all();
    }
}

impl Recorder {
    /// Waits until the last thing told satisfies `want`, and returns it.
    pub fn wait(&self, what: &str, want: impl Fn(&Told) -> bool) -> Told {
        let told = self.told.lock().unwrap();
        let (told, timeout) = self
            .more
            .wait_timeout_while(told, PATIENCE, |told| !told.last().is_some_and(&want))
            .unwrap();
        assert!(!timeout.timed_out(), "{what}: last was {:?}", told.last());
        told.last().unwrap().clone()
    }

    pub fn wait_gone(&self) {
        self.wait("gone", |told| matches!(told, Told::Gone));
    }

    /// The view told last.
    pub fn view(&self) -> VmView {
        match self.wait("a view", |told| matches!(told, Told::Update(_))) {
            Told::Update(view) => *view,
            Told::Gone => unreachable!("waited for a view"),
        }
    }

    pub fn nr_told(&self) -> usize {
        self.told.lock().unwrap().len()
    }
}

pub fn config(dir: &Path, name: &str) -> DeviceConfig {
    DeviceConfig {
        name: name.to_owned(),
        socket: dir.join(format!("{name}.sock")),
        socket_mode: 0o660,
        nr_doorbells: DOORBELLS,
        extension_ns: 1_000_000,
        slice_ns: 3_000_000,
        state_dir: None,
    }
}

/// A directory, a device in it and its sink.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub device: Option<Device>,
    pub sink: Arc<Recorder>,
    pub config: DeviceConfig,
}

impl Host {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// With a directory for saved state.
    pub fn saving() -> Self {
        Self::with(|config| config.state_dir = config.socket.parent().map(Path::to_owned))
    }

    pub fn with(change: impl FnOnce(&mut DeviceConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path(), "vm");
        change(&mut config);
        let sink = Arc::new(Recorder::default());
        let device = Device::bind(config.clone(), sink.clone()).unwrap();
        Self {
            dir,
            device: Some(device),
            sink,
            config,
        }
    }

    pub fn device(&self) -> &Device {
        self.device.as_ref().unwrap()
    }

    /// Ends the device and binds another in its place.
    pub fn restart(&mut self) {
        self.device.take().unwrap().stop();
        self.device = Some(Device::bind(self.config.clone(), self.sink.clone()).unwrap());
    }

    /// Waits until the counters are as wanted: they are written after the answer.
    pub fn wait_counters(&self, want: impl Fn(&DeviceCounters) -> bool) -> DeviceCounters {
        let until = Instant::now() + PATIENCE;
        loop {
            let counters = self.device().counters();
            if want(&counters) {
                return counters;
            }
            assert!(Instant::now() < until, "{counters:?}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn connect(&self) -> Guest {
        Guest::connect(&self.config.socket)
    }

    /// A guest that has negotiated and whose queues run.
    pub fn boot(&self) -> Guest {
        let mut guest = self.connect();
        guest.negotiate(VIRTIO_ECS_F_LINES | VIRTIO_ECS_F_WORD | VIRTIO_ECS_F_EVENTS);
        guest.activate();
        guest
    }
}

pub fn memory(at: u64, len: usize) -> GuestMemoryMmap {
    let file = File::from(memfd_create("ecs-test", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len as u64).unwrap();
    let range = (GuestAddress(at), len, Some(FileOffset::new(file, 0)));
    GuestMemoryMmap::from_ranges_with_files([range]).unwrap()
}

pub fn region_info(mem: &GuestMemoryMmap) -> VhostUserMemoryRegionInfo {
    let region = mem.iter().next().unwrap();
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: mem.get_host_address(region.start_addr()).unwrap() as u64,
        mmap_offset: 0,
        mmap_handle: region.file_offset().unwrap().file().as_raw_fd(),
    }
}

/// One descriptor as it stands in the table.
#[derive(Debug, Clone, Copy)]
pub struct Desc(pub u64, pub u32, pub u16, pub u16);

/// The driver's side of one queue.
pub struct DriverQueue {
    pub index: usize,
    base: u64,
    pub avail: u16,
    pub used: u16,
    pub kick: EventFd,
    pub call: EventFd,
}

impl DriverQueue {
    fn new(index: usize) -> Self {
        Self {
            index,
            base: 0x1000 + 0x1000 * index as u64,
            avail: 0,
            used: 0,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
        }
    }

    pub fn desc(&self, n: u16) -> GuestAddress {
        GuestAddress(self.base + 16 * u64::from(n))
    }

    pub fn avail(&self) -> GuestAddress {
        GuestAddress(self.base + 0x400)
    }

    pub fn used(&self) -> GuestAddress {
        GuestAddress(self.base + 0x800)
    }

    fn clear(&mut self, mem: &GuestMemoryMmap) {
        mem.write_slice(&[0; 0x1000], GuestAddress(self.base))
            .unwrap();
        self.avail = 0;
        self.used = 0;
    }

    /// Writes descriptors and makes `head` available, without a kick.
    pub fn post(&mut self, mem: &GuestMemoryMmap, first: u16, descs: &[Desc], head: u16) {
        for (n, Desc(addr, len, flags, next)) in descs.iter().enumerate() {
            let at = self.desc(first + n as u16);
            mem.write_obj(*addr, at).unwrap();
            mem.write_obj(*len, GuestAddress(at.0 + 8)).unwrap();
            mem.write_obj(*flags, GuestAddress(at.0 + 12)).unwrap();
            mem.write_obj(*next, GuestAddress(at.0 + 14)).unwrap();
        }
        let slot = u64::from(self.avail % QUEUE_SIZE);
        mem.write_obj(head, GuestAddress(self.avail().0 + 4 + 2 * slot))
            .unwrap();
        self.avail = self.avail.wrapping_add(1);
        mem.write_obj(self.avail, GuestAddress(self.avail().0 + 2))
            .unwrap();
    }

    pub fn used_idx(&self, mem: &GuestMemoryMmap) -> u16 {
        mem.read_obj(GuestAddress(self.used().0 + 2)).unwrap()
    }

    /// Waits for the next used element and returns its head and length.
    pub fn take_used(&mut self, mem: &GuestMemoryMmap) -> (u32, u32) {
        let until = Instant::now() + PATIENCE;
        while self.used_idx(mem) == self.used {
            assert!(
                Instant::now() < until,
                "queue {}: no used element",
                self.index
            );
            wait_for(&self.call);
        }
        let at = self.used().0 + 4 + 8 * u64::from(self.used % QUEUE_SIZE);
        self.used = self.used.wrapping_add(1);
        (
            mem.read_obj(GuestAddress(at)).unwrap(),
            mem.read_obj(GuestAddress(at + 4)).unwrap(),
        )
    }
}

/// Waits up to 100 ms for an interrupt.
fn wait_for(call: &EventFd) {
    let until = Instant::now() + Duration::from_millis(100);
    while call.read().is_err() && Instant::now() < until {
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A front-end and the guest behind it.
pub struct Guest {
    pub front: Frontend,
    pub mem: GuestMemoryMmap,
    pub control: DriverQueue,
    pub events: DriverQueue,
    pub doorbells: Vec<EventFd>,
}

pub fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::DEVICE_STATE
}

fn open(socket: &Path) -> Frontend {
    let mut front = Frontend::connect(socket, NR_QUEUES as u64).unwrap();
    front.set_owner().unwrap();
    front.get_features().unwrap();
    front.get_protocol_features().unwrap();
    front.set_protocol_features(protocol_features()).unwrap();
    front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    front
}

impl Guest {
    pub fn connect(socket: &Path) -> Self {
        Self {
            front: open(socket),
            mem: memory(0, RAM),
            control: DriverQueue::new(0),
            events: DriverQueue::new(1),
            doorbells: (0..DOORBELLS)
                .map(|_| EventFd::new(EFD_NONBLOCK).unwrap())
                .collect(),
        }
    }

    /// Connects again, as a VMM does whose backend went away: same memory, same queues, and the
    /// bases where the guest's available rings stand.
    pub fn reconnect(&mut self, socket: &Path) {
        self.front = open(socket);
        self.activate();
    }

    pub fn read_config(&mut self) -> VirtioEcsConfig {
        let buf = [0; VirtioEcsConfig::SIZE];
        let flags = VhostUserConfigFlags::empty();
        let (_, bytes) = self
            .front
            .get_config(0, buf.len() as u32, flags, &buf)
            .unwrap();
        VirtioEcsConfig::from_bytes(&bytes).unwrap()
    }

    pub fn write_config(&mut self, offset: u32, bytes: &[u8]) {
        self.front
            .set_config(offset, VhostUserConfigFlags::WRITABLE, bytes)
            .unwrap();
    }

    pub fn negotiate(&mut self, features: u64) {
        self.write_config(40, &VIRTIO_ECS_VERSION.to_le_bytes());
        self.write_config(48, &features.to_le_bytes());
        assert_eq!(self.read_config().status, VIRTIO_ECS_NEG_OK);
    }

    fn user(&self, at: GuestAddress) -> u64 {
        self.mem.get_host_address(at).unwrap() as u64
    }

    pub fn set_up_queue(&mut self, index: usize) {
        let queue = DriverQueue::new(index);
        let (kick, call, avail) = match index {
            0 => (&self.control.kick, &self.control.call, self.control.avail),
            1 => (&self.events.kick, &self.events.call, self.events.avail),
            n => (&self.doorbells[n - 2], &queue.call, 0),
        };
        self.front.set_vring_num(index, QUEUE_SIZE).unwrap();
        let data = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: self.user(queue.desc(0)),
            used_ring_addr: self.user(queue.used()),
            avail_ring_addr: self.user(queue.avail()),
            log_addr: None,
        };
        self.front.set_vring_addr(index, &data).unwrap();
        self.front.set_vring_base(index, avail).unwrap();
        self.front.set_vring_call(index, call).unwrap();
        self.front.set_vring_kick(index, kick).unwrap();
    }

    /// The requests of Cloud Hypervisor's activation, in its order.
    pub fn activate(&mut self) {
        let features = self.front.get_features().unwrap();
        self.front.set_features(features).unwrap();
        self.front.set_mem_table(&[region_info(&self.mem)]).unwrap();
        for index in 0..NR_QUEUES {
            self.set_up_queue(index);
        }
        self.enable(true);
    }

    pub fn enable(&mut self, enable: bool) {
        for index in 0..NR_QUEUES {
            self.front.set_vring_enable(index, enable).unwrap();
        }
    }

    /// What a VMM does when the guest resets the device.
    pub fn reset(&mut self) {
        self.enable(false);
        for index in 0..NR_QUEUES {
            self.front.get_vring_base(index).unwrap();
        }
        self.control.clear(&self.mem);
        self.events.clear(&self.mem);
    }

    /// Sends a control message and returns the reply.
    pub fn control(&mut self, message: &[u8]) -> VirtioEcsCtrlReply {
        self.mem
            .write_slice(message, GuestAddress(MESSAGE))
            .unwrap();
        let room = VirtioEcsCtrlReply::SIZE as u32;
        let descs = if message.is_empty() {
            vec![Desc(REPLY, room, WRITE, 0)]
        } else {
            vec![
                Desc(MESSAGE, message.len() as u32, NEXT, 1),
                Desc(REPLY, room, WRITE, 0),
            ]
        };
        let (head, len) = self.submit(&descs);
        assert_eq!((head, len), (0, room));
        let mut bytes = [0; VirtioEcsCtrlReply::SIZE];
        self.mem
            .read_slice(&mut bytes, GuestAddress(REPLY))
            .unwrap();
        VirtioEcsCtrlReply::from_bytes(&bytes).unwrap()
    }

    /// Posts a chain of any shape to the control queue, from descriptor 0, and waits for it.
    pub fn submit(&mut self, descs: &[Desc]) -> (u32, u32) {
        self.control.post(&self.mem, 0, descs, 0);
        self.control.kick.write(1).unwrap();
        self.control.take_used(&self.mem)
    }

    pub fn register(&mut self, registration: &VirtioEcsRegister) -> u16 {
        self.control(&registration.to_bytes()).status
    }

    /// Sends UNREGISTER or QUERY.
    pub fn vcpu_message(&mut self, op: u16, vcpu: u32) -> VirtioEcsCtrlReply {
        let message = VirtioEcsVcpuMsg {
            op,
            vcpu,
            cookie: 77,
            ..Default::default()
        };
        self.control(&message.to_bytes())
    }

    /// Posts one buffer for an event.
    pub fn post_event_buffer(&mut self) {
        let slot = self.events.avail % QUEUE_SIZE;
        let at = EVENTS + 16 * u64::from(slot);
        let desc = [Desc(at, VirtioEcsEvent::SIZE as u32, WRITE, 0)];
        self.events.post(&self.mem, slot, &desc, slot);
        self.events.kick.write(1).unwrap();
    }

    /// Waits for an event.
    pub fn event(&mut self) -> VirtioEcsEvent {
        let (head, len) = self.events.take_used(&self.mem);
        assert_eq!(len, VirtioEcsEvent::SIZE as u32);
        let mut bytes = [0; VirtioEcsEvent::SIZE];
        let at = GuestAddress(EVENTS + 16 * u64::from(head));
        self.mem.read_slice(&mut bytes, at).unwrap();
        VirtioEcsEvent::from_bytes(&bytes).unwrap()
    }
}

/// A registration whose lines are of its vCPU alone.
pub fn registration(vcpu: u32) -> VirtioEcsRegister {
    registration_at(vcpu, LINES + 128 * u64::from(vcpu))
}

pub fn registration_at(vcpu: u32, at: u64) -> VirtioEcsRegister {
    VirtioEcsRegister {
        op: VIRTIO_ECS_CTRL_REGISTER,
        cookie: 42,
        vcpu,
        guest_line: at,
        host_line: at + 64,
        ..Default::default()
    }
}
