//! The dashboard of one host.

use super::{ORANGE, RED};
use crate::mixin::Thresholds;
use crate::mixin::grafana::{Dashboard, Link, Panel};

/// One host and its VMs.
pub(in crate::mixin) fn host(t: &Thresholds) -> Dashboard {
    let drift = t.drift_ratio;
    let ready = [(ORANGE, t.ready_high), (RED, t.ready_critical)];
    Dashboard::new(
        "ecs-host",
        "eCS / Host",
        "The VMs of one host against each other, the scheduler's own figures, and the exporter.",
        r#"job=~"$job", instance="$instance""#,
    )
    .variable("job", "Job", "ecs_exporter_build_info", true)
    .variable(
        "instance",
        "Host",
        r#"ecs_exporter_build_info{job=~"$job"}"#,
        false,
    )
    .row("State")
    .panel(
        Panel::stat("vmm-ecs", "Whether the exporter can read vmm-ecs.")
            .query("ecs_up{@}", "vmm-ecs")
            .truth("away", "running"),
    )
    .panel(
        Panel::stat(
            "Controller",
            "What steers the vCPUs, and by which mechanism.",
        )
        .query(
            "ecs_host_info{@}",
            "{{controller}} {{mechanism}} on {{kernel}}",
        )
        .names(),
    )
    .panel(Panel::stat("CPUs", "CPUs the VMs may run on.").query("ecs_host_cpus{@}", "CPUs"))
    .panel(
        Panel::stat("VMs", "VMs by state.")
            .query("ecs_host_vms{@}", "{{state}}")
            .width(8),
    )
    .panel(
        Panel::stat(
            "Series left out",
            "Series the exporter drops because of limits.max_series.",
        )
        .query("ecs_exporter_series_dropped{@}", "series")
        .limits(&[(RED, 1.0)]),
    )
    .panel(
        Panel::table(
            "VMs",
            "One row a VM, newest values. A click leads to the VM.",
        )
        .column_between(
            "Deviation",
            "vm:ecs_share_deviation:ratio{@}",
            -drift,
            drift,
        )
        .column(
            "CPU ready",
            "vm:ecs_cpu_ready:ratio{@}",
            "percentunit",
            &ready,
        )
        .column(
            "Critical preemptions",
            "vm:ecs_critical_preemptions:rate{@}",
            "ops",
            &[],
        )
        .column("Extensions", "vm:ecs_extension_grants:rate{@}", "ops", &[])
        .column(
            "Avoided",
            "vm:ecs_extensions_avoided:ratio{@}",
            "percentunit",
            &[],
        )
        .column(
            "Extension cost",
            "vm:ecs_extension_cost:ratio{@}",
            "percentunit",
            &[(ORANGE, t.cost_ratio)],
        )
        .column("Debt", "ecs_vm_debt_seconds{@}", "s", &[])
        .column("Weight", "ecs_vm_weight_ratio{@}", "percentunit", &[])
        .link(Link::Vm),
    )
    .row("Fairness")
    .panel(
        Panel::graph("CPUs used", "CPU time a second, by VM.")
            .query(
                "rate(ecs_vm_cpu_seconds_total{@}[$__rate_interval])",
                "{{vm}}",
            )
            .unit("short")
            .stacked(),
    )
    .panel(
        Panel::graph(
            "Deviation from the fair share",
            "Received over entitled CPU time, less 1: 0 is fair.",
        )
        .query("vm:ecs_share_deviation:ratio{@}", "{{vm}}")
        .unit("percentunit")
        .between(-drift, drift),
    )
    .panel(
        Panel::graph(
            "CPU ready",
            "Part of the time a vCPU is runnable but waits for a CPU, by VM.",
        )
        .query("vm:ecs_cpu_ready:ratio{@}", "{{vm}}")
        .unit("percentunit")
        .limits(&ready),
    )
    .row("Critical sections")
    .panel(
        Panel::graph(
            "Critical preemptions",
            "Preemptions that hit a critical section, by VM and cause.",
        )
        .query(
            "rate(ecs_vm_critical_preemptions_total{@}[$__rate_interval])",
            "{{vm}} {{cause}}",
        )
        .unit("ops"),
    )
    .panel(
        Panel::graph(
            "Extensions granted",
            "Slice extensions granted a second, by VM.",
        )
        .query("vm:ecs_extension_grants:rate{@}", "{{vm}}")
        .unit("ops"),
    )
    .panel(
        Panel::graph(
            "Debt",
            "Extension time not yet taken back, by VM, and the limit at which extensions stop.",
        )
        .query("ecs_vm_debt_seconds{@}", "{{vm}}")
        .query("ecs_host_debt_limit_seconds{@}", "limit")
        .unit("s"),
    )
    .panel(
        Panel::heatmap(
            "Time stalled in a critical section",
            "Time vCPUs were off the CPU while inside a critical section.",
        )
        .query(
            "sum by (le) (increase(ecs_host_critical_stall_seconds_bucket{@}[$__rate_interval]))",
            "{{le}}",
        )
        .width(8),
    )
    .panel(
        Panel::graph(
            "Longest stalls",
            "99th percentile of the time off the CPU inside a critical section, by section.",
        )
        .query(
            "histogram_quantile(0.99, sum by (le, section) \
                 (rate(ecs_host_critical_stall_seconds_bucket{@}[$__rate_interval])))",
            "p99 {{section}}",
        )
        .unit("s"),
    )
    .panel(
        Panel::graph(
            "Length of extensions",
            "99th percentile by section, and the hard stop.",
        )
        .query(
            "histogram_quantile(0.99, sum by (le, section) \
                 (rate(ecs_host_extension_duration_seconds_bucket{@}[$__rate_interval])))",
            "p99 {{section}}",
        )
        .query("ecs_host_extension_limit_seconds{@}", "hard stop")
        .unit("s"),
    )
    .row("Scheduler and exporter")
    .panel(
        Panel::graph(
            "Time of a grant decision",
            "Median and 99th percentile in the scheduler.",
        )
        .query(
            "histogram_quantile(0.5, sum by (le) \
                 (rate(ecs_host_grant_latency_seconds_bucket{@}[$__rate_interval])))",
            "median",
        )
        .query(
            "histogram_quantile(0.99, sum by (le) \
                 (rate(ecs_host_grant_latency_seconds_bucket{@}[$__rate_interval])))",
            "p99",
        )
        .unit("s"),
    )
    .panel(
        Panel::graph(
            "Preemptions",
            "Involuntary deschedules of vCPU threads, by VM.",
        )
        .query(
            "rate(ecs_vm_preemptions_total{@}[$__rate_interval])",
            "{{vm}}",
        )
        .unit("ops"),
    )
    .panel(
        Panel::graph(
            "perf records",
            "Context-switch records read, and lost because the ring was full.",
        )
        .query(
            "rate(ecs_exporter_perf_records_total{@}[$__rate_interval])",
            "read",
        )
        .query(
            "rate(ecs_exporter_perf_lost_records_total{@}[$__rate_interval])",
            "lost",
        )
        .query(
            "rate(ecs_host_perf_records_total{@}[$__rate_interval])",
            "read by vmm-ecs",
        )
        .query(
            "rate(ecs_host_perf_lost_records_total{@}[$__rate_interval])",
            "lost by vmm-ecs",
        )
        .unit("ops"),
    )
    .panel(
        Panel::graph(
            "Work of vmm-ecs",
            "Slice ends that changed the running vCPU, and doorbells rung by guests.",
        )
        .query(
            "rate(ecs_host_rotations_total{@}[$__rate_interval])",
            "rotations",
        )
        .query(
            "rate(ecs_host_doorbells_total{@}[$__rate_interval])",
            "doorbells",
        )
        .unit("ops"),
    )
    .panel(
        Panel::graph("CPU of vmm-ecs and exporter", "CPU time a second.")
            .query(
                "rate(ecs_host_controller_cpu_seconds_total{@}[$__rate_interval])",
                "threads that steer",
            )
            .query(
                "rate(process_cpu_seconds_total{@}[$__rate_interval])",
                "exporter",
            )
            .unit("percentunit"),
    )
    .panel(
        Panel::graph("Scrape time", "Time each collector takes in a scrape.")
            .query("ecs_scrape_collector_duration_seconds{@}", "{{collector}}")
            .unit("s"),
    )
    .panel(
        Panel::graph("Memory of the exporter", "Resident memory.")
            .query("process_resident_memory_bytes{@}", "exporter")
            .unit("bytes"),
    )
}
