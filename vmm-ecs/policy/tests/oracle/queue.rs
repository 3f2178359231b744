//! `queue_of` on anything a guest may show, and its meaning on queues built on purpose.

use super::config;
use ecs_policy::{CsSnapshot, MAX_VCPUS, Queue, VcpuSet, Wait, is_dirty, queue_of};
use proptest::prelude::*;

const LOCK: u64 = 0x1000;

fn wait() -> impl Strategy<Value = Wait> {
    let holder = || prop::option::of(prop_oneof![0u16..6, any::<u16>()]);
    let lock = || prop_oneof![Just(LOCK), 0u64..3, any::<u64>()];
    prop_oneof![
        Just(Wait::None),
        Just(Wait::Entering),
        holder().prop_map(|holder| Wait::Unknown { holder }),
        (lock(), holder()).prop_map(|(lock, holder)| Wait::Pending { lock, holder }),
        lock().prop_map(|lock| Wait::Ended { lock }),
    ]
}

fn snapshot() -> impl Strategy<Value = CsSnapshot> {
    (
        any::<bool>(),
        any::<bool>(),
        wait(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(
            |(non_preemptable, preemptable, wait, blocked, idle)| CsSnapshot {
                non_preemptable,
                preemptable,
                wait,
                blocked,
                idle,
            },
        )
}

fn set(vcpus: &[usize]) -> VcpuSet {
    let mut set = VcpuSet::default();
    vcpus.iter().for_each(|vcpu| set.insert(*vcpu));
    set
}

/// How the waiters of a built queue tell what they wait for.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// All watch the owner field.
    Ticket,
    /// Each watches a node of its own.
    Mcs,
    /// As Linux's qspinlock: the head watches the lock byte, the others their nodes.
    Qspinlock,
}

/// A queue in a known state: `line[0]` is its head, the others follow in order.
#[derive(Debug, Clone)]
struct Built {
    kind: Kind,
    nr_vcpus: usize,
    line: Vec<usize>,
    /// The head holds the lock already; otherwise it was just passed to it.
    head_holds: bool,
    /// The waiters name the holder (or who held it before).
    named: bool,
    running: Vec<usize>,
}

fn built() -> impl Strategy<Value = Built> {
    let kind = prop_oneof![Just(Kind::Ticket), Just(Kind::Mcs), Just(Kind::Qspinlock)];
    (kind, 2usize..10, any::<bool>(), any::<bool>()).prop_flat_map(
        |(kind, nr_vcpus, head_holds, named)| {
            let all: Vec<usize> = (0..nr_vcpus).collect();
            let line = prop::sample::subsequence(all.clone(), 2..=nr_vcpus).prop_shuffle();
            let running = prop::sample::subsequence(all, 0..=nr_vcpus);
            (line, running).prop_map(move |(line, running)| Built {
                kind,
                nr_vcpus,
                line,
                head_holds,
                named,
                running,
            })
        },
    )
}

impl Built {
    fn watched(&self, place: usize) -> u64 {
        match (self.kind, place) {
            (Kind::Ticket, _) | (Kind::Qspinlock, 0 | 1) => LOCK,
            (Kind::Mcs | Kind::Qspinlock, place) => 0x2000 + place as u64 * 64,
        }
    }

    fn snapshots(&self) -> Vec<CsSnapshot> {
        let mut snaps = vec![CsSnapshot::default(); self.nr_vcpus];
        for (place, vcpu) in self.line.iter().enumerate() {
            let lock = self.watched(place);
            let holder = self.named.then(|| self.line[0] as u16);
            snaps[*vcpu] = match (place, self.head_holds) {
                (0, true) => CsSnapshot {
                    non_preemptable: true,
                    ..CsSnapshot::default()
                },
                (0, false) => CsSnapshot {
                    wait: Wait::Ended { lock },
                    ..CsSnapshot::default()
                },
                _ => CsSnapshot {
                    wait: Wait::Pending { lock, holder },
                    ..CsSnapshot::default()
                },
            };
        }
        snaps
    }
}

proptest! {
    #![proptest_config(config(1000))]

    #[test]
    fn the_place_is_defined_for_whatever_a_guest_shows(
        snaps in prop::collection::vec(snapshot(), 0..12),
        running in prop::collection::vec(0usize..300, 0..8),
        me in prop_oneof![0usize..14, any::<usize>()],
    ) {
        let running = set(&running);
        let place = queue_of(me, &snaps, &running);
        let waits = snaps.get(me).is_some_and(|snap| !snap.idle && snap.wait != Wait::None);
        prop_assert_eq!(place == Queue::NotWaiting, !waits);
        if place == Queue::Head {
            let ended = matches!(snaps[me].wait, Wait::Ended { .. });
            prop_assert!(ended);
        }
        let others: Vec<_> = (0..snaps.len()).filter(|vcpu| *vcpu != me).collect();
        if place == Queue::Hopeless {
            // Somebody who is off the CPU is to blame, and it is not the vCPU itself.
            let blamed = |vcpu: &&usize| {
                let snap = &snaps[**vcpu];
                let busy = snap.holds() || matches!(snap.wait, Wait::Entering | Wait::Ended { .. });
                !snap.idle && busy && !running.contains(**vcpu)
            };
            prop_assert!(others.iter().find(blamed).is_some());
        }
        if place == Queue::HeadRuns && snaps[me].wait != Wait::Entering {
            prop_assert!(others.iter().any(|vcpu| running.contains(*vcpu)));
        }
        if !is_dirty(&snaps, &running) {
            let off = (0..snaps.len()).filter(|vcpu| !running.contains(*vcpu));
            prop_assert!(off.into_iter().all(|v| !snaps[v].holds() && !snaps[v].spins()));
        }
    }

    #[test]
    fn who_waits_stands_and_falls_with_its_head(built in built()) {
        let snaps = built.snapshots();
        let running = set(&built.running);
        let head = built.line[0];
        for vcpu in 0..built.nr_vcpus {
            let expected = match built.line.iter().position(|who| *who == vcpu) {
                None => Queue::NotWaiting,
                Some(0) if built.head_holds => Queue::NotWaiting,
                Some(0) => Queue::Head,
                Some(_) if running.contains(head) => Queue::HeadRuns,
                Some(_) => Queue::Hopeless,
            };
            prop_assert_eq!(queue_of(vcpu, &snaps, &running), expected, "vCPU {}", vcpu);
        }
        let off = built.line.iter().any(|vcpu| !running.contains(*vcpu));
        prop_assert_eq!(is_dirty(&snaps, &running), off, "a vCPU of the queue is off the CPU");
    }

    #[test]
    fn the_set_of_vcpus_is_a_set(
        ops in prop::collection::vec((any::<bool>(), 0usize..300), 0..60),
    ) {
        let mut model = std::collections::BTreeSet::new();
        let mut vcpus = VcpuSet::default();
        for (add, vcpu) in ops {
            if add {
                vcpus.insert(vcpu);
                if vcpu < MAX_VCPUS {
                    model.insert(vcpu);
                }
            } else {
                vcpus.remove(vcpu);
                model.remove(&vcpu);
            }
            prop_assert_eq!(vcpus.is_empty(), model.is_empty());
        }
        for vcpu in 0..300 {
            prop_assert_eq!(vcpus.contains(vcpu), model.contains(&vcpu));
        }
        prop_assert!(!vcpus.contains(usize::MAX));
    }
}
