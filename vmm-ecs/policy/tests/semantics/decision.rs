//! The decision just before a vCPU would lose its pCPU.

use crate::common::{Bench, IN_MUTEX, IN_SPINLOCK, MS, OUTSIDE, pending, seen};
use ecs_policy::{
    CsSnapshot, Decision, Denial, Event, Input, Leave, Outcome, Params, Queue, Section,
};

fn alone(ran_ns: u64, snap: CsSnapshot) -> Input {
    Input {
        others: false,
        ..seen(ran_ns, snap)
    }
}

#[test]
fn with_nobody_else_runnable_there_is_nothing_to_decide() {
    for snap in [OUTSIDE, IN_SPINLOCK, IN_MUTEX] {
        let mut bench = Bench::new();
        let decision = bench.decide(alone(3 * MS, snap));
        assert_eq!(decision, Decision::Renew);
        assert_eq!(bench.vm.counters, Default::default(), "nothing is counted");
        assert_eq!(bench.vm.ledger.extension_ns(), 0, "nothing is owed");
    }
}

#[test]
fn outside_any_section_the_slice_end_is_the_end() {
    let mut bench = Bench::new();
    assert_eq!(bench.slice_end(OUTSIDE), Decision::Leave(Leave::SliceEnd));
    assert_eq!(bench.vm.counters, Default::default());
}

#[test]
fn a_section_at_the_slice_end_is_granted_one_extension() {
    let cases = [
        (IN_SPINLOCK, Queue::NotWaiting, Section::NonPreemptable),
        (IN_MUTEX, Queue::NotWaiting, Section::Preemptable),
        (pending(0x40), Queue::HeadRuns, Section::Wait),
    ];
    for (snap, queue, section) in cases {
        let mut bench = Bench::new();
        let decision = bench.look_in(3 * MS, snap, queue);
        assert_eq!(
            decision,
            Decision::Extend {
                for_ns: MS,
                section
            }
        );
        let mut grants = [0; 3];
        grants[section as usize] = 1;
        assert_eq!(bench.vm.counters.grants, grants);
        assert_eq!(
            (bench.vm.counters.requests, bench.vm.counters.running),
            (1, 1)
        );
    }
}

#[test]
fn a_section_in_the_middle_of_a_slice_changes_nothing() {
    // Also the answer to a wake-up in mid-slice, whoever woke: the vCPU keeps its pCPU.
    let mut bench = Bench::new();
    for left in [2 * MS, MS] {
        assert_eq!(bench.look(MS, IN_SPINLOCK), Decision::Keep { for_ns: left });
    }
    assert_eq!(bench.vm.counters, Default::default());
}

#[test]
fn the_limit_is_a_hard_stop() {
    let mut bench = Bench::new();
    bench.extend();
    assert_eq!(
        bench.look(MS - 1, IN_SPINLOCK),
        Decision::Keep { for_ns: 1 }
    );
    assert_eq!(bench.look(1, IN_SPINLOCK), Decision::Leave(Leave::Expired));
}

#[test]
fn a_hard_stop_that_comes_late_still_stops() {
    let mut bench = Bench::new();
    bench.extend();
    assert_eq!(
        bench.look(5 * MS, IN_SPINLOCK),
        Decision::Leave(Leave::Expired)
    );
    assert_eq!(
        bench.vm.ledger.extension_ns(),
        5 * MS,
        "it pays for all of it"
    );
}

#[test]
fn the_limit_holds_however_often_and_whatever_the_guest_shows() {
    // It moves from section to section and rings the doorbell: it is one extension all the same.
    let mut bench = Bench::new();
    bench.extend();
    let shown = [IN_MUTEX, IN_SPINLOCK, pending(0x80)];
    let mut ran = 0;
    for snap in shown.iter().cycle().take(1000) {
        let input = Input {
            event: Event::HandBack,
            queue: if *snap == pending(0x80) {
                Queue::HeadRuns
            } else {
                Queue::NotWaiting
            },
            ..seen(7_000, *snap)
        };
        ran += 7_000;
        match bench.decide(input) {
            Decision::Keep { for_ns } => assert_eq!(for_ns, MS - ran),
            decision => {
                assert_eq!(decision, Decision::Leave(Leave::Expired));
                break;
            }
        }
    }
    assert_eq!(ran, MS.next_multiple_of(7_000));
}

#[test]
fn there_is_one_extension_a_slice() {
    let mut bench = Bench::new();
    bench.extend();
    assert_eq!(bench.look(20_000, OUTSIDE), Decision::Leave(Leave::Yielded));
    // A controller that asks again for the same slice is refused.
    assert_eq!(
        bench.look(0, IN_SPINLOCK),
        Decision::Leave(Leave::Denied(Denial::Used))
    );
    assert_eq!(bench.vm.counters.denials, [1, 0, 0, 0]);
    // The next slice has its own.
    bench.next_turn(0);
    bench.extend();
    assert_eq!(bench.vm.counters.grants, [2, 0, 0]);
}

#[test]
fn a_vm_beyond_its_budget_is_refused() {
    let mut bench = Bench::new();
    let params = bench.params;
    bench
        .vm
        .ledger
        .borrow(params.budget_ns - params.extension_ns + 1, &params);
    assert_eq!(
        bench.slice_end(IN_SPINLOCK),
        Decision::Leave(Leave::Denied(Denial::Budget))
    );
    assert_eq!(bench.vm.counters.denials, [0, 1, 0, 0]);
}

#[test]
fn a_vm_exactly_within_its_budget_is_granted() {
    let mut bench = Bench::new();
    let params = bench.params;
    bench
        .vm
        .ledger
        .borrow(params.budget_ns - params.extension_ns, &params);
    bench.extend();
    assert_eq!(bench.look(MS, IN_SPINLOCK), Decision::Leave(Leave::Expired));
    assert_eq!(bench.vm.ledger.debt_ns(), params.budget_ns);
    assert_eq!(bench.vm.ledger.forgiven_ns(), 0);
}

#[test]
fn extensions_that_run_at_the_same_time_share_the_budget() {
    // Two vCPUs of one VM on two pCPUs, a budget of one extension.
    let params = Params {
        budget_ns: MS,
        ..Params::default()
    };
    let mut bench = Bench::with(params);
    let (mut vcpu, mut turn) = (bench.vcpu, bench.turn);
    bench.extend();
    let input = seen(3 * MS, IN_SPINLOCK);
    let second = turn.decide(&params, &mut bench.vm, &mut vcpu, &input);
    assert_eq!(second, Decision::Leave(Leave::Denied(Denial::Budget)));
    bench.look(MS, IN_SPINLOCK);
    assert_eq!(bench.vm.ledger.debt_ns(), MS);
    assert_eq!(
        bench.vm.ledger.forgiven_ns(),
        0,
        "no extension in time is ever written off"
    );
}

#[test]
fn extensions_that_are_switched_off_are_refused() {
    let mut by_vm = Bench::new();
    by_vm.vm.enabled = false;
    let mut by_host = Bench::with(Params {
        extensions: false,
        ..Params::default()
    });
    for bench in [&mut by_vm, &mut by_host] {
        assert_eq!(
            bench.slice_end(IN_SPINLOCK),
            Decision::Leave(Leave::Denied(Denial::Disabled))
        );
        assert_eq!(bench.vm.counters.denials, [0, 0, 0, 1]);
        assert_eq!(
            bench.vm.counters.requests, 1,
            "it is a critical preemption, and counted"
        );
    }
}

#[test]
fn a_vcpu_whose_extensions_expire_cools_down_longer_and_longer() {
    let mut bench = Bench::new();
    let mut refused = Vec::new();
    for _ in 0..9 {
        let mut turns = 0;
        loop {
            match bench.slice_end(IN_SPINLOCK) {
                Decision::Extend { .. } => break,
                decision => {
                    assert_eq!(decision, Decision::Leave(Leave::Denied(Denial::Cooldown)));
                }
            }
            turns += 1;
            bench.next_turn(0);
        }
        refused.push(turns);
        assert_eq!(bench.look(MS, IN_SPINLOCK), Decision::Leave(Leave::Expired));
        bench.next_turn(0);
    }
    assert_eq!(
        refused,
        [0, 0, 1, 2, 4, 8, 16, 32, 64],
        "the first one is an accident; then doubled, up to the limit"
    );
}

#[test]
fn one_extension_left_in_time_ends_the_doubling() {
    let mut bench = Bench::new();
    for _ in 0..2 {
        bench.extend();
        bench.look(MS, IN_SPINLOCK);
        bench.next_turn(0);
        while bench.slice_end(IN_SPINLOCK) == Decision::Leave(Leave::Denied(Denial::Cooldown)) {
            bench.next_turn(0);
        }
        assert_eq!(bench.look(10_000, OUTSIDE), Decision::Leave(Leave::Yielded));
        assert_eq!((bench.vcpu.streak, bench.vcpu.cooldown), (0, 0));
        bench.next_turn(0);
    }
}

#[test]
fn each_critical_preemption_is_counted_once_with_its_cause() {
    let mut bench = Bench::new();
    for _ in 0..2 {
        bench.extend();
        bench.look(MS, IN_SPINLOCK); // expired
        bench.next_turn(0);
    }
    bench.slice_end(IN_SPINLOCK); // cooling down
    bench.next_turn(0);
    bench.vm.enabled = false;
    bench.slice_end(IN_MUTEX); // disabled
    bench.vm.enabled = true;
    bench.next_turn(0);
    let params = bench.params;
    bench.vm.ledger.borrow(params.budget_ns, &params);
    bench.slice_end(IN_MUTEX); // budget
    let counters = bench.vm.counters;
    assert_eq!(counters.denials, [0, 1, 1, 1]);
    assert_eq!(counters.ended[Outcome::Expired as usize], 2);
    assert_eq!(counters.requests, 5);
}

#[test]
fn left_inside_the_extension_it_is_descheduled_then() {
    let mut bench = Bench::new();
    bench.extend();
    assert_eq!(
        bench.look(20_000, IN_SPINLOCK),
        Decision::Keep {
            for_ns: MS - 20_000
        }
    );
    assert_eq!(bench.look(15_000, OUTSIDE), Decision::Leave(Leave::Yielded));
    assert_eq!(bench.vm.counters.ended, [1, 0, 0, 0]);
    assert_eq!(bench.vm.counters.running, 0);
    assert_eq!(bench.vm.ledger.debt_ns(), 35_000);
}

#[test]
fn a_vcpu_that_sleeps_inside_its_extension_ends_it() {
    let mut bench = Bench::new();
    bench.extend();
    let input = Input {
        event: Event::Blocked,
        ..seen(30_000, IN_MUTEX)
    };
    assert_eq!(bench.decide(input), Decision::Leave(Leave::Blocked));
    assert_eq!(bench.vm.counters.ended, [0, 0, 0, 1]);
    assert_eq!(bench.vm.ledger.debt_ns(), 30_000);
    assert!(!bench.turn.is_extended());
}

#[test]
fn an_extension_nobody_waits_for_any_more_becomes_a_new_turn() {
    let mut bench = Bench::new();
    bench.extend();
    assert_eq!(bench.decide(alone(30_000, IN_SPINLOCK)), Decision::Renew);
    assert_eq!(bench.vm.counters.ended, [0, 0, 0, 1]);
}

#[test]
fn sleeping_in_mid_slice_costs_and_earns_nothing() {
    let mut bench = Bench::new();
    let input = Input {
        event: Event::Blocked,
        ..seen(MS, IN_SPINLOCK)
    };
    assert_eq!(bench.decide(input), Decision::Leave(Leave::Blocked));
    assert_eq!(bench.vm.counters, Default::default());
    assert_eq!(bench.vcpu.credit_ns, 0);
}

#[test]
fn an_unreadable_slot_is_not_in_a_section() {
    let mut bench = Bench::new();
    assert_eq!(
        bench.slice_end(CsSnapshot::default()),
        Decision::Leave(Leave::SliceEnd)
    );
}

#[test]
fn the_idle_task_is_never_in_a_section() {
    // It runs with a non-zero preempt_count on stock kernels.
    let mut bench = Bench::new();
    let idle = CsSnapshot {
        idle: true,
        preemptable: true,
        ..IN_SPINLOCK
    };
    assert!(!idle.holds());
    assert_eq!(bench.slice_end(idle), Decision::Leave(Leave::SliceEnd));
}
