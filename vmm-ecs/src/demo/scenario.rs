//! What the VMs of a comparison do; from the command line, or from a scenario file.

use anyhow::bail;
use ecs_sim::Guest;
use serde::{Deserialize, Serialize};

/// What the VMs do, and how long.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Scenario {
    /// Number of VMs.
    pub(crate) vms: usize,
    /// vCPUs a VM.
    pub(crate) vcpus: usize,
    /// `ticket`, `queue`, `rwlock`, `irq`, `blocking` or `compute`.
    pub(crate) workload: String,
    /// Time inside the section, us.
    pub(crate) in_us: f64,
    /// Time between two sections, us.
    pub(crate) out_us: f64,
    /// Sections that only read, percent (`rwlock`).
    pub(crate) read_pct: u8,
    /// Length of a run, s.
    pub(crate) seconds: f64,
    /// Runs an arm.
    pub(crate) runs: usize,
    /// `auto`, `kvm` or `thread`.
    pub(crate) kind: String,
    /// Weight of each VM; 100 where none is given.
    pub(crate) weights: Vec<u32>,
    /// VMs, by index, that annotate nothing.
    pub(crate) unhinted: Vec<usize>,
    /// VMs, by index, that pin their counts for ever.
    pub(crate) pinning: Vec<usize>,
    /// No two VMs are on CPUs of one core at once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) core_scheduling: bool,
}

impl Default for Scenario {
    fn default() -> Self {
        Self {
            vms: 2,
            vcpus: 2,
            workload: "ticket".to_owned(),
            in_us: 5.0,
            out_us: 5.0,
            read_pct: 90,
            seconds: 2.0,
            runs: 5,
            kind: "auto".to_owned(),
            weights: Vec::new(),
            unhinted: Vec::new(),
            pinning: Vec::new(),
            core_scheduling: false,
        }
    }
}

impl TryFrom<&ecs_sim::Scenario> for Scenario {
    type Error = anyhow::Error;

    /// The real run of a scenario file: its VMs must be alike but for weight, annotation and behaviour.
    fn try_from(file: &ecs_sim::Scenario) -> anyhow::Result<Self> {
        let Some(first) = file.vms.first() else {
            bail!("It has no VM");
        };
        let work = &first.workload;
        let (mut weights, mut unhinted, mut pinning) = (Vec::new(), Vec::new(), Vec::new());
        for section in &file.vms {
            let other = &section.workload;
            if section.vcpus != first.vcpus
                || (other.kind, other.in_us, other.out_us, other.read_pct)
                    != (work.kind, work.in_us, work.out_us, work.read_pct)
            {
                bail!("Its VMs are not alike");
            }
            if section.pcpus.is_some() || other.locks != 1 {
                bail!("The demo's VMs use every CPU, and one lock each");
            }
            for _ in 0..section.count {
                let index = weights.len();
                weights.push(section.weight);
                if !section.enlightened {
                    unhinted.push(index);
                }
                if section.guest == Guest::PinCounts {
                    pinning.push(index);
                }
            }
        }
        Ok(Self {
            vms: weights.len(),
            vcpus: first.vcpus,
            workload: work.kind.name().to_owned(),
            in_us: work.in_us,
            out_us: work.out_us,
            read_pct: work.read_pct,
            seconds: file.duration_ms as f64 / 1e3,
            runs: usize::try_from(file.runs)?,
            kind: Self::default().kind,
            weights,
            unhinted,
            pinning,
            core_scheduling: false,
        })
    }
}
