//! The window: a regular moment in which a pCPU's current vCPU is in the fair class.
//!
//! # Problem
//! A vCPU in a real-time class starves everybody else on its pCPU; the kernel therefore takes 5 % of
//! each second away from that class, in one piece, wherever a lock may be held then.
//!
//! # Approach
//! The agent gives more than that of its own accord, in small pieces, at the beginning of a turn and
//! outside of sections. Meanwhile the waiting vCPUs, which are in the fair class too, would be
//! picked by the kernel as often as the current one: they are parked behind the real-time vCPU of
//! another pCPU, where there is one.

use super::mechanism::Role;
use super::role::{park, unpark};
use super::step::Look;
use crate::state::{Pcpu, State, VcpuId};

/// Length of a window, and time from the beginning of one to the next: 7 %.
const WINDOW_NS: u64 = 1_000_000;
const PERIOD_NS: u64 = 14_000_000;
/// The same while other threads of the host fill the windows: a third, as one ordinary thread would
/// get beside two vCPUs.
const BUSY_WINDOW_NS: u64 = 3_000_000;
const BUSY_PERIOD_NS: u64 = 9_000_000;
/// A window waits for a moment when no vCPU is in a section, but not longer than this.
const LATEST_NS: u64 = 24_000_000;

/// Role of the current vCPU now. Opens a window when one is due, and closes the one that is over.
pub(super) fn window(state: &mut State, look: &Look<'_>, id: VcpuId, extended: bool) -> Role {
    let Some(pcpu) = state.pcpus.get(look.pcpu) else {
        return Role::Current;
    };
    if !look.mechanism.has_windows() {
        return Role::Current;
    }
    match pcpu.window_since_ns {
        Some(since) if look.now_ns.saturating_sub(since) < pcpu.window_ns() && !extended => {
            Role::CurrentFair
        }
        Some(_) => {
            close(state, look);
            Role::Current
        }
        None => {
            let fresh = pcpu.turn.is_some_and(|turn| turn.is_fresh());
            let closed_ns = look.now_ns.saturating_sub(pcpu.window_closed_ns);
            // Those parked here rely on the real-time class of our current one.
            let due = pcpu.lodgers == 0 && closed_ns >= pcpu.period_ns() - pcpu.window_ns();
            if fresh && due && (is_clean(state, look.pcpu) || closed_ns >= LATEST_NS) {
                open(state, look, id);
                Role::CurrentFair
            } else {
                Role::Current
            }
        }
    }
}

/// Time until the window that is open ends, ns.
pub(super) fn left_ns(state: &State, look: &Look<'_>) -> Option<u64> {
    let since = state.pcpus.get(look.pcpu)?.window_since_ns?;
    let length_ns = state.pcpus.get(look.pcpu)?.window_ns();
    Some((since + length_ns).saturating_sub(look.now_ns))
}

impl Pcpu {
    fn window_ns(&self) -> u64 {
        if self.host_busy {
            BUSY_WINDOW_NS
        } else {
            WINDOW_NS
        }
    }

    fn period_ns(&self) -> u64 {
        if self.host_busy {
            BUSY_PERIOD_NS
        } else {
            PERIOD_NS
        }
    }
}

/// Ends the window, if one is open.
pub(super) fn close(state: &mut State, look: &Look<'_>) {
    let Some(pcpu) = state.pcpus.get_mut(look.pcpu) else {
        return;
    };
    if let Some(since) = pcpu.window_since_ns.take() {
        // Others wanted the CPU if they had it for most of their half.
        let length_ns = look.now_ns.saturating_sub(since);
        pcpu.host_busy = std::mem::take(&mut pcpu.host_ran_ns) > length_ns / 3;
        pcpu.window_closed_ns = look.now_ns;
        for member in pcpu.members.clone() {
            unpark(state, member);
        }
    }
}

fn open(state: &mut State, look: &Look<'_>, current: VcpuId) {
    let steered = |(index, pcpu): (usize, &Pcpu)| {
        let steady = pcpu.current.is_some() && !pcpu.released && pcpu.window_since_ns.is_none();
        (index != look.pcpu && steady).then_some((index, pcpu.cpu))
    };
    let host = state.pcpus.iter().enumerate().find_map(steered);
    let Some(pcpu) = state.pcpus.get_mut(look.pcpu) else {
        return;
    };
    pcpu.window_since_ns = Some(look.now_ns);
    pcpu.host_ran_ns = 0;
    let Some((host, cpu)) = host else { return };
    for member in pcpu.members.clone() {
        let allowed = state
            .vcpu(member)
            .is_some_and(|vcpu| vcpu.allowed.contains(cpu));
        if member != current && allowed {
            park(state, member, host);
        }
    }
}

/// Whether every vCPU here that could run is outside of sections and queues: then it does little
/// harm if the kernel picks another one than the agent would.
fn is_clean(state: &State, pcpu: usize) -> bool {
    let members = state
        .pcpus
        .get(pcpu)
        .map(|pcpu| pcpu.members.as_slice())
        .unwrap_or_default();
    members.iter().all(|&id| {
        state.vm(id.vm).is_none_or(|vm| {
            let snap = vm.snap(id.vcpu);
            !snap.holds() && !snap.spins()
        })
    })
}
