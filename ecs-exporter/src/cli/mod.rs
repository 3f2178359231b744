//! The commands. Flags are named as in the Prometheus family.

mod check;
mod health;
mod serve;
mod source;
mod top;

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use ecs_exporter::{Exporter, Format, Scope, mixin};
use tracing_subscriber::EnvFilter;

use serve::ServeArgs;
use source::SourceArgs;

/// Prometheus exporter for eCS: extensions, critical preemptions and fairness per VM.
#[derive(Debug, Parser)]
#[command(name = "ecs-exporter", version)]
struct Cli {
    /// What to log: error, warn, info, debug, or a tracing filter as target=level,...
    #[arg(
        long = "log.level",
        alias = "log",
        global = true,
        default_value = "info",
        value_name = "FILTER"
    )]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve metrics over HTTP until SIGTERM or SIGINT.
    Serve(ServeArgs),
    /// Check the configuration file and the web configuration, and print what they mean.
    CheckConfig(ServeArgs),
    /// Say what each collector finds on this host, and what it lacks.
    CheckHost {
        #[command(flatten)]
        source: SourceArgs,
    },
    /// Print the metrics once; the exit status is 1 if no VM's figures can be read.
    Scrape {
        /// Only this VM, with its vCPUs.
        #[arg(long, value_name = "NAME")]
        vm: Option<String>,
        /// Print OpenMetrics instead of the Prometheus text format.
        #[arg(long)]
        openmetrics: bool,
        #[command(flatten)]
        source: SourceArgs,
    },
    /// Show the VMs as top does, or as text with -b.
    Top(top::TopArgs),
    /// Print the catalogue of metrics as Markdown.
    MetricsDoc,
    /// Write the Grafana dashboards.
    Dashboards(MixinArgs),
    /// Write the recording rules and alerts.
    Rules(MixinArgs),
    /// Ask a running exporter whether it is healthy; the exit status tells. Plain HTTP only.
    Healthcheck {
        /// Address of the exporter.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9752")]
        address: SocketAddr,
        /// Ask whether it has anything to tell, too.
        #[arg(long)]
        ready: bool,
    },
    /// Read a password, and print its hash for basic_auth_users of the web configuration.
    HashPassword,
    /// Print a completion script.
    Completions {
        /// Shell to complete in.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
}

#[derive(Debug, clap::Args)]
struct MixinArgs {
    /// Folder to write to.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// YAML with other thresholds than the defaults.
    #[arg(long, value_name = "FILE")]
    thresholds: Option<PathBuf>,
}

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let log = match &cli.command {
        // It would write over the screen, which tells of problems itself.
        Command::Top(args) if !args.batch => "off",
        _ => &cli.log,
    };
    let filter = EnvFilter::try_new(log)
        .with_context(|| format!("--log.level {log:?} is no tracing filter; try info"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();
    match cli.command {
        Command::Serve(args) => serve::run(args)?,
        Command::CheckConfig(args) => print(&check::config(&args)?)?,
        Command::CheckHost { source } => print(&check::host(&source)?)?,
        Command::Scrape {
            vm,
            openmetrics,
            source,
        } => return scrape(vm, openmetrics, &source),
        Command::Top(args) => top::run(&args)?,
        Command::MetricsDoc => print(&ecs_exporter::catalogue::markdown())?,
        Command::Dashboards(args) => write_mixin(|name| !name.starts_with("rules/"), &args)?,
        Command::Rules(args) => write_mixin(|name| name.starts_with("rules/"), &args)?,
        Command::Healthcheck { address, ready } => print(&health::check(address, ready)?)?,
        Command::HashPassword => hash_password()?,
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "ecs-exporter",
                &mut io::stdout(),
            );
        }
        Command::Man => {
            let man = clap_mangen::Man::new(Cli::command());
            let mut page = Vec::new();
            man.render(&mut page).context("Cannot make the page")?;
            print(&String::from_utf8(page).context("Cannot make the page")?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn scrape(vm: Option<String>, openmetrics: bool, source: &SourceArgs) -> anyhow::Result<ExitCode> {
    let exporter = Exporter::new(&source.config()?)?;
    let scope = vm.map_or(Scope::Host, Scope::Vm);
    let format = if openmetrics {
        Format::OpenMetrics
    } else {
        Format::Text
    };
    if let Some(host) = exporter.host() {
        // What fails is told by the reading below.
        let _ = ecs_exporter::runtime()?.block_on(host.refresh_api());
    }
    let reading = exporter.read();
    let useful = reading.is_useful();
    print(&exporter.expose(reading, scope, format)?)?;
    // The reasons have been logged.
    Ok(if useful {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn write_mixin(wanted: fn(&str) -> bool, args: &MixinArgs) -> anyhow::Result<()> {
    let files = match &args.thresholds {
        Some(path) => mixin::files_with(&thresholds(path)?),
        None => mixin::files(),
    };
    for (name, text) in files.iter().filter(|(name, _)| wanted(name)) {
        let path = args.out.join(name);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("Cannot create {}", folder.display()))?;
        }
        std::fs::write(&path, text).with_context(|| format!("Cannot write {}", path.display()))?;
        print(&format!("{}\n", path.display()))?;
    }
    Ok(())
}

fn thresholds(path: &Path) -> anyhow::Result<mixin::Thresholds> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("Cannot read {}", path.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("Cannot use {}", path.display()))
}

fn hash_password() -> anyhow::Result<()> {
    let password = if io::stdin().is_terminal() {
        rpassword::prompt_password("Password: ").context("Cannot read the password")?
    } else {
        let mut line = String::new();
        io::stdin()
            .read_line(&mut line)
            .context("Cannot read the password")?;
        line.trim_end_matches(['\r', '\n']).to_owned()
    };
    anyhow::ensure!(!password.is_empty(), "The password is empty");
    let hash = ecs_exporter::hash_password(&password).context("Cannot hash the password")?;
    print(&format!("{hash}\n"))
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("Cannot write to stdout")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
