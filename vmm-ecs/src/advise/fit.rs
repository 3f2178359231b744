//! Workloads whose simulation looks most like the observed host, and what they would do elsewhere.
//!
//! # Approach
//! Every guess (kind of lock, time between sections, number of locks) is simulated on as many CPUs, with
//! as many VMs and beside as much other work as the host has, with several seeds, and counted as the
//! observer counts: it sees less than what is so. The simulations closest to the host stand for it.
//! Where vCPUs are placed by chance decides much, so several are kept, and a forecast has a range.

use std::sync::atomic::{AtomicUsize, Ordering};

use ecs_sim::{Arm, Report, Scenario};

use super::seen::Seen;
use crate::demo::median;

/// Kinds of lock that are tried; a queue lock stalls as a ticket lock does.
const KINDS: [&str; 4] = ["ticket", "rwlock", "irq", "blocking"];
/// Time between two sections that is tried, in lengths of a section.
const OUT: [f64; 9] = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];
/// Locks a VM that are tried.
const LOCKS: [usize; 3] = [1, 4, 16];
/// Simulations of each guess.
const SEEDS: u64 = 3;
/// Simulations that stand for the host.
const NR_KEPT: usize = 12;
/// Most CPUs that are simulated: a larger host is taken for several of these.
const MOST_CPUS: f64 = 16.0;
/// CPU time that is simulated of each, s.
const LENGTH_S: f64 = 4.0;
/// Part of the CPUs' time that its VMs must have lost for a host to be one that runs other work.
const OTHERS: f64 = 0.05;

/// The host, as it is simulated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Host {
    /// CPUs.
    pub(super) cpus: usize,
    /// VMs that want CPU time all the time.
    pub(super) vms: usize,
    /// vCPUs of each.
    pub(super) vcpus: usize,
    /// Part of the CPUs' time that the VMs had although they wanted all of it.
    pub(super) had: f64,
    /// Length of a section, us.
    pub(super) section_us: f64,
}

/// What a host, real or simulated, did in a second of its VMs' CPU time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Figures {
    critical: f64,
    wakeups: f64,
    /// By section, ms.
    stall_ms: [f64; 3],
}

/// What the guests might do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Guess {
    kind: &'static str,
    out_us: f64,
    locks: usize,
}

/// Median of a forecast, and where the middle eight of ten simulations are.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Range {
    pub(super) low: f64,
    pub(super) median: f64,
    pub(super) high: f64,
}

/// What a number of VMs would do.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Forecast {
    /// Stalled, as an observer counts, ms in a second of CPU time.
    pub(super) stock_stall_ms: Range,
    /// Stalled under eCS, without what is not simulated.
    pub(super) ecs_stall_ms: Range,
    /// Extensions under eCS in a second of CPU time.
    pub(super) extensions: Range,
}

impl Forecast {
    /// CPU time in extensions in a second of CPU time, ms: each lasts for half of a section that it meets
    /// anywhere, and until the CPU is handed back.
    pub(super) fn extension_ms(&self, section_us: f64, handback_us: f64) -> f64 {
        self.extensions.median * (section_us / 2.0 + handback_us) / 1e3
    }
}

/// Kinds of lock among guesses, the most frequent first.
pub(super) fn names(guesses: &[Guess]) -> String {
    let count = |kind: &str| guesses.iter().filter(|guess| guess.kind == kind).count();
    let mut kinds = KINDS.map(|kind| (count(kind), kind));
    kinds.sort_by_key(|(nr, _)| std::cmp::Reverse(*nr));
    let named = kinds.iter().filter(|(nr, _)| *nr > 0);
    let named: Vec<String> = named.map(|(nr, kind)| format!("{nr} {kind}")).collect();
    named.join(", ")
}

impl Range {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let tenth = values.len() / 10;
        let at = |index: usize| values.get(index).copied().unwrap_or_default();
        Self {
            low: at(tenth),
            median: median(&values),
            high: at((values.len().max(1) - 1).saturating_sub(tenth)),
        }
    }
}

impl Host {
    /// The host of two scrapes, `seconds` apart, with sections of `section_us`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts, at least 1, and clamped"
    )]
    pub(super) fn of(seen: &Seen, seconds: f64, section_us: f64) -> Self {
        let vcpus = (seen.vcpus / seen.vms.max(1.0)).round().clamp(1.0, 1024.0);
        let runnable = (seen.cpu_s + seen.delay_s) / seconds;
        // What is simulated wants CPU time all the time but for waits for a mutex, so where CPUs are to be
        // had, only as many VMs count as have that many vCPUs awake.
        let vms = if runnable > seen.cpus {
            seen.vms.max(1.0)
        } else {
            (runnable / vcpus).round().clamp(1.0, seen.vms.max(1.0))
        };
        let cpus = seen.cpus.min(MOST_CPUS.max(vcpus));
        let had = seen.cpu_s / seconds / seen.cpus;
        let others = runnable > seen.cpus && had < 1.0 - OTHERS;
        Self {
            cpus: cpus as usize,
            vms: (vms * cpus / seen.cpus).round().max(1.0) as usize,
            vcpus: vcpus as usize,
            // In steps, so that what was simulated for one pair of scrapes does for the next.
            had: if others {
                ((had * 20.0).round() / 20.0).clamp(0.05, 0.95)
            } else {
                1.0
            },
            section_us,
        }
    }

    /// Busy vCPUs a CPU.
    pub(super) fn over_commit(&self) -> f64 {
        (self.vms * self.vcpus) as f64 / self.cpus as f64
    }

    /// The same host with so many busy vCPUs a CPU, as far as whole VMs allow.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "few, and at least 1"
    )]
    pub(super) fn at(&self, over_commit: f64) -> Self {
        let vms = over_commit * self.cpus as f64 / self.vcpus as f64;
        self.with(vms.round().max(1.0) as usize)
    }

    /// The same host with another number of VMs.
    pub(super) fn with(&self, vms: usize) -> Self {
        Self { vms, ..*self }
    }

    fn scenario(&self, guess: &Guess, beside_others: bool) -> anyhow::Result<Scenario> {
        // EEVDF's base slice: 0.7 ms, for each doubling of up to 8 CPUs once more.
        let slice_us = 700 * (1 + self.cpus.min(8).ilog2());
        let mut text = format!(
            "duration_ms = {:.0}\n[host]\ncores = {}\n[stock]\nslice_us = {slice_us}\n\
             [[vm]]\ncount = {}\nvcpus = {}\n\
             workload = {{ kind = \"{}\", in_us = {}, out_us = {:.3}, locks = {} }}\n",
            LENGTH_S * 1e3 / self.cpus as f64,
            self.cpus,
            self.vms,
            self.vcpus,
            guess.kind,
            self.section_us,
            guess.out_us.min(1e6),
            guess.locks,
        );
        if beside_others && self.had < 1.0 {
            let weight = 100.0 * self.over_commit() * (1.0 - self.had) / self.had;
            for cpu in 0..self.cpus {
                text += &format!(
                    "[[vm]]\nvcpus = 1\nweight = {:.0}\nenlightened = false\npcpus = \"{cpu}\"\n\
                     workload = {{ kind = \"compute\", in_us = 0, out_us = 50 }}\n",
                    weight.clamp(1.0, 10_000.0)
                );
            }
        }
        Ok(text.parse()?)
    }

    fn simulate(&self, guess: &Guess, arm: Arm, seed: u64) -> anyhow::Result<Report> {
        // Other work costs eCS CPU time, and no stalls in a second of what is left.
        let scenario = self.scenario(guess, arm == Arm::Stock)?;
        Ok(ecs_sim::run(&scenario, arm, seed)?)
    }

    fn cpu_s(&self, report: &Report) -> f64 {
        let own = report.vms.iter().take(self.vms);
        own.map(|vm| vm.cpu_ns).sum::<u64>() as f64 / 1e9
    }
}

impl Figures {
    /// Of a real host.
    pub(super) fn of(seen: &Seen) -> Self {
        Self {
            critical: seen.critical / seen.cpu_s,
            wakeups: seen.wakeups / seen.cpu_s,
            stall_ms: seen.stall_s.map(|s| s * 1e3 / seen.cpu_s),
        }
    }

    fn simulated(host: &Host, report: &Report) -> Self {
        let cpu_s = host.cpu_s(report);
        Self {
            critical: report.observed.critical as f64 / cpu_s,
            wakeups: report.critical.wakeups as f64 / cpu_s,
            stall_ms: report.observed.stall_ns.map(|ns| ns as f64 / 1e6 / cpu_s),
        }
    }

    fn all_stall_ms(&self) -> f64 {
        self.stall_ms.iter().sum()
    }

    /// How unlike another host: squares of factors, and of parts of the stall by section.
    fn distance(&self, other: &Self) -> f64 {
        let factor = |a: f64, b: f64| ((a + 1.0) / (b + 1.0)).ln().powi(2);
        let parts = |of: &Self| {
            let all_ms = of.all_stall_ms();
            of.stall_ms
                .map(|ms| if all_ms > 0.0 { ms / all_ms } else { 0.0 })
        };
        let by_section = parts(self).into_iter().zip(parts(other));
        factor(self.all_stall_ms(), other.all_stall_ms())
            + factor(self.critical, other.critical)
            + factor(self.wakeups, other.wakeups) / 4.0
            + by_section.map(|(a, b)| (a - b).powi(2)).sum::<f64>() * 4.0
    }
}

/// Every guess simulated: what a host is compared with.
#[derive(Debug)]
pub(super) struct Atlas {
    host: Host,
    pages: Vec<(Guess, Figures)>,
}

impl Atlas {
    /// Simulates every guess.
    ///
    /// # Errors
    /// The host is larger than what can be simulated.
    pub(super) fn of(host: Host) -> anyhow::Result<Self> {
        let mut jobs = Vec::new();
        for kind in KINDS {
            let locks = if kind == "irq" {
                &LOCKS[..1]
            } else {
                &LOCKS[..]
            };
            for out in OUT {
                for &locks in locks {
                    let out_us = out * host.section_us;
                    let guess = Guess {
                        kind,
                        out_us,
                        locks,
                    };
                    jobs.extend((1..=SEEDS).map(|seed| (guess, seed)));
                }
            }
        }
        let pages = side_by_side(&jobs, |(guess, seed)| {
            let report = host.simulate(guess, Arm::Stock, *seed)?;
            Ok((*guess, Figures::simulated(&host, &report)))
        })?;
        Ok(Self { host, pages })
    }

    /// The guesses whose simulations are most like `real`, one for each simulation, the best first.
    pub(super) fn closest(&self, real: &Figures) -> Vec<Guess> {
        let mut pages: Vec<_> = self
            .pages
            .iter()
            .map(|(guess, figures)| (figures.distance(real), *guess))
            .collect();
        pages.sort_by(|a, b| a.0.total_cmp(&b.0));
        pages
            .iter()
            .take(NR_KEPT)
            .map(|(_, guess)| *guess)
            .collect()
    }

    /// The host that is simulated.
    pub(super) fn host(&self) -> &Host {
        &self.host
    }
}

/// What guests of which each guess is as likely would do on a host.
///
/// # Errors
/// The host is larger than what can be simulated.
pub(super) fn forecast(host: &Host, guesses: &[Guess]) -> anyhow::Result<Forecast> {
    // Other seeds than those of the fit, and others for each guess.
    let seeds = 100..100 + SEEDS;
    let mut jobs = Vec::new();
    for (guess, nr) in guesses.iter().zip(0..) {
        jobs.extend(seeds.clone().map(|seed| (*guess, seed + nr * SEEDS)));
    }
    let found = side_by_side(&jobs, |(guess, seed)| {
        let stock = host.simulate(guess, Arm::Stock, *seed)?;
        let ecs = host.simulate(guess, Arm::Ecs, *seed)?;
        let ecs_cpu_s = host.cpu_s(&ecs);
        // The policy counts through the warm-up too.
        let whole = (ecs.duration_ns as f64 + WARM_UP_NS) / ecs.duration_ns as f64;
        Ok([
            Figures::simulated(host, &stock).all_stall_ms(),
            ecs.stall_ns as f64 / 1e6 / ecs_cpu_s,
            ecs.policy.grants as f64 / whole / ecs_cpu_s,
        ])
    })?;
    let range = |of: usize| {
        let values = found.iter().filter_map(|row| row.get(of).copied());
        Range::of(values.collect())
    };
    Ok(Forecast {
        stock_stall_ms: range(0),
        ecs_stall_ms: range(1),
        extensions: range(2),
    })
}

/// The scenarios' default.
const WARM_UP_NS: f64 = 200e6;

/// Does jobs on every CPU of this machine; results in their order.
fn side_by_side<J: Sync, R: Send>(
    jobs: &[J],
    work: impl Fn(&J) -> anyhow::Result<R> + Sync,
) -> anyhow::Result<Vec<R>> {
    let nr = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(index) else {
                return done;
            };
            done.push((index, work(job)));
        }
    };
    let mut done: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..nr).map(|_| scope.spawn(worker)).collect();
        let results = workers.into_iter().map(|worker| worker.join());
        results
            .flat_map(|result| result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: Host = Host {
        cpus: 2,
        vms: 3,
        vcpus: 2,
        had: 1.0,
        section_us: 20.0,
    };

    #[test]
    fn a_host_is_what_its_scrapes_say() {
        let mut seen = Seen {
            cpu_s: 19.6,
            delay_s: 40.0,
            cpus: 2.0,
            vms: 3.0,
            vcpus: 6.0,
            ..Seen::default()
        };
        assert_eq!(Host::of(&seen, 10.0, 20.0), HOST);
        assert_eq!(HOST.at(1.0).vms, 1);
        assert!((HOST.at(5.0).over_commit() - 5.0).abs() < 1e-9);
        // The VMs waited, and yet others had a part of the CPUs.
        (seen.cpu_s, seen.delay_s) = (12.0, 48.0);
        let host = Host::of(&seen, 10.0, 20.0);
        assert!((host.had - 0.6).abs() < 1e-9, "{host:?}");
        // Nobody waits, and of six vCPUs two are awake.
        (seen.cpu_s, seen.delay_s) = (19.0, 0.2);
        let host = Host::of(&seen, 10.0, 20.0);
        assert_eq!((host.vms, host.had), (1, 1.0));
        // A large host is several of 16 CPUs.
        let large = Seen {
            cpus: 64.0,
            vms: 96.0,
            vcpus: 384.0,
            cpu_s: 630.0,
            delay_s: 1200.0,
            ..seen
        };
        let host = Host::of(&large, 10.0, 1.0);
        assert_eq!((host.cpus, host.vms, host.vcpus), (16, 24, 4));
    }

    #[test]
    fn the_guess_that_is_so_is_among_the_closest() {
        let atlas = Atlas::of(HOST).unwrap();
        let truth = Guess {
            kind: "blocking",
            out_us: 80.0,
            locks: 1,
        };
        let report = HOST.simulate(&truth, Arm::Stock, 77).unwrap();
        let real = Figures::simulated(&HOST, &report);
        let kept = atlas.closest(&real);
        assert_eq!(kept.len(), NR_KEPT);
        assert!(kept.contains(&truth), "{kept:?}");
        let other = |guess: &Guess| guess.kind != "blocking";
        assert!(!kept.iter().any(other), "{kept:?}");
    }

    #[test]
    fn a_forecast_has_its_range_in_order_and_other_work_adds_stalls() {
        let guess = Guess {
            kind: "rwlock",
            out_us: 80.0,
            locks: 1,
        };
        let alone = forecast(&HOST, &[guess]).unwrap();
        let Range { low, median, high } = alone.stock_stall_ms;
        assert!(0.0 < low && low <= median && median <= high, "{alone:?}");
        assert_eq!(alone.ecs_stall_ms.median, 0.0);
        assert!(alone.extensions.median > 1.0, "{alone:?}");
        let beside = forecast(&Host { had: 0.5, ..HOST }, &[guess]).unwrap();
        assert!(beside.stock_stall_ms.median > median, "{beside:?}");
    }
}
