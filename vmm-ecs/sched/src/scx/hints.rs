//! Carries what guests should know from the kernel's ring into their host lines.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use libbpf_rs::RingBufferBuilder;

use super::Inner;
use super::kernel::{MAX_VCPUS, Program, types};
use crate::pimutex::PiMutex;
use crate::state::VcpuId;
use crate::sys::now_ns;

/// Longest time until this thread notices that it should end.
const PATIENCE: Duration = Duration::from_millis(100);

/// Bits of `ecs_hint.told`; `ECS_TOLD_*` of `bpf/shared.h`.
const PREEMPTED: u32 = 1;
const OVERLOADED: u32 = 2;
const GRANTED: u32 = 4;

/// Runs until `stop` is set.
pub(super) fn carry(inner: &Arc<PiMutex<Inner>>, program: &Arc<Program>, stop: &AtomicBool) {
    let mut builder = RingBufferBuilder::new();
    let take = |bytes: &[u8]| {
        if let Some(hint) = parse(bytes) {
            tell(&mut inner.lock(), &hint);
        }
        0
    };
    let added = builder.add(program.hints(), take).map(|_| ());
    let ring = match added.and_then(|()| builder.build()) {
        Ok(ring) => ring,
        Err(error) => {
            tracing::warn!(%error, "Guests get no hints");
            return;
        }
    };
    while !stop.load(Ordering::Acquire) {
        // A signal ends the wait early; anything else ends the next one too, and is no news.
        let _ = ring.poll(PATIENCE);
    }
}

fn parse(bytes: &[u8]) -> Option<types::ecs_hint> {
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    Some(types::ecs_hint {
        at_ns: u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?),
        vcpu: word(std::mem::offset_of!(types::ecs_hint, vcpu))?,
        epoch: word(std::mem::offset_of!(types::ecs_hint, epoch))?,
        told: word(std::mem::offset_of!(types::ecs_hint, told))?,
        ..types::ecs_hint::default()
    })
}

fn tell(inner: &mut Inner, hint: &types::ecs_hint) {
    let index = hint.vcpu as usize;
    let (vm, vcpu) = (index / MAX_VCPUS, index % MAX_VCPUS);
    // Of a VM that has gone meanwhile.
    if inner.epochs.get(vm) != Some(&hint.epoch) || inner.state.host.ended.is_some() {
        return;
    }
    let Some(vcpu) = inner.state.vcpu_mut(VcpuId { vm, vcpu }) else {
        return;
    };
    vcpu.tell_overloaded(hint.told & OVERLOADED != 0);
    vcpu.tell_preempted(hint.told & PREEMPTED != 0);
    let granted = hint.told & GRANTED != 0;
    if vcpu.extended != granted {
        vcpu.extended = granted;
        if let Some(slots) = &vcpu.slots {
            slots.set_granted(granted);
        }
    }
    let took_ns = now_ns().saturating_sub(hint.at_ns);
    inner.state.host.hint.observe(took_ns);
}
