//! How soon a guest hears that its CPU is wanted.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use ecs_microvm::{Vm, VmConfig, Workload, WorkloadKind};
use ecs_stats::read_snapshot;
use serde_json::{Value, json};
use vmm_sys_util::eventfd::EventFd;

use crate::process::until;
use crate::scheduling::bind_to;

/// Time anything has on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// Changes measured.
pub const CHANGES: usize = 101;
/// Longest wait for a change.
const LONGEST: Duration = Duration::from_millis(100);

/// What a guest heard of a neighbour that was woken [`CHANGES`] times.
#[derive(Debug, Clone, PartialEq)]
pub struct Heard {
    /// Time from before each wake-up to the moment `overloaded` was read, in order of length; without
    /// those that nobody told.
    pub waits: Vec<Duration>,
    /// Part of the neighbour's runs in which the vCPU, whose CPU it had taken, was told as preempted.
    pub preempted: f64,
    /// Both words were zero again in the end.
    pub cleared: bool,
    /// Beats of the host meanwhile.
    pub beats: u32,
    /// How long it took.
    pub took: Duration,
}

impl Heard {
    /// The middle, and the ninth of ten; none where nothing was told.
    #[must_use]
    pub fn quantiles(&self) -> Option<(Duration, Duration)> {
        let nr = self.waits.len();
        let at = |index: usize| self.waits.get(index).copied();
        Some((at(nr / 2)?, at(nr * 9 / 10)?))
    }

    /// In a line, for a person.
    #[must_use]
    pub fn summary(&self) -> String {
        let (half, most) = self.quantiles().unwrap_or_default();
        format!(
            "told {} of {CHANGES} times that the CPU is wanted, after {half:?} in the median, {most:?} in \
             90 %; preempted told in {:.0} % of the neighbour's runs; {} heartbeats in {:?}",
            self.waits.len(),
            self.preempted * 100.0,
            self.beats,
            self.took,
        )
    }

    /// In a line, for another program.
    #[must_use]
    pub fn to_line(&self) -> String {
        let ns = |time: &Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let waits: Vec<u64> = self.waits.iter().map(ns).collect();
        json!({
            "waits_ns": waits,
            "preempted": self.preempted,
            "cleared": self.cleared,
            "beats": self.beats,
            "took_ns": ns(&self.took),
        })
        .to_string()
    }

    /// What such a line says.
    ///
    /// # Errors
    /// If it is none.
    pub fn from_line(line: &str) -> anyhow::Result<Self> {
        let value: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let field = |name: &str| {
            value
                .get(name)
                .with_context(|| format!("No {name}: {line}"))
        };
        let ns = |value: &Value| {
            value
                .as_u64()
                .map(Duration::from_nanos)
                .context("Not a time")
        };
        let waits = field("waits_ns")?.as_array().context("Not a list")?;
        Ok(Self {
            waits: waits.iter().map(ns).collect::<anyhow::Result<_>>()?,
            preempted: field("preempted")?.as_f64().context("Not a number")?,
            cleared: field("cleared")?.as_bool().context("Not a truth value")?,
            beats: field("beats")?
                .as_u64()
                .context("Not a number")?
                .try_into()?,
            took: ns(field("took_ns")?)?,
        })
    }
}

/// A VM on these CPUs that works as soon as its daemon has found its vCPUs.
///
/// # Errors
/// If it cannot be made, or the daemon does not find them.
pub fn vm(
    socket: &Path,
    stats: &Path,
    vcpus: u32,
    cpus: &[u32],
    workload: WorkloadKind,
) -> anyhow::Result<Vm> {
    let config = VmConfig {
        socket: Some(socket.to_owned()),
        duration_ms: 600_000,
        cpus: cpus.to_vec(),
        pin: true,
        device_wait_ms: 20_000,
        ..VmConfig::new("vm1", vcpus, Workload::new(workload, 5.0, 5.0))
    };
    let mut vm = Vm::new(config)?;
    ensure!(vm.wait_for_device(PATIENCE), "{:?}", vm.device());
    until("the daemon to find the vCPUs", PATIENCE, || {
        let stats = read_snapshot(stats, PATIENCE).ok()?;
        let found = &stats.vms.first()?.vcpus;
        (found.len() == vcpus as usize).then_some(())
    })?;
    vm.go();
    Ok(vm)
}

/// A thread that sleeps on a CPU, and has a little to do there when it is woken.
struct Neighbour {
    bell: EventFd,
    stop: AtomicBool,
    runs: AtomicU32,
    /// Times it found the vCPU, whose CPU it had taken, told as preempted.
    told: AtomicU32,
}

impl Neighbour {
    fn live(&self, preempted: &AtomicU32) {
        while self.bell.read().is_ok() && !self.stop.load(Ordering::Relaxed) {
            let told = preempted.load(Ordering::Relaxed) != 0;
            self.told.fetch_add(u32::from(told), Ordering::Relaxed);
            let start = Instant::now();
            while start.elapsed() < Duration::from_micros(30) {
                std::hint::spin_loop();
            }
            self.runs.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Time from `start` until the hint has the value.
fn told(hint: &AtomicU32, value: bool, start: Instant, limit: Duration) -> Option<Duration> {
    while (hint.load(Ordering::Relaxed) != 0) != value {
        if start.elapsed() > limit {
            return None;
        }
        std::hint::spin_loop();
    }
    Some(start.elapsed())
}

/// Wakes a neighbour of the one vCPU of a VM, which is on `cpu`, again and again; `other` is the CPU
/// from which that is done, and looked on. Ends the VM.
///
/// # Errors
/// If the VM has no lines, the CPUs cannot be had, or the neighbour does not run.
pub fn of_a_neighbour(vm: Vm, cpu: u32, other: u32) -> anyhow::Result<Heard> {
    let host = &vm.lines(0).context("No vCPU")?.host;
    let neighbour = Neighbour {
        bell: EventFd::new(0)?,
        stop: AtomicBool::new(false),
        runs: AtomicU32::new(0),
        told: AtomicU32::new(0),
    };
    bind_to(other)?;
    let start = Instant::now();
    let beat = host.heartbeat.load(Ordering::Relaxed);
    let waits = thread::scope(|scope| {
        let bound = scope.spawn(|| {
            let bound = bind_to(cpu);
            if bound.is_ok() {
                neighbour.live(&host.preempted);
            }
            bound
        });
        let waits = wake_again_and_again(&neighbour, &host.overloaded);
        neighbour.stop.store(true, Ordering::Relaxed);
        neighbour.bell.write(1)?;
        match bound.join() {
            Ok(bound) => bound?,
            Err(_) => bail!("The neighbour panicked"),
        }
        waits
    })?;
    let cleared = [&host.overloaded, &host.preempted]
        .iter()
        .all(|hint| told(hint, false, Instant::now(), LONGEST).is_some());
    let beats = host.heartbeat.load(Ordering::Relaxed).wrapping_sub(beat);
    let runs = f64::from(neighbour.runs.load(Ordering::Relaxed).max(1));
    let heard = Heard {
        waits,
        preempted: f64::from(neighbour.told.load(Ordering::Relaxed)) / runs,
        cleared,
        beats,
        took: start.elapsed(),
    };
    vm.finish()?;
    Ok(heard)
}

fn wake_again_and_again(
    neighbour: &Neighbour,
    overloaded: &AtomicU32,
) -> anyhow::Result<Vec<Duration>> {
    let mut waits = Vec::with_capacity(CHANGES);
    for turn in 0..CHANGES {
        // Not in step with what looks at regular intervals.
        thread::sleep(Duration::from_micros(2_000 + 997 * (turn as u64 % 7)));
        if told(overloaded, false, Instant::now(), PATIENCE).is_none() {
            break;
        }
        let runs = neighbour.runs.load(Ordering::Relaxed);
        let woken = Instant::now();
        neighbour.bell.write(1)?;
        waits.extend(told(overloaded, true, woken, LONGEST));
        until("the neighbour to run", PATIENCE, || {
            (neighbour.runs.load(Ordering::Relaxed) != runs).then_some(())
        })?;
    }
    waits.sort_unstable();
    Ok(waits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_all() {
        let heard = Heard {
            waits: vec![Duration::from_nanos(1), Duration::from_micros(22)],
            preempted: 0.5,
            cleared: true,
            beats: 7,
            took: Duration::from_millis(3),
        };
        assert_eq!(Heard::from_line(&heard.to_line()).unwrap(), heard);
        assert_eq!(heard.quantiles(), Some((heard.waits[1], heard.waits[1])));
    }
}
