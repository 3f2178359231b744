//! The configuration file and the flags that go before it.

use std::path::{Path, PathBuf};

use clap::Args;
use ecs_exporter::{Config, File, FileError};

#[derive(Debug, Clone, Args)]
pub(super) struct SourceArgs {
    /// Configuration file (YAML); without one the defaults are used.
    #[arg(long = "config.file", value_name = "PATH")]
    pub(super) config_file: Option<PathBuf>,
    /// Stats socket of vmm-ecs.
    #[arg(
        long = "stats.socket",
        visible_alias = "stats-socket",
        value_name = "PATH"
    )]
    stats_socket: Option<PathBuf>,
    /// VMs whose per-vCPU families are at /metrics: a regular expression of whole names.
    #[arg(long, value_name = "REGEX")]
    vcpus: Option<String>,
    /// Do not look for VMs in /proc.
    #[arg(long = "no-collector.host")]
    no_host: bool,
    /// Do not read context-switch records.
    #[arg(long = "no-collector.perf")]
    no_perf: bool,
}

impl SourceArgs {
    /// The file, with what flags say in place of what it says.
    pub(super) fn file(&self) -> Result<File, FileError> {
        let mut file = match &self.config_file {
            Some(path) => File::read(path)?,
            None => File::default(),
        };
        if let Some(socket) = &self.stats_socket {
            file.collectors.stats.socket.clone_from(socket);
        }
        if let Some(vcpus) = &self.vcpus {
            file.vcpus.clone_from(vcpus);
        }
        file.collectors.host.enabled &= !self.no_host;
        file.collectors.perf.enabled &= !self.no_perf;
        Ok(file)
    }

    /// Name of the file in messages.
    pub(super) fn path(&self) -> &Path {
        let flags = Path::new("command line");
        self.config_file.as_deref().unwrap_or(flags)
    }

    pub(super) fn config(&self) -> Result<Config, FileError> {
        self.file()?.resolve(self.path())
    }
}
