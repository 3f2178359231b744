//! How histories are drawn.

use ecs_policy::{Candidate, CsSnapshot, Event, Input, Params, Queue, Rank, Wait};
use proptest::prelude::*;

use crate::op::Op;

/// Sizes of `bpf/ops.h`.
pub(crate) const VMS: usize = 2;
pub(crate) const VCPUS: usize = 2;
pub(crate) const SLOTS: usize = 2;
/// vCPUs of a lock queue, candidates of a pick.
const MANY: usize = 8;

fn params() -> impl Strategy<Value = Params> {
    let slice = prop_oneof![Just(3_000_000u64), 500_000u64..20_000_000];
    // Beside one extension; none is the narrowest there is.
    let budget = prop_oneof![Just(0), 0u64..4_000_000];
    (slice, 1u64..1000, budget, 1u32..12, 0u8..16, any::<bool>()).prop_map(
        |(slice_ns, extension, budget, cooldown_max, on, queue_rules)| {
            let extension_ns = (slice_ns * extension / 1000).max(10_000);
            Params {
                slice_ns,
                extension_ns,
                budget_ns: extension_ns + budget,
                cooldown_max,
                extensions: on > 0,
                queue_rules,
            }
        },
    )
}

fn wait() -> impl Strategy<Value = Wait> {
    let holder = || proptest::option::of(0u16..10);
    // Few addresses, so that waits meet.
    let lock = || (0u64..3).prop_map(|lock| 0x1000 + lock * 8);
    prop_oneof![
        4 => Just(Wait::None),
        1 => Just(Wait::Entering),
        1 => holder().prop_map(|holder| Wait::Unknown { holder }),
        4 => (lock(), holder()).prop_map(|(lock, holder)| Wait::Pending { lock, holder }),
        2 => lock().prop_map(|lock| Wait::Ended { lock }),
    ]
}

fn snapshot() -> impl Strategy<Value = CsSnapshot> {
    // Idle and blocked are rare, or nothing else would be tested.
    (any::<bool>(), 0u8..4, wait(), 0u8..10, 0u8..10).prop_map(|(np, p, wait, blocked, idle)| {
        CsSnapshot {
            non_preemptable: np,
            preemptable: p == 0,
            wait,
            blocked: blocked == 0,
            idle: idle == 0,
        }
    })
}

fn input() -> impl Strategy<Value = Input> {
    let event = prop_oneof![
        8 => Just(Event::Look),
        2 => Just(Event::HandBack),
        1 => Just(Event::Blocked),
    ];
    let ran_ns = prop_oneof![
        Just(0),
        0u64..200_000,
        0u64..30_000_000,
        Just(1 << 40),
        Just(u64::MAX / 3)
    ];
    let queue = prop_oneof![
        6 => Just(Queue::NotWaiting),
        1 => Just(Queue::Head),
        2 => Just(Queue::HeadRuns),
        1 => Just(Queue::Hopeless),
        1 => Just(Queue::Unknown),
    ];
    (event, ran_ns, snapshot(), queue, 0u8..64).prop_map(|(event, ran_ns, snap, queue, who)| {
        Input {
            event,
            ran_ns,
            snap,
            queue,
            others: who >= 8,
            urgent: who >= 56,
        }
    })
}

fn queue() -> impl Strategy<Value = Op> {
    proptest::collection::vec((snapshot(), any::<bool>()), 1..=MANY)
        .prop_flat_map(|vcpus| (0..vcpus.len(), Just(vcpus)))
        .prop_map(|(me, vcpus)| Op::Queue { me, vcpus })
}

fn pick() -> impl Strategy<Value = Op> {
    let rank = prop_oneof![Just(Rank::Head), Just(Rank::Ready), Just(Rank::Hopeless)];
    // Few and close values, so that candidates tie.
    let candidate = (0u64..8, 0u64..4, rank).prop_map(|(vtime, cpu, rank)| Candidate {
        vm_vtime_ns: vtime * 1_000_000,
        vcpu_cpu_ns: cpu,
        rank,
    });
    proptest::collection::vec(candidate, 1..=MANY).prop_map(|candidates| Op::Pick { candidates })
}

/// One operation.
fn op() -> impl Strategy<Value = Op> {
    let weight = || prop_oneof![Just(100), 0u32..=10_000, 0..u32::MAX];
    let clock = || 0u64..1 << 40;
    let bonus = prop_oneof![Just(0), 0u64..30_000_000, any::<u64>()];
    let ran_ns = prop_oneof![0u64..30_000_000, any::<u64>()];
    prop_oneof![
        12 => (0..SLOTS, 0..VMS, 0..VCPUS, bonus)
            .prop_map(|(slot, vm, vcpu, bonus_ns)| Op::Begin { slot, vm, vcpu, bonus_ns }),
        24 => (0..SLOTS, input()).prop_map(|(slot, input)| Op::Look { slot, input }),
        6 => (0..VMS, ran_ns).prop_map(|(vm, ran_ns)| Op::Charge { vm, ran_ns }),
        1 => (0..VMS, weight()).prop_map(|(vm, weight)| Op::Weight { vm, weight }),
        1 => (0..VMS, clock(), clock())
            .prop_map(|(vm, vclock_ns, slack_ns)| Op::Wake { vm, vclock_ns, slack_ns }),
        1 => (0..VMS, clock(), prop_oneof![0u64..300, any::<u64>()])
            .prop_map(|(vm, vclock_ns, nr_vcpus)| Op::Rein { vm, vclock_ns, nr_vcpus }),
        1 => (0..VMS, any::<bool>()).prop_map(|(vm, enabled)| Op::Enable { vm, enabled }),
        1 => (0..VMS).prop_map(|vm| Op::Forgive { vm }),
        1 => (0..VMS).prop_map(|vm| Op::Abort { vm }),
        1 => (0..VMS, weight(), clock())
            .prop_map(|(vm, weight, vclock_ns)| Op::New { vm, weight, vclock_ns }),
        8 => queue(),
        3 => pick(),
        1 => (0u64..4, 0u64..4).prop_map(|(head_ns, current_ns)| Op::Urgent { head_ns, current_ns }),
    ]
}

/// Turn after turn of one vCPU that stays in its section, past every hard stop: it cools down, for
/// longer each time.
fn expiries() -> impl Strategy<Value = Vec<Op>> {
    (0..SLOTS, 0..VMS, 0..VCPUS, 1usize..40).prop_map(|(slot, vm, vcpu, turns)| {
        let turn = [
            Op::Begin {
                slot,
                vm,
                vcpu,
                bonus_ns: 0,
            },
            Op::Look {
                slot,
                input: stays(),
            },
            Op::Look {
                slot,
                input: stays(),
            },
        ];
        turn.iter().cycle().take(3 * turns).cloned().collect()
    })
}

/// Part of a history.
fn episode() -> impl Strategy<Value = Vec<Op>> {
    prop_oneof![60 => op().prop_map(|op| vec![op]), 1 => expiries()]
}

/// Two VMs, and what happens to them in fewer episodes than `length`.
pub(crate) fn history(length: usize) -> impl Strategy<Value = Vec<Op>> {
    let new = |vm, weight| Op::New {
        vm,
        weight,
        vclock_ns: 0,
    };
    (params(), proptest::collection::vec(episode(), 1..length)).prop_map(
        move |(params, episodes)| {
            let start = [Op::Params(params), new(0, 100), new(1, 300)];
            let episodes = episodes.into_iter().flatten();
            start.into_iter().chain(episodes).collect()
        },
    )
}

/// The end of a slice or of an extension, inside a section.
fn stays() -> Input {
    Input {
        event: Event::Look,
        ran_ns: 30_000_000,
        snap: CsSnapshot {
            non_preemptable: true,
            ..CsSnapshot::default()
        },
        queue: Queue::NotWaiting,
        others: true,
        urgent: false,
    }
}
