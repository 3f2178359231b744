//! Recording rules: the few expressions that alerts, dashboards and federation share.
//!
//! Names are `level:metric:operation`. `vm:` rules have one series a VM; `instance:` rules have
//! one series a host, which is what a federating Prometheus takes.

use serde::Serialize;

use super::Thresholds;

/// A rule file.
#[derive(Debug, Serialize)]
pub(super) struct RuleFile<R> {
    groups: [Group<R>; 1],
}

#[derive(Debug, Serialize)]
struct Group<R> {
    name: &'static str,
    rules: Vec<R>,
}

impl<R: Serialize> RuleFile<R> {
    /// One group: its rules are evaluated in their order, so that each sees those before it.
    pub(super) fn new(name: &'static str, rules: Vec<R>) -> Self {
        Self {
            groups: [Group { name, rules }],
        }
    }
}

/// A recording rule.
#[derive(Debug, Serialize)]
pub(super) struct Recording {
    record: &'static str,
    expr: String,
}

/// Every recording rule, in the order of evaluation.
pub(super) fn recordings(thresholds: &Thresholds) -> Vec<Recording> {
    let rule = |record, expr| Recording { record, expr };
    let mut rules = per_vm(thresholds, rule);
    rules.extend(per_instance(thresholds, rule));
    rules.extend(burn(thresholds, rule));
    rules
}

fn per_vm(
    thresholds: &Thresholds,
    rule: impl Fn(&'static str, String) -> Recording,
) -> Vec<Recording> {
    let Thresholds {
        rate_window: window,
        fair_floor_cpus: floor,
        drift_ratio: drift,
        ..
    } = thresholds;
    vec![
        rule(
            "vm:ecs_share_deviation:ratio",
            format!(
                "rate(ecs_vm_cpu_seconds_total[{window}])\n  \
                 / (rate(ecs_vm_fair_cpu_seconds_total[{window}]) > {floor})\n  - 1"
            ),
        ),
        rule(
            "vm:ecs_share_deviation_unfair:ratio",
            format!(
                "vm:ecs_share_deviation:ratio\n  and abs(vm:ecs_share_deviation:ratio) > {drift}"
            ),
        ),
        rule(
            "vm:ecs_cpu_ready:ratio",
            format!("rate(ecs_vm_delay_seconds_total[{window}]) / (ecs_vm_vcpus > 0)"),
        ),
        rule(
            "vm:ecs_critical_preemptions:rate",
            format!("sum without (cause) (rate(ecs_vm_critical_preemptions_total[{window}]))"),
        ),
        rule(
            "vm:ecs_extension_grants:rate",
            format!("sum without (section) (rate(ecs_vm_extension_grants_total[{window}]))"),
        ),
        rule(
            "vm:ecs_extensions_ended:rate",
            format!("sum without (outcome) (rate(ecs_vm_extensions_ended_total[{window}]))"),
        ),
        rule(
            "vm:ecs_extensions_expired:ratio",
            format!(
                "sum without (outcome) \
                 (rate(ecs_vm_extensions_ended_total{{outcome=\"expired\"}}[{window}]))\n  \
                 / (vm:ecs_extensions_ended:rate > 0)"
            ),
        ),
        rule(
            "vm:ecs_extensions_avoided:ratio",
            format!(
                "rate(ecs_vm_avoided_preemptions_total[{window}])\n  \
                 / (vm:ecs_extensions_ended:rate > 0)"
            ),
        ),
        rule(
            "vm:ecs_extension_cost:ratio",
            format!(
                "rate(ecs_vm_extension_seconds_total[{window}])\n  \
                 / (rate(ecs_vm_cpu_seconds_total[{window}]) > 0)"
            ),
        ),
    ]
}

fn per_instance(
    thresholds: &Thresholds,
    rule: impl Fn(&'static str, String) -> Recording,
) -> Vec<Recording> {
    let Thresholds {
        rate_window: window,
        drift_ratio: drift,
        ..
    } = thresholds;
    // What cannot be divided, because nothing ran or ended, has no ratio.
    let share = |part: &str, whole: &str| {
        format!("sum without (vm) (rate({part}[{window}]))\n  / (sum without (vm) ({whole}) > 0)")
    };
    let over_vms = |how: &str, of: &str| format!("{how} without (vm) ({of})");
    vec![
        rule(
            "instance:ecs_vms:count",
            "sum without (state) (ecs_host_vms)".to_owned(),
        ),
        rule(
            "instance:ecs_vms_judged:count",
            over_vms("count", "vm:ecs_share_deviation:ratio"),
        ),
        rule(
            "instance:ecs_vms_unfair:count",
            over_vms(
                "sum",
                &format!("abs(vm:ecs_share_deviation:ratio) > bool {drift}"),
            ),
        ),
        rule(
            "instance:ecs_share_deviation:min",
            over_vms("min", "vm:ecs_share_deviation:ratio"),
        ),
        rule(
            "instance:ecs_share_deviation:max",
            over_vms("max", "vm:ecs_share_deviation:ratio"),
        ),
        rule(
            "instance:ecs_jain_index:ratio",
            "sum without (vm) (1 + vm:ecs_share_deviation:ratio) ^ 2\n  \
             / (\n    instance:ecs_vms_judged:count\n    \
             * sum without (vm) ((1 + vm:ecs_share_deviation:ratio) ^ 2)\n  )"
                .to_owned(),
        ),
        rule(
            "instance:ecs_cpu_ready:max",
            over_vms("max", "vm:ecs_cpu_ready:ratio"),
        ),
        rule(
            "instance:ecs_debt_seconds:max",
            over_vms("max", "ecs_vm_debt_seconds"),
        ),
        rule(
            "instance:ecs_cpu_seconds:rate",
            over_vms("sum", &format!("rate(ecs_vm_cpu_seconds_total[{window}])")),
        ),
        rule(
            "instance:ecs_critical_preemptions:rate",
            over_vms("sum", "vm:ecs_critical_preemptions:rate"),
        ),
        rule(
            "instance:ecs_extension_grants:rate",
            over_vms("sum", "vm:ecs_extension_grants:rate"),
        ),
        rule(
            "instance:ecs_extensions_avoided:ratio",
            share(
                "ecs_vm_avoided_preemptions_total",
                "vm:ecs_extensions_ended:rate",
            ),
        ),
        rule(
            "instance:ecs_extension_cost:ratio",
            share(
                "ecs_vm_extension_seconds_total",
                &format!("rate(ecs_vm_cpu_seconds_total[{window}])"),
            ),
        ),
    ]
}

/// How fast the budget of unfair VM-minutes burns: 1 uses it up exactly.
fn burn(
    thresholds: &Thresholds,
    rule: impl Fn(&'static str, String) -> Recording,
) -> Vec<Recording> {
    let t = thresholds;
    let windows = [
        ("instance:ecs_fairness_burn:fast_long", t.burn_fast_long),
        ("instance:ecs_fairness_burn:fast_short", t.burn_fast_short),
        ("instance:ecs_fairness_burn:medium_long", t.burn_medium_long),
        (
            "instance:ecs_fairness_burn:medium_short",
            t.burn_medium_short,
        ),
        ("instance:ecs_fairness_burn:slow_long", t.burn_slow_long),
        ("instance:ecs_fairness_burn:slow_short", t.burn_slow_short),
    ];
    let burn = |(record, window)| {
        let expr = format!(
            "sum_over_time(instance:ecs_vms_unfair:count[{window}])\n  \
             / sum_over_time(instance:ecs_vms_judged:count[{window}])\n  / {}",
            t.unfair_budget
        );
        rule(record, expr)
    };
    windows.map(burn).into()
}
