//! The dashboard of one VM.

use super::{ORANGE, RED};
use crate::mixin::Thresholds;
use crate::mixin::grafana::{Dashboard, Panel};

/// One VM.
pub(in crate::mixin) fn vm(t: &Thresholds) -> Dashboard {
    let drift = t.drift_ratio;
    let ready = [(ORANGE, t.ready_high), (RED, t.ready_critical)];
    Dashboard::new(
        "ecs-vm",
        "eCS / VM",
        "What one VM got, what it was entitled to, and what its extensions did.",
        r#"job=~"$job", instance="$instance", vm="$vm""#,
    )
    .variable("job", "Job", "ecs_exporter_build_info", true)
    .variable(
        "instance",
        "Host",
        r#"ecs_exporter_build_info{job=~"$job"}"#,
        false,
    )
    .variable(
        "vm",
        "VM",
        r#"ecs_vm_info{job=~"$job", instance="$instance"}"#,
        false,
    )
    .row("Now")
    .panel(
        Panel::stat(
            "Deviation",
            "Received over entitled CPU time, less 1: 0 is fair.",
        )
        .query("vm:ecs_share_deviation:ratio{@}", "deviation")
        .unit("percentunit")
        .between(-drift, drift),
    )
    .panel(
        Panel::stat(
            "CPU ready",
            "Part of the time a vCPU is runnable but waits for a CPU.",
        )
        .query("vm:ecs_cpu_ready:ratio{@}", "ready")
        .unit("percentunit")
        .limits(&ready),
    )
    .panel(
        Panel::stat(
            "Avoided",
            "Of the extensions that ended, those that ended with their critical section.",
        )
        .query("vm:ecs_extensions_avoided:ratio{@}", "avoided")
        .unit("percentunit")
        .at_least(t.avoided_ratio),
    )
    .panel(
        Panel::stat(
            "Extension cost",
            "Part of the VM's CPU time that was inside extensions.",
        )
        .query("vm:ecs_extension_cost:ratio{@}", "cost")
        .unit("percentunit")
        .limits(&[(ORANGE, t.cost_ratio)]),
    )
    .panel(
        Panel::stat("Debt", "Extension time not yet taken back.")
            .query("ecs_vm_debt_seconds{@}", "debt")
            .unit("s"),
    )
    .panel(
        Panel::stat("Extensions", "Whether policy lets the VM have extensions.")
            .query("ecs_vm_enabled{@}", "enabled")
            .truth("off", "on"),
    )
    .panel(Panel::table("Facts", "Where the VM is on the host.").query("ecs_vm_info{@}", "Present"))
    .row("Fairness")
    .panel(
        Panel::graph("Received and entitled", "CPU time a second, in CPUs.")
            .query(
                "rate(ecs_vm_cpu_seconds_total{@}[$__rate_interval])",
                "received",
            )
            .query(
                "rate(ecs_vm_fair_cpu_seconds_total{@}[$__rate_interval])",
                "entitled",
            )
            .query("ecs_vm_vcpus{@}", "vCPUs"),
    )
    .panel(
        Panel::graph(
            "Deviation from the fair share",
            "0 is fair; the lines are the limits of the alerts.",
        )
        .query("vm:ecs_share_deviation:ratio{@}", "deviation")
        .unit("percentunit")
        .between(-t.starved_ratio, drift),
    )
    .panel(
        Panel::graph(
            "Fairness delta",
            "CPU time received minus entitled since the VM was first seen.",
        )
        .query("ecs_vm_fairness_delta_seconds{@}", "delta")
        .unit("s"),
    )
    .panel(
        Panel::graph(
            "CPU ready",
            "Part of the time a vCPU is runnable but waits for a CPU.",
        )
        .query("vm:ecs_cpu_ready:ratio{@}", "ready")
        .unit("percentunit")
        .limits(&ready),
    )
    .panel(
        Panel::graph(
            "Preemptions",
            "Involuntary deschedules, and those of them that hit a critical section, by cause.",
        )
        .query("rate(ecs_vm_preemptions_total{@}[$__rate_interval])", "all")
        .query(
            "rate(ecs_vm_critical_preemptions_total{@}[$__rate_interval])",
            "critical, {{cause}}",
        )
        .unit("ops"),
    )
    .panel(
        Panel::graph(
            "Time stalled in critical sections",
            "Time vCPUs were off the CPU inside a critical section, a second.",
        )
        .query(
            "rate(ecs_vm_critical_stall_seconds_total{@}[$__rate_interval])",
            "stalled",
        )
        .unit("percentunit"),
    )
    .row("Extensions")
    .panel(
        Panel::graph(
            "Asked and granted",
            "Slice ends that met a raised hint, and extensions granted by section.",
        )
        .query(
            "rate(ecs_vm_extension_requests_total{@}[$__rate_interval])",
            "requests",
        )
        .query(
            "rate(ecs_vm_extension_grants_total{@}[$__rate_interval])",
            "granted, {{section}}",
        )
        .unit("ops"),
    )
    .panel(
        Panel::graph("Refused", "Extensions refused, by cause.")
            .query(
                "rate(ecs_vm_extension_denials_total{@}[$__rate_interval])",
                "{{cause}}",
            )
            .unit("ops"),
    )
    .panel(
        Panel::graph(
            "Ended",
            "How extensions ended; yielded is what they are for.",
        )
        .query(
            "rate(ecs_vm_extensions_ended_total{@}[$__rate_interval])",
            "{{outcome}}",
        )
        .unit("ops")
        .stacked(),
    )
    .panel(
        Panel::graph(
            "Preemptions avoided",
            "Extensions that ended with their critical section: an upper bound.",
        )
        .query(
            "rate(ecs_vm_avoided_preemptions_total{@}[$__rate_interval])",
            "avoided",
        )
        .unit("ops"),
    )
    .panel(
        Panel::graph(
            "Given and taken back",
            "CPU time inside extensions and CPU time taken back, a second.",
        )
        .query(
            "rate(ecs_vm_extension_seconds_total{@}[$__rate_interval])",
            "given",
        )
        .query(
            "rate(ecs_vm_penalty_seconds_total{@}[$__rate_interval])",
            "taken back",
        )
        .query(
            "rate(ecs_vm_forgiven_seconds_total{@}[$__rate_interval])",
            "forgiven",
        )
        .unit("percentunit"),
    )
    .panel(
        Panel::graph("Debt", "Extension time not yet taken back.")
            .query("ecs_vm_debt_seconds{@}", "debt")
            .unit("s"),
    )
    .row("Waking and polling")
    .panel(
        Panel::graph("Wake-ups", "Times a vCPU that slept got a CPU again.")
            .query("rate(ecs_vm_wakeups_total{@}[$__rate_interval])", "wake-ups")
            .unit("ops"),
    )
    .panel(
        Panel::graph(
            "Polls in place of halts",
            "What the guest says of its polls: they met work, or it halted in the end. Guests poll \
             while their CPU is free.",
        )
        .query(
            "rate(ecs_vm_guest_polls_total{@}[$__rate_interval])",
            "{{outcome}}",
        )
        .unit("ops"),
    )
    .panel(
        Panel::graph(
            "CPU time polled and overloaded",
            "CPUs: time the guest says it polled, and time its vCPUs ran while their CPU had others \
             to run.",
        )
        .query(
            "rate(ecs_vm_guest_poll_seconds_total{@}[$__rate_interval])",
            "polled",
        )
        .query(
            "rate(ecs_vm_overloaded_seconds_total{@}[$__rate_interval])",
            "overloaded",
        ),
    )
    .row("Guest")
    .panel(
        Panel::graph(
            "Faults of the guest",
            "Reads of the guest's words that made no sense.",
        )
        .query(
            "rate(ecs_vm_guest_faults_total{@}[$__rate_interval])",
            "faults",
        )
        .unit("ops"),
    )
    .panel(
        Panel::graph(
            "Steps aside",
            "Times a vCPU that could only spin gave up its CPU.",
        )
        .query(
            "rate(ecs_vm_stepped_aside_total{@}[$__rate_interval])",
            "steps aside",
        )
        .unit("ops"),
    )
    .panel(
        Panel::graph(
            "Instructions a cycle",
            "How well the VM uses its CPU time; empty where the CPU has no counters.",
        )
        .query(
            "rate(ecs_vm_instructions_total{@}[$__rate_interval]) \
             / rate(ecs_vm_cycles_total{@}[$__rate_interval])",
            "instructions",
        ),
    )
    .row("vCPUs (only if the exporter has them on)")
    .panel(
        Panel::graph("CPU time by vCPU", "Part of the time the vCPU ran.")
            .query(
                "rate(ecs_vcpu_cpu_seconds_total{@}[$__rate_interval])",
                "vCPU {{vcpu}}",
            )
            .unit("percentunit"),
    )
    .panel(
        Panel::graph(
            "CPU ready by vCPU",
            "Part of the time the vCPU waited for a CPU.",
        )
        .query(
            "rate(ecs_vcpu_delay_seconds_total{@}[$__rate_interval])",
            "vCPU {{vcpu}}",
        )
        .unit("percentunit")
        .limits(&ready),
    )
    .panel(
        Panel::graph(
            "Extensions and critical preemptions by vCPU",
            "Extensions granted, and preemptions that hit a critical section.",
        )
        .query(
            "rate(ecs_vcpu_extension_grants_total{@}[$__rate_interval])",
            "granted, vCPU {{vcpu}}",
        )
        .query(
            "rate(ecs_vcpu_critical_preemptions_total{@}[$__rate_interval])",
            "critical, vCPU {{vcpu}}",
        )
        .unit("ops"),
    )
}
