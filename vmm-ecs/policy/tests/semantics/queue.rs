//! The rules that leave a lock queue clean.

use crate::common::{Bench, IN_SPINLOCK, MS, OUTSIDE, ended, pending, seen};
use ecs_policy::{
    Candidate, CsSnapshot, Decision, Event, Input, Leave, Params, Queue, Rank, Section, VcpuSet,
    Wait, is_dirty, is_urgent, pick, queue_of,
};

const LOCK: u64 = 0x1000;

fn running(vcpus: &[usize]) -> VcpuSet {
    let mut set = VcpuSet::default();
    vcpus.iter().for_each(|vcpu| set.insert(*vcpu));
    set
}

fn candidate(vm_vtime_ns: u64, rank: Rank) -> Candidate {
    Candidate {
        vm_vtime_ns,
        vcpu_cpu_ns: 0,
        rank,
    }
}

fn first(candidates: &[Candidate]) -> Option<usize> {
    pick(candidates.iter().copied(), &Params::default())
}

#[test]
fn a_hopeless_spinner_steps_aside_at_once_and_is_credited() {
    let mut bench = Bench::new();
    let decision = bench.look_in(MS, pending(LOCK), Queue::Hopeless);
    assert_eq!(decision, Decision::Leave(Leave::Hopeless));
    assert_eq!(
        (bench.vm.counters.stepped_aside, bench.vcpu.credit_ns),
        (1, 2 * MS)
    );
    assert_eq!(
        bench.vm.counters.requests, 0,
        "no preemption: it asked for nothing"
    );
    bench.next_turn(0);
    assert_eq!(
        (bench.turn.left_ns(), bench.vcpu.credit_ns),
        (5 * MS, 0),
        "given back once"
    );
}

#[test]
fn a_vm_that_runs_together_keeps_its_spinners_and_loses_nothing_else() {
    let places = [
        Queue::NotWaiting,
        Queue::Head,
        Queue::HeadRuns,
        Queue::Unknown,
    ];
    for place in places {
        assert_eq!(place.together(), place);
    }
    let place = Queue::Hopeless.together();
    let mut bench = Bench::new();
    assert_eq!(
        bench.look_in(MS, pending(LOCK), place),
        Decision::Keep { for_ns: 2 * MS }
    );
    assert!(
        matches!(
            bench.look_in(2 * MS, pending(LOCK), place),
            Decision::Leave(Leave::SliceEnd)
        ),
        "no extension for one that waits for nobody who runs"
    );
    let rank = Rank::of(&pending(LOCK), place, &Params::default());
    assert_eq!(rank, Rank::Ready, "and it is a candidate like others");
}

#[test]
fn the_credit_is_at_most_one_slice() {
    let mut bench = Bench::new();
    for _ in 0..50 {
        bench.look_in(0, pending(LOCK), Queue::Hopeless);
        bench.next_turn(10 * MS);
        assert!(
            bench.turn.left_ns() <= 3 * bench.params.slice_ns,
            "slice, credit and bonus"
        );
    }
}

#[test]
fn a_hopeless_spinner_stays_where_nobody_else_can_run() {
    let mut bench = Bench::new();
    let input = Input {
        queue: Queue::Hopeless,
        others: false,
        ..seen(MS, pending(LOCK))
    };
    assert_eq!(bench.decide(input), Decision::Keep { for_ns: 2 * MS });
    assert_eq!(first(&[candidate(9, Rank::Hopeless)]), Some(0));
}

#[test]
fn an_extension_whose_head_lost_its_pcpu_is_revoked() {
    let mut bench = Bench::new();
    bench.look_in(3 * MS, pending(LOCK), Queue::HeadRuns);
    let decision = bench.look_in(10_000, pending(LOCK), Queue::Hopeless);
    assert_eq!(decision, Decision::Leave(Leave::Hopeless));
    assert_eq!(bench.vm.counters.ended, [0, 0, 1, 0]);
    assert_eq!(
        (bench.vm.ledger.debt_ns(), bench.vcpu.credit_ns),
        (10_000, 0)
    );
}

#[test]
fn the_vcpu_whose_wait_has_ended_runs_first() {
    let slice = Params::default().slice_ns;
    let all = [
        candidate(slice, Rank::Hopeless),
        candidate(slice, Rank::Ready),
        candidate(slice, Rank::Head),
    ];
    assert_eq!(first(&all), Some(2));
    // Before its VM's time, too.
    assert_eq!(
        first(&[candidate(0, Rank::Ready), candidate(slice, Rank::Head)]),
        Some(1)
    );
}

#[test]
fn the_boost_of_a_head_is_bounded() {
    let boost = 2 * Params::default().slice_ns;
    assert_eq!(
        first(&[candidate(0, Rank::Ready), candidate(boost - 1, Rank::Head)]),
        Some(1)
    );
    assert_eq!(
        first(&[candidate(0, Rank::Ready), candidate(boost + 1, Rank::Head)]),
        Some(0)
    );
}

#[test]
fn a_hopeless_spinner_runs_last_whatever_its_vm_is_owed() {
    let all = [
        candidate(0, Rank::Hopeless),
        candidate(u64::MAX, Rank::Ready),
    ];
    assert_eq!(first(&all), Some(1));
}

#[test]
fn the_vm_with_the_least_virtual_time_runs_first_and_its_vcpus_take_turns() {
    let ready = |vm_vtime_ns, vcpu_cpu_ns| Candidate {
        vm_vtime_ns,
        vcpu_cpu_ns,
        rank: Rank::Ready,
    };
    assert_eq!(first(&[ready(2, 0), ready(1, 9), ready(1, 5)]), Some(2));
    assert_eq!(first(&[]), None);
}

#[test]
fn a_waiter_whose_head_runs_is_protected_as_a_holder_is() {
    let mut bench = Bench::new();
    let decision = bench.look_in(3 * MS, pending(LOCK), Queue::HeadRuns);
    assert_eq!(
        decision,
        Decision::Extend {
            for_ns: MS,
            section: Section::Wait
        }
    );
    // It gets the lock: the same extension covers the section, and ends with it.
    assert_eq!(
        bench.look(5_000, IN_SPINLOCK),
        Decision::Keep { for_ns: MS - 5_000 }
    );
    assert_eq!(bench.look(5_000, OUTSIDE), Decision::Leave(Leave::Yielded));
    assert_eq!(bench.vm.counters.grants, [0, 0, 1]);
}

#[test]
fn the_head_itself_is_protected() {
    let mut bench = Bench::new();
    let decision = bench.look_in(3 * MS, ended(LOCK), Queue::Head);
    assert_eq!(
        decision,
        Decision::Extend {
            for_ns: MS,
            section: Section::Wait
        }
    );
}

#[test]
fn waiting_for_nobody_knows_whom_is_not_protected() {
    let mut bench = Bench::new();
    let decision = bench.look_in(3 * MS, pending(LOCK), Queue::Unknown);
    assert_eq!(decision, Decision::Leave(Leave::SliceEnd));
}

#[test]
fn a_waiter_that_is_about_to_halt_is_not_protected() {
    let mut bench = Bench::new();
    let halting = CsSnapshot {
        blocked: true,
        ..pending(LOCK)
    };
    let decision = bench.look_in(3 * MS, halting, Queue::HeadRuns);
    assert_eq!(decision, Decision::Leave(Leave::SliceEnd));
}

#[test]
fn a_hand_back_leaves_and_the_rest_of_the_slice_is_credited() {
    let mut bench = Bench::new();
    let input = Input {
        event: Event::HandBack,
        ..seen(MS, OUTSIDE)
    };
    assert_eq!(bench.decide(input), Decision::Leave(Leave::HandBack));
    assert_eq!(
        (bench.vm.counters.handed_back, bench.vcpu.credit_ns),
        (1, 2 * MS)
    );
}

#[test]
fn a_hand_back_inside_an_extension_ends_it() {
    let mut bench = Bench::new();
    bench.extend();
    let input = Input {
        event: Event::HandBack,
        ..seen(8_000, OUTSIDE)
    };
    assert_eq!(bench.decide(input), Decision::Leave(Leave::Yielded));
    assert_eq!(
        bench.vm.counters.handed_back, 0,
        "it is counted as yielded, and only so"
    );
    assert_eq!(bench.vm.ledger.debt_ns(), 8_000);
}

#[test]
fn a_hand_back_inside_a_section_or_for_nobody_is_ignored() {
    let ring = |snap, others| Input {
        event: Event::HandBack,
        others,
        ..seen(MS, snap)
    };
    for input in [ring(IN_SPINLOCK, true), ring(OUTSIDE, false)] {
        let mut bench = Bench::new();
        assert_eq!(bench.decide(input), Decision::Keep { for_ns: 2 * MS });
        assert_eq!(bench.vm.counters.handed_back, 0);
    }
}

/// A look at which the head of a queue that stands still wants the pCPU.
fn urged(ran_ns: u64, snap: CsSnapshot) -> Input {
    Input {
        urgent: true,
        ..seen(ran_ns, snap)
    }
}

#[test]
fn an_urgent_head_is_let_in_before_the_slice_ends_and_the_rest_is_credited() {
    let mut bench = Bench::new();
    let decision = bench.decide(urged(MS, OUTSIDE));
    assert_eq!(decision, Decision::Leave(Leave::Urgent));
    assert_eq!(bench.vcpu.credit_ns, 2 * MS);
    assert_eq!(bench.vm.counters, Default::default(), "no section was hit");
    bench.next_turn(0);
    assert_eq!(bench.turn.left_ns(), 5 * MS);
}

#[test]
fn an_urgent_head_never_breaks_into_a_section_or_ends_an_extension() {
    let mut bench = Bench::new();
    let decision = bench.decide(urged(MS, IN_SPINLOCK));
    assert_eq!(decision, Decision::Keep { for_ns: 2 * MS });
    let mut bench = Bench::new();
    bench.extend();
    let decision = bench.decide(urged(10_000, IN_SPINLOCK));
    assert_eq!(
        decision,
        Decision::Keep {
            for_ns: MS - 10_000
        }
    );
}

#[test]
fn a_head_is_urgent_only_while_its_vm_is_not_ahead() {
    assert!(is_urgent(4, 5) && is_urgent(5, 5));
    assert!(!is_urgent(6, 5));
}

#[test]
fn without_the_queue_rules_only_holders_are_protected() {
    let params = Params {
        queue_rules: false,
        ..Params::default()
    };
    for queue in [Queue::Head, Queue::HeadRuns, Queue::Hopeless] {
        let mut bench = Bench::with(params);
        assert_eq!(
            bench.look_in(MS, pending(LOCK), queue),
            Decision::Keep { for_ns: 2 * MS }
        );
        assert_eq!(
            bench.look_in(2 * MS, pending(LOCK), queue),
            Decision::Leave(Leave::SliceEnd)
        );
    }
    Bench::with(params).extend();
}

#[test]
fn ticket_lock_waiters_follow_their_holder() {
    let snaps = [IN_SPINLOCK, pending(LOCK), pending(LOCK)];
    for waiter in [1, 2] {
        assert_eq!(
            queue_of(waiter, &snaps, &running(&[0, 1, 2])),
            Queue::HeadRuns
        );
        assert_eq!(queue_of(waiter, &snaps, &running(&[1, 2])), Queue::Hopeless);
    }
    assert_eq!(queue_of(0, &snaps, &running(&[0])), Queue::NotWaiting);
}

#[test]
fn a_released_lock_makes_the_next_in_line_the_head_running_or_not() {
    // vCPU 0 released while vCPU 1 was off the CPU: only the word says so.
    let snaps = [OUTSIDE, ended(LOCK), pending(LOCK)];
    assert_eq!(queue_of(1, &snaps, &running(&[0, 2])), Queue::Head);
    assert_eq!(queue_of(2, &snaps, &running(&[0, 2])), Queue::Hopeless);
    assert_eq!(queue_of(2, &snaps, &running(&[1, 2])), Queue::HeadRuns);
}

#[test]
fn mcs_waiters_follow_their_head_although_each_waits_on_its_own_node() {
    let snaps = [IN_SPINLOCK, pending(0x100), pending(0x200)];
    assert_eq!(queue_of(2, &snaps, &running(&[0, 2])), Queue::HeadRuns);
    assert_eq!(queue_of(2, &snaps, &running(&[1, 2])), Queue::Hopeless);
    // The holder passed the lock to vCPU 1, which is off the CPU: its node says so, nobody else's.
    let passed = [OUTSIDE, ended(0x100), pending(0x200)];
    assert_eq!(queue_of(1, &passed, &running(&[0, 2])), Queue::Head);
    assert_eq!(queue_of(2, &passed, &running(&[0, 2])), Queue::Hopeless);
    assert_eq!(queue_of(2, &passed, &running(&[1, 2])), Queue::HeadRuns);
}

#[test]
fn an_idle_vcpu_is_nobodys_head() {
    let snaps = [
        CsSnapshot {
            idle: true,
            ..ended(LOCK)
        },
        IN_SPINLOCK,
        pending(LOCK),
    ];
    assert_eq!(queue_of(0, &snaps, &running(&[])), Queue::NotWaiting);
    assert_eq!(queue_of(2, &snaps, &running(&[1, 2])), Queue::HeadRuns);
}

#[test]
fn one_running_reader_gives_hope() {
    // Several readers may be admitted at once: all of their waits have ended.
    let snaps = [ended(LOCK), ended(LOCK), pending(LOCK)];
    assert_eq!(queue_of(2, &snaps, &running(&[1, 2])), Queue::HeadRuns);
    assert_eq!(queue_of(2, &snaps, &running(&[2])), Queue::Hopeless);
}

#[test]
fn the_holder_the_guest_names_counts_while_it_holds() {
    let wait = CsSnapshot {
        wait: Wait::Unknown { holder: Some(2) },
        ..OUTSIDE
    };
    let snaps = [wait, IN_SPINLOCK, IN_SPINLOCK];
    assert_eq!(queue_of(0, &snaps, &running(&[0, 1])), Queue::Hopeless);
    assert_eq!(queue_of(0, &snaps, &running(&[0, 2])), Queue::HeadRuns);
    // Stale, or out of range, or itself: nobody knows.
    for holder in [0, 1, 255, u16::MAX] {
        let wait = CsSnapshot {
            wait: Wait::Unknown {
                holder: Some(holder),
            },
            ..OUTSIDE
        };
        assert_eq!(
            queue_of(0, &[wait, OUTSIDE], &running(&[0])),
            Queue::Unknown
        );
    }
}

#[test]
fn a_vcpu_about_to_queue_is_given_the_benefit_of_the_doubt() {
    let entering = CsSnapshot {
        wait: Wait::Entering,
        ..OUTSIDE
    };
    let snaps = [entering, pending(LOCK)];
    assert_eq!(queue_of(0, &snaps, &running(&[])), Queue::HeadRuns);
    assert_eq!(queue_of(1, &snaps, &running(&[0])), Queue::HeadRuns);
    assert_eq!(queue_of(1, &snaps, &running(&[1])), Queue::Hopeless);
}

#[test]
fn a_queue_is_dirty_while_one_of_its_vcpus_is_off_the_cpu() {
    let snaps = [IN_SPINLOCK, pending(LOCK), OUTSIDE];
    assert!(!is_dirty(&snaps, &running(&[0, 1])));
    assert!(is_dirty(&snaps, &running(&[0, 2])));
    assert!(is_dirty(&snaps, &running(&[1, 2])));
    let blocked = CsSnapshot {
        blocked: true,
        ..pending(LOCK)
    };
    assert!(
        !is_dirty(&[blocked, OUTSIDE], &running(&[])),
        "who halts is in nobody's way"
    );
}
