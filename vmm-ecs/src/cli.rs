//! The command line.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

use crate::advise::{self, AdviseArgs};
use crate::bench::{self, BenchArgs};
use crate::check;
use crate::config::{Config, ConfigFile, ControllerChoice};
use crate::daemon::Daemon;
use crate::demo::{self, Arm, DemoOptions, Scenario};
use crate::simulate::{self, SimulateArgs};

/// Gives vCPUs in critical sections a little extra time, and takes it back.
#[derive(Debug, Parser)]
#[command(version, about)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve VMs: the daemon.
    Serve(ConfigArgs),
    /// Check a configuration file and say what it means.
    CheckConfig(ConfigArgs),
    /// Say what this host offers, and which controller would be used.
    Check,
    /// Run over-committed VMs with and without eCS, and show the difference.
    Demo(Box<DemoArgs>),
    /// Run scenario files for real, every arm in one run, and judge them by their bars.
    Bench(BenchArgs),
    /// Simulate a scenario file on a host of any size, with and without eCS.
    Simulate(SimulateArgs),
    /// Say from two scrapes of an observed host what eCS would have avoided there, and at what cost.
    Advise(AdviseArgs),
    /// Say in a few lines what a running daemon does, and why.
    Status {
        /// Its statistics socket.
        #[arg(long, default_value = ecs_stats::DEFAULT_SOCKET)]
        socket: PathBuf,
    },
    /// Print the statistics of a running daemon as JSON.
    Stats {
        /// Its statistics socket.
        #[arg(long, default_value = ecs_stats::DEFAULT_SOCKET)]
        socket: PathBuf,
    },
    /// Put every thread of a dead daemon back to how it was scheduled before.
    Restore {
        /// Its journal.
        #[arg(long, default_value = "/run/vmm-ecs/threads.journal")]
        journal: PathBuf,
    },
    /// Run one embedded VM (the demo does).
    #[command(hide = true)]
    Microvm {
        /// Configuration, JSON.
        config: String,
    },
    /// Outlive the daemon, and put its threads back (the daemon starts it).
    #[command(hide = true)]
    Watchdog {
        /// Process id of the daemon.
        #[arg(long)]
        daemon: u32,
        /// Its journal.
        #[arg(long)]
        journal: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct ConfigArgs {
    /// Configuration file (TOML).
    #[arg(long, default_value = "/etc/vmm-ecs/vmm-ecs.toml")]
    config: PathBuf,
}

#[derive(Debug, clap::Args)]
struct DemoArgs {
    /// Number of VMs.
    #[arg(long, default_value_t = 2)]
    vms: usize,
    /// vCPUs a VM.
    #[arg(long, default_value_t = 2)]
    vcpus: usize,
    /// ticket, queue, rwlock, irq, blocking or compute.
    #[arg(long, default_value = "ticket")]
    workload: String,
    /// Time inside the section, us.
    #[arg(long, default_value_t = 5.0)]
    in_us: f64,
    /// Time between two sections, us.
    #[arg(long, default_value_t = 5.0)]
    out_us: f64,
    /// Sections that only read, percent (rwlock).
    #[arg(long, default_value_t = 90)]
    read_pct: u8,
    /// Length of each run, s.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Runs of each arm.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// kvm, thread, or auto: KVM where it works.
    #[arg(long, default_value = "auto")]
    kind: String,
    /// Weight of each VM, e.g. 100,300.
    #[arg(long, value_delimiter = ',')]
    weights: Vec<u32>,
    /// VMs (by index, from 0) that annotate nothing.
    #[arg(long, value_delimiter = ',')]
    unhinted: Vec<usize>,
    /// VMs (by index, from 0) that pin their counts for ever.
    #[arg(long, value_delimiter = ',')]
    pinning: Vec<usize>,
    /// No two VMs are on the CPUs of one core at once, as Cloud Hypervisor has it by default.
    #[arg(long)]
    core_scheduling: bool,
    /// CPUs to use, e.g. 0-1; those this process may use when absent.
    #[arg(long)]
    pcpus: Option<String>,
    /// What steers in the arms that do: userspace, or scx where the kernel has sched_ext.
    #[arg(long, value_parser = ["userspace", "scx"], default_value = "userspace")]
    controller: String,
    /// A line of the policy section of a configuration, e.g. "slice_us = 4000"; can be repeated.
    #[arg(long)]
    policy: Vec<String>,
    /// How the userspace controller steers: rt, rt-strict or fair.
    #[arg(long, default_value = "rt")]
    mechanism: String,
    /// Where the controller in the kernel records what it does to the books; of the last run.
    #[arg(long, hide = true)]
    record: Option<PathBuf>,
    /// What to compare, in this order.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Arm::DEMO)]
    arms: Vec<Arm>,
    /// Also measure extensions without the queue rules.
    #[arg(long)]
    holder_only: bool,
    /// Write the result as JSON to this file, or to standard output for "-".
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write the HTML report here.
    #[arg(long)]
    html: Option<PathBuf>,
    /// Stay up at the end, with eCS on and the exporter live.
    #[arg(long)]
    keep: bool,
    /// No progress.
    #[arg(long)]
    quiet: bool,
}

impl Cli {
    /// Log level when nobody sets one: the demo has its own way to talk.
    pub(crate) fn default_log(&self) -> &'static str {
        match self.command {
            Command::Serve(_) | Command::Restore { .. } => "info",
            _ => "warn",
        }
    }

    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Serve(ConfigArgs { config }) => serve(Config::load(&config)?),
            Command::CheckConfig(ConfigArgs { config }) => {
                let file = ConfigFile::read(&config)?;
                Config::try_from(file.clone())?;
                // With every default, as it may stand in a file.
                print!("{}", toml::to_string(&file)?);
                Ok(ExitCode::SUCCESS)
            }
            Command::Check => {
                println!("{}", check::report());
                Ok(ExitCode::SUCCESS)
            }
            Command::Demo(args) => run_demo(*args),
            Command::Bench(args) => bench::run(&args),
            Command::Simulate(args) => simulate::run(&args),
            Command::Advise(args) => {
                advise::run(&args)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Status { socket } => {
                let snapshot = ecs_stats::read_snapshot(&socket, Duration::from_secs(5))?;
                print!("{}", check::status(&snapshot));
                Ok(ExitCode::SUCCESS)
            }
            Command::Stats { socket } => {
                let snapshot = ecs_stats::read_snapshot(&socket, Duration::from_secs(5))?;
                println!("{}", serde_json::to_string_pretty(&snapshot)?);
                Ok(ExitCode::SUCCESS)
            }
            Command::Restore { journal } => {
                let restored = ecs_sched::journal::restore(&journal)?;
                println!("{restored} threads put back");
                Ok(ExitCode::SUCCESS)
            }
            Command::Microvm { config } => {
                let config = serde_json::from_str(&config).context("Cannot read the VM's JSON")?;
                ecs_microvm::run(config)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Watchdog { daemon, journal } => {
                let pipe: OwnedFd = std::io::stdin()
                    .as_fd()
                    .try_clone_to_owned()
                    .context("Cannot take over standard input")?;
                ecs_sched::journal::watch(File::from(pipe), daemon, &journal)?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let stop = Arc::new(AtomicBool::new(false));
    let main = std::thread::current();
    let mut signals = signal_hook::iterator::Signals::new([
        signal_hook::consts::SIGTERM,
        signal_hook::consts::SIGINT,
    ])
    .context("Cannot listen to signals")?;
    let mut daemon = Daemon::start(config)?;
    std::thread::spawn({
        let stop = stop.clone();
        move || {
            if signals.forever().next().is_some() {
                stop.store(true, Ordering::Release);
                main.unpark();
            }
        }
    });
    tracing::info!("Serving");
    daemon.run(&stop);
    tracing::info!("Ending: putting every thread back");
    Ok(ExitCode::SUCCESS)
}

fn run_demo(args: DemoArgs) -> anyhow::Result<ExitCode> {
    if !(args.seconds > 0.0 && args.in_us >= 0.0 && args.out_us >= 0.0) {
        bail!("--seconds must be above 0, --in-us and --out-us at least 0");
    }
    let mut arms = args.arms;
    if args.holder_only {
        arms.insert(arms.len().saturating_sub(1), Arm::HolderOnly);
    }
    let options = DemoOptions {
        scenario: Scenario {
            vms: args.vms,
            vcpus: args.vcpus,
            workload: args.workload,
            in_us: args.in_us,
            out_us: args.out_us,
            read_pct: args.read_pct,
            seconds: args.seconds,
            runs: args.runs,
            kind: args.kind,
            weights: args.weights,
            unhinted: args.unhinted,
            pinning: args.pinning,
            core_scheduling: args.core_scheduling,
        },
        // Only eCS is compared with it.
        alone: arms.contains(&Arm::Ecs),
        arms,
        controller: match args.controller.as_str() {
            "scx" => ControllerChoice::Scx,
            _ => ControllerChoice::Userspace,
        },
        policy: toml::from_str(&args.policy.join("\n"))
            .with_context(|| format!("Cannot understand --policy {:?}", args.policy))?,
        pcpus: args.pcpus,
        mechanism: args.mechanism,
        record: args.record,
        json: args.json,
        html: args.html,
        keep: args.keep,
        quiet: args.quiet,
    };
    demo::run(&options)?;
    Ok(ExitCode::SUCCESS)
}
