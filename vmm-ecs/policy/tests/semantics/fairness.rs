//! Eventual fairness: what is taken early is paid later, to the benefit of the others.

use crate::common::{Bench, IN_MUTEX, IN_SPINLOCK, Load, MS, OUTSIDE, Sim, ended, new_vm, pending};
use ecs_policy::{Claim, CsSnapshot, Ledger, Params, Turn, VcpuState, Wait, split_fairly};

const TEN_SECONDS: u64 = 10_000 * MS;
const BUSY: Load = Load::Always(OUTSIDE);
/// About 4 us inside and 4 us outside a spinlock; neither slice nor poll is near a multiple of it,
/// or every look would find the same.
const LOCKS: Load = Load::Locks {
    period_ns: 7_919,
    inside_ns: 3_907,
};

/// Runs ten simulated seconds and checks that no time is lost.
fn run(nr_pcpus: usize, vms: &[(u32, Vec<Load>)]) -> Sim {
    let mut sim = Sim::new(Params::default(), nr_pcpus, vms);
    sim.run_until(TEN_SECONDS);
    let capacity = nr_pcpus as u64 * TEN_SECONDS;
    assert_eq!(
        sim.received_ns().iter().sum::<u64>() + sim.idle_ns,
        capacity
    );
    sim
}

/// Whether `received` is within `percent` of `entitled`.
fn within(received: u64, entitled: u64, percent: f64) -> bool {
    received.abs_diff(entitled) as f64 <= entitled as f64 * percent / 100.0
}

#[test]
fn what_is_charged_is_the_time_really_used() {
    let mut bench = Bench::new();
    bench.extend();
    bench.look(20_000, OUTSIDE);
    assert_eq!(
        bench.vm.ledger.extension_ns(),
        20_000,
        "not the millisecond granted"
    );
    assert_eq!(bench.vm.ledger.debt_ns(), 20_000);
}

#[test]
fn extension_time_is_in_virtual_time_too() {
    let mut bench = Bench::new();
    bench.extend();
    bench.look(400_000, IN_SPINLOCK);
    bench.look(500_000, OUTSIDE);
    assert_eq!(bench.vm.ledger.cpu_ns(), 3_900_000);
    assert_eq!(bench.vm.ledger.vtime_ns(), 3_900_000);
}

#[test]
fn debt_is_repaid_from_later_slices() {
    let mut bench = Bench::new();
    bench.extend();
    bench.look(800_000, OUTSIDE);
    assert_eq!(bench.next_turn(0), 800_000);
    assert_eq!(bench.turn.left_ns(), 2_200_000);
    assert_eq!(
        (bench.vm.ledger.debt_ns(), bench.vm.ledger.penalty_ns()),
        (0, 800_000)
    );
    assert_eq!(bench.next_turn(0), 0, "once is enough");
    assert_eq!(bench.turn.left_ns(), 3 * MS);
}

#[test]
fn a_large_debt_takes_several_slices_of_which_half_remains() {
    let mut bench = Bench::new();
    let params = bench.params;
    bench.vm.ledger.borrow(4 * MS, &params);
    let mut taken = Vec::new();
    while bench.vm.ledger.debt_ns() > 0 {
        taken.push(bench.next_turn(0));
        assert!(bench.turn.left_ns() >= params.slice_ns / 2);
    }
    assert_eq!(taken, [1_500_000, 1_500_000, MS]);
}

#[test]
fn time_taken_back_goes_to_the_vm_that_runs_next() {
    let params = Params::default();
    let (mut debtor, mut next) = (new_vm(100), new_vm(100));
    debtor.ledger.borrow(MS, &params);
    let (short, taken) = Turn::start(&params, &mut debtor, &mut VcpuState::default(), 0);
    let (long, none) = Turn::start(&params, &mut next, &mut VcpuState::default(), taken);
    assert_eq!((short.left_ns(), long.left_ns(), none), (2 * MS, 4 * MS, 0));
}

#[test]
fn in_the_long_run_all_that_was_taken_back_was_passed_on() {
    let sim = run(1, &[(100, vec![LOCKS, LOCKS]), (100, vec![BUSY, BUSY])]);
    let ledger = sim.vms[0].vm.ledger;
    assert!(ledger.extension_ns() > 0);
    assert_eq!(ledger.forgiven_ns(), 0);
    assert!(
        ledger.penalty_ns() - sim.passed_on_ns <= sim.params.slice_ns,
        "one may be on its way"
    );
}

#[test]
fn debt_is_bounded_and_what_is_forgiven_is_counted() {
    let params = Params {
        budget_ns: 10 * MS,
        ..Params::default()
    };
    let mut ledger = Ledger::new(100, 0);
    ledger.borrow(25 * MS, &params);
    assert_eq!((ledger.debt_ns(), ledger.forgiven_ns()), (10 * MS, 15 * MS));
    ledger.borrow(u64::MAX, &params);
    assert_eq!(ledger.debt_ns(), 10 * MS);
    assert_eq!(ledger.extension_ns() - ledger.forgiven_ns(), 10 * MS);
}

#[test]
fn debt_is_never_negative() {
    let params = Params::default();
    let mut ledger = Ledger::new(100, 0);
    assert_eq!(ledger.repay(MS), 0);
    ledger.borrow(1_000, &params);
    assert_eq!(ledger.repay(MS), 1_000);
    assert_eq!(ledger.repay(MS), 0);
    assert_eq!((ledger.debt_ns(), ledger.penalty_ns()), (0, 1_000));
}

#[test]
fn a_vm_that_goes_leaves_no_debt_to_its_namesake() {
    let params = Params::default();
    let mut gone = Ledger::new(100, 0);
    gone.charge(7 * MS);
    gone.borrow(2 * MS, &params);
    assert_eq!(gone.forgive(), 2 * MS);
    assert_eq!(
        (gone.debt_ns(), gone.forgiven_ns()),
        (0, 2 * MS),
        "written off, and said so"
    );
    let namesake = Ledger::new(100, 5 * MS);
    assert_eq!(
        (
            namesake.debt_ns(),
            namesake.extension_ns(),
            namesake.cpu_ns()
        ),
        (0, 0, 0)
    );
    assert_eq!(
        namesake.vtime_ns(),
        5 * MS,
        "level with the others: no credit either"
    );
}

#[test]
fn a_vm_that_wakes_stands_at_most_the_slack_behind() {
    let mut ledger = Ledger::new(100, 0);
    ledger.wake(100 * MS, 3 * MS);
    assert_eq!(ledger.vtime_ns(), 97 * MS);
    assert_eq!(ledger.cpu_ns(), 0, "nothing was received");
}

#[test]
fn a_vm_that_waits_stands_at_most_the_leash_ahead() {
    let params = Params::default();
    let mut ledger = Ledger::new(100, 0);
    ledger.charge(900 * MS);
    let leash_ns = ledger.leash_ns(2, &params);
    assert_eq!(leash_ns, (64 + 8) * params.slice_ns);
    ledger.rein(100 * MS, 2, &params);
    let reined_ns = 100 * MS + leash_ns;
    assert_eq!((ledger.vtime_ns(), ledger.cpu_ns()), (reined_ns, 900 * MS));
    ledger.rein(105 * MS, 2, &params);
    assert_eq!(ledger.vtime_ns(), reined_ns, "it gains nothing by it");
    assert_eq!(Ledger::new(1, 0).leash_ns(2, &params), 1000 * MS);
}

#[test]
fn sleeping_does_not_wipe_out_what_a_vm_took() {
    let mut ledger = Ledger::new(100, 0);
    ledger.charge(50 * MS);
    ledger.borrow(MS, &Params::default());
    ledger.wake(20 * MS, 3 * MS);
    assert_eq!((ledger.vtime_ns(), ledger.debt_ns()), (50 * MS, MS));
}

#[test]
fn an_idle_vm_keeps_no_credit() {
    let lie = CsSnapshot {
        wait: Wait::Unknown { holder: None },
        ..IN_SPINLOCK
    };
    let sleeper = Load::WakesAt {
        at_ns: 5_000 * MS,
        before: lie,
    };
    let mut sim = Sim::new(
        Params::default(),
        1,
        &[(100, vec![sleeper]), (100, vec![BUSY])],
    );
    sim.run_until(5_000 * MS);
    assert_eq!(sim.received_ns(), [0, 5_000 * MS], "work-conserving");
    sim.run_until(5_100 * MS);
    let first = sim.received_ns()[0];
    assert!(first <= 50 * MS + sim.params.slice_ns + 3 * MS, "{first}");
    sim.run_until(TEN_SECONDS);
    assert!(
        within(sim.received_ns()[0], 2_500 * MS, 0.5),
        "{:?}",
        sim.received_ns()
    );
}

#[test]
fn a_vm_that_only_spun_hopelessly_keeps_no_credit() {
    // It claims to wait for a halted vCPU that claims to hold the lock, so it never runs; then it
    // drops the claim. Were it not treated as idle, it would own the pCPU for five seconds.
    let wait = CsSnapshot {
        wait: Wait::Pending {
            lock: 64,
            holder: Some(1),
        },
        ..OUTSIDE
    };
    let liar = vec![
        Load::LiesUntil {
            at_ns: 5_000 * MS,
            before: wait,
        },
        Load::WakesAt {
            at_ns: u64::MAX,
            before: IN_SPINLOCK,
        },
    ];
    let mut sim = Sim::new(Params::default(), 1, &[(100, liar), (100, vec![BUSY])]);
    sim.run_until(5_000 * MS);
    let before = sim.received_ns()[0];
    assert!(before < 10 * MS, "it steps aside: {before}");
    sim.run_until(TEN_SECONDS);
    let after = sim.received_ns()[0] - before;
    assert!(within(after, 2_500 * MS, 0.5), "{after}");
}

#[test]
fn two_enlightened_vms_share_evenly() {
    for nr_pcpus in [1, 2] {
        let sim = run(
            nr_pcpus,
            &[(100, vec![LOCKS, LOCKS]), (100, vec![LOCKS, LOCKS])],
        );
        let share = nr_pcpus as u64 * TEN_SECONDS / 2;
        for (vm, received) in sim.vms.iter().zip(sim.received_ns()) {
            assert!(within(received, share, 0.5), "{:?}", sim.received_ns());
            assert!(vm.vm.counters.ended[0] > 0, "extensions were used");
        }
    }
}

#[test]
fn an_enlightened_vm_and_one_that_is_not_share_evenly() {
    for nr_pcpus in [1, 2] {
        let sim = run(
            nr_pcpus,
            &[(100, vec![LOCKS, LOCKS]), (100, vec![BUSY, BUSY])],
        );
        let share = nr_pcpus as u64 * TEN_SECONDS / 2;
        assert!(
            sim.received_ns().iter().all(|ns| within(*ns, share, 0.5)),
            "{:?}",
            sim.received_ns()
        );
    }
}

#[test]
fn three_vms_share_evenly_with_unequal_numbers_of_vcpus() {
    let vms = [
        (100, vec![LOCKS]),
        (100, vec![LOCKS; 4]),
        (100, vec![BUSY, BUSY]),
    ];
    let sim = run(1, &vms);
    let received = sim.received_ns();
    assert!(
        received.iter().all(|ns| within(*ns, TEN_SECONDS / 3, 0.5)),
        "{received:?}"
    );
}

#[test]
fn a_guest_that_pins_its_counts_gains_nothing() {
    let pins = [
        IN_SPINLOCK,
        IN_MUTEX,
        CsSnapshot {
            preemptable: true,
            ..IN_SPINLOCK
        },
        CsSnapshot {
            wait: Wait::Entering,
            ..OUTSIDE
        },
        CsSnapshot {
            wait: Wait::Entering,
            preemptable: true,
            ..IN_SPINLOCK
        },
        ended(64),
        pending(64),
    ];
    for pin in pins {
        for nr_pcpus in [1, 2] {
            let vms = [(100, vec![Load::Always(pin); 2]), (100, vec![BUSY, BUSY])];
            let sim = run(nr_pcpus, &vms);
            let share = (nr_pcpus as u64 * TEN_SECONDS / 2) as f64;
            let received = sim.received_ns()[0];
            assert!(
                received as f64 <= share * 1.005,
                "{pin:?} on {nr_pcpus}: {received}"
            );
        }
    }
}

#[test]
fn a_guest_that_pins_gains_nothing_even_without_cool_down_or_a_tight_budget() {
    // The books alone must do it.
    let params = Params {
        cooldown_max: 1,
        budget_ns: 1_000 * MS,
        ..Params::default()
    };
    let vms = [
        (100, vec![Load::Always(IN_SPINLOCK); 2]),
        (100, vec![BUSY, BUSY]),
    ];
    let mut sim = Sim::new(params, 1, &vms);
    sim.run_until(TEN_SECONDS);
    let received = sim.received_ns();
    assert!(
        sim.vms[0].vm.ledger.extension_ns() > 100 * MS,
        "it was extended all the time"
    );
    assert!(
        received[0] as f64 <= (TEN_SECONDS / 2) as f64 * 1.005,
        "{received:?}"
    );
}

#[test]
fn weights_hold() {
    for loads in [[BUSY, BUSY], [LOCKS, BUSY], [BUSY, LOCKS], [LOCKS, LOCKS]] {
        let sim = run(1, &[(100, vec![loads[0]; 2]), (300, vec![loads[1]; 2])]);
        let received = sim.received_ns();
        assert!(within(received[0], TEN_SECONDS / 4, 1.0), "{received:?}");
        assert!(
            within(received[1], TEN_SECONDS / 4 * 3, 1.0),
            "{received:?}"
        );
    }
}

#[test]
fn a_light_guest_that_pins_does_not_outweigh_a_heavy_one() {
    let sim = run(
        1,
        &[
            (100, vec![Load::Always(IN_SPINLOCK); 2]),
            (300, vec![BUSY; 2]),
        ],
    );
    let received = sim.received_ns();
    assert!(
        received[0] as f64 <= (TEN_SECONDS / 4) as f64 * 1.005,
        "{received:?}"
    );
}

#[test]
fn weights_hold_on_two_pcpus_up_to_what_a_vm_can_use() {
    // 1:3 of two pCPUs is 5 s and 15 s; both can use that with two vCPUs each.
    let sim = run(2, &[(100, vec![LOCKS; 2]), (300, vec![LOCKS; 2])]);
    let received = sim.received_ns();
    assert!(within(received[0], TEN_SECONDS / 2, 1.0), "{received:?}");
    assert!(
        within(received[1], TEN_SECONDS / 2 * 3, 1.0),
        "{received:?}"
    );
}

#[test]
fn shares_are_limited_by_demand_and_what_is_left_goes_to_the_others() {
    let light = Load::Periodic {
        period_ns: 20 * MS,
        work_ns: 2 * MS,
    };
    let sim = run(
        1,
        &[
            (100, vec![light]),
            (100, vec![LOCKS; 2]),
            (200, vec![BUSY; 2]),
        ],
    );
    let mut claims = [
        Claim {
            weight: 100,
            demand_ns: TEN_SECONDS / 10,
            entitled_ns: 0,
        },
        Claim {
            weight: 100,
            demand_ns: TEN_SECONDS,
            entitled_ns: 0,
        },
        Claim {
            weight: 200,
            demand_ns: TEN_SECONDS,
            entitled_ns: 0,
        },
    ];
    split_fairly(TEN_SECONDS, &mut claims);
    assert_eq!(claims.map(|c| c.entitled_ns / MS), [1_000, 3_000, 6_000]);
    for (claim, received) in claims.iter().zip(sim.received_ns()) {
        assert!(
            within(received, claim.entitled_ns, 0.5),
            "{claim:?} got {received}"
        );
    }
}

#[test]
fn an_idle_vm_does_not_look_starved() {
    let mut claims = [
        Claim {
            weight: 10_000,
            demand_ns: 0,
            entitled_ns: 7,
        },
        Claim {
            weight: 1,
            demand_ns: 100,
            entitled_ns: 7,
        },
    ];
    split_fairly(100, &mut claims);
    assert_eq!(claims.map(|c| c.entitled_ns), [0, 100]);
}

#[test]
fn virtual_time_loses_nothing_to_rounding() {
    for weight in [1, 3, 7, 100, 101, 9_999, 10_000] {
        let mut ledger = Ledger::new(weight, 0);
        (0..10_000).for_each(|_| ledger.charge(1));
        assert_eq!(
            ledger.vtime_ns(),
            10_000 * 100 / u64::from(weight),
            "weight {weight}"
        );
    }
}
