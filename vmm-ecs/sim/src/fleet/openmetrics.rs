//! A fleet as OpenMetrics with timestamps, for `promtool tsdb create-blocks-from openmetrics`.
//!
//! Families, types and labels are those of the exporter's catalogue (a test there compares them), with
//! `job` and `instance` as Prometheus would add them. A family is written whole, series by series;
//! nothing is kept: hosts are run again for each family.

use std::io::{self, Write};

use super::rates::Rates;
use super::{Fleet, Sample, run_host};
use crate::scenario::ScenarioError;

/// Why a fleet could not be written.
#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    /// The simulator that gives the rates refused its own scenario.
    #[error("Cannot simulate the rates of the fleet")]
    Rates(#[from] ScenarioError),
    /// The output failed.
    #[error("Cannot write the fleet's metrics")]
    Write(#[from] io::Error),
}

/// A label's value, and the figure of its series.
type Series = (&'static str, fn(&Sample) -> f64);

/// A metric of VMs: name without `_total`, whether it is a counter, its label beside `vm`, the values of
/// that, and what each is.
struct Family {
    name: &'static str,
    counter: bool,
    label: &'static str,
    series: &'static [Series],
}

const fn counter(name: &'static str, label: &'static str, series: &'static [Series]) -> Family {
    Family {
        name,
        counter: true,
        label,
        series,
    }
}

const fn gauge(name: &'static str, series: &'static [Series]) -> Family {
    Family {
        name,
        counter: false,
        label: "",
        series,
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

const VM_FAMILIES: &[Family] = &[
    gauge("ecs_vm_vcpus", &[("", |vm| vm.vcpus as f64)]),
    gauge("ecs_vm_enabled", &[("", |_| 1.0)]),
    counter(
        "ecs_vm_extension_grants",
        "section",
        &[("non_preemptable", |vm| vm.books.grants as f64)],
    ),
    counter(
        "ecs_vm_extension_denials",
        "cause",
        &[("budget", |vm| vm.books.denied as f64)],
    ),
    counter(
        "ecs_vm_extensions_ended",
        "outcome",
        &[
            ("yielded", |vm| vm.books.yielded as f64),
            ("expired", |vm| vm.books.expired as f64),
            ("revoked", |vm| vm.books.revoked as f64),
            ("aborted", |vm| vm.books.aborted as f64),
        ],
    ),
    counter(
        "ecs_vm_extension_seconds",
        "",
        &[("", |vm| seconds(vm.books.extension_ns))],
    ),
    counter(
        "ecs_vm_penalty_seconds",
        "",
        &[("", |vm| seconds(vm.books.penalty_ns))],
    ),
    gauge(
        "ecs_vm_debt_seconds",
        &[("", |vm| {
            seconds(vm.books.extension_ns - vm.books.penalty_ns)
        })],
    ),
    counter(
        "ecs_vm_avoided_preemptions",
        "",
        &[("", |vm| vm.books.yielded as f64)],
    ),
    counter(
        "ecs_vm_critical_preemptions",
        "cause",
        &[
            ("denied", |vm| vm.books.denied as f64),
            ("expired", |vm| vm.books.expired as f64),
        ],
    ),
    counter(
        "ecs_vm_preemptions",
        "",
        &[("", |vm| vm.books.preemptions as f64)],
    ),
    counter(
        "ecs_vm_critical_stall_seconds",
        "",
        &[("", |vm| seconds(vm.books.stall_ns))],
    ),
    counter(
        "ecs_vm_cpu_seconds",
        "",
        &[("", |vm| seconds(vm.books.cpu_ns))],
    ),
    counter(
        "ecs_vm_fair_cpu_seconds",
        "",
        &[("", |vm| seconds(vm.books.fair_ns))],
    ),
    gauge(
        "ecs_vm_fairness_delta_seconds",
        &[("", |vm| {
            seconds(vm.books.cpu_ns) - seconds(vm.books.fair_ns)
        })],
    ),
    counter(
        "ecs_vm_delay_seconds",
        "",
        &[("", |vm| seconds(vm.books.delay_ns))],
    ),
];

impl Fleet {
    /// Writes every sample of the fleet as OpenMetrics text.
    ///
    /// # Errors
    /// The output's, or the simulator's.
    pub fn write_openmetrics(&self, out: &mut impl Write) -> Result<(), FleetError> {
        let rates = Rates::simulated()?;
        self.write_hosts(out, "ecs_up", |_| 1)?;
        self.write_hosts(out, "ecs_host_cpus", |fleet| fleet.cpus)?;
        for family in VM_FAMILIES {
            let kind = if family.counter { "counter" } else { "gauge" };
            writeln!(out, "# TYPE {} {kind}", family.name)?;
            for host in 0..self.hosts {
                self.write_vms(out, family, host, &run_host(self, host, &rates))?;
            }
        }
        writeln!(out, "# EOF")?;
        Ok(())
    }

    fn write_hosts(
        &self,
        out: &mut impl Write,
        name: &str,
        value: fn(&Self) -> usize,
    ) -> io::Result<()> {
        writeln!(out, "# TYPE {name} gauge")?;
        for host in 0..self.hosts {
            for step in 0..self.nr_steps() {
                let time_s = self.time_s(step);
                let labels = labels(host);
                writeln!(out, "{name}{{{labels}}} {} {time_s}", value(self))?;
            }
        }
        Ok(())
    }

    fn write_vms(
        &self,
        out: &mut impl Write,
        family: &Family,
        host: usize,
        samples: &[Sample],
    ) -> io::Result<()> {
        let Family { name, label, .. } = family;
        let suffix = if family.counter { "_total" } else { "" };
        let of_one_vm = |a: &Sample, b: &Sample| (a.slot, a.generation) == (b.slot, b.generation);
        for samples in samples.chunk_by(of_one_vm) {
            for (value, figure) in family.series {
                let Some(first) = samples.first() else {
                    continue;
                };
                let (slot, generation) = (first.slot, first.generation);
                let mut series = format!(
                    "{name}{suffix}{{{},vm=\"vm-{slot:05}-{generation}\"",
                    labels(host)
                );
                if !label.is_empty() {
                    series += &format!(",{label}=\"{value}\"");
                }
                for sample in samples {
                    let time_s = self.time_s(sample.step);
                    writeln!(out, "{series}}} {} {time_s}", figure(sample))?;
                }
            }
        }
        Ok(())
    }

    /// Time of a sample, at the end of its step, s since 1970.
    fn time_s(&self, step: u64) -> u64 {
        self.start_s + (step + 1) * self.step_s
    }
}

fn labels(host: usize) -> String {
    format!("job=\"ecs-exporter\",instance=\"host-{host:03}:9560\"")
}
