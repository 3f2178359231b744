//! One measured run: a daemon, its VMs, and what both said.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use ecs_microvm::{Guest, Progress, VmConfig, VmReport, Workload};
use ecs_policy::{Claim, split_fairly};
use ecs_sched::sys::CpuSet;
use ecs_stats::{Snapshot, VmStats, read_snapshot};
use serde::{Deserialize, Serialize};

use super::{Arm, DemoOptions, PATIENCE, Scenario};
use crate::config::{ConfigFile, VmSection};

/// A VM that nobody stops ends by itself.
const LONGEST_MS: u64 = 3_600_000;
/// Time between two points of the plots.
const SAMPLE: Duration = Duration::from_millis(200);

/// What one run of one arm gave.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct RunReport {
    /// Length, s.
    pub(crate) seconds: f64,
    /// How the vCPUs were run, and why so.
    pub(crate) vcpus_are: String,
    /// The VMs, in order.
    pub(crate) vms: Vec<VmRun>,
    /// Largest deviation of a VM's CPU time from its entitlement, percent of the entitlement. None
    /// for a run so short that the daemon, which books CPU time once a second, booked none.
    pub(crate) share_deviation_percent: Option<f64>,
    /// Counters of all VMs, over the run.
    pub(crate) counters: RunCounters,
    /// CPU time of the controller's threads, percent of one CPU, a managed pCPU.
    pub(crate) controller_cpu_percent: f64,
    /// Median of the decision time, ns: upper bound of its histogram bucket.
    pub(crate) decision_median_ns: u64,
    /// Controller that ran.
    pub(crate) controller: String,
}

impl RunReport {
    /// Lock operations a second of all VMs.
    pub(crate) fn ops_per_s(&self) -> f64 {
        self.vms.iter().map(|vm| vm.ops_per_s).sum()
    }

    /// Preemptions a second.
    pub(crate) fn preemptions_per_s(&self) -> f64 {
        self.per_second(self.counters.preemptions as f64)
    }

    /// Preemptions inside a section, a second.
    pub(crate) fn critical_preemptions_per_s(&self) -> f64 {
        self.per_second(self.counters.critical_preemptions as f64)
    }

    /// Time that sections were held up by preemptions, ms a second.
    pub(crate) fn stalled_ms_per_s(&self) -> f64 {
        self.per_second(self.counters.critical_stall_us as f64 / 1e3)
    }

    /// Hand-over of the lock in the VM where it takes longest, us: median and 99th percentile.
    /// None if no VM handed a lock to a waiter.
    pub(crate) fn handoff_us(&self) -> Option<(f64, f64)> {
        let slowest = |of: fn(&VmRun) -> f64| self.vms.iter().map(of).fold(0.0, f64::max);
        let (median, slow) = (slowest(|vm| vm.handoff_us.0), slowest(|vm| vm.handoff_us.1));
        (slow > 0.0).then_some((median, slow))
    }

    fn per_second(&self, count: f64) -> f64 {
        if self.seconds > 0.0 {
            count / self.seconds
        } else {
            0.0
        }
    }
}

/// One VM of a run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct VmRun {
    /// Name.
    pub(crate) name: String,
    /// Lock operations a second.
    pub(crate) ops_per_s: f64,
    /// CPU time received, s.
    pub(crate) cpu_s: f64,
    /// CPU time entitled to, s.
    pub(crate) entitled_s: f64,
    /// Waiters found asleep although their wait had ended.
    pub(crate) lost_wakeups: u64,
    /// Time a released lock took to its next owner, where that one waited, us: median and 99th
    /// percentile. Zeros where none waited.
    pub(crate) handoff_us: (f64, f64),
    /// Over time: seconds since the start, lock operations a second, CPU seconds received so far.
    pub(crate) timeline: Timeline,
}

impl VmRun {
    /// CPU time received, away from what it was entitled to, percent of that; above 0 is too much.
    /// None where no CPU time was booked.
    pub(crate) fn off_percent(&self) -> Option<f64> {
        (self.entitled_s > 0.0).then(|| (self.cpu_s / self.entitled_s - 1.0) * 100.0)
    }
}

/// Counters of all VMs over a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunCounters {
    pub(crate) requests: u64,
    pub(crate) grants: u64,
    pub(crate) denials: u64,
    pub(crate) yielded: u64,
    pub(crate) expired: u64,
    pub(crate) revoked: u64,
    pub(crate) aborted: u64,
    pub(crate) preemptions: u64,
    pub(crate) critical_preemptions: u64,
    pub(crate) critical_stall_us: u64,
    pub(crate) stepped_aside: u64,
    pub(crate) extension_us: u64,
    pub(crate) rotations: u64,
    pub(crate) doorbells: u64,
}

impl RunCounters {
    fn of(snapshot: &Snapshot) -> Self {
        let sum = |field: fn(&VmStats) -> u64| snapshot.vms.iter().map(field).sum::<u64>();
        Self {
            requests: sum(|vm| vm.requests),
            grants: sum(|vm| vm.grants.total()),
            denials: sum(|vm| vm.denials.total()),
            yielded: sum(|vm| vm.ended.yielded),
            expired: sum(|vm| vm.ended.expired),
            revoked: sum(|vm| vm.ended.revoked),
            aborted: sum(|vm| vm.ended.aborted),
            preemptions: sum(|vm| vm.preemptions),
            critical_preemptions: sum(|vm| vm.critical_preemptions.total()),
            critical_stall_us: sum(|vm| vm.critical_stall_ns) / 1000,
            stepped_aside: sum(|vm| vm.stepped_aside),
            extension_us: sum(|vm| vm.extension_ns) / 1000,
            rotations: snapshot.host.rotations,
            doorbells: snapshot.host.doorbells,
        }
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            requests: self.requests - before.requests,
            grants: self.grants - before.grants,
            denials: self.denials - before.denials,
            yielded: self.yielded - before.yielded,
            expired: self.expired - before.expired,
            revoked: self.revoked - before.revoked,
            aborted: self.aborted - before.aborted,
            preemptions: self.preemptions - before.preemptions,
            critical_preemptions: self.critical_preemptions - before.critical_preemptions,
            critical_stall_us: self.critical_stall_us - before.critical_stall_us,
            stepped_aside: self.stepped_aside - before.stepped_aside,
            extension_us: self.extension_us - before.extension_us,
            rotations: self.rotations - before.rotations,
            doorbells: self.doorbells - before.doorbells,
        }
    }
}

/// A process of ours; it does not outlive us.
#[derive(Debug)]
pub(crate) struct Guarded {
    child: Child,
}

impl Guarded {
    /// Asks it to end, and waits; ends it if it does not.
    fn end(&mut self) {
        // SIGTERM by way of its pid: it is our child and has not been waited for.
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").arg(pid).stderr(Stdio::null()).status();
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.end();
        }
    }
}

/// The exporter, while it runs.
#[derive(Debug)]
pub(crate) struct Exporter {
    _process: Guarded,
    /// Where it serves metrics.
    pub(crate) address: String,
}

/// What a VM says, a line each.
#[derive(Debug)]
enum Message {
    Ready,
    Progress(Progress),
    Final(Box<VmReport>),
}

impl Message {
    fn parse(line: &str) -> Option<Self> {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        if value.get("ready").is_some() {
            Some(Self::Ready)
        } else if value.get("final").is_some() {
            serde_json::from_value(value)
                .ok()
                .map(|report| Self::Final(Box::new(report)))
        } else {
            serde_json::from_value(value).ok().map(Self::Progress)
        }
    }
}

/// A VM of a run, as a process.
struct VmProcess {
    name: String,
    process: Guarded,
    stdin: ChildStdin,
    messages: Receiver<Message>,
}

/// Runs scenarios, one at a time.
#[derive(Debug)]
pub(crate) struct Bench {
    dir: tempfile::TempDir,
    program: PathBuf,
    pcpus: CpuSet,
    mechanism: String,
    scenario: Scenario,
    /// Measured once: every VM of every arm does the same work.
    iterations_per_us: f64,
}

impl Bench {
    /// Prepares a runtime directory of its own.
    pub(crate) fn new(options: &DemoOptions) -> anyhow::Result<Self> {
        let pcpus = match &options.pcpus {
            Some(list) => CpuSet::parse(list)
                .map_err(|part| anyhow!("{list:?} is no list of CPUs at {part:?}"))?,
            None => CpuSet::of_thread(0).context("Cannot read which CPUs we may use")?,
        };
        Ok(Self {
            dir: tempfile::Builder::new().prefix("vmm-ecs-demo-").tempdir()?,
            program: std::env::current_exe().context("Cannot find our own program")?,
            pcpus,
            mechanism: options.mechanism.clone(),
            scenario: options.scenario.clone(),
            iterations_per_us: ecs_microvm::work::calibrate(),
        })
    }

    /// Number of CPUs it uses.
    pub(crate) fn nr_pcpus(&self) -> usize {
        self.pcpus.cpus().len()
    }

    /// Where the report goes if nobody says otherwise: it must outlive the demo.
    pub(crate) fn report_path(&self) -> PathBuf {
        std::env::temp_dir().join("vmm-ecs-demo.html")
    }

    fn stats_socket(&self) -> PathBuf {
        self.dir.path().join("stats.sock")
    }

    /// Starts the exporter on a free port of the loopback, if its program is beside ours.
    pub(crate) fn start_exporter(&self) -> anyhow::Result<Exporter> {
        let program = self.program.with_file_name("ecs-exporter");
        let mut child = Command::new(&program)
            .args(["serve", "--listen", "127.0.0.1:0", "--stats-socket"])
            .arg(self.stats_socket())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("Cannot start {}", program.display()))?;
        let stdout = child.stdout.take();
        let process = Guarded { child };
        let mut line = String::new();
        if let Some(stdout) = stdout {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let address = line
            .trim()
            .strip_prefix("listening on ")
            .ok_or_else(|| anyhow!("The exporter did not start"))?
            .to_owned();
        Ok(Exporter {
            _process: process,
            address,
        })
    }

    /// Runs one arm of a scenario once.
    pub(crate) fn run(&self, arm: Arm, scenario: &Scenario) -> anyhow::Result<RunReport> {
        let daemon = self.start_daemon(arm, scenario)?;
        let mut vms = self.start_vms(scenario)?;
        let result = self.measure(scenario, &mut vms);
        for vm in &mut vms {
            // It ends by itself at the end of its input.
            let _ = vm.stdin.write_all(b"stop\n");
        }
        let finals: Vec<Option<Box<VmReport>>> =
            vms.iter().map(|vm| last_word(&vm.messages)).collect();
        drop(vms);
        drop(daemon);
        let (mut report, timelines) = result?;
        for ((vm, last), timeline) in report.vms.iter_mut().zip(finals).zip(timelines) {
            let Some(last) = last else {
                bail!(
                    "{} ended without a report: run with VMM_ECS_LOG=debug to see why",
                    vm.name
                );
            };
            if !last.exclusion_held() {
                bail!(
                    "{}: its locks did not exclude each other, the figures mean nothing",
                    vm.name
                );
            }
            vm.ops_per_s = last.ops_per_s();
            vm.lost_wakeups = last.lost_wakeups;
            vm.handoff_us = (
                last.handoff.p50_ns as f64 / 1e3,
                last.handoff.p99_ns as f64 / 1e3,
            );
            vm.timeline = timeline;
            report.vcpus_are = format!("{} ({})", last.kind_used.name(), last.why);
        }
        Ok(report)
    }

    fn start_daemon(&self, arm: Arm, scenario: &Scenario) -> anyhow::Result<Guarded> {
        let mut file = ConfigFile::default();
        file.host.pcpus = Some(self.pcpus.to_string());
        file.host.mechanism.clone_from(&self.mechanism);
        file.host.runtime_dir = self.dir.path().to_owned();
        arm.apply(&mut file);
        file.vms = (0..scenario.vms)
            .map(|index| VmSection {
                name: vm_name(index),
                weight: scenario.weights.get(index).copied().unwrap_or(100),
                doorbells: u16::try_from(scenario.vcpus).unwrap_or(u16::MAX).min(254),
                ..VmSection::default()
            })
            .collect();
        let config = self.dir.path().join("config.toml");
        std::fs::write(&config, toml::to_string(&file)?)?;
        let log = std::fs::File::create(self.dir.path().join("daemon.log"))?;
        let child = Command::new(&self.program)
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("Cannot start the daemon")?;
        let mut daemon = Guarded { child };
        let deadline = Instant::now() + PATIENCE;
        while self.snapshot().is_err() {
            if let Ok(Some(_)) = daemon.child.try_wait() {
                bail!("The daemon did not start:\n{}", self.daemon_log());
            }
            if Instant::now() > deadline {
                bail!("The daemon does not answer:\n{}", self.daemon_log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(daemon)
    }

    fn daemon_log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default()
    }

    fn snapshot(&self) -> anyhow::Result<Snapshot> {
        Ok(read_snapshot(&self.stats_socket(), Duration::from_secs(2))?)
    }

    fn start_vms(&self, scenario: &Scenario) -> anyhow::Result<Vec<VmProcess>> {
        let mut vms = (0..scenario.vms)
            .map(|index| self.start_vm(scenario, index))
            .collect::<anyhow::Result<Vec<_>>>()?;
        for vm in &mut vms {
            match vm.messages.recv_timeout(PATIENCE) {
                Ok(Message::Ready) => {}
                other => bail!("{} did not become ready: {other:?}", vm.name),
            }
        }
        // The daemon must have found every vCPU thread, or the first run differs from the rest.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let snapshot = self.snapshot()?;
            let complete = snapshot
                .vms
                .iter()
                .filter(|vm| vm.vcpus.len() == scenario.vcpus)
                .count();
            if complete == scenario.vms {
                return Ok(vms);
            }
            if Instant::now() > deadline {
                bail!(
                    "The daemon found only {complete} VMs whole:\n{}",
                    self.daemon_log()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn start_vm(&self, scenario: &Scenario, index: usize) -> anyhow::Result<VmProcess> {
        let name = vm_name(index);
        let workload = Workload::new(scenario.workload.parse()?, scenario.in_us, scenario.out_us);
        let config = VmConfig {
            kind: scenario.kind.parse()?,
            socket: Some(self.dir.path().join(format!("{name}.sock"))),
            cpus: self.pcpus.cpus().to_vec(),
            annotate: !scenario.unhinted.contains(&index),
            guest: if scenario.pinning.contains(&index) {
                Guest::PinCounts
            } else {
                Guest::Honest
            },
            duration_ms: LONGEST_MS,
            report_ms: u64::try_from(SAMPLE.as_millis()).unwrap_or(u64::MAX),
            iterations_per_us: Some(self.iterations_per_us),
            ..VmConfig::new(&name, u32::try_from(scenario.vcpus)?, workload)
        };
        let mut child = Command::new(&self.program)
            .arg("microvm")
            .arg(serde_json::to_string(&config)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .context("Cannot start a VM")?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("A VM has no pipes");
        };
        let (sender, messages) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if let Some(message) = Message::parse(&line)
                    && sender.send(message).is_err()
                {
                    return;
                }
            }
        });
        Ok(VmProcess {
            name,
            process: Guarded { child },
            stdin,
            messages,
        })
    }

    /// Lets the VMs work, and takes the daemon's counters at both ends.
    fn measure(
        &self,
        scenario: &Scenario,
        vms: &mut [VmProcess],
    ) -> anyhow::Result<(RunReport, Vec<Timeline>)> {
        for vm in vms.iter_mut() {
            vm.stdin
                .write_all(b"go\n")
                .with_context(|| format!("{} is gone", vm.name))?;
        }
        // The first moments show the start, not the scheduler.
        std::thread::sleep(SAMPLE);
        let before = self.snapshot()?;
        let mut timelines: Vec<Timeline> = vec![Timeline::new(); vms.len()];
        let mut last: Vec<(f64, u64)> = vec![(0.0, 0); vms.len()];
        let end = Instant::now() + Duration::from_secs_f64(scenario.seconds);
        while Instant::now() < end {
            std::thread::sleep(SAMPLE.min(end.saturating_duration_since(Instant::now())));
            for ((vm, timeline), last) in vms.iter().zip(&mut timelines).zip(&mut last) {
                for message in vm.messages.try_iter() {
                    if let Message::Progress(Progress { t_ms, ops, cpu_ns }) = message {
                        let (seconds, ops) = (t_ms as f64 / 1e3, ops.iter().sum::<u64>());
                        let rate = (ops - last.1) as f64 / (seconds - last.0).max(1e-3);
                        *last = (seconds, ops);
                        timeline.push((seconds, rate, cpu_ns.iter().sum::<u64>() as f64 / 1e9));
                    }
                }
            }
            for vm in vms.iter_mut() {
                if let Ok(Some(status)) = vm.process.child.try_wait() {
                    bail!("{} ended early: {status}", vm.name);
                }
            }
        }
        let after = self.snapshot()?;
        Ok((summary(scenario, &before, &after)?, timelines))
    }

    /// Keeps the VMs running under eCS until the process is interrupted.
    pub(crate) fn stay_up(&self) -> anyhow::Result<()> {
        let _daemon = self.start_daemon(Arm::Ecs, &self.scenario)?;
        let mut vms = self.start_vms(&self.scenario)?;
        for vm in &mut vms {
            vm.stdin.write_all(b"go\n")?;
        }
        loop {
            std::thread::park();
        }
    }
}

type Timeline = Vec<(f64, f64, f64)>;

/// What the daemon's counters say about a run.
fn summary(scenario: &Scenario, before: &Snapshot, after: &Snapshot) -> anyhow::Result<RunReport> {
    let seconds = (after.taken_ns - before.taken_ns) as f64 / 1e9;
    let cpu_ns = |snapshot: &Snapshot, name: &str| -> Option<u64> {
        let vm = snapshot.vms.iter().find(|vm| vm.name == name)?;
        Some(vm.vcpus.iter().map(|vcpu| vcpu.cpu_ns).sum())
    };
    let mut vms = Vec::new();
    let mut claims = Vec::new();
    for index in 0..scenario.vms {
        let name = vm_name(index);
        let (Some(first), Some(last)) = (cpu_ns(before, &name), cpu_ns(after, &name)) else {
            bail!("The daemon lost sight of {name}");
        };
        let received_ns = last.saturating_sub(first);
        claims.push(Claim {
            weight: scenario.weights.get(index).copied().unwrap_or(100),
            // Every vCPU of the demo's workloads always has work.
            demand_ns: (after.taken_ns - before.taken_ns) * scenario.vcpus as u64,
            entitled_ns: 0,
        });
        vms.push(VmRun {
            name,
            cpu_s: received_ns as f64 / 1e9,
            ..VmRun::default()
        });
    }
    let received_ns = (vms.iter().map(|vm| vm.cpu_s).sum::<f64>() * 1e9).round();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    split_fairly(received_ns as u64, &mut claims);
    for (vm, claim) in vms.iter_mut().zip(claims) {
        vm.entitled_s = claim.entitled_ns as f64 / 1e9;
    }
    let off = vms.iter().filter_map(VmRun::off_percent).map(f64::abs);
    let worst = off.reduce(f64::max);
    let controller_ns = after.host.controller_cpu_ns - before.host.controller_cpu_ns;
    let nr_pcpus = after.host.pcpus.len().max(1) as f64;
    Ok(RunReport {
        seconds,
        vms,
        share_deviation_percent: worst,
        counters: RunCounters::of(after).since(&RunCounters::of(before)),
        controller_cpu_percent: controller_ns as f64 / 1e9 / seconds / nr_pcpus * 100.0,
        decision_median_ns: after.host.decision.quantile_ns(0.5).unwrap_or_default(),
        controller: format!("{} {}", after.host.controller, after.host.mechanism),
        vcpus_are: String::new(),
    })
}

fn last_word(messages: &Receiver<Message>) -> Option<Box<VmReport>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match messages.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Message::Final(report)) => return Some(report),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}

fn vm_name(index: usize) -> String {
    format!("vm{index}")
}
