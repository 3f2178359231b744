//! A build without the programs.

use ecs_shm::SlotAddresses;

use super::Looks;
use crate::sys::Tid;

/// There are none.
#[derive(Debug)]
pub(super) enum Programs {}

impl Programs {
    pub(super) fn start(_: Looks) -> Result<Self, String> {
        Err("this build has no programs for the kernel: it lacks the feature scx".to_owned())
    }

    pub(super) fn show(&self, _: Tid, _: usize, _: SlotAddresses) -> Result<(), String> {
        match *self {}
    }

    pub(super) fn remove(&self, _: Tid) {
        match *self {}
    }

    pub(super) fn overloaded_ns(&self, _: usize) -> Option<u64> {
        match *self {}
    }

    pub(super) fn crowd(&self, _: u32, _: bool) {
        match *self {}
    }

    pub(super) fn settle(&self) {
        match *self {}
    }
}
