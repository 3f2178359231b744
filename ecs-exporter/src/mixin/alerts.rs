//! Alerts, each with a runbook of its name in dashboards/runbooks/.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{JOB, Span, Thresholds};

/// An alert as a rule file has it.
#[derive(Debug, Serialize)]
pub(super) struct Alert {
    alert: &'static str,
    expr: String,
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    hold: Option<Span>,
    labels: BTreeMap<&'static str, &'static str>,
    annotations: BTreeMap<&'static str, String>,
}

/// Who is to act, and when.
#[derive(Clone, Copy)]
enum Severity {
    /// Somebody loses now: page.
    Critical,
    /// Look at it within a working day.
    Warning,
    /// Worth knowing.
    Info,
}

/// The dashboard that shows the alert's subject.
#[derive(Clone, Copy)]
enum Board {
    Vm,
    Host,
}

impl Board {
    /// Path below the address of Grafana.
    fn path(self) -> &'static str {
        match self {
            Self::Vm => {
                "/d/ecs-vm?var-job={{ $labels.job | urlquery }}\
                 &var-instance={{ $labels.instance | urlquery }}\
                 &var-vm={{ $labels.vm | urlquery }}"
            }
            Self::Host => {
                "/d/ecs-host?var-job={{ $labels.job | urlquery }}\
                 &var-instance={{ $labels.instance | urlquery }}"
            }
        }
    }
}

/// Every alert.
pub(super) fn alerts(thresholds: &Thresholds) -> Vec<Alert> {
    let mut alerts = fairness(thresholds);
    alerts.extend(extensions(thresholds));
    alerts.extend(meta(thresholds));
    alerts
}

fn fairness(t: &Thresholds) -> Vec<Alert> {
    use Board::{Host, Vm};
    use Severity::{Critical, Warning};
    let both = |name: &str, rate: f64| {
        format!(
            "(\n  instance:ecs_fairness_burn:{name}_long > {rate}\n  \
             and instance:ecs_fairness_burn:{name}_short > {rate}\n)"
        )
    };
    let fast = both("fast", t.burn_fast) + "\nor\n" + &both("medium", t.burn_medium);
    vec![
        alert("EcsVmFairnessDrift", Warning, Vm)
            .when(format!("abs(vm:ecs_share_deviation:ratio) > {}", t.drift_ratio))
            .lasting(t.drift_for)
            .says(
                "VM {{ $labels.vm }} does not get its fair share of CPU",
                "VM {{ $labels.vm }} on {{ $labels.instance }} is {{ $value | humanizePercentage }} \
                 away from the CPU time its weight entitles it to.",
            ),
        alert("EcsVmStarved", Critical, Vm)
            .when(format!("vm:ecs_share_deviation:ratio < -{}", t.starved_ratio))
            .lasting(t.starved_for)
            .says(
                "VM {{ $labels.vm }} is starved of CPU",
                "VM {{ $labels.vm }} on {{ $labels.instance }} gets \
                 {{ $value | humanizePercentage }} of CPU relative to its fair share: \
                 another VM has its time.",
            ),
        alert("EcsFairnessBudgetBurn", Critical, Host)
            .when(fast)
            .says(
                "Many VMs on {{ $labels.instance }} are away from their fair share",
                "The budget of unfair VM-minutes on {{ $labels.instance }} burns \
                 {{ $value | humanize }} times as fast as it may.",
            ),
        alert("EcsFairnessBudgetBurnSlow", Warning, Host)
            .when(both("slow", t.burn_slow))
            .says(
                "VMs on {{ $labels.instance }} are away from their fair share again and again",
                "Over days, the budget of unfair VM-minutes on {{ $labels.instance }} burns \
                 {{ $value | humanize }} times as fast as it may.",
            ),
        alert("EcsJainIndexLow", Warning, Host)
            .when(format!("instance:ecs_jain_index:ratio < {}", t.jain_index))
            .lasting(t.jain_for)
            .says(
                "CPU time on {{ $labels.instance }} is shared unfairly",
                "Jain's index of {{ $labels.instance }} is {{ $value | humanize }}; \
                 1 is fair. Many VMs are affected, or one by a lot.",
            ),
        alert("EcsVmCpuReadyHigh", Warning, Vm)
            .when(format!("vm:ecs_cpu_ready:ratio > {}", t.ready_high))
            .lasting(t.ready_for)
            .says(
                "vCPUs of VM {{ $labels.vm }} wait for a CPU",
                "vCPUs of VM {{ $labels.vm }} on {{ $labels.instance }} are runnable but wait \
                 {{ $value | humanizePercentage }} of the time.",
            ),
        alert("EcsVmCpuReadyCritical", Critical, Vm)
            .when(format!("vm:ecs_cpu_ready:ratio > {}", t.ready_critical))
            .lasting(t.ready_for)
            .says(
                "vCPUs of VM {{ $labels.vm }} wait for a CPU so long that users notice",
                "vCPUs of VM {{ $labels.vm }} on {{ $labels.instance }} are runnable but wait \
                 {{ $value | humanizePercentage }} of the time.",
            ),
    ]
}

fn extensions(t: &Thresholds) -> Vec<Alert> {
    use Board::Vm;
    use Severity::{Info, Warning};
    vec![
        alert("EcsDebtNotRepaid", Warning, Vm)
            .when(format!(
                "ecs_vm_debt_seconds\n  > on(job, instance) group_left() \
                 ({} * ecs_host_debt_limit_seconds)\n  and deriv(ecs_vm_debt_seconds[{}]) > 0",
                t.debt_ratio, t.debt_window
            ))
            .lasting(t.debt_for)
            .says(
                "VM {{ $labels.vm }} does not pay back its extensions",
                "VM {{ $labels.vm }} on {{ $labels.instance }} owes \
                 {{ $value | humanizeDuration }} of CPU time, and it grows.",
            ),
        alert("EcsExtensionCostHigh", Warning, Vm)
            .when(format!("vm:ecs_extension_cost:ratio > {}", t.cost_ratio))
            .lasting(t.cost_for)
            .says(
                "VM {{ $labels.vm }} spends much of its CPU time in extensions",
                "VM {{ $labels.vm }} on {{ $labels.instance }} spends \
                 {{ $value | humanizePercentage }} of its CPU time inside extensions.",
            ),
        alert("EcsGuestAbusesHints", Warning, Vm)
            .when(format!(
                "vm:ecs_extensions_expired:ratio > {}",
                t.abuse_ratio
            ))
            .lasting(t.abuse_for)
            .says(
                "VM {{ $labels.vm }} asks for extensions and does not hand them back",
                "{{ $value | humanizePercentage }} of the extensions of VM {{ $labels.vm }} on \
                 {{ $labels.instance }} run to the hard stop.",
            ),
        alert("EcsExtensionsIneffective", Info, Vm)
            .when(format!(
                "vm:ecs_extensions_avoided:ratio < {}\n  and vm:ecs_extension_grants:rate > {}",
                t.avoided_ratio, t.avoided_min_grants
            ))
            .lasting(t.avoided_for)
            .says(
                "Extensions do not help VM {{ $labels.vm }}",
                "Only {{ $value | humanizePercentage }} of the extensions of VM \
                 {{ $labels.vm }} on {{ $labels.instance }} end with their critical section.",
            ),
    ]
}

fn meta(t: &Thresholds) -> Vec<Alert> {
    use Board::Host;
    use Severity::{Critical, Warning};
    vec![
        alert("EcsExporterDown", Critical, Host)
            .when(format!("up{{job=~\"{JOB}\"}} == 0"))
            .lasting(t.down_for)
            .says(
                "The eCS exporter on {{ $labels.instance }} cannot be scraped",
                "Prometheus gets no metrics from {{ $labels.instance }}: \
                 no other alert of this host can fire.",
            ),
        alert("EcsBackendDown", Critical, Host)
            .when("ecs_up == 0".to_owned())
            .lasting(t.down_for)
            .says(
                "vmm-ecs on {{ $labels.instance }} does not answer",
                "The exporter on {{ $labels.instance }} cannot read the statistics of vmm-ecs. \
                 VMs run on under the host's own scheduler.",
            ),
        alert("EcsCollectorFailing", Warning, Host)
            .when("ecs_scrape_collector_success == 0".to_owned())
            .lasting(t.collector_for)
            .says(
                "Collector {{ $labels.collector }} on {{ $labels.instance }} fails",
                "The metrics of collector {{ $labels.collector }} on {{ $labels.instance }} \
                 are missing.",
            ),
        alert("EcsPerfRecordsLost", Warning, Host)
            .when(format!(
                "increase(ecs_exporter_perf_lost_records_total[{window}]) > 0\n\
                 or increase(ecs_host_perf_lost_records_total[{window}]) > 0",
                window = t.perf_lost_window
            ))
            .says(
                "Context-switch records are lost on {{ $labels.instance }}",
                "The kernel dropped {{ $value | humanize }} records on {{ $labels.instance }}: \
                 preemptions are counted too low.",
            ),
        alert("EcsSeriesLimitReached", Warning, Host)
            .when("ecs_exporter_series_dropped > 0".to_owned())
            .lasting(t.series_for)
            .says(
                "Some VMs on {{ $labels.instance }} have no metrics",
                "The exporter on {{ $labels.instance }} leaves out {{ $value | humanize }} \
                 series, whole VMs at a time, because of limits.max_series.",
            ),
        alert("EcsConfigReloadFailed", Warning, Host)
            .when("ecs_exporter_config_last_reload_successful == 0".to_owned())
            .lasting(t.reload_for)
            .says(
                "The exporter on {{ $labels.instance }} runs with an old configuration",
                "The last reload of the configuration on {{ $labels.instance }} failed; \
                 the one before it is in use.",
            ),
    ]
}

/// An alert without a condition yet.
fn alert(name: &'static str, severity: Severity, board: Board) -> Alert {
    let severity = match severity {
        Severity::Critical => "critical",
        Severity::Warning => "warning",
        Severity::Info => "info",
    };
    Alert {
        alert: name,
        expr: String::new(),
        hold: None,
        labels: BTreeMap::from([("severity", severity)]),
        annotations: BTreeMap::from([
            ("runbook_url", format!("dashboards/runbooks/{name}.md")),
            ("dashboard", board.path().to_owned()),
        ]),
    }
}

impl Alert {
    fn when(mut self, expr: String) -> Self {
        self.expr = expr;
        self
    }

    fn lasting(mut self, hold: Span) -> Self {
        self.hold = Some(hold);
        self
    }

    fn says(mut self, summary: &str, description: &str) -> Self {
        let texts = [("summary", summary), ("description", description)];
        self.annotations
            .extend(texts.map(|(name, text)| (name, text.to_owned())));
        self
    }
}
