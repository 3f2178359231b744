//! The controller in the kernel on a host whose CPUs share cores, with VMs that keep their cores to
//! themselves, as Cloud Hypervisor has them do.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss
)]

use ecs_tests::linux::HostVm;
use ecs_tests::linux::side_by_side::{Arm, Load, Outcome, side_by_side};
use ecs_tests::{scx_host, skip, slow};

/// What both VMs do, on two cores of two CPUs each.
fn load(workload: &'static str, vcpus: usize) -> Load {
    Load {
        workload,
        vcpus,
        pcpus: "0-3",
        seconds: 3,
    }
}

fn arm(name: &str, demo: &str, cookies: bool) -> Arm {
    Arm {
        name: format!("{name}{}", if cookies { ", cookies" } else { "" }),
        demo: format!("{demo}{}", if cookies { " --core-scheduling" } else { "" }),
        ..Arm::stock()
    }
}

fn say(load: &Load, outcome: &Outcome) {
    let count = |name: &str| outcome.count(name).unwrap_or(0);
    println!(
        "2 VMs x {} {}, {}: {:.0} ops/s by VM {:.0?}, VMs had {:.3} CPUs; {} preemptions, {} in a \
         section, {} yielded, {} expired; share off {:.3} %",
        load.vcpus,
        load.workload,
        outcome.arm,
        outcome.total(),
        outcome.ops_per_s,
        outcome.cpus,
        count("preemptions"),
        count("critical_preemptions"),
        count("yielded"),
        count("expired"),
        outcome.share_deviation_percent.unwrap_or(f64::NAN),
    );
}

#[test]
fn vms_that_keep_their_cores_to_themselves_run_all_the_same() {
    let name = "vms_that_keep_their_cores_to_themselves_run_all_the_same";
    slow!(name);
    let (parts, mut host) = scx_host!(name, "7.3");
    (host.cpus, host.threads) = (4, 2);
    let kernel = match parts.cores_kernel() {
        Ok(kernel) => kernel,
        Err(reason) => skip!(name, "{reason}"),
    };
    HostVm::run(&parts, &kernel, &host, |host| {
        println!("{}", host.sh("vmm-ecs check").unwrap());
        for (workload, vcpus) in [("compute", 4), ("ticket", 2), ("ticket", 4)] {
            let load = load(workload, vcpus);
            let ecs = "--arms ecs --controller scx";
            let arms = [
                arm("stock", "--arms stock", false),
                arm("stock", "--arms stock", true),
                arm("eCS", ecs, false),
                arm("eCS", ecs, true),
            ];
            let outcomes = side_by_side(host, &arms, &load).unwrap();
            for outcome in &outcomes {
                say(&load, outcome);
            }
            let [_, stock, apart, ecs] = outcomes.as_slice() else {
                panic!("{outcomes:?}");
            };
            // The cookies cost what they have to, and nobody has more than its share for it.
            assert!(ecs.total() > 0.85 * apart.total(), "{outcomes:?}");
            assert!(ecs.share_deviation_percent.unwrap() < 1.0, "{ecs:?}");
            let least = if (workload, vcpus) == ("ticket", 4) {
                10.0
            } else {
                0.95
            };
            assert!(ecs.total() > least * stock.total(), "{outcomes:?}");
        }
    });
}
