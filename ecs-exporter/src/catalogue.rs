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
        "VMs by state (active, unhinted, disabled, unreadable; unserved: vmm-ecs does not know it).";
    HOST_SLICE: Gauge, "ecs_host_slice_seconds", "seconds", [],
        "Time a vCPU runs before the next one gets the CPU.";
    HOST_EXTENSION_LIMIT: Gauge, "ecs_host_extension_limit_seconds", "seconds", [],
        "Longest extension the policy allows.";
    HOST_DEBT_LIMIT: Gauge, "ecs_host_debt_limit_seconds", "seconds", [],
        "Debt at which a VM gets no more extensions.";
    HOST_EXTENSION_DURATION: Histogram, "ecs_host_extension_duration_seconds", "seconds",
        ["section"], "Time from grant to end of an extension.";
    HOST_CRITICAL_STALL: Histogram, "ecs_host_critical_stall_seconds", "seconds", ["section"],
        "Time a vCPU was off the CPU while inside a critical section.";
    HOST_GRANT_LATENCY: Histogram, "ecs_host_grant_latency_seconds", "seconds", [],
        "Time the grant decision took in the scheduler.";
    HOST_ROTATIONS: Counter, "ecs_host_rotations_total", "", [],
        "Slice ends and hand-backs that changed the running vCPU.";
    HOST_DOORBELLS: Counter, "ecs_host_doorbells_total", "", [], "Doorbells rung by guests.";
    HOST_CONTROLLER_CPU: Counter, "ecs_host_controller_cpu_seconds_total", "seconds", [],
        "CPU time of the threads that steer vCPUs.";
    HOST_PERF_RECORDS: Counter, "ecs_host_perf_records_total", "", [],
        "perf records vmm-ecs read.";
    HOST_PERF_LOST: Counter, "ecs_host_perf_lost_records_total", "", [],
        "perf records the kernel dropped before vmm-ecs read them (PERF_RECORD_LOST).";

    VM_INFO: Gauge, "ecs_vm_info", "",
        ["vm", "vm_uuid", "vmm_pid", "cgroup", "api_socket", "policy"],
        "VM facts; the value is 1.";
    VM_API_UP: Gauge, "ecs_vm_api_up", "", ["vm"], "Whether the VMM's API answered vmm.ping.";
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
    VM_RUNNING: Gauge, "ecs_vm_extensions_running", "", ["vm"],
        "Slice extensions granted and not ended yet.";
    VM_EXTENSION: Counter, "ecs_vm_extension_seconds_total", "seconds", ["vm"],
        "CPU time spent inside extensions.";
    VM_PENALTY: Counter, "ecs_vm_penalty_seconds_total", "seconds", ["vm"],
        "CPU time taken back as penalty.";
    VM_FORGIVEN: Counter, "ecs_vm_forgiven_seconds_total", "seconds", ["vm"],
        "Extension time written off and not taken back.";
    VM_DEBT: Gauge, "ecs_vm_debt_seconds", "seconds", ["vm"],
        "Extension time not yet taken back.";
    VM_AVOIDED: Counter, "ecs_vm_avoided_preemptions_total", "", ["vm"],
        "Preemptions in a critical section avoided: extensions that ended with outcome yielded.";
    VM_CRITICAL: Counter, "ecs_vm_critical_preemptions_total", "", ["vm", "cause"],
        "Preemptions that did hit a critical section.";
    VM_PREEMPTIONS: Counter, "ecs_vm_preemptions_total", "", ["vm"],
        "Involuntary deschedules of vCPU threads (PERF_RECORD_MISC_SWITCH_OUT_PREEMPT).";
    VM_STEPPED_ASIDE: Counter, "ecs_vm_stepped_aside_total", "", ["vm"],
        "Times a vCPU that could only spin gave up its CPU.";
    VM_WAKEUPS: Counter, "ecs_vm_wakeups_total", "", ["vm"],
        "Times a vCPU thread that slept got a CPU again.";
    VM_OVERLOADED: Counter, "ecs_vm_overloaded_seconds_total", "seconds", ["vm"],
        "Time vCPUs ran while their physical CPU had other tasks to run.";
    VM_POLLS: Counter, "ecs_vm_guest_polls_total", "", ["vm", "outcome"],
        "Polls in place of a halt, as the guest counts them: met what they polled for (paid), or halted (wasted).";
    VM_POLL_TIME: Counter, "ecs_vm_guest_poll_seconds_total", "seconds", ["vm"],
        "Time the guest polled in place of halting, as it says.";
    VM_GUEST_FAULTS: Counter, "ecs_vm_guest_faults_total", "", ["vm"],
        "Reads of the guest's words that made no sense.";
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
    VM_CYCLES: Counter, "ecs_vm_cycles_total", "", ["vm"],
        "CPU cycles of the vCPU threads, guest and host.";
    VM_INSTRUCTIONS: Counter, "ecs_vm_instructions_total", "", ["vm"],
        "Instructions of the vCPU threads, guest and host.";

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
    CONFIG_RELOAD_OK: Gauge, "ecs_exporter_config_last_reload_successful", "", [],
        "Whether the last configuration reload succeeded.";
    CONFIG_RELOAD_TIME: Gauge, "ecs_exporter_config_last_reload_success_timestamp_seconds",
        "seconds", [], "Time of the last successful configuration reload.";
    PERF_RECORDS: Counter, "ecs_exporter_perf_records_total", "", [], "perf records read.";
    PERF_LOST: Counter, "ecs_exporter_perf_lost_records_total", "", [],
        "perf records the kernel dropped (PERF_RECORD_LOST).";
    PERF_DRAIN: Counter, "ecs_exporter_perf_drain_seconds_total", "seconds", [],
        "CPU time spent on draining perf rings.";
    SERIES_DROPPED: Gauge, "ecs_exporter_series_dropped", "", [],
        "Series left out of this scrape because of limits.max_series.";
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

At each scrape `ecs-exporter` asks its collectors:

| collector | reads | gives | needs |
|---|---|---|---|
| `stats` | the stats socket of `vmm-ecs`, once | everything about VMs that `vmm-ecs` serves | the socket's group |
| `host` | /proc: every Cloud Hypervisor process and its vCPU threads | `ecs_vm_info`, `ecs_vm_vcpus`, CPU time and delay of VMs that `vmm-ecs` does not serve | - |
| `perf` | context-switch records of every CPU | `ecs_vm_preemptions_total` of those VMs | CAP_PERFMON and `kernel.perf_event_paranoid` of 2 or less (Debian's kernels start with 3), or 0 or less |
| `hardware` | performance counters, if the CPU has them | `ecs_vm_cycles_total`, `ecs_vm_instructions_total` | as `perf` |
| `process` | the exporter itself | `process_*` | - |

A VM that both `stats` and `host` see is one VM, under the name `vmm-ecs` gives it, with the figures of
`vmm-ecs`. A collector that fails is one whose `ecs_scrape_collector_success` is 0; the others go on.
While the stats socket cannot be read, `ecs_up` is 0; with that collector switched off there is no
`ecs_up`. A VM that is gone leaves no series. Counters run since the VM was first seen.

| endpoint | what it gives |
|---|---|
| `/metrics` | everything; `ecs_vcpu_*` only for VMs whose name matches `vcpus` |
| `/metrics/vm/{vm}` | one VM with its vCPUs; 404 if there is no such VM |
| `/-/healthy` | 200 while the exporter runs |
| `/-/ready` | 200 while `stats` or `host` can be read, else 503 with the reason |
| `/-/reload` | POST reads the configuration again, if `web.enable_lifecycle` is set |

When a scrape would have more than `limits.max_series` series, whole VMs are left out, last names
first, and `ecs_exporter_series_dropped` tells how many series that were.

Identities that hold in every snapshot of `vmm-ecs`:

- `ecs_vm_extension_grants_total` = `ecs_vm_extensions_ended_total` + `ecs_vm_extensions_running`,
  summed over `section` and `outcome`;
- `ecs_vm_debt_seconds` = `ecs_vm_extension_seconds_total` - `ecs_vm_penalty_seconds_total` -
  `ecs_vm_forgiven_seconds_total`;
- `ecs_vm_fairness_delta_seconds` = `ecs_vm_cpu_seconds_total` - `ecs_vm_fair_cpu_seconds_total`.

Label values: `section` is `non_preemptable`, `preemptable` or `wait` (a waiter whose queue head
runs); `outcome` is `yielded`, `expired`, `revoked` or `aborted`; `cause` of a denial is `used`,
`budget`, `cooldown` or `disabled`, of a critical preemption `denied`, `expired` or `host`; `policy` is
`extend` (may have extensions), `share` (its fair share only) or `none` (not served by `vmm-ecs`).

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
