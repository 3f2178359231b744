//! Random events of a host with two VMs of two vCPUs on two pCPUs, against the histories.

use super::books::Entry;
use super::config;
use super::history::VmHistory;
use ecs_policy::{
    Counters, CsSnapshot, Decision, Event, Input, Ledger, Params, Queue, Turn, VcpuState, Vm, Wait,
};
use proptest::prelude::*;

const SLOTS: usize = 2;
const VMS: usize = 2;
const VCPUS: usize = 2;

#[derive(Debug, Clone)]
enum Op {
    Begin {
        slot: usize,
        vm: usize,
        vcpu: usize,
        bonus_ns: u64,
    },
    Look {
        slot: usize,
        input: Input,
    },
    SliceEnd {
        slot: usize,
        input: Input,
    },
    Weight {
        vm: usize,
        weight: u32,
    },
    Wake {
        vm: usize,
        vclock_ns: u64,
        slack_ns: u64,
    },
    Enable {
        vm: usize,
        enabled: bool,
    },
    Forgive {
        vm: usize,
    },
    Replace {
        vm: usize,
        weight: u32,
        vclock_ns: u64,
    },
}

fn params() -> impl Strategy<Value = Params> {
    let slice = prop_oneof![Just(500_000u64), Just(3_000_000), 500_000u64..20_000_000];
    (
        slice,
        1u64..1000,
        0u64..4_000_000,
        1u32..12,
        any::<bool>(),
        any::<u8>(),
    )
        .prop_map(
            |(slice_ns, extension, budget, cooldown_max, queue_rules, on)| {
                let extension_ns = (slice_ns * extension / 1000).max(10_000);
                Params {
                    slice_ns,
                    extension_ns,
                    budget_ns: extension_ns + budget,
                    cooldown_max,
                    extensions: on > 8,
                    queue_rules,
                }
            },
        )
}

fn snapshot() -> impl Strategy<Value = CsSnapshot> {
    // Idle and blocked are rare, or nothing else would be tested.
    (any::<bool>(), any::<bool>(), 0u8..10, 0u8..10).prop_map(|(np, p, blocked, idle)| CsSnapshot {
        non_preemptable: np,
        preemptable: p,
        wait: Wait::None, // decide() takes the place in the queue instead
        blocked: blocked == 0,
        idle: idle == 0,
    })
}

fn input() -> impl Strategy<Value = Input> {
    let event = prop_oneof![
        8 => Just(Event::Look),
        2 => Just(Event::HandBack),
        1 => Just(Event::Blocked),
    ];
    let ran_ns = prop_oneof![Just(0), 0u64..200_000, 0u64..30_000_000, Just(1 << 40)];
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

fn op() -> impl Strategy<Value = Op> {
    let weight = prop_oneof![Just(100), 0u32..=10_000, any::<u32>()];
    let bonus = prop_oneof![Just(0), 0u64..30_000_000, any::<u64>()];
    let clock = || 0u64..1 << 40;
    prop_oneof![
        8 => (0..SLOTS, 0..VMS, 0..VCPUS, bonus).prop_map(
            |(slot, vm, vcpu, bonus_ns)| Op::Begin { slot, vm, vcpu, bonus_ns }
        ),
        8 => (0..SLOTS, input()).prop_map(|(slot, input)| Op::Look { slot, input }),
        16 => (0..SLOTS, input()).prop_map(|(slot, input)| Op::SliceEnd { slot, input }),
        1 => (0..VMS, weight.clone()).prop_map(|(vm, weight)| Op::Weight { vm, weight }),
        1 => (0..VMS, clock(), clock())
            .prop_map(|(vm, vclock_ns, slack_ns)| Op::Wake { vm, vclock_ns, slack_ns }),
        1 => (0..VMS, any::<bool>()).prop_map(|(vm, enabled)| Op::Enable { vm, enabled }),
        1 => (0..VMS).prop_map(|vm| Op::Forgive { vm }),
        1 => (0..VMS, weight, clock())
            .prop_map(|(vm, weight, vclock_ns)| Op::Replace { vm, weight, vclock_ns }),
    ]
}

struct Host {
    params: Params,
    vms: Vec<(Vm, [VcpuState; VCPUS], VmHistory)>,
    turns: [Option<(usize, usize, Turn)>; SLOTS],
}

impl Host {
    fn new(params: Params) -> Self {
        let vms = (0..VMS).map(|_| Self::vm(params, 100, 0)).collect();
        Self {
            params,
            vms,
            turns: [None; SLOTS],
        }
    }

    fn vm(params: Params, weight: u32, vclock_ns: u64) -> (Vm, [VcpuState; VCPUS], VmHistory) {
        let ledger = Ledger::new(weight, vclock_ns);
        let vm = Vm {
            ledger,
            counters: Counters::default(),
            enabled: true,
        };
        (
            vm,
            Default::default(),
            VmHistory::new(params, weight, vclock_ns),
        )
    }

    fn apply(&mut self, op: Op) -> Result<(), TestCaseError> {
        match op {
            Op::Begin {
                slot,
                vm,
                vcpu,
                bonus_ns,
            } => {
                let elsewhere = self.turns[1 - slot].is_some_and(|(v, c, _)| (v, c) == (vm, vcpu));
                let extended = self.turns[slot].is_some_and(|(.., turn)| turn.is_extended());
                if elsewhere || extended {
                    return Ok(()); // no controller does that
                }
                let (books, states, history) = &mut self.vms[vm];
                let state = &mut states[vcpu];
                let (turn, taken) = Turn::start(&self.params, books, state, bonus_ns);
                let expected = history.begin(slot, vcpu, bonus_ns);
                prop_assert_eq!((i128::from(turn.left_ns()), i128::from(taken)), expected);
                prop_assert!(!turn.is_extended());
                self.turns[slot] = Some((vm, vcpu, turn));
            }
            Op::Look { slot, input } => self.look(slot, input)?,
            Op::SliceEnd { slot, input } => {
                if let Some((.., turn)) = self.turns[slot] {
                    let to_end = if turn.is_extended() {
                        input.ran_ns
                    } else {
                        turn.left_ns()
                    };
                    self.look(
                        slot,
                        Input {
                            ran_ns: to_end,
                            ..input
                        },
                    )?;
                }
            }
            Op::Weight { vm, weight } => {
                let (books, _, history) = &mut self.vms[vm];
                books.ledger.set_weight(weight);
                history.books.book(Entry::Weight(weight));
            }
            Op::Wake {
                vm,
                vclock_ns,
                slack_ns,
            } => {
                let (books, _, history) = &mut self.vms[vm];
                books.ledger.wake(vclock_ns, slack_ns);
                history.books.book(Entry::Woke {
                    vclock_ns,
                    slack_ns,
                });
            }
            Op::Enable { vm, enabled } => {
                self.vms[vm].0.enabled = enabled;
                self.vms[vm].2.enabled = enabled;
            }
            Op::Forgive { vm } => {
                let (books, _, history) = &mut self.vms[vm];
                let debt = history.books.sum().debt();
                prop_assert_eq!(i128::from(books.ledger.forgive()), debt);
                history.books.book(Entry::Forgiven);
                prop_assert_eq!(books.ledger.debt_ns(), 0);
            }
            Op::Replace {
                vm,
                weight,
                vclock_ns,
            } => {
                for turn in &mut self.turns {
                    if turn.is_some_and(|(theirs, ..)| theirs == vm) {
                        *turn = None;
                    }
                }
                self.vms[vm] = Self::vm(self.params, weight, vclock_ns);
            }
        }
        for (vm, states, history) in &self.vms {
            history.check(vm).map_err(TestCaseError::fail)?;
            for (vcpu, state) in states.iter().enumerate() {
                let cooldown = (u64::from(state.cooldown), u64::from(state.streak));
                prop_assert_eq!(cooldown, history.cooldown(vcpu));
                prop_assert_eq!(i128::from(state.credit_ns), history.credit_ns(vcpu));
            }
        }
        Ok(())
    }

    fn look(&mut self, slot: usize, input: Input) -> Result<(), TestCaseError> {
        let Some((vm, vcpu, turn)) = &mut self.turns[slot] else {
            return Ok(());
        };
        let (books, states, history) = &mut self.vms[*vm];
        books.ledger.charge(input.ran_ns);
        let decision = turn.decide(&self.params, books, &mut states[*vcpu], &input);
        let expected = history.look(slot, input);
        prop_assert_eq!(decision, expected, "{:?}", input);
        prop_assert!(
            history.grants_in_turn(slot) <= 1,
            "two extensions in one slice"
        );
        if let Decision::Extend { for_ns, .. } = decision {
            prop_assert!(for_ns <= self.params.extension_ns);
        }
        let running = turn.is_extended();
        prop_assert_eq!(
            running,
            matches!(decision, Decision::Extend { .. }) || {
                running && matches!(decision, Decision::Keep { .. })
            }
        );
        // The turn stays where it is: a controller that looks again at a turn it was told to end
        // must do no harm either.
        Ok(())
    }
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn every_decision_and_every_book_is_the_oracles(
        params in params(),
        ops in prop::collection::vec(op(), 1..100),
    ) {
        prop_assert_eq!(params.validate(), Ok(()));
        let mut host = Host::new(params);
        for op in ops {
            host.apply(op)?;
        }
    }

    #[test]
    fn no_number_makes_a_decision_panic(
        params in params(),
        ran in prop::collection::vec(prop_oneof![Just(u64::MAX), any::<u64>()], 1..20),
        input in input(),
        weight in any::<u32>(),
        vclock_ns in any::<u64>(),
    ) {
        let (mut vm, mut states, _) = Host::vm(params, weight, vclock_ns);
        for ran_ns in ran {
            let (mut turn, _) =
                Turn::start(&params, &mut vm, &mut states[0], ran_ns);
            for _ in 0..3 {
                vm.ledger.charge(ran_ns);
                let _ = turn.decide(&params, &mut vm, &mut states[0], &Input { ran_ns, ..input });
                prop_assert!(vm.ledger.debt_ns() <= params.budget_ns);
            }
            vm.ledger.wake(ran_ns, vclock_ns);
        }
    }
}
