//! What a controller is told of a connected VM.

use std::os::fd::OwnedFd;
use std::sync::Arc;

pub use ecs_shm::UserRegion;
use ecs_shm::{GuestMem, VmSlots};

/// Immutable view of one connected VM, handed out whole at every change.
#[derive(Debug, Clone)]
pub struct VmView {
    /// Name of the VM, from the configuration.
    pub name: String,
    /// Process id of the front-end (`SO_PEERCRED`); 0 if it is not visible from here.
    pub pid: u32,
    /// `config.generation`, for the host lines.
    pub generation: u32,
    /// Guest memory.
    pub mem: Arc<GuestMem>,
    /// The same regions with the front-end's addresses, by ascending guest address.
    pub mem_userspace: Vec<UserRegion>,
    /// Slots of the registered vCPUs.
    pub slots: Arc<VmSlots>,
    /// Doorbells: the one at index `n` rings for every vCPU with `vcpu % doorbells.len() == n`.
    /// `None` where the front-end has no such queue, or the guest did not choose
    /// `VIRTIO_ECS_F_DOORBELL`. They are eventfds; the device never reads
    /// them.
    pub doorbells: Vec<Option<Arc<OwnedFd>>>,
    /// The control queue is set up and enabled: the guest runs and is not paused.
    pub running: bool,
}

/// Who is told of connected VMs. Called from the device's own thread.
pub trait VmSink: Send + Sync {
    /// The VM appeared or changed. When this returns, slots and memory of earlier views of the
    /// same VM must not be written any more: the guest is about to be told that they are its own
    /// again.
    fn update(&self, view: VmView);

    /// The front-end is gone; the guest may live on and come back with it. Clear the hints in the
    /// slots of the last view and let go of it. Called once for every connection that had an
    /// update.
    fn gone(&self, name: &str);
}
