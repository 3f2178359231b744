//! What the observing daemon would count, beside what is so.
#![allow(clippy::unwrap_used)]

use ecs_sim::{Arm, Report, Scenario, run};

fn stock(observer: &str, kind: &str, in_us: u32, out_us: u32) -> Report {
    let scenario: Scenario = format!(
        "[stock]\n{observer}\n[[vm]]\ncount = 2\nvcpus = 4\n\
         workload = {{ kind = \"{kind}\", in_us = {in_us}, out_us = {out_us} }}\n"
    )
    .parse()
    .unwrap();
    run(&scenario, Arm::Stock, 1).unwrap()
}

#[test]
fn nobody_sees_anything_without_the_observer() {
    let report = stock("observer_sleep_us = 0", "ticket", 5, 5);
    assert_eq!(report.observed, ecs_sim::Observed::default());
    assert!(report.preemptions > 0);
}

#[test]
fn the_observer_does_not_count_its_own_interruptions() {
    let report = stock("", "compute", 5, 5);
    let seen = report.observed;
    assert!(
        0 < seen.preemptions && seen.preemptions < report.preemptions,
        "{seen:?} of {}",
        report.preemptions
    );
    assert_eq!((seen.critical, seen.all_stall_ns()), (0, 0));
}

#[test]
fn waiters_of_a_convoy_are_judged_when_the_observer_looks() {
    // At the moment of the preemption hardly anyone holds a lock that goes round once a slice.
    let report = stock("", "ticket", 5, 5);
    let seen = report.observed;
    assert!(seen.critical > report.critical.preemptions(), "{report:?}");
    let [not_preemptable, preemptable, wait] = seen.stall_ns;
    assert!(wait > not_preemptable && preemptable == 0, "{seen:?}");
    assert!(seen.all_stall_ns() > 2 * report.stall_ns, "{report:?}");
}

#[test]
fn a_holder_that_wakes_the_next_one_is_seen_in_its_section() {
    let report = stock("", "blocking", 5, 5);
    let [not_preemptable, preemptable, wait] = report.observed.stall_ns;
    assert!(
        not_preemptable == 0 && wait < preemptable / 10,
        "{report:?}"
    );
    // The woken one takes its CPU, after the lock was released.
    assert!(preemptable > 5 * report.stall_ns, "{report:?}");
    assert!(report.critical.wakeups > 0);
}
