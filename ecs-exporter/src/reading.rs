//! One look at every source, and the VMs in it: one that several sources see is one VM.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use ecs_stats::{Snapshot, StatsError, VmStats};

use crate::host::{HostError, HostReading, HostVm, PerfTotals};

/// What a source said, and how long it took.
#[derive(Debug)]
pub struct Timed<T> {
    /// What came of it.
    pub result: T,
    /// Time it took.
    pub took: Duration,
}

impl<T> Timed<T> {
    /// Runs `read` and takes the time.
    pub fn take(read: impl FnOnce() -> T) -> Self {
        let begin = Instant::now();
        let result = read();
        Self {
            result,
            took: begin.elapsed(),
        }
    }
}

/// What every source said; `None` for one that is switched off.
#[derive(Debug, Default)]
pub struct Reading {
    /// vmm-ecs.
    pub stats: Option<Timed<Result<Snapshot, StatsError>>>,
    /// /proc and the VMMs' APIs.
    pub host: Option<Timed<Result<HostReading, HostError>>>,
    /// Context-switch records.
    pub perf: Option<Timed<Result<PerfTotals, String>>>,
    /// Performance counters.
    pub hardware: Option<Result<(), String>>,
}

impl Reading {
    /// Of vmm-ecs alone, for instance one that was read earlier.
    #[must_use]
    pub fn of_stats(result: Result<Snapshot, StatsError>) -> Self {
        Self {
            stats: Some(Timed {
                result,
                took: Duration::ZERO,
            }),
            ..Self::default()
        }
    }

    /// What vmm-ecs said, if it could be read.
    #[must_use]
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.stats.as_ref()?.result.as_ref().ok()
    }

    /// What the host itself showed, if it could be read.
    #[must_use]
    pub fn host(&self) -> Option<&HostReading> {
        self.host.as_ref()?.result.as_ref().ok()
    }

    /// Whether any source of VMs could be read.
    #[must_use]
    pub fn is_useful(&self) -> bool {
        self.snapshot().is_some() || self.host().is_some()
    }

    /// Why sources failed, each with its collector's name.
    #[must_use]
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let stats = self
            .stats
            .as_ref()
            .and_then(|timed| timed.result.as_ref().err());
        let host = self
            .host
            .as_ref()
            .and_then(|timed| timed.result.as_ref().err());
        let perf = self
            .perf
            .as_ref()
            .and_then(|timed| timed.result.as_ref().err());
        let hardware = self
            .hardware
            .as_ref()
            .and_then(|result| result.as_ref().err());
        [
            ("stats", stats.map(|error| crate::chain(error))),
            ("host", host.map(|error| crate::chain(error))),
            ("perf", perf.cloned()),
            ("hardware", hardware.cloned()),
        ]
        .into_iter()
        .filter_map(|(name, problem)| Some((name, problem?)))
        .collect()
    }

    /// Every VM, by name; names are unique.
    #[must_use]
    pub fn vms(&self) -> Vec<Vm<'_>> {
        let served = self.snapshot().map_or(&[][..], |snapshot| &snapshot.vms);
        let seen = self.host().map_or(&[][..], |host| &host.vms);
        let mut by_pid: HashMap<u32, &HostVm> = seen.iter().map(|vm| (vm.pid, vm)).collect();
        let mut by_name = BTreeMap::new();
        for vm in served {
            let host = by_pid.remove(&vm.pid);
            // The daemon keeps names unique; of two all the same the first one stays.
            by_name.entry(Cow::from(vm.name.as_str())).or_insert(Vm {
                name: Cow::from(vm.name.as_str()),
                ecs: Some(vm),
                host,
            });
        }
        for vm in seen.iter().filter(|vm| by_pid.contains_key(&vm.pid)) {
            let mut name = Cow::from(vm.name.as_str());
            if by_name.contains_key(&name) {
                name = Cow::from(format!("{name}:{}", vm.pid));
            }
            by_name.entry(name.clone()).or_insert(Vm {
                name,
                ecs: None,
                host: Some(vm),
            });
        }
        by_name.into_values().collect()
    }
}

/// A VM, as vmm-ecs and the host see it; at least one of them does.
#[derive(Debug, Clone, PartialEq)]
pub struct Vm<'a> {
    /// Name, unique in a reading.
    pub name: Cow<'a, str>,
    /// vmm-ecs' figures, if it serves the VM.
    pub ecs: Option<&'a VmStats>,
    /// The host's figures, if it was found in /proc.
    pub host: Option<&'a HostVm>,
}

/// A vCPU's common figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vcpu {
    /// vCPU number.
    pub vcpu: u32,
    /// CPU time, ns.
    pub cpu_ns: u64,
    /// Time runnable but not running, ns.
    pub delay_ns: u64,
    /// Preemptions, if they are counted.
    pub preemptions: Option<u64>,
}

/// The figures that both sources have are vmm-ecs' where it serves the VM.
impl<'a> Vm<'a> {
    fn pick<T>(
        &self,
        ecs: impl FnOnce(&'a VmStats) -> T,
        host: impl FnOnce(&'a HostVm) -> T,
        neither: T,
    ) -> T {
        match (self.ecs, self.host) {
            (Some(vm), _) => ecs(vm),
            (None, Some(vm)) => host(vm),
            (None, None) => neither,
        }
    }

    fn text(
        &self,
        ecs: impl FnOnce(&'a VmStats) -> &'a Option<String>,
        host: impl FnOnce(&'a HostVm) -> &'a Option<String>,
    ) -> &'a str {
        let ecs = self.ecs.and_then(|vm| ecs(vm).as_deref());
        let host = self.host.and_then(|vm| host(vm).as_deref());
        ecs.or(host).unwrap_or_default()
    }

    /// Process id of the VMM, 0 if unknown.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pick(|vm| vm.pid, |vm| vm.pid, 0)
    }

    /// UUID, empty if unknown.
    #[must_use]
    pub fn uuid(&self) -> &'a str {
        self.text(|vm| &vm.uuid, |vm| &vm.uuid)
    }

    /// cgroup path, empty if unknown.
    #[must_use]
    pub fn cgroup(&self) -> &'a str {
        self.text(|vm| &vm.cgroup, |vm| &vm.cgroup)
    }

    /// API socket, empty if unknown.
    #[must_use]
    pub fn api_socket(&self) -> &'a str {
        self.text(|vm| &vm.api_socket, |vm| &vm.api_socket)
    }

    /// What the VM may have: `extend`, `share` or `none`.
    #[must_use]
    pub fn policy(&self) -> &'static str {
        match self.ecs {
            Some(vm) if vm.enabled => "extend",
            Some(_) => "share",
            None => "none",
        }
    }

    /// CPU time, ns.
    #[must_use]
    pub fn cpu_ns(&self) -> u64 {
        self.pick(|vm| vm.cpu_ns, |vm| vm.cpu_ns, 0)
    }

    /// Time runnable but not running, ns.
    #[must_use]
    pub fn delay_ns(&self) -> u64 {
        self.pick(|vm| vm.delay_ns, |vm| vm.delay_ns, 0)
    }

    /// Preemptions, if they are counted.
    #[must_use]
    pub fn preemptions(&self) -> Option<u64> {
        self.pick(|vm| Some(vm.preemptions), |vm| vm.preemptions, None)
    }

    /// Number of vCPU threads.
    #[must_use]
    pub fn nr_vcpus(&self) -> usize {
        self.pick(|vm| vm.vcpus.len(), |vm| vm.vcpus.len(), 0)
    }

    /// Figures of each vCPU.
    pub fn vcpus(&self) -> impl Iterator<Item = Vcpu> + use<'a> {
        let served = self.ecs.map_or(&[][..], |vm| &vm.vcpus);
        let seen = match self.ecs {
            Some(_) => &[][..],
            None => self.host.map_or(&[][..], |vm| &vm.vcpus),
        };
        let served = served.iter().map(|vcpu| Vcpu {
            vcpu: vcpu.vcpu,
            cpu_ns: vcpu.cpu_ns,
            delay_ns: vcpu.delay_ns,
            preemptions: Some(vcpu.preemptions),
        });
        served.chain(seen.iter().map(|vcpu| Vcpu {
            vcpu: vcpu.vcpu,
            cpu_ns: vcpu.cpu_ns,
            delay_ns: vcpu.delay_ns,
            preemptions: vcpu.preemptions,
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]

    use super::*;

    fn reading(served: &[(&str, u32)], seen: &[(&str, u32)]) -> Reading {
        let served = served.iter().map(|(name, pid)| VmStats {
            name: (*name).to_owned(),
            pid: *pid,
            cpu_ns: 1,
            ..VmStats::default()
        });
        let seen = seen.iter().map(|(name, pid)| HostVm {
            name: (*name).to_owned(),
            pid: *pid,
            cpu_ns: 2,
            uuid: Some(format!("uuid of {pid}")),
            ..HostVm::default()
        });
        Reading {
            host: Some(Timed::take(|| {
                Ok(HostReading {
                    vms: seen.collect(),
                    ..HostReading::default()
                })
            })),
            ..Reading::of_stats(Ok(Snapshot {
                vms: served.collect(),
                ..Snapshot::default()
            }))
        }
    }

    #[test]
    fn a_vm_seen_by_both_is_one_under_the_name_of_vmm_ecs() {
        let reading = reading(&[("web", 7), ("away", 0)], &[("w.sock", 7), ("other", 8)]);
        let vms = reading.vms();
        let names: Vec<&str> = vms.iter().map(|vm| vm.name.as_ref()).collect();
        assert_eq!(names, ["away", "other", "web"]);
        assert_eq!((vms[2].cpu_ns(), vms[2].uuid()), (1, "uuid of 7"));
        assert_eq!((vms[2].policy(), vms[1].policy()), ("share", "none"));
        assert_eq!((vms[1].cpu_ns(), vms[1].pid()), (2, 8));
        assert_eq!(vms[0].uuid(), "");
    }

    #[test]
    fn names_are_unique_however_vms_are_called() {
        let reading = reading(&[("a", 1)], &[("a", 2), ("a", 3), ("b", 4), ("b", 5)]);
        let names: Vec<String> = reading.vms().iter().map(|vm| vm.name.to_string()).collect();
        assert_eq!(names, ["a", "a:2", "a:3", "b", "b:5"]);
    }
}
