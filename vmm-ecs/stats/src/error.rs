//! What can go wrong on either side of the stats socket, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::snapshot::STATS_VERSION;

/// Error of the stats socket. Each text names the socket and the way out.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// Nothing lies at the path.
    #[error("No stats socket at {path}; is vmm-ecs running, and is this the path it was given?")]
    Absent {
        /// Path of the socket.
        path: PathBuf,
    },
    /// A socket lies there and nobody listens.
    #[error("Nobody answers at {path}; vmm-ecs has ended without cleaning up, start it again")]
    Refused {
        /// Path of the socket.
        path: PathBuf,
    },
    /// The caller may not open the socket.
    #[error(
        "No permission to open {path}; join the group that owns the socket, or run as its user"
    )]
    Permission {
        /// Path of the socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Something else lies at the path.
    #[error("{path} is not a socket; remove it or choose another path")]
    NotASocket {
        /// Path given.
        path: PathBuf,
    },
    /// Another daemon serves this socket.
    #[error("Another daemon answers at {path}; stop it or choose another path")]
    InUse {
        /// Path of the socket.
        path: PathBuf,
    },
    /// The socket could not be set up.
    #[error("Cannot {what} {path}; check that its directory exists and is writable")]
    Bind {
        /// What was tried.
        what: &'static str,
        /// Path of the socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The serving thread could not be started.
    #[error("Cannot start the stats thread; check the limits on threads")]
    Thread(#[source] io::Error),
    /// The daemon was too slow.
    #[error("No complete answer from {path} within {timeout:?}; is vmm-ecs stuck or overloaded?")]
    Timeout {
        /// Path of the socket.
        path: PathBuf,
        /// Time allowed.
        timeout: Duration,
    },
    /// Any other failure of the connection.
    #[error("Cannot read from {path}; see the log of vmm-ecs")]
    Read {
        /// Path of the socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The document lacks its final newline.
    #[error("The answer from {path} ends after {bytes} bytes, without its end; try again")]
    Truncated {
        /// Path of the socket.
        path: PathBuf,
        /// Bytes received.
        bytes: usize,
    },
    /// The document is longer than a reader accepts.
    #[error("The answer from {path} exceeds {limit} bytes; is it the stats socket of vmm-ecs?")]
    TooLarge {
        /// Path of the socket.
        path: PathBuf,
        /// Limit, bytes.
        limit: u64,
    },
    /// The document is of another version.
    #[error(
        "{path} speaks stats version {theirs}, this reader {STATS_VERSION}; \
         install the same release of both"
    )]
    Version {
        /// Path of the socket.
        path: PathBuf,
        /// Version of the daemon.
        theirs: u32,
    },
    /// The document is not a snapshot.
    #[error("The answer from {path} is not a snapshot; is it the stats socket of vmm-ecs?")]
    Malformed {
        /// Path of the socket.
        path: PathBuf,
        /// Where parsing stopped.
        #[source]
        source: serde_json::Error,
    },
}
