//! Events a second of CPU time, by the size of the host. `cargo bench -p ecs-sim`
#![allow(clippy::unwrap_used, missing_docs)]

use ecs_sim::{Arm, Scenario, run};

const CASES: [(&str, &str); 5] = [
    (
        "2 CPUs, 2 VMs x 2, ticket",
        "duration_ms = 2000\n[stock]\napart = true\n[[vm]]\ncount = 2\nvcpus = 2\n\
         workload = { kind = \"ticket\", in_us = 5, out_us = 5 }\n",
    ),
    (
        "80 CPUs, 2 VMs x 80, 16 ticket locks",
        "duration_ms = 100\n[host]\nsockets = 8\ncores = 10\n[[vm]]\ncount = 2\nvcpus = 80\n\
         workload = { kind = \"ticket\", in_us = 1, out_us = 20, locks = 16 }\n",
    ),
    (
        "80 CPUs, 160 VMs x 4, rwlock",
        "duration_ms = 100\n[host]\nsockets = 8\ncores = 10\n[[vm]]\ncount = 160\nvcpus = 4\n\
         workload = { kind = \"rwlock\", in_us = 2, out_us = 10 }\n",
    ),
    (
        "1024 CPUs, 2000 VMs x 2, ticket",
        "duration_ms = 20\nwarmup_ms = 20\n[host]\nsockets = 8\ncores = 128\n[[vm]]\ncount = 2000\nvcpus = 2\n\
         workload = { kind = \"ticket\", in_us = 2, out_us = 10 }\n",
    ),
    (
        "80 CPUs, 80 VMs x 4, blocking",
        "duration_ms = 100\n[host]\nsockets = 8\ncores = 10\n[[vm]]\ncount = 80\nvcpus = 4\n\
         workload = { kind = \"blocking\", in_us = 5, out_us = 30 }\n",
    ),
];

/// CPU time of this thread, ms: what the machine does beside it does not count.
fn cpu_ms() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e6
}

fn main() {
    println!(
        "{:<38} {:>6} {:>12} {:>10} {:>14}",
        "", "arm", "events", "CPU ms", "events/s"
    );
    for (name, text) in CASES {
        let scenario: Scenario = text.parse().unwrap();
        for arm in [Arm::Stock, Arm::Ecs] {
            // The fastest of three: the one that was disturbed least.
            let (events, ms) = (0..3)
                .map(|_| {
                    let begin = cpu_ms();
                    let report = run(&scenario, arm, 1).unwrap();
                    (report.nr_events, cpu_ms() - begin)
                })
                .min_by(|a, b| a.1.total_cmp(&b.1))
                .unwrap();
            #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
            let rate = events as f64 / ms * 1e3;
            println!("{name:<38} {arm:>6} {events:>12} {ms:>10.1} {rate:>14.0}");
        }
    }
}
