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
    let perf = perf.map_err(|error| format!("{error}: needs {}", ecs_sched::perf::PRIVILEGE));
    let fifo = may_use_fifo();
    line("context-switch records", perf.clone());
    line("real-time class (SCHED_FIFO)", fifo.clone());
    line("/dev/kvm", kvm());
    let throttle = read("/proc/sys/kernel/sched_rt_runtime_us");
    line(
        "real-time throttling",
        Ok(format!("{throttle} us of each second; windows stay below")),
    );
    let scx = scx(&mut line);
    let controller = match (perf.is_ok(), fifo.is_ok()) {
        _ if scx => "scx",
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

/// Says what the kernel offers the controller `scx`; whether it would be used.
#[cfg(feature = "scx")]
fn scx(line: &mut impl FnMut(&str, Result<String, String>)) -> bool {
    let findings = ecs_sched::scx::probe();
    let all_good = findings.iter().all(|finding| finding.found.is_ok());
    for finding in findings {
        line(finding.what, finding.found);
    }
    all_good
}

#[cfg(not(feature = "scx"))]
fn scx(line: &mut impl FnMut(&str, Result<String, String>)) -> bool {
    let text = "not in this vmm-ecs: build it with --features scx";
    line("sched_ext", Err(text.to_owned()));
    false
}

/// What a daemon does, from its statistics.
pub(crate) fn status(snapshot: &ecs_stats::Snapshot) -> String {
    let host = &snapshot.host;
    let mut out = format!("controller   {}", host.controller);
    if !host.mechanism.is_empty() {
        let _ = write!(out, ", {}", host.mechanism);
    }
    let _ = match &host.ended {
        None => writeln!(out, ", in force"),
        Some(why) => writeln!(
            out,
            ", ended: {why}\n             the host's own scheduler runs the VMs; restart vmm-ecs \
             to steer again"
        ),
    };
    let _ = writeln!(out, "kernel       {}", host.kernel);
    let _ = writeln!(out, "CPUs         {}", CpuSet::new(host.pcpus.clone()));
    for vm in &snapshot.vms {
        let _ = writeln!(
            out,
            "VM           {}, {:?}, process {}, {} vCPU threads, {} extensions, {} critical \
             preemptions",
            vm.name,
            vm.state,
            vm.pid,
            vm.vcpus.len(),
            vm.grants.total(),
            vm.critical_preemptions.total(),
        );
    }
    out
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
