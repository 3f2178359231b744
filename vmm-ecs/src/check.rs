//! `vmm-ecs check`: what this host offers, and what will be used.

use std::fmt::Write;

use ecs_sched::perf::SwitchRing;
use ecs_sched::sys::{CpuSet, SchedAttr};

/// What was found, one line each.
pub(crate) fn report() -> String {
    let mut out = String::new();
    let mut line = |what: &str, found: Result<String, String>| {
        let (mark, text) = match found {
            Ok(text) => ("yes", text),
            Err(text) => ("no ", text),
        };
        let _ = writeln!(out, "{what:<34} {mark}  {text}");
    };
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    line("kernel", Ok(read("/proc/sys/kernel/osrelease")));
    line(
        "CPUs online",
        CpuSet::online()
            .map(|cpus| cpus.to_string())
            .map_err(|error| error.to_string()),
    );
    let perf = SwitchRing::open(0).map(|_| "perf software events".to_owned());
    let perf = perf.map_err(|error| format!("{error}: needs CAP_PERFMON or root"));
    let fifo = may_use_fifo();
    line("context-switch records", perf.clone());
    line("real-time class (SCHED_FIFO)", fifo.clone());
    line("sched_ext", sched_ext());
    line("/dev/kvm", kvm());
    let throttle = read("/proc/sys/kernel/sched_rt_runtime_us");
    line(
        "real-time throttling",
        Ok(format!("{throttle} us of each second; windows stay below")),
    );
    let controller = match (perf.is_ok(), fifo.is_ok()) {
        (true, true) => "userspace, mechanism rt",
        (true, false) => "observe: no real-time class",
        (false, _) => "none: context-switch records are needed by all",
    };
    let _ = writeln!(out, "\ncontroller that \"auto\" would use: {controller}");
    out
}

/// Tries it, on a thread of its own that ends at once.
fn may_use_fifo() -> Result<String, String> {
    std::thread::spawn(|| SchedAttr::fifo(1).set(0))
        .join()
        .map_err(|_| "the probe panicked".to_owned())?
        .map(|()| "allowed".to_owned())
        .map_err(|error| {
            format!("{error}: needs CAP_SYS_NICE, and a cgroup with real-time bandwidth")
        })
}

fn sched_ext() -> Result<String, String> {
    let path = "/sys/kernel/sched_ext/state";
    std::fs::read_to_string(path)
        .map(|state| format!("{}, not used by this version", state.trim()))
        .map_err(|_| "this kernel has none (CONFIG_SCHED_CLASS_EXT)".to_owned())
}

/// Whether embedded VMs can be KVM guests here: runs one for a moment.
fn kvm() -> Result<String, String> {
    let config = ecs_microvm::VmConfig {
        kind: ecs_microvm::Kind::Kvm,
        sync: ecs_microvm::Gate::Open,
        duration_ms: 10,
        ..ecs_microvm::VmConfig::new(
            "check",
            1,
            ecs_microvm::Workload::new(ecs_microvm::WorkloadKind::Compute, 5.0, 5.0),
        )
    };
    let mut vm = ecs_microvm::Vm::new(config).map_err(|error| error.to_string())?;
    vm.go();
    vm.finish()
        .map(|report| report.why)
        .map_err(|error| error.to_string())
}
