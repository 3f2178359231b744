//! One measured run: a daemon, its VMs, and what both said.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use ecs_microvm::{Guest, Progress, VmConfig, VmReport, Workload};
use ecs_sched::sys::{CpuSet, Tid};
use ecs_stats::{Snapshot, read_snapshot};

use super::figures::{HandoffUs, RunReport, steady_rate, summary, timeline, vm_name};
use super::process::{Exporter, Guarded, Message, VmProcess, last_word};
use super::{Arm, DemoOptions, PATIENCE, Scenario};
use crate::config::{ConfigFile, ControllerChoice, PolicySection, VmSection};

/// A VM that nobody stops ends by itself.
const LONGEST_MS: u64 = 3_600_000;
/// Time between two points of the plots.
const SAMPLE: Duration = Duration::from_millis(200);

/// Runs scenarios, one at a time.
#[derive(Debug)]
pub(crate) struct Bench {
    dir: tempfile::TempDir,
    program: PathBuf,
    pcpus: CpuSet,
    mechanism: String,
    record: Option<PathBuf>,
    controller: ControllerChoice,
    policy: PolicySection,
    scenario: Scenario,
    /// Measured once: every VM of every arm does the same work.
    iterations_per_us: f64,
    /// Set by SIGINT and SIGTERM.
    stop: Arc<AtomicBool>,
}

impl Bench {
    /// Prepares a runtime directory of its own.
    pub(crate) fn new(options: &DemoOptions) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, stop.clone())
                .context("Cannot listen to signals")?;
        }
        Self::prepare(options, ecs_microvm::work::calibrate(), stop)
    }

    /// Another one, for other options, whose VMs do the same work in the same time.
    pub(crate) fn another(&self, options: &DemoOptions) -> anyhow::Result<Self> {
        Self::prepare(options, self.iterations_per_us, self.stop.clone())
    }

    fn prepare(
        options: &DemoOptions,
        iterations_per_us: f64,
        stop: Arc<AtomicBool>,
    ) -> anyhow::Result<Self> {
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
            record: options.record.clone(),
            controller: options.controller,
            policy: options.policy.clone(),
            scenario: options.scenario.clone(),
            iterations_per_us,
            stop,
        })
    }

    /// Number of CPUs it uses.
    pub(crate) fn nr_pcpus(&self) -> usize {
        self.pcpus.cpus().len()
    }

    fn stats_socket(&self) -> PathBuf {
        self.dir.path().join("stats.sock")
    }

    /// Starts the exporter on a free port of the loopback, if its program is beside ours.
    pub(crate) fn start_exporter(&self) -> anyhow::Result<Exporter> {
        let program = self.program.with_file_name("ecs-exporter");
        let mut child = Command::new(&program)
            // Its own perf rings would cost each arm, and say what the daemon says.
            .args(["serve", "--no-collector.perf", "--listen", "127.0.0.1:0"])
            .arg("--stats-socket")
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
        let (report, _) = self.run_between(arm, scenario, &|| Ok(String::new()))?;
        Ok(report)
    }

    /// Runs the stock arm once; what `scrape` gave at the beginning and at the end of what is measured
    /// comes with the report.
    pub(crate) fn observe(
        &self,
        scenario: &Scenario,
        scrape: &dyn Fn() -> anyhow::Result<String>,
    ) -> anyhow::Result<(RunReport, [String; 2])> {
        self.run_between(Arm::Stock, scenario, scrape)
    }

    fn run_between(
        &self,
        arm: Arm,
        scenario: &Scenario,
        scrape: &dyn Fn() -> anyhow::Result<String>,
    ) -> anyhow::Result<(RunReport, [String; 2])> {
        let daemon = self.start_daemon(arm, scenario)?;
        let mut vms = self.start_vms(arm, scenario)?;
        let result = self.measure(scenario, &mut vms, scrape);
        for vm in &mut vms {
            // It ends by itself at the end of its input.
            let _ = vm.stdin.write_all(b"stop\n");
        }
        let finals: Vec<Option<Box<VmReport>>> =
            vms.iter().map(|vm| last_word(&vm.messages)).collect();
        drop(vms);
        drop(daemon);
        let (mut report, samples, scrapes) = result?;
        for ((vm, last), samples) in report.vms.iter_mut().zip(finals).zip(samples) {
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
            // Not of the whole life: while VMs start and end, one after another, others have more CPU.
            vm.ops_per_s = steady_rate(&samples).unwrap_or_else(|| last.ops_per_s());
            vm.lost_wakeups = last.lost_wakeups;
            let us = |ns: u64| ns as f64 / 1e3;
            vm.handoff_us = HandoffUs {
                p50: us(last.handoff.p50_ns),
                p99: us(last.handoff.p99_ns),
                p999: us(last.handoff.p999_ns),
            };
            vm.timeline = timeline(&samples);
            report.vcpus_are = format!("{} ({})", last.kind_used.name(), last.why);
        }
        Ok((report, scrapes))
    }

    fn start_daemon(&self, arm: Arm, scenario: &Scenario) -> anyhow::Result<Guarded> {
        let mut file = ConfigFile::default();
        file.host.pcpus = Some(self.pcpus.to_string());
        file.host.mechanism.clone_from(&self.mechanism);
        file.host.scx_record.clone_from(&self.record);
        file.host.runtime_dir = self.dir.path().to_owned();
        file.policy = self.policy.clone();
        arm.apply(&mut file, self.controller);
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

    fn start_vms(&self, arm: Arm, scenario: &Scenario) -> anyhow::Result<Vec<VmProcess>> {
        let mut vms = (0..scenario.vms)
            .map(|index| self.start_vm(arm, scenario, index))
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
                if let Some(attr) = arm.threads() {
                    let threads = snapshot.vms.iter().flat_map(|vm| &vm.vcpus);
                    for vcpu in threads {
                        let set = attr.set(Tid::try_from(vcpu.tid)?);
                        set.with_context(|| format!("Cannot schedule vCPUs as {arm:?}"))?;
                    }
                }
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

    fn start_vm(&self, arm: Arm, scenario: &Scenario, index: usize) -> anyhow::Result<VmProcess> {
        let name = vm_name(index);
        let workload = Workload {
            read_pct: scenario.read_pct,
            ..Workload::new(scenario.workload.parse()?, scenario.in_us, scenario.out_us)
        };
        let config = VmConfig {
            kind: scenario.kind.parse()?,
            socket: Some(self.dir.path().join(format!("{name}.sock"))),
            cpus: self.pcpus.cpus().to_vec(),
            core_scheduling: scenario.core_scheduling,
            annotate: !scenario.unhinted.contains(&index),
            waiters: arm.waiters(),
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
        scrape: &dyn Fn() -> anyhow::Result<String>,
    ) -> anyhow::Result<(RunReport, Vec<Vec<Progress>>, [String; 2])> {
        for vm in vms.iter_mut() {
            vm.stdin
                .write_all(b"go\n")
                .with_context(|| format!("{} is gone", vm.name))?;
        }
        // The first moments show the start, not the scheduler.
        std::thread::sleep(SAMPLE);
        let first = scrape()?;
        let before = self.snapshot()?;
        let mut samples: Vec<Vec<Progress>> = vec![Vec::new(); vms.len()];
        let end = Instant::now() + Duration::from_secs_f64(scenario.seconds);
        while Instant::now() < end {
            if self.interrupted() {
                bail!("Interrupted");
            }
            std::thread::sleep(SAMPLE.min(end.saturating_duration_since(Instant::now())));
            for (vm, samples) in vms.iter_mut().zip(&mut samples) {
                samples.extend(vm.messages.try_iter().filter_map(|message| match message {
                    Message::Progress(progress) => Some(progress),
                    _ => None,
                }));
                if let Ok(Some(status)) = vm.process.child.try_wait() {
                    bail!("{} ended early: {status}", vm.name);
                }
            }
        }
        let after = self.snapshot()?;
        let scrapes = [first, scrape()?];
        Ok((summary(scenario, &before, &after)?, samples, scrapes))
    }

    /// Keeps the VMs running under eCS until the process is interrupted.
    pub(crate) fn stay_up(&self) -> anyhow::Result<()> {
        let _daemon = self.start_daemon(Arm::Ecs, &self.scenario)?;
        let mut vms = self.start_vms(Arm::Ecs, &self.scenario)?;
        for vm in &mut vms {
            vm.stdin.write_all(b"go\n")?;
        }
        while !self.interrupted() {
            std::thread::sleep(SAMPLE);
            vms.retain_mut(|vm| match vm.process.child.try_wait() {
                Ok(Some(status)) => {
                    tracing::warn!(vm = vm.name, "A VM has ended: {status}");
                    false
                }
                _ => true,
            });
        }
        Ok(())
    }

    /// Whether somebody asked the demo to end: then every process of it ends with it.
    fn interrupted(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}
