//! The same work under several schedulers of one host.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::HostVm;
use crate::process::until;

/// Time a scheduler has to take over the host, or to leave it.
const PATIENCE: Duration = Duration::from_secs(300);
/// Longest time of a demo above what it measures: starts and ends of its processes.
const AROUND: Duration = Duration::from_secs(180);

/// A way to schedule the host.
#[derive(Debug, Clone)]
pub struct Arm {
    /// What it is called.
    pub name: String,
    /// Command of a sched_ext scheduler that runs meanwhile; none: the demo brings its own, or the
    /// kernel's fair class schedules.
    pub scheduler: Option<String>,
    /// Words for `vmm-ecs demo` that choose its one arm.
    pub demo: String,
}

impl Arm {
    /// The kernel's own scheduler.
    #[must_use]
    pub fn stock() -> Self {
        Self {
            name: "stock".to_owned(),
            scheduler: None,
            demo: "--arms stock".to_owned(),
        }
    }

    /// A sched_ext scheduler of somebody else, while the demo observes.
    #[must_use]
    pub fn of(name: &str, command: &str) -> Self {
        Self {
            name: name.to_owned(),
            scheduler: Some(command.to_owned()),
            ..Self::stock()
        }
    }
}

/// What the VMs do: two of them.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// As `vmm-ecs demo` calls it.
    pub workload: &'static str,
    /// Of each VM.
    pub vcpus: usize,
    /// List of the CPUs that they use.
    pub pcpus: &'static str,
    /// Length of a run, s.
    pub seconds: u32,
}

/// What came of one arm.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Which.
    pub arm: String,
    /// Operations a second, by VM.
    pub ops_per_s: Vec<f64>,
    /// Kind of vCPUs, and why.
    pub vcpus_are: String,
    /// The longest extension, us; 0 where nobody says.
    pub extension_max_us: u64,
    /// CPUs' worth of time that all VMs had.
    pub cpus: f64,
    /// Largest deviation of a VM's CPU time from its entitlement, percent; none in a short run.
    pub share_deviation_percent: Option<f64>,
    /// Time from the release of a lock to the next one's entry, us: what half, 99 and 99.9 in 100 are
    /// below, in the VM that has the longest.
    pub handoff_us: [f64; 3],
    /// Counters of all VMs over the run, by name: the demo's.
    counters: Value,
}

impl Outcome {
    /// Operations a second of all VMs.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.ops_per_s.iter().sum()
    }

    /// A counter of the demo, by its name in the JSON report.
    ///
    /// # Errors
    /// If there is none.
    pub fn count(&self, name: &str) -> anyhow::Result<u64> {
        let count = self.counters.get(name).and_then(Value::as_u64);
        count.with_context(|| format!("The demo has no counter {name}: {}", self.counters))
    }
}

/// Runs the load once under each arm, one after another; `vmm-ecs` and the schedulers are in the
/// host's `/bin`.
///
/// # Errors
/// If a scheduler does not come up, ends on its own or does not go away, or the demo fails.
pub fn side_by_side(host: &mut HostVm, arms: &[Arm], load: &Load) -> anyhow::Result<Vec<Outcome>> {
    arms.iter()
        .map(|arm| run(host, arm, load).with_context(|| format!("Arm {}, {load:?}", arm.name)))
        .collect()
}

fn run(host: &mut HostVm, arm: &Arm, load: &Load) -> anyhow::Result<Outcome> {
    ensure!(
        host.sched_ext()? == "disabled",
        "A scheduler is there already"
    );
    let scheduler = match &arm.scheduler {
        Some(command) => {
            let pid = host.sh(&format!("{command} >/tmp/scheduler.log 2>&1 & echo $!"))?;
            wait_for(host, "enabled")?;
            Some(pid.trim().to_owned())
        }
        None => None,
    };
    let outcome = demo(host, arm, load)?;
    if let Some(pid) = scheduler {
        if host.sched_ext()? != "enabled" {
            bail!("It ended under the load:\n{}", log(host)?);
        }
        host.sh(&format!("kill {pid}"))?;
        wait_for(host, "disabled")?;
    }
    Ok(outcome)
}

fn demo(host: &mut HostVm, arm: &Arm, load: &Load) -> anyhow::Result<Outcome> {
    let Load {
        workload,
        vcpus,
        pcpus,
        seconds,
    } = load;
    let command = format!(
        "rm -f /tmp/demo.json; vmm-ecs demo --quiet --json /tmp/demo.json --html /tmp/demo.html \
         --kind kvm --vms 2 --vcpus {vcpus} --workload {workload} --pcpus {pcpus} \
         --seconds {seconds} --runs 1 {}",
        arm.demo
    );
    host.sh_within(&command, AROUND + Duration::from_secs((*seconds).into()))?;
    let report: Value = serde_json::from_slice(&host.read_file("/tmp/demo.json")?)?;
    let run = report
        .pointer("/arms/0/runs/0")
        .context("The demo has no run")?;
    let vms = run.get("vms").and_then(Value::as_array);
    let of_vms = |name: &str| -> anyhow::Result<Vec<f64>> {
        let figures = vms.into_iter().flatten().map(|vm| {
            let figure = vm.pointer(name).and_then(Value::as_f64);
            figure.with_context(|| format!("No {name}: {vm}"))
        });
        figures.collect()
    };
    let seconds = run.get("seconds").and_then(Value::as_f64);
    let counters = run.get("counters").context("The demo has no counters")?;
    let longest =
        |name: &str| -> anyhow::Result<f64> { Ok(of_vms(name)?.into_iter().fold(0.0, f64::max)) };
    Ok(Outcome {
        arm: arm.name.clone(),
        ops_per_s: of_vms("/ops_per_s")?,
        cpus: of_vms("/cpu_s")?.iter().sum::<f64>() / seconds.context("The run has no length")?,
        vcpus_are: report
            .get("vcpus_are")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned(),
        extension_max_us: run
            .get("extension_max_us")
            .and_then(Value::as_u64)
            .unwrap_or_default(),
        handoff_us: [
            longest("/handoff_us/p50")?,
            longest("/handoff_us/p99")?,
            longest("/handoff_us/p999")?,
        ],
        share_deviation_percent: run.get("share_deviation_percent").and_then(Value::as_f64),
        counters: counters.clone(),
    })
}

/// Waits for a state of sched_ext.
fn wait_for(host: &mut HostVm, state: &str) -> anyhow::Result<()> {
    let waited = until(&format!("sched_ext {state}"), PATIENCE, || {
        match host.sched_ext() {
            Ok(now) => (now == state).then_some(Ok(())),
            Err(error) => Some(Err(error)),
        }
    });
    match waited {
        Ok(found) => found,
        Err(error) => Err(error.context(log(host)?)),
    }
}

/// What the scheduler said.
fn log(host: &mut HostVm) -> anyhow::Result<String> {
    let said = host.read_file("/tmp/scheduler.log")?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}
