//! Versioned statistics snapshot of `vmm-ecs`, and the Unix socket it travels over.
//!
//! # Problem
//! The daemon is privileged and opens no network port; who shows its figures holds no privilege.
//! Between the two lies one socket whose reader may be slow, old, or gone.
//!
//! # Approach
//! Each connection to the [`StatsServer`] gets one [`Snapshot`] as a JSON document and a newline,
//! then the end of the stream; nothing is read from the client. [`read_snapshot`] is the other
//! side. The newline tells a whole document from one that was cut off.
//!
//! # Invariants
//! - The identities of docs/metrics.md hold in every snapshot: [`Snapshot::check_invariants`].
//! - A client delays the next one by at most [`WRITE_TIMEOUT`], and the scheduler not at all.
//! - The socket never has more permissions than asked for, not even for a moment.
//! - A socket that somebody answers is never removed, nor is anything that is not a socket.
//!
//! # What it does not do
//! It keeps no history, takes no commands, and does not count: the controller does.
#![forbid(unsafe_code)]

mod client;
mod error;
mod invariants;
mod server;
mod snapshot;

pub use client::{MAX_DOCUMENT_BYTES, read_snapshot};
pub use error::StatsError;
pub use invariants::InvariantError;
pub use server::{StatsServer, WRITE_TIMEOUT};
pub use snapshot::*;

/// Where the daemon serves its statistics unless configured otherwise.
pub const DEFAULT_SOCKET: &str = "/run/vmm-ecs/stats.sock";
