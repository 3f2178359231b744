//! What holds in every run: time, books, shares.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use ecs_sim::{Arm, Report, Scenario, run};
use proptest::prelude::*;

const ARMS: [Arm; 4] = [Arm::Stock, Arm::Rotate, Arm::HolderOnly, Arm::Ecs];
const KINDS: [&str; 6] = ["ticket", "queue", "rwlock", "irq", "blocking", "compute"];

/// A host without threads of its own, whose vCPUs start where the daemon would put them.
const QUIET: &str = "[stock]\nobserver_sleep_us = 0\nwakeups_per_s = 0\napart = true\n";

fn vm(kind: &str, vcpus: usize, in_us: f64, out_us: f64, more: &str) -> String {
    format!(
        "[[vm]]\nvcpus = {vcpus}\n{more}\n\
         workload = {{ kind = \"{kind}\", in_us = {in_us}, out_us = {out_us} }}\n"
    )
}

fn scenario(host: &str, vms: &[String]) -> Scenario {
    format!("{host}\n{}", vms.concat()).parse().unwrap()
}

/// Every identity of a report.
fn judge(scenario: &Scenario, report: &Report) {
    let cpus = scenario.nr_cpus() as u64;
    assert_eq!(
        report.cpu_ns + report.host_ns + report.idle_ns,
        cpus * report.duration_ns,
        "time is conserved"
    );
    for vm in &report.vms {
        let policy = &vm.policy;
        assert_eq!(
            policy.grants,
            policy.yielded + policy.expired + policy.revoked + policy.aborted + policy.running,
            "a grant has exactly one outcome"
        );
        assert_eq!(policy.requests, policy.grants + policy.denials);
        assert_eq!(
            policy.extension_ns,
            policy.penalty_ns + policy.forgiven_ns + policy.debt_ns,
            "debt is neither lost nor made"
        );
        assert!(policy.debt_ns <= scenario.policy.budget_us * 1000);
        let longest_ns = scenario.policy.extension_us * 1000;
        assert!(policy.extension_ns <= longest_ns * policy.grants + longest_ns);
        assert!(vm.critical.preemptions() <= vm.preemptions);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn time_and_books_add_up_in_any_scenario(
        cores in 1usize..5,
        seed in any::<u64>(),
        slice_us in 500u64..6_000,
        vms in prop::collection::vec(
            (0usize..6, 1usize..5, 0u32..60, 0u32..60, 1u32..400, any::<bool>(), 0u8..4), 1..5),
    ) {
        let vms: Vec<String> = vms
            .iter()
            .map(|&(kind, vcpus, within, out, weight, enlightened, pins)| {
                let guest = if pins == 0 { "pin_counts" } else { "honest" };
                let more = format!(
                    "weight = {weight}\nenlightened = {enlightened}\nguest = \"{guest}\""
                );
                vm(KINDS[kind], vcpus, f64::from(within) + 0.1, f64::from(out), &more)
            })
            .collect();
        let host = format!(
            "duration_ms = 60\nwarmup_ms = 20\n[host]\ncores = {cores}\n\
             [policy]\nslice_us = {slice_us}\nextension_us = 400"
        );
        let scenario = scenario(&host, &vms);
        for arm in ARMS {
            let report = run(&scenario, arm, seed).unwrap();
            judge(&scenario, &report);
            prop_assert_eq!(&report, &run(&scenario, arm, seed).unwrap());
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_one_others() {
    let scenario = scenario(
        "duration_ms = 100",
        &[vm("ticket", 2, 5.0, 5.0, "count = 3")],
    );
    let bytes = |seed| serde_json::to_string(&run(&scenario, Arm::Ecs, seed).unwrap()).unwrap();
    assert_eq!(bytes(7), bytes(7));
    assert_ne!(bytes(7), bytes(8));
}

#[test]
fn no_cpu_idles_while_a_vcpu_waits() {
    // As many vCPUs as CPUs at least, and none sleeps.
    for kind in ["ticket", "queue", "rwlock", "irq", "compute"] {
        for arm in ARMS {
            let scenario = scenario("duration_ms = 50", &[vm(kind, 2, 5.0, 5.0, "count = 2")]);
            let report = run(&scenario, arm, 1).unwrap();
            judge(&scenario, &report);
            assert_eq!(report.idle_ns, 0, "{kind}, {arm}");
        }
    }
    // Three that compute on four CPUs: each has one, and one CPU has nothing to do.
    let host = format!("{QUIET}[host]\ncores = 4");
    let spare = scenario(&host, &[vm("compute", 3, 5.0, 5.0, "")]);
    for arm in ARMS {
        let report = run(&spare, arm, 1).unwrap();
        assert_eq!(report.idle_ns, report.duration_ns, "{arm}");
        assert_eq!(report.vms[0].delay_ns, 0, "{arm}");
    }
}

#[test]
fn weights_hold() {
    for arm in ARMS {
        let vms = [
            vm("compute", 2, 5.0, 5.0, "weight = 100"),
            vm("compute", 2, 5.0, 5.0, "weight = 300"),
        ];
        let scenario = scenario(&format!("duration_ms = 10000\n{QUIET}"), &vms);
        let report = run(&scenario, arm, 1).unwrap();
        assert!(report.share_deviation_percent < 1.0, "{arm}: {report:?}");
    }
}

#[test]
fn work_alone_takes_the_time_it_is_said_to_take() {
    // 5 us in, 5 us out, alone on its CPU: 100 000 a second.
    for arm in ARMS {
        let host = format!("{QUIET}[host]\ncores = 1");
        let scenario = scenario(&host, &[vm("ticket", 1, 5.0, 5.0, "")]);
        let report = run(&scenario, arm, 1).unwrap();
        assert!(
            (report.ops_per_s / 1e5 - 1.0).abs() < 0.01,
            "{arm}: {}",
            report.ops_per_s
        );
        assert_eq!(report.critical.preemptions(), 0);
    }
}

#[test]
fn a_convoy_forms_without_ecs_and_dissolves_with_it() {
    let scenario = scenario("", &[vm("ticket", 4, 5.0, 5.0, "count = 2")]);
    let of = |arm| run(&scenario, arm, 1).unwrap();
    let (stock, holder_only, ecs) = (of(Arm::Stock), of(Arm::HolderOnly), of(Arm::Ecs));
    assert!(stock.ops_per_s < 5_000.0, "{}", stock.ops_per_s);
    assert!(
        holder_only.ops_per_s < 20_000.0,
        "{}",
        holder_only.ops_per_s
    );
    assert!(ecs.ops_per_s > 150_000.0, "{}", ecs.ops_per_s);
    assert!(ecs.critical.preemptions() * 20 < stock.critical.preemptions().max(100));
    assert!(
        ecs.share_deviation_percent < 1.0,
        "{}",
        ecs.share_deviation_percent
    );
}

#[test]
fn a_vm_in_a_convoy_of_long_sections_gets_its_share() {
    for extension_us in [500, 1000, 2000, 3000] {
        let host = format!(
            "duration_ms = 3000\n[host]\ncores = 4\n[policy]\nextension_us = {extension_us}\n\
             budget_us = 10000"
        );
        let scenario = scenario(&host, &[vm("ticket", 4, 500.0, 50.0, "count = 2")]);
        let report = run(&scenario, Arm::Ecs, 1).unwrap();
        judge(&scenario, &report);
        let off = report.share_deviation_percent;
        assert!(off < 0.5, "extensions of {extension_us} us: {off} %");
    }
}

#[test]
fn a_guest_that_pins_its_counts_gains_nothing() {
    let vms = [
        vm("ticket", 2, 5.0, 5.0, "guest = \"pin_counts\""),
        vm("ticket", 2, 5.0, 5.0, ""),
    ];
    let scenario = scenario("duration_ms = 10000", &vms);
    let report = run(&scenario, Arm::Ecs, 1).unwrap();
    judge(&scenario, &report);
    assert!(
        report.vms[0].off_percent() < 0.5,
        "{}",
        report.vms[0].off_percent()
    );
    assert!(report.vms[0].policy.expired > 0);
}

#[test]
fn each_class_of_preemption_is_met_where_it_belongs() {
    let critical = |kind, more: &str| {
        let text = vm(kind, 2, 20.0, 20.0, &format!("count = 3\n{more}"));
        run(&scenario("", &[text]), Arm::Stock, 1).unwrap().critical
    };
    let ticket = critical("ticket", "");
    assert!(
        ticket.holder > 0 && ticket.reader == 0 && ticket.interrupt == 0,
        "{ticket:?}"
    );
    let rwlock = critical("rwlock", "");
    assert!(rwlock.reader > 0 && rwlock.interrupt == 0, "{rwlock:?}");
    let irq = critical("irq", "");
    assert!(irq.interrupt > 0 && irq.holder == 0, "{irq:?}");
    let blocking = critical("blocking", "enlightened = false");
    assert!(blocking.wakeups > 0 && blocking.waiter == 0, "{blocking:?}");
    let compute = critical("compute", "");
    assert_eq!((compute.preemptions(), compute.wakeups), (0, 0));
}

#[test]
fn a_wake_up_of_a_host_thread_is_a_chance_to_choose_again() {
    let convoy = |stock: &str| {
        let host = format!("duration_ms = 4000\n[stock]\napart = true\n{stock}");
        let scenario = scenario(&host, &[vm("ticket", 4, 5.0, 5.0, "count = 2")]);
        let report = run(&scenario, Arm::Stock, 1).unwrap();
        judge(&scenario, &report);
        report
    };
    let with = |wakeups: u32, observer: u32| {
        convoy(&format!(
            "slice_us = 1400\nwakeups_per_s = {wakeups}\nobserver_sleep_us = {observer}"
        ))
    };
    let ticks_alone = with(0, 0);
    // Two CPUs, 4 ms: at most one change a tick.
    assert!(ticks_alone.preemptions <= 2 * 1000, "{ticks_alone:?}");
    let (some, many) = (with(200, 0), with(2_000, 0));
    assert!(some.preemptions > ticks_alone.preemptions * 11 / 10);
    assert!(many.preemptions > some.preemptions * 3 / 2);
    // A convoy does one operation a change.
    assert!(many.ops_per_s > ticks_alone.ops_per_s * 1.2, "{many:?}");
    let observed = with(0, 1_060);
    assert!(observed.preemptions > ticks_alone.preemptions * 3 / 2);
}

#[test]
fn ticks_leave_a_current_vcpu_its_slice_and_wake_ups_no_more_than_its_share() {
    let preemptions = |slice_us: u32, wakeups_per_s: u32| {
        let host = format!(
            "duration_ms = 4000\n[host]\ncores = 1\n\
             [stock]\nslice_us = {slice_us}\nwakeups_per_s = {wakeups_per_s}\n\
             wakeup_us = 10\nobserver_sleep_us = 0"
        );
        let scenario = scenario(&host, &[vm("compute", 1, 5.0, 5.0, "count = 4")]);
        let report = run(&scenario, Arm::Stock, 1).unwrap();
        assert!(report.share_deviation_percent < 3.0, "{report:?}");
        report.preemptions
    };
    let (short, long) = (preemptions(1_400, 0), preemptions(20_000, 0));
    assert!(long * 4 < short, "{long} with 20 ms, {short} with 1.4 ms");
    // Past the average of its queue nobody is protected, however long its slice.
    let woken = preemptions(20_000, 2_000);
    assert!(
        woken > short,
        "{woken} with 2000 wake-ups, {short} with none"
    );
}

#[test]
fn what_the_hosts_threads_take_is_host_time() {
    let host = "duration_ms = 10000\n[host]\ncores = 1\nswitch_ns = 0\n\
                [stock]\nobserver_sleep_us = 900\nobserver_look_us = 100\nwakeups_per_s = 100\n\
                wakeup_us = 500";
    let scenario = scenario(host, &[vm("compute", 1, 5.0, 5.0, "")]);
    let report = run(&scenario, Arm::Stock, 1).unwrap();
    judge(&scenario, &report);
    // A tenth for the observer and a twentieth for the others, less what they wait for the CPU.
    let per_mille = report.host_ns * 1000 / report.duration_ns;
    assert!((120..=151).contains(&per_mille), "{per_mille}");
    let steered = run(&scenario, Arm::Ecs, 1).unwrap();
    assert!(steered.host_ns < report.host_ns / 10, "nobody observes");
}
