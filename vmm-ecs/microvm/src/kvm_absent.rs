//! KVM guests need x86-64: elsewhere there are only threads.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use crate::config::Workload;
use crate::machine::Machine;

/// A KVM guest cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// Wrong architecture.
    #[error("KVM guests are made for x86-64 only: use threads")]
    Architecture,
}

#[derive(Debug)]
pub(crate) enum KvmVm {}

#[derive(Debug)]
pub(crate) enum VcpuFd {}

impl KvmVm {
    pub(crate) fn new(_: Arc<Machine>) -> Result<Self, KvmError> {
        Err(KvmError::Architecture)
    }

    pub(crate) fn create_vcpu(&self, _: usize) -> Result<VcpuFd, KvmError> {
        match *self {}
    }

    pub(crate) fn run(&self, _: &mut VcpuFd, _: usize) -> Result<(), KvmError> {
        match *self {}
    }
}

pub(crate) fn probe(_: &Workload) -> Result<(), KvmError> {
    Err(KvmError::Architecture)
}

pub(crate) fn register_kick() -> io::Result<()> {
    Ok(())
}

pub(crate) fn kick<T>(_: &JoinHandle<T>) {}
