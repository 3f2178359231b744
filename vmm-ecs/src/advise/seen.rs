//! What two scrapes of the exporter say of the time between them.

use std::collections::BTreeMap;

use anyhow::{Context, bail};

/// vCPUs of a VM that run or wait, on average, for it to count as busy.
const BUSY: f64 = 0.5;
/// Sections that the stall of a host is split by, in this order throughout.
const SECTIONS: [&str; 3] = ["non_preemptable", "preemptable", "wait"];

/// What happened between two scrapes, all VMs together, and on what.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) preemptions: f64,
    pub(super) critical: f64,
    /// By kind of section, s: not preemptable by the guest, preemptable, in a queue.
    pub(super) stall_s: [f64; 3],
    pub(super) cpu_s: f64,
    pub(super) delay_s: f64,
    pub(super) wakeups: f64,
    /// CPUs the VMs may use.
    pub(super) cpus: f64,
    /// VMs of which half a vCPU or more ran or waited.
    pub(super) vms: f64,
    /// vCPUs of these.
    pub(super) vcpus: f64,
}

impl Seen {
    /// What grew between two scrapes, `seconds` apart.
    ///
    /// # Errors
    /// No VM had CPU time, or a scrape is none of a host.
    pub(super) fn between(before: &str, after: &str, seconds: f64) -> anyhow::Result<Self> {
        let (before, after) = (parse(before), parse(after));
        let grown = |series: &str, now: f64| {
            // A VM that began in between, or began again, began at 0.
            let first = before.get(series).copied().unwrap_or(0.0);
            if first <= now { now - first } else { now }
        };
        let sum = |family: &str| {
            let of_family = after
                .iter()
                .filter(|(series, _)| series.split('{').next() == Some(family));
            of_family.map(|(series, now)| grown(series, *now)).sum()
        };
        let stall_of = |section: &str| {
            let series = format!("ecs_host_critical_stall_seconds_sum{{section=\"{section}\"}}");
            after.get(&*series).map_or(0.0, |&now| grown(&series, now))
        };
        let (mut vms, mut vcpus) = (0.0, 0.0);
        for (series, now) in &after {
            let Some(labels) = series.strip_prefix("ecs_vm_cpu_seconds_total{") else {
                continue;
            };
            let of_vm = |family: &str| {
                let series = format!("{family}{{{labels}");
                after.get(&*series).map(|&now| (grown(&series, now), now))
            };
            let delay_s = of_vm("ecs_vm_delay_seconds_total").map_or(0.0, |(grown, _)| grown);
            if grown(series, *now) + delay_s >= BUSY * seconds {
                vms += 1.0;
                vcpus += of_vm("ecs_vm_vcpus").map_or(1.0, |(_, now)| now);
            }
        }
        let seen = Self {
            preemptions: sum("ecs_vm_preemptions_total"),
            critical: sum("ecs_vm_critical_preemptions_total"),
            stall_s: SECTIONS.map(stall_of),
            cpu_s: sum("ecs_vm_cpu_seconds_total"),
            delay_s: sum("ecs_vm_delay_seconds_total"),
            wakeups: sum("ecs_vm_wakeups_total"),
            cpus: after
                .get("ecs_host_cpus")
                .copied()
                .context("The scrapes have no ecs_host_cpus: are they of ecs-exporter?")?,
            vms,
            vcpus,
        };
        if seen.cpu_s <= 0.0 || seen.cpus < 1.0 {
            bail!(
                "No VM had any CPU time between the two scrapes: are they of one host, in order?"
            );
        }
        Ok(seen)
    }

    /// Time vCPUs were off the CPU in a section or queue, ms in a second of CPU time.
    pub(super) fn stall_ms(&self) -> f64 {
        self.stall_s.iter().sum::<f64>() * 1e3 / self.cpu_s
    }
}

/// Samples of a Prometheus text, by name with labels.
fn parse(text: &str) -> BTreeMap<&str, f64> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            // Label values may hold spaces.
            let end = line
                .rfind('}')
                .map_or_else(|| line.find(' '), |at| Some(at + 1))?;
            let (series, rest) = line.split_at_checked(end)?;
            Some((series, rest.split_whitespace().next()?.parse().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "# HELP x y\necs_host_cpus 2\necs_vm_cpu_seconds_total{vm=\"a b\"} 10\n\
        ecs_vm_preemptions_total{vm=\"a b\"} 100\nprocess_open_fds 3\n\
        ecs_vm_cpu_seconds_total{vm=\"idle\"} 7\necs_vm_vcpus{vm=\"idle\"} 8\n";
    const AFTER: &str = "ecs_host_cpus 2\necs_vm_cpu_seconds_total{vm=\"a b\"} 40\n\
        ecs_vm_cpu_seconds_total{vm=\"idle\"} 8\necs_vm_vcpus{vm=\"idle\"} 8\n\
        ecs_vm_cpu_seconds_total{vm=\"new\"} 2\necs_vm_delay_seconds_total{vm=\"new\"} 4\necs_vm_vcpus{vm=\"a b\"} 2\necs_vm_vcpus{vm=\"new\"} 4\n\
        ecs_vm_preemptions_total{vm=\"a b\"} 1100\necs_vm_preemptions_total{vm=\"new\"} 1000\n\
        ecs_vm_critical_preemptions_total{vm=\"a b\",cause=\"host\"} 100\n\
        ecs_host_critical_stall_seconds_sum{section=\"non_preemptable\"} 0.25\n\
        ecs_host_critical_stall_seconds_sum{section=\"wait\"} 0.15\n";

    #[test]
    fn what_grew_is_summed_over_vms_old_and_new() {
        let found = Seen::between(BEFORE, AFTER, 10.0).unwrap();
        assert_eq!((found.preemptions, found.critical), (2000.0, 100.0));
        assert_eq!((found.cpu_s, found.stall_s), (33.0, [0.25, 0.0, 0.15]));
        assert_eq!((found.cpus, found.vms, found.vcpus), (2.0, 2.0, 6.0));
        assert!((found.stall_ms() - 400.0 / 33.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_no_pair_of_scrapes_is_refused() {
        assert!(Seen::between(AFTER, "", 10.0).is_err());
        assert!(Seen::between(AFTER, AFTER, 10.0).is_err());
    }

    #[test]
    fn what_the_exporter_writes_is_understood() {
        let golden = include_str!("../../../ecs-exporter/tests/golden/host.prom");
        let found = Seen::between("", golden, 1.0).unwrap();
        assert_eq!(found.cpus, 2.0);
        assert!(found.vms >= 1.0 && found.vcpus >= found.vms, "{found:?}");
        assert!(found.preemptions > 0.0 && found.critical > 0.0 && found.delay_s > 0.0);
        assert_eq!(found.stall_s[..2], [2.003, 0.005]);
    }
}
