//! The dashboard of all hosts.

use super::{ORANGE, RED};
use crate::mixin::Thresholds;
use crate::mixin::grafana::{Dashboard, Link, Panel};

/// All hosts. Its queries use what a federating Prometheus has, and nothing else.
pub(in crate::mixin) fn fleet(t: &Thresholds) -> Dashboard {
    Dashboard::new(
        "ecs-fleet",
        "eCS / Fleet",
        "Who loses CPU time, on which host, and what eCS does about it.",
        r#"job=~"$job""#,
    )
    .variable("job", "Job", "ecs_exporter_build_info", true)
    .row("Does anybody lose?")
    .panel(
        Panel::stat("Hosts", "Hosts with an exporter.")
            .query("count(ecs_exporter_build_info{@})", "hosts"),
    )
    .panel(
        Panel::stat("Hosts without vmm-ecs", "Hosts that are scraped, but vmm-ecs is away.")
            .query("sum(1 - ecs_up{@})", "hosts")
            .limits(&[(RED, 1.0)]),
    )
    .panel(Panel::stat("VMs", "VMs on all hosts.").query("sum(instance:ecs_vms:count{@})", "VMs"))
    .panel(
        Panel::stat("Unfair VMs", "VMs further from their fair share than the limit of the alert.")
            .query("sum(instance:ecs_vms_unfair:count{@})", "VMs")
            .limits(&[(ORANGE, 1.0)]),
    )
    .panel(
        Panel::stat(
            "Worst budget burn",
            "How fast the worst host uses up its budget of unfair VM-minutes, over the shorter of \
             the slow windows; 1 uses it up exactly.",
        )
        .query("max(instance:ecs_fairness_burn:slow_short{@})", "burn")
        .limits(&[(ORANGE, t.burn_slow), (RED, t.burn_medium)]),
    )
    .panel(
        Panel::stat("Alerts firing", "Alerts of eCS that fire now.")
            .query(
                r#"count(ALERTS{alertname=~"Ecs.+", alertstate="firing", @}) or vector(0)"#,
                "alerts",
            )
            .limits(&[(ORANGE, 1.0)]),
    )
    .panel(hosts(t))
    .panel(
        Panel::table(
            "Unfair VMs",
            "VMs outside the limit now: below 0 they get too little, above 0 too much. Empty is good.",
        )
        .column_between(
            "Deviation",
            "vm:ecs_share_deviation_unfair:ratio{@}",
            -t.drift_ratio,
            t.drift_ratio,
        )
        .link(Link::Vm),
    )
    .row("Fairness over time")
    .panel(
        Panel::graph(
            "Worst loss per host",
            "Deviation of the VM that is furthest below its fair share; 0 is fair.",
        )
        .query("instance:ecs_share_deviation:min{@}", "{{instance}}")
        .unit("percentunit")
        .at_least(-t.starved_ratio),
    )
    .panel(
        Panel::graph("Jain's index per host", "1 is fair. Slow to react: one VM of many moves it little.")
            .query("instance:ecs_jain_index:ratio{@}", "{{instance}}")
            .at_least(t.jain_index),
    )
    .panel(
        Panel::graph(
            "Worst CPU ready per host",
            "Part of the time a vCPU waits for a CPU, for the VM that waits most.",
        )
        .query("instance:ecs_cpu_ready:max{@}", "{{instance}}")
        .unit("percentunit")
        .limits(&[(ORANGE, t.ready_high), (RED, t.ready_critical)]),
    )
    .row("What eCS does")
    .panel(
        Panel::graph("Critical preemptions per host", "Preemptions that hit a critical section: the problem eCS solves.")
            .query("instance:ecs_critical_preemptions:rate{@}", "{{instance}}")
            .unit("ops"),
    )
    .panel(
        Panel::graph("Extensions granted per host", "Slice extensions granted a second.")
            .query("instance:ecs_extension_grants:rate{@}", "{{instance}}")
            .unit("ops"),
    )
    .panel(
        Panel::graph(
            "Extensions that avoided a preemption",
            "Of the extensions that ended, those that ended because the critical section did.",
        )
        .query("instance:ecs_extensions_avoided:ratio{@}", "{{instance}}")
        .unit("percentunit")
        .at_least(t.avoided_ratio),
    )
}

fn hosts(t: &Thresholds) -> Panel {
    let ready = [(ORANGE, t.ready_high), (RED, t.ready_critical)];
    Panel::table(
        "Hosts",
        "One row a host, newest values. A click leads to the host.",
    )
    .column("VMs", "instance:ecs_vms:count{@}", "short", &[])
    .column(
        "Unfair VMs",
        "instance:ecs_vms_unfair:count{@}",
        "short",
        &[(ORANGE, 1.0)],
    )
    .column_between(
        "Worst loss",
        "instance:ecs_share_deviation:min{@}",
        -t.starved_ratio,
        t.drift_ratio,
    )
    .column(
        "Worst gain",
        "instance:ecs_share_deviation:max{@}",
        "percentunit",
        &[(ORANGE, t.drift_ratio)],
    )
    .column(
        "Worst CPU ready",
        "instance:ecs_cpu_ready:max{@}",
        "percentunit",
        &ready,
    )
    .column(
        "CPUs used",
        "instance:ecs_cpu_seconds:rate{@}",
        "short",
        &[],
    )
    .column(
        "Extension cost",
        "instance:ecs_extension_cost:ratio{@}",
        "percentunit",
        &[(ORANGE, t.cost_ratio)],
    )
    .column("Largest debt", "instance:ecs_debt_seconds:max{@}", "s", &[])
    .link(Link::Host)
}
