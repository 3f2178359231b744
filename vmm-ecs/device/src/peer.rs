//! Which process is at the other end of a connection.

use std::os::unix::net::UnixStream;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// A front-end's process. Two are equal only if they are the same process, not merely the same
/// number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Peer {
    /// 0: not visible from this pid namespace.
    pub(crate) pid: u32,
    /// Start of the process, clock ticks since boot; `None` if it cannot be read.
    pub(crate) start: Option<u64>,
    /// Which boot of the host; `None` if it cannot be read.
    pub(crate) boot: Option<u64>,
}

impl Peer {
    /// Asks the kernel who connected.
    pub(crate) fn of(stream: &UnixStream) -> Self {
        let pid = getsockopt(stream, PeerCredentials)
            .ok()
            .and_then(|credentials| u32::try_from(credentials.pid()).ok())
            .unwrap_or(0);
        Self {
            pid,
            start: start_time(pid),
            boot: boot_id(),
        }
    }

    /// Whether this is surely the same process as `other`.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.pid != 0 && self.start.is_some() && self.boot.is_some() && self == other
    }
}

fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the 22nd field is the 20th after it.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn boot_id() -> Option<u64> {
    let id = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
    Some(crate::state::checksum(&id))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_the_process_at_the_other_end() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours);
        assert_eq!(peer.pid, std::process::id());
        assert!(peer.start.is_some_and(|start| start > 0));
        assert!(peer.is(&peer));
        let unknown = Peer {
            start: None,
            ..peer
        };
        assert!(
            !unknown.is(&unknown),
            "a process that cannot be told apart is not the same"
        );
    }
}
