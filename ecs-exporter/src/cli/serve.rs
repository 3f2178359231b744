//! `serve`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use ecs_exporter::{Config, File, FileError, Loader};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::warn;

use super::source::SourceArgs;

#[derive(Debug, Clone, Args)]
pub(super) struct ServeArgs {
    /// IP address and port to listen on; repeatable; port 0 takes a free one.
    #[arg(
        long = "web.listen-address",
        visible_alias = "listen",
        value_name = "ADDR"
    )]
    listen: Vec<SocketAddr>,
    /// Listen on the sockets systemd passes.
    #[arg(long = "web.systemd-socket")]
    systemd_socket: bool,
    /// exporter-toolkit's web configuration file: TLS, client certificates, users.
    #[arg(long = "web.config.file", value_name = "PATH")]
    web_config: Option<PathBuf>,
    /// Read the configuration again on POST /-/reload, not only on SIGHUP.
    #[arg(long = "web.enable-lifecycle")]
    lifecycle: bool,
    #[command(flatten)]
    pub(super) source: SourceArgs,
}

impl ServeArgs {
    pub(super) fn file(&self) -> Result<File, FileError> {
        let mut file = self.source.file()?;
        if !self.listen.is_empty() {
            file.web.listen_addresses.clone_from(&self.listen);
        }
        if self.web_config.is_some() {
            file.web.config_file.clone_from(&self.web_config);
        }
        file.web.systemd_socket |= self.systemd_socket;
        file.web.enable_lifecycle |= self.lifecycle;
        Ok(file)
    }

    fn config(&self) -> Result<Config, FileError> {
        self.file()?.resolve(self.source.path())
    }
}

pub(super) fn run(args: ServeArgs) -> anyhow::Result<()> {
    let config = args.config()?;
    if let Err(error) = raise_descriptors() {
        warn!(%error, "Cannot raise the limit on file descriptors");
    }
    let loader: Loader = Arc::new(move || args.config());
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
        Ok(ecs_exporter::serve(config, loader, announce, stop).await?)
    })
}

/// A kept descriptor a vCPU thread: the usual soft limit of 1024 is soon reached.
fn raise_descriptors() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

/// One line an address, for whoever started us and has to find the port.
fn announce(addrs: &[SocketAddr]) {
    let lines: String = addrs
        .iter()
        .map(|addr| format!("listening on http://{addr}/metrics\n"))
        .collect();
    if let Err(error) = super::print(&lines) {
        warn!(%error, "Cannot announce the address");
    }
}
