//! Turns one snapshot into metric families: a `prometheus` collector that lives for one scrape.

use std::path::Path;
use std::time::{Duration, Instant};

use ecs_stats::{HISTOGRAM_BUCKETS, Histogram, Snapshot, StatsError, VcpuStats, VmState, VmStats};
use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

use crate::catalogue::{self as cat, Family, Kind};
use crate::process::ProcessStats;

/// What a scrape covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Host, exporter and every VM.
    Host {
        /// With one series a vCPU.
        vcpus: bool,
    },
    /// One VM, with its vCPUs.
    Vm(String),
}

/// One read of the stats socket.
#[derive(Debug)]
pub struct Reading {
    /// What came of it.
    pub result: Result<Snapshot, StatsError>,
    /// Time it took.
    pub took: Duration,
}

impl Reading {
    /// Reads the socket at `path`, blocking for at most about `timeout`.
    #[must_use]
    pub fn take(path: &Path, timeout: Duration) -> Self {
        let begin = Instant::now();
        let result = ecs_stats::read_snapshot(path, timeout);
        Self {
            result,
            took: begin.elapsed(),
        }
    }

    /// Whether the daemon answered and knows no VM of this name.
    #[must_use]
    pub fn lacks_vm(&self, name: &str) -> bool {
        let knows = |snapshot: &Snapshot| snapshot.vms.iter().any(|vm| vm.name == name);
        self.result.as_ref().is_ok_and(|snapshot| !knows(snapshot))
    }
}

/// Collector over one [`Reading`].
pub(crate) struct ScrapeCollector {
    reading: Reading,
    scope: Scope,
    descs: Vec<Desc>,
}

impl ScrapeCollector {
    /// # Errors
    /// A name in the catalogue that Prometheus does not allow.
    pub(crate) fn new(reading: Reading, scope: Scope) -> Result<Self, prometheus::Error> {
        let counted_elsewhere = |family: &&&Family| family.name != cat::HTTP_REQUESTS.name;
        let descs = cat::ALL.iter().filter(counted_elsewhere).map(|family| {
            let labels = family
                .labels
                .iter()
                .map(|&label| label.to_owned())
                .collect();
            Desc::new(
                family.name.into(),
                family.help.into(),
                labels,
                Default::default(),
            )
        });
        Ok(Self {
            reading,
            scope,
            descs: descs.collect::<Result<_, _>>()?,
        })
    }
}

impl Collector for ScrapeCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut out = Families::default();
        let mut runs = Vec::new();
        let begin = Instant::now();
        let snapshot = self.reading.result.as_ref();
        if let Ok(snapshot) = snapshot {
            let total_weight = snapshot.vms.iter().map(|vm| u64::from(vm.weight)).sum();
            match &self.scope {
                Scope::Host { vcpus } => {
                    host(&mut out, snapshot);
                    let vms: Vec<&VmStats> = snapshot.vms.iter().collect();
                    out.vms(&vms, total_weight, *vcpus);
                }
                Scope::Vm(name) => {
                    let vms: Vec<&VmStats> =
                        snapshot.vms.iter().filter(|vm| vm.name == *name).collect();
                    out.vms(&vms, total_weight, true);
                }
            }
        }
        runs.push((
            "stats",
            snapshot.is_ok(),
            self.reading.took + begin.elapsed(),
        ));
        out.one(&cat::UP, truth(snapshot.is_ok()));
        if matches!(self.scope, Scope::Host { .. }) {
            build_info(&mut out);
            let begin = Instant::now();
            let process = ProcessStats::read();
            if let Ok(process) = &process {
                out.one(&cat::PROCESS_CPU, process.cpu_seconds);
                out.one(&cat::PROCESS_RESIDENT, process.resident_bytes as f64);
                out.one(&cat::PROCESS_OPEN_FDS, process.open_fds as f64);
                out.one(&cat::PROCESS_START, process.start_seconds);
            }
            runs.push(("process", process.is_ok(), begin.elapsed()));
        }
        out.add(
            &cat::COLLECTOR_DURATION,
            runs.iter()
                .map(|(name, _, took)| ([(*name).to_owned()], took.as_secs_f64())),
        );
        out.add(
            &cat::COLLECTOR_SUCCESS,
            runs.iter()
                .map(|(name, ok, _)| ([(*name).to_owned()], truth(*ok))),
        );
        out.0
    }
}

fn host(out: &mut Families, snapshot: &Snapshot) {
    let host = &snapshot.host;
    let facts = [
        host.controller.clone(),
        host.mechanism.clone(),
        host.abi.to_string(),
        host.kernel.clone(),
    ];
    out.add(&cat::HOST_INFO, [(facts, 1.0)]);
    out.one(&cat::HOST_CPUS, host.pcpus.len() as f64);
    let states = [
        (VmState::Active, "active"),
        (VmState::Unhinted, "unhinted"),
        (VmState::Disabled, "disabled"),
        (VmState::Unreadable, "unreadable"),
    ];
    let in_state = |state| snapshot.vms.iter().filter(|vm| vm.state == state).count() as f64;
    out.add(
        &cat::HOST_VMS,
        states.map(|(state, name)| ([name.to_owned()], in_state(state))),
    );
    out.one(&cat::HOST_EXTENSION_LIMIT, seconds(host.extension_limit_ns));
    out.one(&cat::HOST_DEBT_LIMIT, seconds(host.debt_limit_ns));
    out.histograms(
        &cat::HOST_EXTENSION_DURATION,
        [
            (["non_preemptable".to_owned()], &host.extension_np),
            (["preemptable".to_owned()], &host.extension_p),
            (["wait".to_owned()], &host.extension_wait),
        ],
    );
    out.histograms(&cat::HOST_CRITICAL_STALL, [([], &host.critical_stall)]);
    out.histograms(&cat::HOST_GRANT_LATENCY, [([], &host.decision)]);
    out.one(&cat::PERF_RECORDS, host.perf_records as f64);
    out.one(&cat::PERF_LOST, host.perf_lost as f64);
}

fn build_info(out: &mut Families) {
    let facts = [
        env!("CARGO_PKG_VERSION"),
        env!("ECS_BUILD_REVISION"),
        env!("ECS_BUILD_TARGET"),
        env!("ECS_BUILD_RUSTC"),
    ];
    out.add(&cat::BUILD_INFO, [(facts.map(str::to_owned), 1.0)]);
}

/// The families of one scrape.
#[derive(Default)]
struct Families(Vec<MetricFamily>);

impl Families {
    /// Every `ecs_vm_*` family, and every `ecs_vcpu_*` family if asked for.
    fn vms(&mut self, vms: &[&VmStats], total_weight: u64, vcpus: bool) {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let info = vms.iter().map(|vm| {
            let pid = if vm.pid == 0 {
                String::new()
            } else {
                vm.pid.to_string()
            };
            let facts = [
                vm.name.clone(),
                text(&vm.uuid),
                pid,
                text(&vm.cgroup),
                text(&vm.api_socket),
            ];
            (facts, 1.0)
        });
        self.add(&cat::VM_INFO, info);
        self.each(vms, &cat::VM_VCPUS, |vm| vm.vcpus.len() as f64);
        if total_weight > 0 {
            let ratio = |vm: &VmStats| f64::from(vm.weight) / total_weight as f64;
            self.each(vms, &cat::VM_WEIGHT, ratio);
        }
        self.each(vms, &cat::VM_ENABLED, |vm| truth(vm.enabled));
        self.each(vms, &cat::VM_REQUESTS, |vm| vm.requests as f64);
        self.split(vms, &cat::VM_GRANTS, |vm| {
            [
                ("non_preemptable", vm.grants.non_preemptable),
                ("preemptable", vm.grants.preemptable),
                ("wait", vm.grants.wait),
            ]
        });
        self.split(vms, &cat::VM_DENIALS, |vm| {
            [
                ("used", vm.denials.used),
                ("budget", vm.denials.budget),
                ("cooldown", vm.denials.cooldown),
                ("disabled", vm.denials.disabled),
            ]
        });
        self.split(vms, &cat::VM_ENDED, |vm| {
            [
                ("yielded", vm.ended.yielded),
                ("expired", vm.ended.expired),
                ("revoked", vm.ended.revoked),
                ("aborted", vm.ended.aborted),
            ]
        });
        self.each(vms, &cat::VM_EXTENSION, |vm| seconds(vm.extension_ns));
        self.each(vms, &cat::VM_PENALTY, |vm| seconds(vm.penalty_ns));
        self.each(vms, &cat::VM_DEBT, |vm| seconds(vm.debt_ns));
        self.each(vms, &cat::VM_AVOIDED, |vm| vm.ended.yielded as f64);
        self.split(vms, &cat::VM_CRITICAL, |vm| {
            [
                ("denied", vm.critical_preemptions.denied),
                ("expired", vm.critical_preemptions.expired),
                ("host", vm.critical_preemptions.host),
            ]
        });
        self.each(vms, &cat::VM_PREEMPTIONS, |vm| vm.preemptions as f64);
        self.each(vms, &cat::VM_CRITICAL_STALL, |vm| {
            seconds(vm.critical_stall_ns)
        });
        self.each(vms, &cat::VM_CPU, |vm| seconds(vm.cpu_ns));
        self.each(vms, &cat::VM_FAIR_CPU, |vm| seconds(vm.fair_cpu_ns));
        self.each(vms, &cat::VM_FAIRNESS_DELTA, |vm| {
            // Subtracted as integers: the difference of two long-running sums keeps its digits.
            (i128::from(vm.cpu_ns) - i128::from(vm.fair_cpu_ns)) as f64 / NS_PER_SECOND
        });
        self.each(vms, &cat::VM_DELAY, |vm| seconds(vm.delay_ns));
        if vcpus {
            self.each_vcpu(vms, &cat::VCPU_CPU, |vcpu| seconds(vcpu.cpu_ns));
            self.each_vcpu(vms, &cat::VCPU_DELAY, |vcpu| seconds(vcpu.delay_ns));
            self.each_vcpu(vms, &cat::VCPU_GRANTS, |vcpu| vcpu.grants as f64);
            self.each_vcpu(vms, &cat::VCPU_PREEMPTIONS, |vcpu| vcpu.preemptions as f64);
            let critical = |vcpu: &VcpuStats| vcpu.critical_preemptions as f64;
            self.each_vcpu(vms, &cat::VCPU_CRITICAL, critical);
        }
    }

    /// A family of one series without labels.
    fn one(&mut self, family: &'static Family, value: f64) {
        self.add(family, [([], value)]);
    }

    /// A family with one series a VM.
    fn each(&mut self, vms: &[&VmStats], family: &'static Family, value: impl Fn(&VmStats) -> f64) {
        self.add(family, vms.iter().map(|vm| ([vm.name.clone()], value(vm))));
    }

    /// A family with a few series a VM, told apart by a second label.
    fn split<const N: usize>(
        &mut self,
        vms: &[&VmStats],
        family: &'static Family,
        values: impl Fn(&VmStats) -> [(&'static str, u64); N],
    ) {
        let samples = vms.iter().flat_map(|vm| {
            values(vm).map(|(label, count)| ([vm.name.clone(), label.to_owned()], count as f64))
        });
        self.add(family, samples);
    }

    /// A family with one series a vCPU.
    fn each_vcpu(
        &mut self,
        vms: &[&VmStats],
        family: &'static Family,
        value: impl Fn(&VcpuStats) -> f64,
    ) {
        let samples = vms.iter().flat_map(|vm| {
            let sample = |vcpu: &VcpuStats| ([vm.name.clone(), vcpu.vcpu.to_string()], value(vcpu));
            vm.vcpus.iter().map(sample)
        });
        self.add(family, samples);
    }

    /// A counter or gauge family; label values in the order of the catalogue.
    fn add<const N: usize>(
        &mut self,
        family: &'static Family,
        samples: impl IntoIterator<Item = ([String; N], f64)>,
    ) {
        let metrics = samples.into_iter().map(|(values, value)| {
            let mut metric = Metric::from_label(labels(family, values));
            if family.kind == Kind::Counter {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            } else {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
            metric
        });
        self.push(family, metrics.collect());
    }

    /// A histogram family; label values in the order of the catalogue.
    fn histograms<'a, const N: usize>(
        &mut self,
        family: &'static Family,
        samples: impl IntoIterator<Item = ([String; N], &'a Histogram)>,
    ) {
        let metrics = samples.into_iter().map(|(values, histogram)| {
            let mut metric = Metric::from_label(labels(family, values));
            metric.set_histogram(cumulative(histogram));
            metric
        });
        self.push(family, metrics.collect());
    }

    fn push(&mut self, family: &'static Family, metrics: Vec<Metric>) {
        let mut out = MetricFamily::default();
        out.set_name(family.name.to_owned());
        out.set_help(family.help.to_owned());
        out.set_field_type(match family.kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge => MetricType::GAUGE,
            Kind::Histogram => MetricType::HISTOGRAM,
        });
        out.set_metric(metrics);
        self.0.push(out);
    }
}

fn labels<const N: usize>(family: &'static Family, values: [String; N]) -> Vec<LabelPair> {
    debug_assert_eq!(family.labels.len(), N, "{}", family.name);
    let pair = |(name, value): (&&str, String)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value(value);
        pair
    };
    family.labels.iter().zip(values).map(pair).collect()
}

/// Powers of two in nanoseconds become cumulative buckets in seconds; the last one is `+Inf`.
fn cumulative(histogram: &Histogram) -> proto::Histogram {
    let mut count = 0u64;
    let mut buckets = Vec::with_capacity(HISTOGRAM_BUCKETS);
    for (index, in_bucket) in histogram.buckets.iter().enumerate() {
        count = count.saturating_add(*in_bucket);
        let mut bucket = proto::Bucket::default();
        let last = index + 1 == HISTOGRAM_BUCKETS;
        bucket.set_upper_bound(if last {
            f64::INFINITY
        } else {
            seconds(1 << index)
        });
        bucket.set_cumulative_count(count);
        buckets.push(bucket);
    }
    let mut out = proto::Histogram::default();
    out.set_bucket(buckets);
    // The buckets, not the count beside them: both must agree or a scrape is refused.
    out.set_sample_count(count);
    out.set_sample_sum(seconds(histogram.sum_ns));
    out
}

const NS_PER_SECOND: f64 = 1e9;

fn seconds(ns: u64) -> f64 {
    ns as f64 / NS_PER_SECOND
}

fn truth(value: bool) -> f64 {
    f64::from(u8::from(value))
}
