//! One look of an agent at its pCPU: books what happened, decides, steers, and says when to look
//! again. Everything here runs under the lock, on the pCPU itself, so that no vCPU of it can run
//! (and change its words) meanwhile.

use ecs_abi::{VIRTIO_ECS_YIELD_BLOCK, VIRTIO_ECS_YIELD_HOPELESS, VIRTIO_ECS_YIELD_RELEASE};
use ecs_policy::pace::{CREDIT_SLICES, POLL_NS, SCAN_NS, SHORTEST_NS, VAIN_RINGS};
use ecs_policy::{
    Candidate, Decision, Event, Input, Leave, Params, Patience, Queue, Rank, Turn, Wait,
    aligned_slice_ns, is_urgent, pick,
};

use smallvec::SmallVec;

use super::apart;
use super::mechanism::{Mechanism, Role};
use super::release::{RELEASED_NS, pcpu_is_quiet, release, stays_released, take_back};
use super::role::assign;
use super::window::{self, window};
use crate::accounting::{Cause, account, count_critical, count_preemption};
use crate::perf::Switch;
use crate::state::{State, Status, VcpuId};
use crate::sys::{Tid, now_ns};

/// Looks while nothing runs.
const IDLE_NS: u64 = 10_000_000;

/// What one look needs to know.
pub(crate) struct Look<'a> {
    pub(crate) pcpu: usize,
    pub(crate) mechanism: Mechanism,
    pub(crate) agent: Tid,
    pub(crate) now_ns: u64,
    /// Doorbells that rang.
    pub(crate) rung: &'a [VcpuId],
    /// Context switches of this CPU since the last look.
    pub(crate) switches: &'a [Switch],
}

/// As many as most pCPUs have members, on the stack: a look allocates nothing.
type Few<T> = SmallVec<[T; 8]>;

/// A member of the pCPU that could run, and how much that would help.
struct Runnable {
    id: VcpuId,
    rank: Rank,
}

/// Looks once; returns the time until the next look, ns.
pub(crate) fn step(state: &mut State, look: &Look<'_>) -> u64 {
    let Some(pcpu) = state.pcpus.get_mut(look.pcpu) else {
        return IDLE_NS;
    };
    pcpu.looks += 1;
    pcpu.last = None;
    account(
        state,
        look.switches.iter().map(|&switch| (look.pcpu, switch)),
        look.agent,
    );
    let started = now_ns();
    let Some(pcpu) = state.pcpus.get(look.pcpu) else {
        return IDLE_NS;
    };
    let (current, turn, released) = (pcpu.current, pcpu.turn, pcpu.released);
    read_members(state, look);
    if released {
        if stays_released(state, look.pcpu) {
            // Nobody was asked to ring here.
            state.mutes.extend_from_slice(look.rung);
            return RELEASED_NS;
        }
        take_back(state, look);
    } else if pcpu_is_quiet(state, look.pcpu) {
        release(state, look);
        return RELEASED_NS;
    }

    let outcome = match (current, turn) {
        (Some(current), Some(turn)) => decide(state, look, current, turn),
        _ => Next::Rotate {
            from: None,
            again: false,
            force: None,
        },
    };
    let wait_ns = match outcome {
        Next::Stay { id, turn, for_ns } => {
            state
                .host
                .decision
                .observe(now_ns().saturating_sub(started));
            stay(state, look, id, turn, for_ns)
        }
        Next::Rotate { from, again, force } => {
            let chosen = force.or_else(|| choose(state, look, from, again));
            state
                .host
                .decision
                .observe(now_ns().saturating_sub(started));
            rotate(state, look, from, chosen)
        }
    };
    wait_ns.max(SHORTEST_NS)
}

/// What follows from a look.
enum Next {
    /// The current vCPU runs on.
    Stay { id: VcpuId, turn: Turn, for_ns: u64 },
    /// Another one may be chosen; `again`: the one that ran is a candidate too.
    Rotate {
        from: Option<VcpuId>,
        again: bool,
        force: Option<VcpuId>,
    },
}

// ---- reading ----

/// Reads what may have changed of the vCPUs here; of every vCPU of a VM where one of them waits.
fn read_members(state: &mut State, look: &Look<'_>) {
    let State {
        pcpus, vms, params, ..
    } = state;
    let Some(pcpu) = pcpus.get(look.pcpu) else {
        return;
    };
    for id in &pcpu.members {
        let Some(vm) = vms.get_mut(id.vm).and_then(Option::as_mut) else {
            continue;
        };
        vm.patient = vm.patience.holds(look.now_ns, params.slice_ns);
        vm.refresh(id.vcpu);
        if vm.snap(id.vcpu).wait != Wait::None {
            vm.read();
        }
    }
}

/// Members that could run beside `except`, ranked as if `except` were off the CPU.
fn runnable(state: &mut State, pcpu: usize, except: Option<VcpuId>) -> Few<Runnable> {
    let State {
        pcpus, vms, params, ..
    } = state;
    let mut found = Few::new();
    let Some(pcpu) = pcpus.get(pcpu) else {
        return found;
    };
    for &id in pcpu.members.iter().filter(|&&id| Some(id) != except) {
        let Some(vm) = vms.get_mut(id.vm).and_then(Option::as_mut) else {
            continue;
        };
        let Some(vcpu) = vm.vcpus.get_mut(id.vcpu).and_then(Option::as_mut) else {
            continue;
        };
        // A vCPU that was woken waits behind the current one, and leaves no record of it.
        if vcpu.status == Status::Blocked && vcpu.stat.as_ref().is_some_and(|s| s.is_runnable()) {
            vcpu.status = Status::Waiting;
        }
        if vcpu.status == Status::Blocked {
            continue;
        }
        let mut running = vm.running;
        if let Some(except) = except.filter(|except| except.vm == id.vm) {
            running.remove(except.vcpu);
        }
        let queue = vm.place_of(id.vcpu, &running);
        let rank = Rank::of(&vm.snap(id.vcpu), queue, params);
        found.push(Runnable { id, rank });
    }
    found
}

// ---- deciding ----

fn decide(state: &mut State, look: &Look<'_>, current: VcpuId, mut turn: Turn) -> Next {
    let others = runnable(state, look.pcpu, Some(current));
    let params = state.params;
    let heads = || {
        others
            .iter()
            .filter(|other| other.rank == Rank::Head)
            .map(|other| other.id)
    };
    let urgent = heads().any(|head| is_stuck(state, head, current));
    // Somebody else had the CPU last, by the kernel's choice: it runs on, unless it only spins, or
    // the current one was interrupted in a section and it was not.
    let last = state.pcpus.get(look.pcpu).and_then(|pcpu| pcpu.last);
    let interrupted = state
        .vm(current.vm)
        .is_some_and(|vm| vm.snap(current.vcpu).holds());
    let force = others
        .iter()
        .filter(|other| Some(other.id) == last)
        .find_map(|other| {
            let worth = match other.rank {
                Rank::Head => true,
                Rank::Ready => !interrupted,
                Rank::Hopeless => false,
            };
            worth.then_some(other.id)
        });
    let Some(vm) = state.vms.get_mut(current.vm).and_then(Option::as_mut) else {
        return Next::Rotate {
            from: None,
            again: false,
            force: None,
        };
    };
    let (snap, queue) = (
        vm.snap(current.vcpu),
        vm.place_of(current.vcpu, &vm.running),
    );
    apart::note(vm, queue);
    let dirty = params.queue_rules && vm.is_dirty();
    let Some(vcpu) = vm.vcpus.get_mut(current.vcpu).and_then(Option::as_mut) else {
        return Next::Rotate {
            from: None,
            again: false,
            force: None,
        };
    };
    let ran_ns = std::mem::take(&mut vcpu.turn_ran_ns);
    let is_candidate = |other: &Runnable| other.rank != Rank::Hopeless;
    // It rang before it halts for a lock (docs/adr/0012-halts.md). Whether its wait has ended meanwhile
    // does not matter: siblings that meet at a lock are better apart.
    let halts = snap.blocked
        && vm.patience.may_halt(look.now_ns, params.slice_ns)
        && look.rung.contains(&current)
        && others.iter().any(is_candidate);
    let blocked = vcpu.status == Status::Blocked || halts;
    let event = if blocked || force.is_some() {
        Event::Blocked
    } else if !look.rung.is_empty() && (turn.is_extended() || dirty) {
        Event::HandBack
    } else {
        Event::Look
    };
    let input = Input {
        event,
        ran_ns,
        snap,
        queue,
        others: others.iter().any(is_candidate),
        urgent,
    };
    let extended_ns = turn
        .is_extended()
        .then(|| turn.extension_used_ns().saturating_add(ran_ns));
    let decision = turn.decide(&params, &mut vm.policy, &mut vcpu.policy, &input);

    if let Decision::Extend { section, .. } = decision {
        vcpu.grants += 1;
        vcpu.extended_section = section as usize;
        if let Some(slots) = &vcpu.slots {
            slots.set_granted(true);
        }
    } else if let Some(used_ns) = extended_ns.filter(|_| !turn.is_extended()) {
        if let Some(slots) = &vcpu.slots {
            slots.set_granted(false);
        }
        let section = vcpu.extended_section;
        if let Some(histogram) = state.host.extension.get_mut(section) {
            histogram.observe(used_ns);
        }
    }
    note_quiet(state, look.pcpu, &input, &decision);

    match decision {
        _ if force.is_some() => Next::Rotate {
            from: Some(current),
            again: false,
            force,
        },
        Decision::Keep { for_ns } => Next::Stay {
            id: current,
            turn,
            for_ns,
        },
        Decision::Extend { for_ns, .. } => Next::Stay {
            id: current,
            turn,
            for_ns,
        },
        Decision::Renew => {
            let turn = begin(state, look, current, 0);
            match turn {
                Some(turn) => Next::Stay {
                    id: current,
                    turn,
                    for_ns: turn.left_ns(),
                },
                None => Next::Rotate {
                    from: None,
                    again: false,
                    force: None,
                },
            }
        }
        Decision::Leave(leave) => {
            let again = !matches!(leave, Leave::Blocked | Leave::Hopeless);
            let chosen = choose_among(state, look, &others, again.then_some(current));
            if halts {
                note_gift(state, look, current.vm, Patience::halt);
            }
            if leave == Leave::Hopeless {
                note_gift(state, look, current.vm, Patience::step_aside);
                hurry_head(state, look.pcpu, current.vm);
            }
            if chosen != Some(current)
                && let Leave::Denied(_) | Leave::Expired = leave
            {
                let expired = leave == Leave::Expired;
                let cause = if expired {
                    Cause::Expired
                } else {
                    Cause::Denied
                };
                count_critical(state, current, cause, look.now_ns);
            }
            Next::Rotate {
                from: Some(current),
                again,
                force: chosen,
            }
        }
    }
}

/// Whether `head` may take the pCPU from `current` at once.
fn is_stuck(state: &State, head: VcpuId, current: VcpuId) -> bool {
    let vtime_ns = |id: VcpuId| state.vm(id.vm).map(|vm| vm.policy.ledger.vtime_ns());
    state.vm(head.vm).is_some_and(|vm| vm.stuck)
        && (head.vm == current.vm
            || is_urgent(
                vtime_ns(head).unwrap_or(u64::MAX),
                vtime_ns(current).unwrap_or(0),
            ))
}

/// Notes that a vCPU of this VM gives its pCPU to another one of its own accord: how says `note`.
fn note_gift(state: &mut State, look: &Look<'_>, vm: usize, note: fn(&mut Patience, u64, u64)) {
    let slice_ns = state.params.slice_ns;
    if let Some(vm) = state.vm_mut(vm) {
        note(&mut vm.patience, look.now_ns, slice_ns);
    }
}

/// A vCPU of this VM stepped aside because the head of its queue is off the CPU: makes the agent of
/// the head's pCPU look, if it is another one.
fn hurry_head(state: &mut State, here: usize, vm: usize) {
    let State { vms, kicks, .. } = state;
    let Some(vm) = vms.get_mut(vm).and_then(Option::as_mut) else {
        return;
    };
    vm.stuck = true;
    for (index, vcpu) in vm.vcpus.iter().enumerate() {
        let Some(vcpu) = vcpu.as_ref().filter(|vcpu| vcpu.status == Status::Waiting) else {
            continue;
        };
        let snap = vm.snap(index);
        let is_head = matches!(snap.wait, Wait::Ended { .. }) || (snap.holds() && !snap.spins());
        if let Some(pcpu) = vcpu
            .pcpu
            .filter(|&pcpu| is_head && pcpu != here && !vm.running.contains(index))
        {
            kicks.push(pcpu);
        }
    }
}

/// Notes whether the guests of this pCPU use locks.
fn note_quiet(state: &mut State, pcpu: usize, input: &Input, decision: &Decision) {
    let busy = input.snap.holds() || input.queue != Queue::NotWaiting;
    let Some(pcpu) = state.pcpus.get_mut(pcpu) else {
        return;
    };
    if busy {
        pcpu.quiet_turns = 0;
    } else if matches!(decision, Decision::Leave(Leave::SliceEnd) | Decision::Renew) {
        pcpu.quiet_turns = pcpu.quiet_turns.saturating_add(1);
    }
}

fn choose(state: &mut State, look: &Look<'_>, from: Option<VcpuId>, again: bool) -> Option<VcpuId> {
    let others = runnable(state, look.pcpu, from);
    choose_among(state, look, &others, from.filter(|_| again))
}

fn choose_among(
    state: &State,
    look: &Look<'_>,
    others: &[Runnable],
    again: Option<VcpuId>,
) -> Option<VcpuId> {
    let ready = |id| Runnable {
        id,
        rank: Rank::Ready,
    };
    let mut candidates: Few<(VcpuId, Candidate)> = others
        .iter()
        .map(|other| Runnable { ..*other })
        .chain(again.map(ready))
        .filter_map(|Runnable { id, rank }| {
            let vm = state.vm(id.vm)?;
            let candidate = Candidate {
                vm_vtime_ns: vm.policy.ledger.vtime_ns(),
                vcpu_cpu_ns: vm.vcpu(id.vcpu)?.policy.cpu_ns,
                rank,
            };
            Some((id, candidate))
        })
        .collect();
    apart::arrange(state, look.pcpu, look.now_ns, &mut candidates);
    let index = pick(
        candidates.iter().map(|(_, candidate)| *candidate),
        &state.params,
    )?;
    candidates.get(index).map(|(id, _)| *id)
}

// ---- steering ----

fn begin(state: &mut State, look: &Look<'_>, id: VcpuId, bonus_ns: u64) -> Option<Turn> {
    let slice_ns = aligned_slice_ns(look.now_ns, state.params.slice_ns);
    let params = Params {
        slice_ns,
        ..state.params
    };
    state.forgo_credit(id.vm, CREDIT_SLICES);
    state.rein(look.pcpu, id.vm);
    let vm = state.vms.get_mut(id.vm)?.as_mut()?;
    vm.lock_bound = vm.lock_bound.saturating_sub(1);
    let vcpu = vm.vcpus.get_mut(id.vcpu)?.as_mut()?;
    let (turn, taken_ns) = Turn::start(&params, &mut vm.policy, &mut vcpu.policy, bonus_ns);
    if let Some(pcpu) = state.pcpus.get_mut(look.pcpu) {
        pcpu.bonus_ns += taken_ns;
        pcpu.vain_rings = 0;
    }
    Some(turn)
}

fn stay(state: &mut State, look: &Look<'_>, id: VcpuId, turn: Turn, for_ns: u64) -> u64 {
    if let Some(pcpu) = state.pcpus.get_mut(look.pcpu) {
        pcpu.turn = Some(turn);
        // A guest that rings for nothing costs its neighbours: not for long.
        pcpu.vain_rings += u32::from(!look.rung.is_empty());
        if pcpu.vain_rings > VAIN_RINGS {
            state.mutes.extend_from_slice(look.rung);
        }
    }
    let role = window(state, look, id, turn.is_extended());
    assign(state, look, id, role);
    let scan = tell_queues(state, look.pcpu, id, turn.is_extended());
    timer(state, look, for_ns, scan)
}

fn rotate(state: &mut State, look: &Look<'_>, from: Option<VcpuId>, chosen: Option<VcpuId>) -> u64 {
    let Some(pcpu) = state.pcpus.get_mut(look.pcpu) else {
        return IDLE_NS;
    };
    let same_vm = from.map(|id| id.vm) == chosen.map(|id| id.vm);
    let bonus_ns = if same_vm {
        0
    } else {
        std::mem::take(&mut pcpu.bonus_ns)
    };
    pcpu.current = chosen;
    pcpu.turn = None;
    if let Some(from) = from.filter(|&from| Some(from) != chosen) {
        state.host.rotations += 1;
        leave(state, look, from);
    }
    let Some(chosen) = chosen else {
        state.tell_crowded(look.pcpu, false);
        window::close(state, look);
        return IDLE_NS;
    };
    let turn = begin(state, look, chosen, bonus_ns);
    if let Some(vcpu) = state.vcpu_mut(chosen) {
        // What it ran while it filled in belongs to no turn.
        vcpu.turn_ran_ns = 0;
    }
    if let Some(pcpu) = state.pcpus.get_mut(look.pcpu) {
        pcpu.turn = turn;
    }
    if let Some(vm) = state.vm_mut(chosen.vm) {
        vm.stuck = false;
        vm.running.insert(chosen.vcpu);
    }
    let role = window(state, look, chosen, false);
    assign(state, look, chosen, role);
    if let Some(from) = from.filter(|from| from.vm != chosen.vm) {
        tell_vm(state, from.vm, None);
    }
    let scan = tell_queues(state, look.pcpu, chosen, false);
    let for_ns = turn.map_or(IDLE_NS, |turn| turn.left_ns());
    timer(state, look, for_ns, scan)
}

/// Takes a vCPU off its pCPU.
fn leave(state: &mut State, look: &Look<'_>, id: VcpuId) {
    assign(state, look, id, Role::Waiting);
    let Some(vm) = state.vm_mut(id.vm) else {
        return;
    };
    vm.running.remove(id.vcpu);
    let Some(vcpu) = vm.vcpu_mut(id.vcpu) else {
        return;
    };
    vcpu.crowded = false;
    vcpu.tell_yield(0);
    vcpu.ordered_off = true;
    vcpu.extended = false;
    if vcpu.status == Status::Waiting {
        count_preemption(state, id);
    }
}

/// Tells the running vCPUs of one VM whether a queue of theirs is stuck; `here` is the current vCPU
/// of this pCPU if it belongs to the VM, and whether it is in an extension. True if it is stuck.
fn tell_vm(state: &mut State, vm: usize, here: Option<(usize, bool)>) -> bool {
    let queue_rules = state.params.queue_rules;
    let Some(vm) = state.vm_mut(vm) else {
        return false;
    };
    let dirty = queue_rules && vm.is_dirty();
    let running = vm.running;
    for (index, vcpu) in vm.vcpus.iter_mut().enumerate() {
        let Some(vcpu) = vcpu.as_mut().filter(|_| running.contains(index)) else {
            continue;
        };
        let mut bits = 0;
        if vcpu.crowded {
            bits |= VIRTIO_ECS_YIELD_BLOCK;
        }
        if dirty {
            bits |= VIRTIO_ECS_YIELD_HOPELESS | VIRTIO_ECS_YIELD_RELEASE;
        }
        let extended = match here {
            Some((vcpu, extended)) if vcpu == index => extended,
            // Another agent's: leave what it asked for.
            _ => vcpu.yield_bits & VIRTIO_ECS_YIELD_RELEASE != 0 && vcpu.extended,
        };
        vcpu.extended = extended;
        if extended {
            bits |= VIRTIO_ECS_YIELD_RELEASE;
        }
        vcpu.tell_yield(bits);
    }
    dirty
}

/// Tells the guest of the current vCPU, and says how soon to look for want of a doorbell.
fn tell_queues(state: &mut State, pcpu: usize, id: VcpuId, extended: bool) -> Option<u64> {
    let waiting = state.pcpus.get(pcpu).map_or(0, |pcpu| {
        let waits = |&&other: &&VcpuId| {
            state
                .vcpu(other)
                .is_some_and(|vcpu| vcpu.status != Status::Blocked)
        };
        pcpu.members.iter().filter(waits).count()
    });
    state.tell_crowded(pcpu, waiting > 1);
    if let Some(vcpu) = state.vcpu_mut(id) {
        vcpu.crowded = waiting > 1;
        vcpu.tell_overloaded(waiting > 1);
    }
    let dirty = tell_vm(state, id.vm, Some((id.vcpu, extended)));
    let vm = state.vm(id.vm)?;
    let bell = vm.spec.doorbells.iter().any(Option::is_some) && !state.mutes.contains(&id);
    let hopeless = vm.place_of(id.vcpu, &vm.running) == Queue::Hopeless;
    match () {
        // Not in step with the guest: a lock taken as regularly as this looks would be met in the
        // same state each time.
        () if extended && !bell => Some(POLL_NS + now_ns() % POLL_NS),
        () if waiting > 1 && (hopeless || (dirty && !bell)) => Some(SCAN_NS),
        () => None,
    }
}

fn timer(state: &State, look: &Look<'_>, for_ns: u64, scan: Option<u64>) -> u64 {
    let window_left = window::left_ns(state, look);
    [scan, window_left]
        .into_iter()
        .flatten()
        .fold(for_ns, u64::min)
}
