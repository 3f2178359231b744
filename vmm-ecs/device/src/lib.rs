//! vhost-user backend of the virtio-ecs device: one socket, one thread and one VM each.
//!
//! # Problem
//! A VMM that was never changed for this project must be able to hand over guest memory, doorbells
//! and registrations; it may die, stall in the middle of a message, come back, or lie, and the
//! other VMs on the host must not notice. The guest behind it is trusted even less.
//!
//! # Approach
//! [`Device`] binds a socket and serves one front-end after the other on its own thread, on top of
//! the `vhost` crate's request handler. The modules below it are apart by what they may know:
//! `socket` and `server` know descriptors and time, `backend` knows vhost-user, `ring` knows
//! virtqueues, `config_space`, `registry` and `control` know the ABI only, `state` knows what is
//! saved. Every change of what a controller may use is handed to a [`VmSink`] as a whole
//! [`VmView`].
//!
//! # Invariants
//! - The sink has seen a change before the guest or the front-end is told that it is done: memory
//!   that a guest unregistered, or a front-end took away, is not written afterwards.
//! - Nothing a guest writes can panic, block or fill the host: faults are counted
//!   ([`DeviceCounters`]), logs and control messages are rate-limited, waiting events are bounded.
//! - A message is handled when the whole of it has arrived, so a front-end that stalls cannot hold
//!   up anything but itself, and that for two seconds only.
//! - Each access to config space is answered with exactly the bytes asked for.
//! - The kick descriptors of doorbell queues are never read here.
//!
//! # What it does not do
//! It schedules nothing and reads no slot: `ecs-shm` does, for a controller. It keeps no dirty log
//! (`VHOST_F_LOG_ALL`): host lines are written by controllers that keep none, so a VM moves by
//! device state, not by pre-copy with logging. A front-end that shrinks the file behind its
//! memory while it is connected can still fault this process: VMMs are trusted that far.
#![forbid(unsafe_code)]

mod backend;
mod config_space;
mod context;
mod control;
mod counters;
mod device;
mod device_state;
mod events;
mod limit;
mod memory;
mod peer;
mod registry;
mod ring;
mod server;
mod service;
mod socket;
mod state;
mod view;
pub mod watch;

pub use counters::DeviceCounters;
pub use device::{Device, DeviceConfig, DeviceError};
pub use socket::SocketError;
pub use view::{UserRegion, VmSink, VmView};
