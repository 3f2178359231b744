//! The configuration file: YAML as it is written, and what it means.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::config::{ApiConfig, Config, DEFAULT_PROCESS, HostConfig, Limits, VmFilter};

/// Why a configuration file is refused.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("Cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is no YAML, or has a field that is unknown or of another type.
    #[error("{path}: {problem}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        problem: String,
    },
    /// A value makes no sense.
    #[error("{path}: {field}: {problem}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Dotted name of the field.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// The file. Every field has a default; [`File::default`] is what runs without a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct File {
    /// How it is reached.
    pub web: Web,
    /// What it reads.
    pub collectors: Collectors,
    /// VMs whose per-vCPU families are at `/metrics`: a regular expression of whole names; none if
    /// empty.
    pub vcpus: String,
    /// Bounds.
    pub limits: LimitsSection,
}

macro_rules! section {
    ($(#[doc = $doc:literal])* $name:ident {
        $($(#[doc = $field_doc:literal])+ $(#[serde($($serde:tt)*)])? $field:ident: $type:ty = $default:expr,)*
    }) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $($(#[doc = $field_doc])+ $(#[serde($($serde)*)])? pub $field: $type,)*
        }
        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)* }
            }
        }
    };
}

section! {
    /// How the exporter is reached.
    Web {
        /// Addresses and ports.
        listen_addresses: Vec<SocketAddr> = Config::default().listen,
        /// Use the sockets systemd passes, not the addresses.
        systemd_socket: bool = false,
        /// exporter-toolkit's web configuration file: TLS and users.
        config_file: Option<PathBuf> = None,
        /// Serve `POST /-/reload`.
        enable_lifecycle: bool = false,
    }
}

/// What is read at a scrape.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Collectors {
    /// vmm-ecs.
    pub stats: StatsSection,
    /// Cloud Hypervisor processes in /proc.
    pub host: HostSection,
    /// Context-switch records; needs `host`.
    pub perf: PerfSection,
    /// Cycles and instructions; needs `host`.
    pub hardware: HardwareSection,
    /// The VMMs' APIs; needs `host`.
    pub api: ApiSection,
}

section! {
    /// The stats socket of vmm-ecs.
    StatsSection {
        /// Whether it is read.
        enabled: bool = true,
        /// Path.
        socket: PathBuf = ecs_stats::DEFAULT_SOCKET.into(),
        /// Time for one read.
        #[serde(with = "humantime_serde")]
        timeout: Duration = Config::default().stats_timeout,
    }
}

section! {
    /// Cloud Hypervisor processes in /proc.
    HostSection {
        /// Whether they are looked for.
        enabled: bool = true,
        /// Regular expression for their `comm`.
        process: String = DEFAULT_PROCESS.to_owned(),
        /// Where the host's /proc is mounted.
        procfs: PathBuf = HostConfig::default().proc,
    }
}

section! {
    /// Context-switch records of every CPU.
    PerfSection {
        /// Whether they are read.
        enabled: bool = true,
        /// How often the rings are emptied; a longer time loses records on a busy host.
        #[serde(with = "humantime_serde")]
        drain_interval: Duration = Duration::from_millis(200),
    }
}

section! {
    /// Performance counters of the CPU.
    HardwareSection {
        /// Whether they are used: two descriptors a vCPU, and the PMU is shared with guests.
        enabled: bool = false,
    }
}

section! {
    /// The VMMs' APIs.
    ApiSection {
        /// Whether they are asked.
        enabled: bool = true,
        /// Time between two rounds.
        #[serde(with = "humantime_serde")]
        interval: Duration = Duration::from_secs(60),
        /// Time for one VMM to answer.
        #[serde(with = "humantime_serde")]
        timeout: Duration = Duration::from_secs(1),
    }
}

section! {
    /// Bounds on what clients may hold and get.
    LimitsSection {
        /// Series of one scrape; 0: no limit.
        max_series: usize = Limits::default().max_series,
        /// Scrapes at a time.
        requests: usize = Limits::default().requests,
        /// Live views at a time; 0: none.
        live_views: usize = Limits::default().live_views,
        /// Connections at a time.
        connections: usize = Limits::default().connections,
        /// Time for a request header, and for which an idle connection is kept.
        #[serde(with = "humantime_serde")]
        header_timeout: Duration = Limits::default().header_timeout,
        /// Time for which a client may leave sent bytes unread.
        #[serde(with = "humantime_serde")]
        write_timeout: Duration = Limits::default().write_timeout,
        /// Time for running requests to end when the exporter stops.
        #[serde(with = "humantime_serde")]
        drain: Duration = Limits::default().drain,
    }
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// [`FileError::Read`] and [`FileError::Parse`].
    pub fn read(path: &Path) -> Result<Self, FileError> {
        let text = std::fs::read_to_string(path).map_err(|source| FileError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(path, &text)
    }

    /// Reads the text of the file at `path`; an empty one means the defaults.
    ///
    /// # Errors
    /// [`FileError::Parse`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, FileError> {
        parse_yaml(text).map_err(|problem| FileError::Parse {
            path: path.to_owned(),
            problem,
        })
    }

    /// The file as YAML.
    ///
    /// # Errors
    /// None in practice: plain values into memory.
    pub fn to_yaml(&self) -> Result<String, String> {
        serde_saphyr::to_string(self).map_err(|error| error.to_string())
    }

    /// What the file at `path` means.
    ///
    /// # Errors
    /// [`FileError::Value`].
    pub fn resolve(self, path: &Path) -> Result<Config, FileError> {
        let bad = |field, problem: String| FileError::Value {
            path: path.to_owned(),
            field,
            problem,
        };
        let Collectors {
            stats,
            host,
            perf,
            hardware,
            api,
        } = self.collectors;
        for (field, time) in [
            ("collectors.stats.timeout", stats.timeout),
            ("collectors.perf.drain_interval", perf.drain_interval),
            ("collectors.api.interval", api.interval),
            ("collectors.api.timeout", api.timeout),
            ("limits.header_timeout", self.limits.header_timeout),
            ("limits.write_timeout", self.limits.write_timeout),
        ] {
            if !(MIN_TIME..=MAX_TIME).contains(&time) {
                return Err(bad(field, format!("{time:?} is outside 1ms to 1h")));
            }
        }
        for (field, count) in [
            ("limits.requests", self.limits.requests),
            ("limits.connections", self.limits.connections),
        ] {
            if !(1..=MAX_COUNT).contains(&count) {
                return Err(bad(field, format!("{count} is outside 1 to {MAX_COUNT}")));
            }
        }
        if self.web.listen_addresses.is_empty() && !self.web.systemd_socket {
            return Err(bad("web.listen_addresses", "give at least one".to_owned()));
        }
        if !stats.enabled && !host.enabled {
            let problem = "stats and host are both off: there would be nothing to tell";
            return Err(bad("collectors", problem.to_owned()));
        }
        let process = Regex::new(&host.process)
            .map_err(|error| bad("collectors.host.process", last_line(&error)))?;
        let vcpus =
            VmFilter::matching(&self.vcpus).map_err(|error| bad("vcpus", last_line(&error)))?;
        Ok(Config {
            listen: self.web.listen_addresses,
            systemd_socket: self.web.systemd_socket,
            web_config: self.web.config_file,
            lifecycle: self.web.enable_lifecycle,
            stats: stats.enabled,
            stats_socket: stats.socket,
            stats_timeout: stats.timeout,
            host: host.enabled.then_some(HostConfig {
                proc: host.procfs,
                process,
                perf: perf.enabled.then_some(perf.drain_interval),
                hardware: hardware.enabled,
                api: api.enabled.then_some(ApiConfig {
                    interval: api.interval,
                    timeout: api.timeout,
                }),
            }),
            vcpus,
            limits: Limits {
                header_timeout: self.limits.header_timeout,
                write_timeout: self.limits.write_timeout,
                connections: self.limits.connections,
                requests: self.limits.requests,
                live_views: self.limits.live_views.min(MAX_COUNT),
                drain: self.limits.drain,
                max_series: self.limits.max_series,
            },
        })
    }
}

/// What is wrong with a regular expression; the lines before it draw a picture.
fn last_line(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().to_owned()
}

const MIN_TIME: Duration = Duration::from_millis(1);
const MAX_TIME: Duration = Duration::from_secs(3600);
const MAX_COUNT: usize = 1 << 20;

/// Parses YAML; the problem names line and column, and quotes nothing of the file: it may hold
/// secrets.
pub(crate) fn parse_yaml<T: serde::de::DeserializeOwned + Default>(
    text: &str,
) -> Result<T, String> {
    // An empty document is null, which is no structure.
    let holds_nothing = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    if text.lines().all(holds_nothing) {
        return Ok(T::default());
    }
    serde_saphyr::from_str(text).map_err(|error| {
        let place = error.location().map_or_else(String::new, |place| {
            format!("line {}, column {}: ", place.line(), place.column())
        });
        format!("{place}{}", error.without_snippet())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parse(text: &str) -> Result<File, String> {
        File::parse(Path::new("x.yaml"), text).map_err(|error| error.to_string())
    }

    fn resolve(text: &str) -> Result<Config, String> {
        let path = Path::new("x.yaml");
        parse(text)?
            .resolve(path)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        for text in ["", "\n", "# nothing\n", "{}"] {
            assert_eq!(parse(text).unwrap(), File::default(), "{text:?}");
        }
        let config = resolve("").unwrap();
        assert!(config.stats && config.host.is_some());
    }

    #[test]
    fn the_defaults_survive_being_written() {
        let text = File::default().to_yaml().unwrap();
        assert_eq!(parse(&text).unwrap(), File::default(), "{text}");
    }

    #[test]
    fn unknown_fields_are_refused_with_their_line() {
        for (text, line, name) in [
            ("vcpus: a\nvcpu: b\n", "line 2", "vcpu"),
            ("limits:\n  max_serie: 1\n", "line 2", "max_serie"),
            (
                "collectors:\n  perf:\n\n    enable: true\n",
                "line 4",
                "enable",
            ),
            ("vcpus: [\n", "line", ""),
            ("limits:\n  requests: many\n", "line 2", ""),
            ("collectors:\n  stats:\n    timeout: 5\n", "line 3", ""),
        ] {
            let error = parse(text).unwrap_err();
            assert!(
                error.contains(line) && error.contains(name),
                "{text}: {error}"
            );
            assert!(error.starts_with("x.yaml: "), "{error}");
        }
    }

    #[test]
    fn values_that_make_no_sense_are_refused_with_their_name() {
        for (text, field) in [
            ("vcpus: '('", "vcpus"),
            ("limits: {requests: 0}", "limits.requests"),
            ("limits: {header_timeout: 0s}", "limits.header_timeout"),
            ("web: {listen_addresses: []}", "web.listen_addresses"),
            (
                "collectors: {host: {process: '['}}",
                "collectors.host.process",
            ),
            (
                "collectors: {stats: {enabled: false}, host: {enabled: false}}",
                "collectors",
            ),
        ] {
            let error = resolve(text).unwrap_err();
            assert!(error.contains(&format!(": {field}: ")), "{text}: {error}");
        }
    }
}
