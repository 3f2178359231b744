//! The device behind one connection: vhost-user requests in, views out.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use ecs_abi::{
    VIRTIO_ECS_F_DOORBELL, VIRTIO_ECS_VQ_CONTROL, VIRTIO_ECS_VQ_DOORBELL, VIRTIO_ECS_VQ_EVENT,
};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error, GpuBackend, Result, VhostUserBackendReqHandlerMut, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::config_space::ConfigSpace;
use crate::context::Context;
use crate::counters::count;
use crate::device_state;
use crate::events::Events;
use crate::memory::{Announced, MAX_REGIONS, MemTable};
use crate::peer::Peer;
use crate::registry::Registry;
use crate::ring::{Ring, RingAddresses, RingError};
use crate::server::Token;
use crate::state::{Saved, StateError};
use crate::view::{UserRegion, VmView};

/// VIRTIO_F_VERSION_1.
const VERSION_1: u64 = 1 << 32;
const FEATURES: u64 = VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// What outlives a connection.
#[derive(Debug)]
pub(crate) struct Carried {
    pub(crate) peer: Option<Peer>,
    pub(crate) space: ConfigSpace,
    pub(crate) registry: Registry,
}

impl Carried {
    pub(crate) fn restored(mut space: ConfigSpace, saved: Saved) -> Self {
        space.restore(saved.generation, saved.choice);
        Self {
            peer: saved.peer,
            space,
            registry: Registry::restored(saved.registrations),
        }
    }
}

/// One connection's device.
pub(crate) struct Backend {
    pub(super) context: Arc<Context>,
    epoll: Arc<Epoll>,
    peer: Peer,
    pub(super) space: ConfigSpace,
    pub(super) registry: Registry,
    /// The guest may have registered with a device that forgot it.
    forgot: bool,
    pub(super) memory: MemTable,
    pub(super) rings: Vec<Ring>,
    pub(super) events: Events,
    acked: u64,
    incoming: Option<File>,
    transfer: io::Result<()>,
    published: bool,
    said_few_queues: bool,
}

/// A request that is refused, and the connection goes on.
fn refuse(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::ReqHandlerError(io::Error::other(error))
}

impl Backend {
    /// `forgot`: there may be registrations in the guest that `carried` does not know.
    pub(crate) fn new(
        context: Arc<Context>,
        epoll: Arc<Epoll>,
        peer: Peer,
        carried: Carried,
        forgot: bool,
        events: Events,
    ) -> std::result::Result<Self, RingError> {
        let nr_queues = VIRTIO_ECS_VQ_DOORBELL + usize::from(context.config.nr_doorbells);
        Ok(Self {
            context,
            epoll,
            peer,
            space: carried.space,
            registry: carried.registry,
            forgot,
            memory: MemTable::default(),
            rings: (0..nr_queues)
                .map(|_| Ring::new())
                .collect::<std::result::Result<_, _>>()?,
            events,
            acked: 0,
            incoming: None,
            transfer: Ok(()),
            published: false,
            said_few_queues: false,
        })
    }

    /// Takes the device off the connection. `gone` is called if a view was handed out.
    pub(crate) fn end(&mut self) -> (Carried, Events) {
        if std::mem::take(&mut self.published) {
            self.context.sink.gone(&self.context.config.name);
        }
        let mut registry = std::mem::take(&mut self.registry);
        registry.rebuild(&Arc::default(), false);
        let carried = Carried {
            peer: Some(self.peer),
            space: self.space.clone(),
            registry,
        };
        (carried, std::mem::take(&mut self.events))
    }

    fn running(&self) -> bool {
        self.rings
            .get(VIRTIO_ECS_VQ_CONTROL)
            .is_some_and(Ring::runs)
    }

    fn control_started(&self) -> bool {
        self.rings
            .get(VIRTIO_ECS_VQ_CONTROL)
            .is_some_and(Ring::started)
    }

    /// Hands the whole view to the sink, once there is memory to speak of.
    pub(super) fn publish(&mut self) {
        if self.memory.is_empty() && !self.published {
            return;
        }
        self.published = true;
        // A guest that did not choose doorbells never rings: nobody must wait for it.
        let rings = self.rings_doorbells();
        let doorbells = self.rings.iter().skip(VIRTIO_ECS_VQ_DOORBELL);
        self.context.sink.update(VmView {
            name: self.context.config.name.clone(),
            pid: self.peer.pid,
            generation: self.space.generation(),
            mem: self.memory.mem().clone(),
            mem_userspace: self.memory.user_regions(),
            slots: self.registry.slots().clone(),
            doorbells: doorbells
                .map(|ring| ring.kick.clone().filter(|_| rings))
                .collect(),
            running: self.running(),
        });
    }

    /// Writes the saved state, where one is kept.
    pub(super) fn persist(&mut self) {
        let Some(file) = &self.context.state_file else {
            return;
        };
        if let Err(error) = file.save(&self.saved(Some(self.peer))) {
            count(&self.context.counters.state_errors, 1);
            self.context.warn(&error, "Cannot save the registrations");
        }
    }

    fn saved(&self, peer: Option<Peer>) -> Saved {
        Saved {
            generation: self.space.generation(),
            choice: self.space.choice(),
            peer,
            registrations: self.registry.registrations(),
        }
    }

    fn ring(&mut self, index: u32) -> Result<&mut Ring> {
        usize::try_from(index)
            .ok()
            .and_then(|index| self.rings.get_mut(index))
            .ok_or_else(|| refuse(NoSuchQueue(index)))
    }

    /// What must happen after every change of the memory table.
    fn memory_changed(&mut self) {
        let dropped = self
            .registry
            .rebuild(self.memory.mem(), self.control_started());
        if dropped > 0 {
            count(&self.context.counters.dropped_registrations, dropped as u64);
            self.persist();
        }
        for ring in &mut self.rings {
            if ring.started() && !ring.fits(&self.memory) {
                ring.stop();
            }
        }
        self.publish();
    }

    /// Starts a queue that the device itself serves.
    fn start(&mut self, index: u8) -> Result<()> {
        let by_default = self.acked & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        let Some(ring) = self.rings.get_mut(usize::from(index)) else {
            return Ok(());
        };
        ring.start(&self.memory).map_err(refuse)?;
        ring.enabled |= by_default;
        if usize::from(index) != VIRTIO_ECS_VQ_CONTROL {
            self.serve_events();
            return Ok(());
        }
        if ring.nr_used() == 0 {
            // A driver that has never had an answer: the one before it is gone, and its lines are
            // ordinary memory now.
            self.forgot = false;
            if self.registry.clear() > 0 {
                self.persist();
            }
        } else if std::mem::take(&mut self.forgot) {
            self.events.push_restart();
        }
        let dropped = self.registry.rebuild(self.memory.mem(), true);
        count(&self.context.counters.dropped_registrations, dropped as u64);
        self.publish();
        self.serve_control();
        Ok(())
    }

    fn rings_doorbells(&self) -> bool {
        self.space.choice().features & VIRTIO_ECS_F_DOORBELL != 0
    }

    /// Says so, once a connection, when there are fewer doorbells than the guest was told of. One
    /// that did not choose them sets up none.
    fn count_queues(&mut self) {
        if !self.rings_doorbells() {
            return;
        }
        let bells = self.rings.iter().skip(VIRTIO_ECS_VQ_DOORBELL);
        let missing = bells.filter(|ring| ring.kick.is_none()).count();
        if !self.running() || missing == 0 || std::mem::replace(&mut self.said_few_queues, true) {
            return;
        }
        if let Some(held_back) = self.context.may_log() {
            tracing::warn!(
                vm = self.context.config.name,
                missing,
                queues = self.rings.len(),
                held_back,
                "Doorbell queues are not set up: give the VMM as many queue sizes as there are \
                 queues, or configure fewer doorbells"
            );
        }
    }

    fn watch(&self, index: u8, fd: &OwnedFd) -> io::Result<()> {
        let Some(token) = Token::of_queue(index) else {
            return Ok(());
        };
        // Edge-triggered, so that the descriptor need never be read, which could block.
        let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(events, token as u64);
        self.epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
    }

    fn unwatch(&self, index: u8, fd: &OwnedFd) {
        if Token::of_queue(index).is_some() {
            // Fails only if it was never added.
            let _ = self.epoll.ctl(
                ControlOperation::Delete,
                fd.as_raw_fd(),
                EpollEvent::default(),
            );
        }
    }

    fn stop(&mut self, index: u8) -> Option<u16> {
        let ring = self.rings.get_mut(usize::from(index))?;
        let base = ring.stop();
        if let Some(kick) = ring.kick.take() {
            self.unwatch(index, &kick);
        }
        Some(base)
    }

    fn load(&mut self, bytes: &[u8]) -> std::result::Result<(), StateError> {
        let saved = Saved::from_bytes(bytes)?;
        let carried = Carried::restored(self.space.clone(), saved);
        self.space = carried.space;
        self.registry = carried.registry;
        self.forgot = false;
        self.memory_changed();
        self.persist();
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("There is no queue {0}")]
struct NoSuchQueue(u32);

#[derive(Debug, thiserror::Error)]
#[error("Features {0:#x} were not offered")]
struct NotOffered(u64);

#[derive(Debug, thiserror::Error)]
#[error("Queues without a kick descriptor are not polled: send one")]
struct NoKick;

fn announced(region: &VhostUserMemoryRegion, file: File) -> Announced {
    Announced {
        region: user_region(region),
        offset: region.mmap_offset,
        file,
    }
}

fn user_region(region: &VhostUserMemoryRegion) -> UserRegion {
    UserRegion {
        gpa: region.guest_phys_addr,
        len: region.memory_size,
        userspace_addr: region.user_addr,
    }
}

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("device reset was not offered"))
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(FEATURES)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !FEATURES != 0 {
            return Err(refuse(NotOffered(features & !FEATURES)));
        }
        self.acked = features;
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        ctx: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let regions = ctx.iter().zip(files);
        self.memory
            .replace(
                regions
                    .map(|(region, file)| announced(region, file))
                    .collect(),
            )
            .map_err(refuse)?;
        self.memory_changed();
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.ring(index)?.set_size(num).map_err(refuse)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        self.ring(index)?.set_addresses(RingAddresses {
            descriptors: descriptor,
            avail: available,
            used,
        });
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        // The upper half is for packed rings, which are not offered.
        let [low, high, ..] = base.to_le_bytes();
        self.ring(index)?.set_base(u16::from_le_bytes([low, high]));
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let base = u8::try_from(index)
            .ok()
            .and_then(|index| self.stop(index))
            .ok_or(Error::InvalidParam)?;
        self.publish();
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(u32::from(index))?;
        self.stop(index);
        let kick = Arc::new(OwnedFd::from(fd.ok_or_else(|| refuse(NoKick))?));
        self.watch(index, &kick).map_err(refuse)?;
        let ring = self.ring(u32::from(index))?;
        ring.kick = Some(kick);
        if usize::from(index) >= VIRTIO_ECS_VQ_DOORBELL {
            self.publish();
            return Ok(());
        }
        let started = self.start(index);
        if started.is_err() {
            self.stop(index);
        }
        started
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(u32::from(index))?.call = fd;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, _fd: Option<File>) -> Result<()> {
        self.ring(u32::from(index)).map(|_| ())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::DEVICE_STATE)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.rings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.enabled = enable;
        match usize::try_from(index) {
            Ok(VIRTIO_ECS_VQ_CONTROL) => {
                self.count_queues();
                self.publish();
                self.serve_control();
            }
            Ok(VIRTIO_ECS_VQ_EVENT) => self.serve_events(),
            _ => {}
        }
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        Ok(self.space.read(offset, size))
    }

    fn set_config(&mut self, offset: u32, buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        if self.space.write(offset, buf) {
            // The driver starts over.
            self.registry.clear();
            self.forgot = false;
            self.persist();
            self.publish();
        }
        Ok(())
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("this is no display"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("shared objects were not offered"))
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation(
            "in-flight tracking was not offered",
        ))
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(Error::InvalidOperation(
            "in-flight tracking was not offered",
        ))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<u64>> {
        self.memory.add(announced(region, fd)).map_err(refuse)?;
        self.memory_changed();
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.memory.remove(user_region(region)).map_err(refuse)?;
        self.memory_changed();
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        fd: File,
    ) -> Result<Option<File>> {
        self.transfer = Ok(());
        self.incoming = None;
        match direction {
            VhostTransferStateDirection::SAVE => {
                self.transfer = device_state::send(fd, &self.saved(None).to_bytes());
            }
            // The front-end writes after this request and closes before the check.
            VhostTransferStateDirection::LOAD => self.incoming = Some(fd),
        }
        Ok(None)
    }

    fn check_device_state(&mut self) -> Result<()> {
        if let Some(file) = self.incoming.take() {
            self.transfer = device_state::receive(file)
                .and_then(|bytes| self.load(&bytes).map_err(io::Error::other));
        }
        match std::mem::replace(&mut self.transfer, Ok(())) {
            Ok(()) => Ok(()),
            Err(error) => {
                count(&self.context.counters.state_errors, 1);
                self.context.warn(&error, "Cannot move the device's state");
                Err(Error::ReqHandlerError(error))
            }
        }
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation(
            "shared memory regions were not offered",
        ))
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("a dirty log was not offered"))
    }
}
