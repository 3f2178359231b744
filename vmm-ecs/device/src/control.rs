//! Control messages: bytes in, typed reply out.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ecs_abi::*;
use ecs_shm::GuestMem;

use crate::config_space::ConfigSpace;
use crate::registry::Registry;

/// Longest message any operation has, bytes; one more is kept so that longer ones are seen as such.
pub(crate) const MAX_MESSAGE: usize = VirtioEcsRegister::SIZE;

/// Reply to one message, and whether the registrations changed.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) reply: VirtioEcsCtrlReply,
    pub(crate) changed: bool,
}

/// Answers one message.
pub(crate) fn answer(
    message: &[u8],
    space: &ConfigSpace,
    registry: &mut Registry,
    mem: &Arc<GuestMem>,
) -> Answer {
    let header = VirtioEcsCtrlHdr::from_bytes(message).unwrap_or_default();
    let mut reply = VirtioEcsCtrlReply {
        cookie: header.cookie,
        op: header.op,
        generation: space.generation(),
        ..Default::default()
    };
    let mut changed = false;
    reply.status = match execute(message, &header, space, registry, mem, &mut reply) {
        Ok(change) => {
            changed = change;
            VIRTIO_ECS_S_OK
        }
        Err(status) => status,
    };
    Answer { reply, changed }
}

/// Does what the message says; `Ok` with whether the registrations changed, `Err` with the status.
fn execute(
    message: &[u8],
    header: &VirtioEcsCtrlHdr,
    space: &ConfigSpace,
    registry: &mut Registry,
    mem: &Arc<GuestMem>,
    reply: &mut VirtioEcsCtrlReply,
) -> Result<bool, u16> {
    if message.len() < VirtioEcsCtrlHdr::SIZE {
        return Err(VIRTIO_ECS_S_BAD_LENGTH);
    }
    let size = match header.op {
        VIRTIO_ECS_CTRL_REGISTER => VirtioEcsRegister::SIZE,
        VIRTIO_ECS_CTRL_UNREGISTER | VIRTIO_ECS_CTRL_QUERY => VirtioEcsVcpuMsg::SIZE,
        _ => return Err(VIRTIO_ECS_S_BAD_OP),
    };
    if message.len() != size {
        return Err(VIRTIO_ECS_S_BAD_LENGTH);
    }
    let features = space.negotiated().ok_or(VIRTIO_ECS_S_NOT_NEGOTIATED)?;
    // Every operation has its vCPU at the same place.
    let vcpu = VirtioEcsVcpuMsg::from_bytes(message)
        .ok_or(VIRTIO_ECS_S_BAD_LENGTH)?
        .vcpu;
    reply.vcpu = vcpu;
    if vcpu >= space.max_vcpus() {
        return Err(VIRTIO_ECS_S_BAD_VCPU);
    }
    match header.op {
        VIRTIO_ECS_CTRL_REGISTER => {
            let registration =
                VirtioEcsRegister::from_bytes(message).ok_or(VIRTIO_ECS_S_BAD_LENGTH)?;
            if features & VIRTIO_ECS_F_LINES == 0 {
                return Err(VIRTIO_ECS_S_NOT_NEGOTIATED);
            }
            if registration.word_format != VIRTIO_ECS_WORD_NONE && features & VIRTIO_ECS_F_WORD == 0
            {
                return Err(VIRTIO_ECS_S_BAD_FORMAT);
            }
            registry
                .register(mem, &registration)
                .map_err(|error| error.status())?;
            Ok(true)
        }
        VIRTIO_ECS_CTRL_UNREGISTER => {
            if registry.unregister(vcpu) {
                Ok(true)
            } else {
                Err(VIRTIO_ECS_S_NOT_REGISTERED)
            }
        }
        _ => {
            let counters = registry.counters(vcpu).ok_or(VIRTIO_ECS_S_NOT_REGISTERED)?;
            reply.nr_grants = counters.nr_grants.load(Ordering::Relaxed);
            reply.nr_faults = counters.nr_faults.load(Ordering::Relaxed);
            Ok(false)
        }
    }
}

const _: () = assert!(
    std::mem::offset_of!(VirtioEcsRegister, vcpu) == std::mem::offset_of!(VirtioEcsVcpuMsg, vcpu)
);
