//! The one table of metric families. The collectors emit nothing that is not in it, and
//! docs/metrics.md is generated from it.

use std::fmt::Write;

/// Type of a metric family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Goes up only.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Cumulative buckets, sum and count.
    Histogram,
}

impl Kind {
    /// Name in the expositions.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric family.
#[derive(Debug)]
pub struct Family {
    /// Full name.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// Base unit, also the end of the name (before `_total`); empty if there is none.
    pub unit: &'static str,
    /// Names of the labels, in the order of the values.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

macro_rules! catalogue {
    ($($id:ident: $kind:ident, $name:literal, $unit:literal, [$($label:literal),*], $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $id: Family = Family {
                name: $name,
                kind: Kind::$kind,
                unit: $unit,
                labels: &[$($label),*],
                help: $help,
            };
        )*
        /// Every family, in the order of the documentation.
        pub static ALL: &[&Family] = &[$(&$id),*];
    };
}

catalogue! {
    UP: Gauge, "ecs_up", "", [], "Whether the eCS scheduler interface could be read.";
    HOST_INFO: Gauge, "ecs_host_info", "", ["controller", "mechanism", "abi", "kernel"],
        "Host facts; the value is 1.";
    HOST_CPUS: Gauge, "ecs_host_cpus", "", [], "CPUs the VMs may run on.";
    HOST_VMS: Gauge, "ecs_host_vms", "", ["state"],
        "VMs by state (active, unhinted, disabled, unreadable).";
    HOST_EXTENSION_LIMIT: Gauge, "ecs_host_extension_limit_seconds", "seconds", [],
        "Longest extension the policy allows.";
    HOST_DEBT_LIMIT: Gauge, "ecs_host_debt_limit_seconds", "seconds", [],
        "Debt at which a VM gets no more extensions.";
    HOST_EXTENSION_DURATION: Histogram, "ecs_host_extension_duration_seconds", "seconds",
        ["section"], "Time from grant to end of an extension.";
    HOST_CRITICAL_STALL: Histogram, "ecs_host_critical_stall_seconds", "seconds", [],
        "Time a vCPU was off the CPU while inside a critical section.";
    HOST_GRANT_LATENCY: Histogram, "ecs_host_grant_latency_seconds", "seconds", [],
        "Time the grant decision took in the scheduler.";

    VM_INFO: Gauge, "ecs_vm_info", "", ["vm", "vm_uuid", "vmm_pid", "cgroup", "api_socket"],
        "VM facts; the value is 1.";
    VM_VCPUS: Gauge, "ecs_vm_vcpus", "", ["vm"], "vCPU threads of the VM.";
    VM_WEIGHT: Gauge, "ecs_vm_weight_ratio", "ratio", ["vm"],
        "CPU weight of the VM over the sum of the host.";
    VM_ENABLED: Gauge, "ecs_vm_enabled", "", ["vm"],
        "Whether policy lets the VM have extensions.";
    VM_REQUESTS: Counter, "ecs_vm_extension_requests_total", "", ["vm"],
        "Slice ends that met a raised hint.";
    VM_GRANTS: Counter, "ecs_vm_extension_grants_total", "", ["vm", "section"],
        "Slice extensions granted.";
    VM_DENIALS: Counter, "ecs_vm_extension_denials_total", "", ["vm", "cause"],
        "Slice extensions refused.";
    VM_ENDED: Counter, "ecs_vm_extensions_ended_total", "", ["vm", "outcome"],
        "Slice extensions ended (yielded, expired, revoked, aborted).";
    VM_EXTENSION: Counter, "ecs_vm_extension_seconds_total", "seconds", ["vm"],
        "CPU time spent inside extensions.";
    VM_PENALTY: Counter, "ecs_vm_penalty_seconds_total", "seconds", ["vm"],
        "CPU time taken back as penalty.";
    VM_DEBT: Gauge, "ecs_vm_debt_seconds", "seconds", ["vm"],
        "Extension time not yet taken back.";
    VM_AVOIDED: Counter, "ecs_vm_avoided_preemptions_total", "", ["vm"],
        "Preemptions in a critical section avoided: extensions that ended with outcome yielded.";
    VM_CRITICAL: Counter, "ecs_vm_critical_preemptions_total", "", ["vm", "cause"],
        "Preemptions that did hit a critical section.";
    VM_PREEMPTIONS: Counter, "ecs_vm_preemptions_total", "", ["vm"],
        "Involuntary deschedules of vCPU threads (PERF_RECORD_MISC_SWITCH_OUT_PREEMPT).";
    VM_CRITICAL_STALL: Counter, "ecs_vm_critical_stall_seconds_total", "seconds", ["vm"],
        "Time vCPUs were off the CPU while inside a critical section.";
    VM_CPU: Counter, "ecs_vm_cpu_seconds_total", "seconds", ["vm"],
        "CPU time of the vCPU threads (schedstat field 1).";
    VM_FAIR_CPU: Counter, "ecs_vm_fair_cpu_seconds_total", "seconds", ["vm"],
        "CPU time the VM was entitled to by weight while runnable.";
    VM_FAIRNESS_DELTA: Gauge, "ecs_vm_fairness_delta_seconds", "seconds", ["vm"],
        "CPU time received minus entitled, since the VM was first seen; above 0 is too much.";
    VM_DELAY: Counter, "ecs_vm_delay_seconds_total", "seconds", ["vm"],
        "Time vCPUs were runnable but not running (schedstat field 2; steal, VMware ready).";

    VCPU_CPU: Counter, "ecs_vcpu_cpu_seconds_total", "seconds", ["vm", "vcpu"],
        "CPU time of the vCPU thread.";
    VCPU_DELAY: Counter, "ecs_vcpu_delay_seconds_total", "seconds", ["vm", "vcpu"],
        "Time the vCPU was runnable but not running.";
    VCPU_GRANTS: Counter, "ecs_vcpu_extension_grants_total", "", ["vm", "vcpu"],
        "Slice extensions granted.";
    VCPU_PREEMPTIONS: Counter, "ecs_vcpu_preemptions_total", "", ["vm", "vcpu"],
        "Involuntary deschedules of the vCPU thread.";
    VCPU_CRITICAL: Counter, "ecs_vcpu_critical_preemptions_total", "", ["vm", "vcpu"],
        "Preemptions that did hit a critical section.";

    COLLECTOR_DURATION: Gauge, "ecs_scrape_collector_duration_seconds", "seconds", ["collector"],
        "Time the collector took in this scrape.";
    COLLECTOR_SUCCESS: Gauge, "ecs_scrape_collector_success", "", ["collector"],
        "Whether the collector succeeded in this scrape.";
    BUILD_INFO: Gauge, "ecs_exporter_build_info", "", ["version", "revision", "target", "rustc"],
        "Build facts; the value is 1.";
    PERF_RECORDS: Counter, "ecs_exporter_perf_records_total", "", [], "perf records read.";
    PERF_LOST: Counter, "ecs_exporter_perf_lost_records_total", "", [],
        "perf records the kernel dropped (PERF_RECORD_LOST).";
    HTTP_REQUESTS: Counter, "ecs_exporter_http_requests_total", "", ["handler", "code"],
        "HTTP requests served.";
    PROCESS_CPU: Counter, "process_cpu_seconds_total", "seconds", [],
        "User and system CPU time of the exporter.";
    PROCESS_RESIDENT: Gauge, "process_resident_memory_bytes", "bytes", [],
        "Resident memory of the exporter.";
    PROCESS_OPEN_FDS: Gauge, "process_open_fds", "", [], "Open file descriptors of the exporter.";
    PROCESS_START: Gauge, "process_start_time_seconds", "seconds", [],
        "Start time of the exporter.";
}

const DOC_HEAD: &str = "\
# Metrics

<!-- Generated by `ecs-exporter metrics-doc` from ecs-exporter/src/catalogue.rs: do not edit. -->

`ecs-exporter` reads one snapshot from the stats socket of `vmm-ecs` at each scrape. A VM that is
gone leaves no series; while the socket cannot be read, `ecs_up` is 0 and no `ecs_host_*`,
`ecs_vm_*` or `ecs_vcpu_*` series exist. Counters run since the VM was first seen.

| endpoint | what it gives |
|---|---|
| `/metrics` | everything, `ecs_vcpu_*` only with `--vcpu-metrics` |
| `/metrics/vm/{vm}` | one VM with its vCPUs; 404 if there is no such VM |
| `/-/healthy` | 200 while the exporter runs |
| `/-/ready` | 200 while the stats socket can be read, else 503 with the reason |

Identities that hold in every snapshot:

- extensions granted = extensions ended + extensions running;
- debt = extension - penalty - forgiven;
- fairness delta = CPU time received - CPU time entitled.

Label values: `section` is `non_preemptable`, `preemptable` or `wait` (a waiter whose queue head
runs); `outcome` is `yielded`, `expired`, `revoked` or `aborted`; `cause` of a denial is `used`,
`budget`, `cooldown` or `disabled`, of a critical preemption `denied`, `expired` or `host`.

| name | type | unit | labels | help |
|---|---|---|---|---|
";

/// The catalogue as a Markdown page: docs/metrics.md.
#[must_use]
pub fn markdown() -> String {
    let dash = |text: String| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text
        }
    };
    let mut page = DOC_HEAD.to_owned();
    for family in ALL {
        // Writing to a String cannot fail.
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} | {} |",
            family.name,
            family.kind.name(),
            dash(family.unit.to_owned()),
            dash(family.labels.join(",")),
            family.help
        );
    }
    page
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_follow_the_rules() {
        let mut names = BTreeSet::new();
        for family in ALL {
            let name = family.name;
            assert!(names.insert(name), "{name} twice");
            assert!(
                name.starts_with("ecs_") || name.starts_with("process_"),
                "{name}"
            );
            let total = name.strip_suffix("_total");
            assert_eq!(total.is_some(), family.kind == Kind::Counter, "{name}");
            let stem = total.unwrap_or(name);
            if family.unit.is_empty() {
                for unit in ["_seconds", "_bytes", "_ratio"] {
                    assert!(!stem.ends_with(unit), "{name} hides its unit");
                }
            } else {
                assert!(stem.ends_with(&format!("_{}", family.unit)), "{name}");
            }
            assert!(
                family.help.ends_with('.') && !family.help.contains(['|', '\n']),
                "{name}"
            );
            let labels: BTreeSet<_> = family.labels.iter().collect();
            assert_eq!(labels.len(), family.labels.len(), "{name}");
            let per_vcpu = name.starts_with("ecs_vcpu_");
            let per_vm = per_vcpu || name.starts_with("ecs_vm_");
            assert_eq!(family.labels.first() == Some(&"vm"), per_vm, "{name}");
            assert_eq!(family.labels.get(1) == Some(&"vcpu"), per_vcpu, "{name}");
        }
    }

    #[test]
    fn the_documentation_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let written = std::fs::read_to_string(path).unwrap();
        assert!(
            written == markdown(),
            "docs/metrics.md is out of date: cargo run -p ecs-exporter -- metrics-doc > docs/metrics.md"
        );
    }
}
