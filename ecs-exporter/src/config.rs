//! What the exporter listens on, reads and allows: valid by construction.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use regex::Regex;

/// The whole configuration of a running exporter.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses to listen on; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Listen on the sockets that systemd passed instead.
    pub systemd_socket: bool,
    /// exporter-toolkit's web configuration: TLS and users.
    pub web_config: Option<PathBuf>,
    /// Whether `POST /-/reload` is served.
    pub lifecycle: bool,
    /// Whether the stats socket is read at all.
    pub stats: bool,
    /// Stats socket of vmm-ecs.
    pub stats_socket: PathBuf,
    /// Time one read of the stats socket may take; below Prometheus' scrape timeout of 10 s.
    pub stats_timeout: Duration,
    /// What to read of the host itself.
    pub host: Option<HostConfig>,
    /// VMs whose per-vCPU families are at `/metrics`.
    pub vcpus: VmFilter,
    /// Bounds on the clients and on what they get.
    pub limits: Limits,
}

impl Default for Config {
    /// The stats socket alone, on the loopback.
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 9752))],
            systemd_socket: false,
            web_config: None,
            lifecycle: false,
            stats: true,
            stats_socket: ecs_stats::DEFAULT_SOCKET.into(),
            stats_timeout: Duration::from_secs(5),
            host: None,
            vcpus: VmFilter::None,
            limits: Limits::default(),
        }
    }
}

/// What to read of the host, with no help from vmm-ecs.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Where /proc is mounted.
    pub proc: PathBuf,
    /// Names (`comm`, at most 15 bytes) of processes that are VMs.
    pub process: Regex,
    /// Context-switch records: how often the rings are emptied.
    pub perf: Option<Duration>,
    /// Cycles and instructions, two descriptors a vCPU.
    pub hardware: bool,
    /// The VMMs' own API.
    pub api: Option<ApiConfig>,
}

impl Default for HostConfig {
    /// /proc alone.
    #[allow(clippy::expect_used, reason = "a constant")]
    fn default() -> Self {
        Self {
            proc: "/proc".into(),
            process: Regex::new(DEFAULT_PROCESS).expect("a regular expression"),
            perf: None,
            hardware: false,
            api: None,
        }
    }
}

impl PartialEq for HostConfig {
    fn eq(&self, other: &Self) -> bool {
        let rest = |it: &Self| (it.proc.clone(), it.perf, it.hardware, it.api);
        self.process.as_str() == other.process.as_str() && rest(self) == rest(other)
    }
}

/// `comm` of Cloud Hypervisor: the kernel keeps 15 bytes.
pub const DEFAULT_PROCESS: &str = "^cloud-hyperviso$";

/// How VMMs are asked over their API sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApiConfig {
    /// Time between two rounds.
    pub interval: Duration,
    /// Time for one VMM to answer.
    pub timeout: Duration,
}

/// Which VMs, by name.
#[derive(Debug, Clone, Default)]
pub enum VmFilter {
    /// None.
    #[default]
    None,
    /// Those whose whole name matches.
    Matching(Regex),
}

impl VmFilter {
    /// Every VM.
    #[must_use]
    #[allow(clippy::expect_used, reason = "a constant")]
    pub fn all() -> Self {
        Self::matching("(?s).*").expect("a regular expression")
    }

    /// VMs whose whole name matches `pattern`, as Prometheus anchors its matchers; an empty pattern
    /// means none.
    ///
    /// # Errors
    /// If it is no regular expression.
    pub fn matching(pattern: &str) -> Result<Self, regex::Error> {
        if pattern.is_empty() {
            return Ok(Self::None);
        }
        Regex::new(&format!("^(?:{pattern})$")).map(Self::Matching)
    }

    /// Whether the VM is one of them.
    #[must_use]
    pub fn has(&self, vm: &str) -> bool {
        match self {
            Self::None => false,
            Self::Matching(regex) => regex.is_match(vm),
        }
    }
}

/// Bounds on what clients may hold and get.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Time for a whole request header, and for which an idle connection is kept.
    pub header_timeout: Duration,
    /// Time for which a client may leave sent bytes unread, and for a TLS handshake.
    pub write_timeout: Duration,
    /// Connections at a time over all listeners. One more ends the one that has been idle for
    /// longest; while none is idle, it waits to be accepted.
    pub connections: usize,
    /// Scrapes at a time; one more is answered with 503.
    pub requests: usize,
    /// Live views at a time; one more is answered with 503.
    pub live_views: usize,
    /// Time for running requests to end when the exporter stops.
    pub drain: Duration,
    /// Series of one scrape; whole VMs are left out beyond it. 0: no limit.
    pub max_series: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Off the usual scrape intervals, so that a connection is not closed just as it is used.
            header_timeout: Duration::from_secs(25),
            write_timeout: Duration::from_secs(10),
            connections: 256,
            requests: 40,
            live_views: 16,
            drain: Duration::from_secs(5),
            max_series: 200_000,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn filters_match_whole_names() {
        let filter = VmFilter::matching("web|db.*").unwrap();
        for (name, wanted) in [
            ("web", true),
            ("db7", true),
            ("web1", false),
            ("a web", false),
        ] {
            assert_eq!(filter.has(name), wanted, "{name}");
        }
        assert!(VmFilter::all().has("a\nb") && VmFilter::all().has(""));
        assert!(!VmFilter::matching("").unwrap().has(""));
        assert!(VmFilter::matching("(").is_err());
    }
}
