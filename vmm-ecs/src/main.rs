//! `vmm-ecs`: gives vCPUs in critical sections a little extra time, and takes it back.
//!
//! This binary is wiring: the command line, the configuration, the daemon and the demo. What it
//! wires is in the crates beside it.

mod advise;
mod bench;
mod check;
mod cli;
mod config;
mod daemon;
mod demo;
mod markdown;
mod simulate;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("VMM_ECS_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(cli.default_log())),
        )
        .init();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("vmm-ecs: {error:#}");
            ExitCode::FAILURE
        }
    }
}
