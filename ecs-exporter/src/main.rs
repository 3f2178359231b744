//! Command line of the exporter.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use ecs_exporter::{Config, Exporter, Format, Reading, Scope, chain};
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;
use tracing_subscriber::EnvFilter;

/// Prometheus exporter for eCS: extensions, critical preemptions and fairness per VM.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// What to log, as a tracing filter: error, warn, info, debug, or target=level,...
    #[arg(long, global = true, default_value = "info", value_name = "FILTER")]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve metrics over HTTP until SIGTERM or SIGINT.
    Serve {
        /// IP address and port to listen on; repeatable; port 0 takes a free one.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9752")]
        listen: Vec<SocketAddr>,
        #[command(flatten)]
        source: Source,
    },
    /// Print the metrics once; the exit status is 1 if the stats socket cannot be read.
    Scrape {
        /// Only this VM, with its vCPUs.
        #[arg(long, value_name = "NAME")]
        vm: Option<String>,
        /// Print OpenMetrics instead of the Prometheus text format.
        #[arg(long)]
        openmetrics: bool,
        #[command(flatten)]
        source: Source,
    },
    /// Print the catalogue of metrics as Markdown.
    MetricsDoc,
}

#[derive(Debug, Args)]
struct Source {
    /// Stats socket of vmm-ecs.
    #[arg(long, value_name = "PATH", default_value = ecs_stats::DEFAULT_SOCKET)]
    stats_socket: PathBuf,
    /// Add the per-vCPU families to /metrics.
    #[arg(long)]
    vcpu_metrics: bool,
}

impl Source {
    fn config(self) -> Config {
        Config {
            stats_socket: self.stats_socket,
            vcpu_metrics: self.vcpu_metrics,
            ..Config::default()
        }
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let filter = EnvFilter::try_new(&cli.log)
        .with_context(|| format!("--log {:?} is not a tracing filter; try info", cli.log))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
    match cli.command {
        Command::Serve { listen, source } => serve(Config {
            listen,
            ..source.config()
        }),
        Command::Scrape {
            vm,
            openmetrics,
            source,
        } => scrape(vm, openmetrics, source.config()),
        Command::MetricsDoc => print(&ecs_exporter::catalogue::markdown()),
    }
}

fn serve(config: Config) -> anyhow::Result<()> {
    ecs_exporter::runtime()?.block_on(async {
        // Before the address is announced: from then on a signal means an orderly stop.
        let mut terminate = signal(SignalKind::terminate()).context("Cannot handle SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("Cannot handle SIGINT")?;
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        Ok(ecs_exporter::serve(config, announce, stop).await?)
    })
}

/// One line an address, for whoever started us and has to find the port.
fn announce(addrs: &[SocketAddr]) {
    let lines: String = addrs
        .iter()
        .map(|addr| format!("listening on http://{addr}/metrics\n"))
        .collect();
    if let Err(error) = print(&lines) {
        warn!(%error, "Cannot announce the address");
    }
}

fn scrape(vm: Option<String>, openmetrics: bool, config: Config) -> anyhow::Result<()> {
    let exporter = Exporter::new(
        config.stats_socket.clone(),
        config.stats_timeout,
        config.vcpu_metrics,
    )?;
    let scope = vm.map_or_else(|| exporter.host_scope(), Scope::Vm);
    let format = if openmetrics {
        Format::OpenMetrics
    } else {
        Format::Text
    };
    let reading = Reading::take(&config.stats_socket, config.stats_timeout);
    let problem = reading.result.as_ref().err().map(|error| chain(error));
    print(&exporter.expose(reading, scope, format)?)?;
    problem.map_or(Ok(()), |problem| Err(anyhow::anyhow!(problem)))
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("Cannot write to stdout")
}
