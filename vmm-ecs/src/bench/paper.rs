//! The table of the paper (USENIX ATC 2018), row by row, with our figures beside its.

use super::cell::{Cell, Found, Spread};
use super::tables::{Table, number, spread};
use crate::demo::{Arm, RunCounters};

/// Least gain that counts, and the most that the paper reports.
const GAIN: f64 = 1.2;
const BEST_OF_PAPER: f64 = 2.5;

/// Kinds of preemption, and the workload that shows each.
const CLASSES: [(&str, &str, &str); 4] = [
    ("LHP, lock holders", "ticket", "a ticket lock"),
    ("RP, readers", "rwlock", "a lock of readers and writers"),
    ("ICP, interrupt context", "irq", "calls to other vCPUs"),
    ("BWW, holders that others sleep for", "blocking", "a mutex"),
];

/// Median ratio of eCS to stock in every over-committed scenario with locks, that of several VMs with
/// several vCPUs each, all honest.
pub(super) fn over_committed(found: &Found) -> Vec<f64> {
    found
        .cells()
        .filter(|cell| {
            let scenario = &cell.scenario;
            scenario.vms > 1 && scenario.vcpus > 1 && scenario.workload != "compute"
        })
        .filter(|cell| cell.scenario.unhinted.is_empty() && cell.scenario.pinning.is_empty())
        .filter_map(|cell| Some(cell.against(Arm::Ecs, Arm::Stock)?.median))
        .collect()
}

/// The table.
pub(super) fn table(found: &Found) -> Table {
    let mut table = Table::new(
        "The paper's table",
        &["row", "paper", "here", "what differs"],
    );
    let mut row = |row: &str, paper: &str, here: String, differs: &str| {
        let cells = [row, paper, &here, differs];
        table.rows.push(cells.map(str::to_owned).to_vec());
    };
    let ratios = over_committed(found);
    let at_least = |bar| ratios.iter().filter(|ratio| **ratio >= bar).count();
    row(
        "Over-committed throughput, two VMs",
        "1.2 to 2.3 times, 2.5 at best",
        format!(
            "{} times over {} scenarios; {GAIN} or more in {}, {BEST_OF_PAPER} or more in {}",
            spread(Spread::of(&ratios)),
            ratios.len(),
            at_least(GAIN),
            at_least(BEST_OF_PAPER),
        ),
        "two to four VMs on two CPUs, whose work is one lock; the paper: two of 80 vCPUs on 80 cores, applications",
    );
    let alone: Vec<&Cell> = found
        .cells()
        .filter(|cell| cell.scenario.vms == 1 && cell.scenario.workload == "blocking")
        .collect();
    let gains: Vec<f64> = alone
        .iter()
        .filter_map(|cell| Some(cell.against(Arm::Hints, Arm::Stock)?.median))
        .collect();
    row(
        "Under-committed throughput, one VM",
        "1.2 to 1.9 times",
        format!("{} times", spread(Spread::of(&gains))),
        "a mutex whose waiters are told, against one whose waiters halt",
    );
    for (class, workload, what) in CLASSES {
        let of_class = found.cells().filter(|cell| {
            cell.scenario.workload == workload
                && cell.scenario.unhinted.is_empty()
                && cell.scenario.pinning.is_empty()
        });
        let counters: RunCounters = of_class
            .filter_map(|cell| Some(cell.arm(Arm::Ecs)?.counters))
            .sum();
        let avoided = counters.avoided_ratio().map(|ratio| 100.0 * ratio);
        row(
            &format!("Preemptions avoided: {class}"),
            "85.8 to 100 %",
            format!(
                "{} % of {}",
                avoided.map_or_else(|| number(None), |avoided| format!("{avoided:.2}")),
                counters.requests,
            ),
            what,
        );
    }
    let fair = found.cells().find(|cell| {
        let scenario = &cell.scenario;
        scenario.vms == 2 && scenario.unhinted.len() == 1 && scenario.seconds >= 10.0
    });
    let shares = fair.and_then(|cell| {
        let runs = &cell.arm(Arm::Ecs)?.cpu_s;
        let of = |vm: usize| {
            let seconds = runs.iter().filter_map(|vms| vms.get(vm));
            crate::demo::median(&seconds.map(|(cpu_s, _)| *cpu_s).collect::<Vec<_>>())
        };
        Some(format!("{:.3} s and {:.3} s", of(0), of(1)))
    });
    row(
        "Eventual fairness, two VMs, one with eCS",
        "4.95 s each of 10 s",
        shares.unwrap_or_else(|| number(None)),
        "CPU seconds on two CPUs, in 10 s; what is missing to 20 s others had",
    );
    for cost in &found.calls {
        row(
            &format!("Cost: {}", cost.call),
            "–",
            match cost.instructions {
                Some(count) => format!("{:.1} ns, {count:.0} instructions", cost.ns),
                None => format!("{:.1} ns", cost.ns),
            },
            "calls of the Rust crate; the Linux driver adds no instruction to a lock",
        );
    }
    table
}
