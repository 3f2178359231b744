//! Operations per second of one VM, as threads and in KVM, with and without annotation.
//!
//! `cargo run --release -p ecs-microvm --example compare [WORKLOAD [IN_US OUT_US [VCPUS [MS]]]]`
use std::time::Duration;

use ecs_microvm::{Kind, Vm, VmConfig, Workload, WorkloadKind, work};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let arg = |index: usize, default: &str| args.get(index).cloned().unwrap_or(default.to_owned());
    let workload: WorkloadKind = arg(0, "ticket").parse()?;
    let workload = Workload::new(workload, arg(1, "5").parse()?, arg(2, "5").parse()?);
    let vcpus = arg(3, "2").parse()?;
    let time = Duration::from_millis(arg(4, "1000").parse()?);
    let rate = work::calibrate();
    println!(
        "{} {}/{} us, {vcpus} vCPUs",
        workload.kind, workload.in_us, workload.out_us
    );
    for kind in [Kind::Thread, Kind::Kvm] {
        for annotate in [false, true] {
            let mut config = VmConfig::new("compare", vcpus, workload);
            config.kind = kind;
            config.annotate = annotate;
            config.iterations_per_us = Some(rate);
            let mut vm = match Vm::new(config) {
                Ok(vm) => vm,
                Err(error) => {
                    println!("{kind:?}: {error:?}");
                    continue;
                }
            };
            vm.go();
            std::thread::sleep(time);
            let report = vm.finish()?;
            println!(
                "{:<7} annotated {annotate:<5} {:>9.0} ops/s, hand-over p50 {} ns p99 {} ns, \
                 exclusion {}, {} halts, lost wake-ups {}",
                report.kind_used.name(),
                report.ops_per_s(),
                report.handoff.p50_ns,
                report.handoff.p99_ns,
                if report.exclusion_held() {
                    "held"
                } else {
                    "BROKEN"
                },
                report.nr_halts,
                report.lost_wakeups,
            );
        }
    }
    Ok(())
}
