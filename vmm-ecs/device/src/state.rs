//! What is saved of a device: the driver's choice, the generation and the registrations.
//!
//! The same bytes go to a file, for a daemon that is restarted under a running VM, and through
//! the front-end (device state), for a VM that is moved. They are read as untrusted input.
//!
//! Layout, little-endian: a head of 64 bytes (magic, version, number of registrations,
//! generation, choice, front-end's pid, start and boot), the registrations as they were
//! received, 64 bytes each, and a checksum of 8 bytes.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ecs_abi::{VIRTIO_ECS_MAX_VCPUS, VirtioEcsRegister};

use crate::config_space::Choice;
use crate::peer::Peer;

const MAGIC: [u8; 8] = *b"ecs-dev\0";
const VERSION: u16 = 1;
const HEAD: usize = 64;
const COMMITTED: u16 = 1;

/// Longest saved state, bytes.
pub(crate) const MAX_STATE: usize =
    HEAD + VIRTIO_ECS_MAX_VCPUS as usize * VirtioEcsRegister::SIZE + 8;

/// Why a saved state cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("Cannot access the saved state {path}")]
    File {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("The saved state is damaged or of another version: {0}")]
    Format(&'static str),
}

/// The saved state of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Saved {
    pub(crate) generation: u32,
    pub(crate) choice: Choice,
    /// `None` in device state, which may come to life in another process.
    pub(crate) peer: Option<Peer>,
    pub(crate) registrations: Vec<VirtioEcsRegister>,
}

/// FNV-1a, against truncation and mix-ups, not against forgery.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl Saved {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MAX_STATE);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        let nr = u16::try_from(self.registrations.len()).unwrap_or(u16::MAX);
        out.extend(nr.to_le_bytes());
        out.extend(self.generation.to_le_bytes());
        out.extend(self.choice.version.to_le_bytes());
        let flags = if self.choice.committed { COMMITTED } else { 0 };
        out.extend(flags.to_le_bytes());
        out.extend(self.peer.map_or(0, |peer| peer.pid).to_le_bytes());
        out.extend(self.choice.features.to_le_bytes());
        let start = self.peer.and_then(|peer| peer.start).unwrap_or(0);
        out.extend(start.to_le_bytes());
        let boot = self.peer.and_then(|peer| peer.boot).unwrap_or(0);
        out.extend(boot.to_le_bytes());
        out.resize(HEAD, 0);
        for registration in &self.registrations {
            out.extend(registration.to_bytes());
        }
        out.extend(checksum(&out).to_le_bytes());
        out
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let (body, sum) = bytes
            .split_last_chunk::<8>()
            .filter(|(body, _)| body.len() >= HEAD)
            .ok_or(StateError::Format("it is too short"))?;
        if checksum(body) != u64::from_le_bytes(*sum) {
            return Err(StateError::Format("its checksum is wrong"));
        }
        let mut fields = Fields(body);
        if fields.take::<8>() != MAGIC {
            return Err(StateError::Format("it is something else"));
        }
        if u16::from_le_bytes(fields.take()) != VERSION {
            return Err(StateError::Format("its version is unknown"));
        }
        let nr = usize::from(u16::from_le_bytes(fields.take()));
        let generation = u32::from_le_bytes(fields.take());
        let version = u16::from_le_bytes(fields.take());
        let flags = u16::from_le_bytes(fields.take());
        let pid = u32::from_le_bytes(fields.take());
        let features = u64::from_le_bytes(fields.take());
        let start = u64::from_le_bytes(fields.take());
        let boot = u64::from_le_bytes(fields.take());
        let rest = body.get(HEAD..).unwrap_or_default();
        if rest.len() != nr * VirtioEcsRegister::SIZE {
            return Err(StateError::Format("its length is wrong"));
        }
        Ok(Self {
            generation,
            choice: Choice {
                version,
                features,
                committed: flags & COMMITTED != 0,
            },
            peer: (pid != 0).then_some(Peer {
                pid,
                start: Some(start),
                boot: Some(boot),
            }),
            registrations: rest
                .chunks_exact(VirtioEcsRegister::SIZE)
                .filter_map(VirtioEcsRegister::from_bytes)
                .collect(),
        })
    }
}

/// Takes fixed-size fields off the front; zeroes past the end.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }
}

/// The file that keeps one device's state. It belongs on a file system that does not outlive the
/// host's boot, such as `/run`.
#[derive(Debug)]
pub(crate) struct StateFile {
    path: PathBuf,
    next: PathBuf,
}

impl StateFile {
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        Self {
            path: dir.join(format!("{name}.state")),
            next: dir.join(format!("{name}.state.new")),
        }
    }

    /// Writes the whole state, or leaves the old one.
    pub(crate) fn save(&self, saved: &Saved) -> Result<(), StateError> {
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&self.next)?;
            file.write_all(&saved.to_bytes())?;
            fs::rename(&self.next, &self.path)
        };
        write().map_err(|source| self.error(source))
    }

    /// The saved state; `None` if there is none.
    pub(crate) fn load(&self) -> Result<Option<Saved>, StateError> {
        let file = match fs::File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.error(source)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_STATE as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| self.error(source))?;
        Saved::from_bytes(&bytes).map(Some)
    }

    fn error(&self, source: std::io::Error) -> StateError {
        StateError::File {
            path: self.path.clone(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn saved() -> Saved {
        Saved {
            generation: 9,
            choice: Choice {
                version: 1,
                features: 0x17,
                committed: true,
            },
            peer: Some(Peer {
                pid: 4,
                start: Some(5),
                boot: Some(6),
            }),
            registrations: (0..3)
                .map(|vcpu| VirtioEcsRegister {
                    vcpu,
                    guest_line: 0x1000 + u64::from(vcpu) * 128,
                    ..Default::default()
                })
                .collect(),
        }
    }

    #[test]
    fn survives_a_round_trip_and_no_damage() {
        let bytes = saved().to_bytes();
        assert_eq!(Saved::from_bytes(&bytes).unwrap(), saved());
        for len in 0..bytes.len() {
            assert!(Saved::from_bytes(&bytes[..len]).is_err(), "{len} bytes");
        }
        for at in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(Saved::from_bytes(&bad).is_err(), "byte {at}");
        }
        let most = Saved {
            registrations: vec![VirtioEcsRegister::default(); 256],
            ..saved()
        };
        assert_eq!(most.to_bytes().len(), MAX_STATE);
    }

    #[test]
    fn a_file_is_replaced_whole_and_a_damaged_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = StateFile::new(dir.path(), "vm");
        assert!(file.load().unwrap().is_none());
        file.save(&saved()).unwrap();
        assert_eq!(file.load().unwrap(), Some(saved()));
        fs::write(&file.path, b"short").unwrap();
        assert!(matches!(file.load(), Err(StateError::Format(_))));
        let lost = StateFile::new(&dir.path().join("missing"), "vm");
        assert!(matches!(lost.save(&saved()), Err(StateError::File { .. })));
    }
}
