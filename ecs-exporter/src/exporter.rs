//! One exposition from one read of the stats socket.

use std::error::Error;
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ecs_stats::StatsError;
use flate2::Compression;
use flate2::write::GzEncoder;
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, Opts, Registry, TextEncoder};
use tracing::{info, warn};

use crate::catalogue::HTTP_REQUESTS;
use crate::collector::{Reading, Scope, ScrapeCollector};
use crate::negotiate::Format;
use crate::openmetrics;

/// Level 1 costs a tenth of level 6 for 8 % more bytes.
const GZIP_LEVEL: u32 = 1;

/// Why there is no exposition.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// The daemon answered and has no such VM.
    #[error("No VM named {0:?}; the page at / lists the names")]
    NoSuchVm(String),
    /// The catalogue holds a name Prometheus does not allow.
    #[error("Cannot build the metrics; report this as a bug of ecs-exporter")]
    Build(#[from] prometheus::Error),
    /// The text could not be written.
    #[error("Cannot write the metrics; report this as a bug of ecs-exporter")]
    Encode(#[from] fmt::Error),
}

/// Makes expositions. Everything here may block: call it off the event loop.
#[derive(Debug)]
pub struct Exporter {
    stats_socket: PathBuf,
    timeout: Duration,
    vcpus: bool,
    requests: IntCounterVec,
    /// The last read failed; a change is logged, not each scrape.
    down: AtomicBool,
}

impl Exporter {
    /// Reads `stats_socket`, each time for at most about `timeout`; `vcpus` adds the per-vCPU
    /// families to the host's exposition.
    ///
    /// # Errors
    /// [`ScrapeError::Build`].
    pub fn new(stats_socket: PathBuf, timeout: Duration, vcpus: bool) -> Result<Self, ScrapeError> {
        let opts = Opts::new(HTTP_REQUESTS.name, HTTP_REQUESTS.help);
        let requests = IntCounterVec::new(opts, HTTP_REQUESTS.labels)?;
        Ok(Self {
            stats_socket,
            timeout,
            vcpus,
            requests,
            down: AtomicBool::new(false),
        })
    }

    /// The scope of `/metrics`.
    #[must_use]
    pub fn host_scope(&self) -> Scope {
        Scope::Host { vcpus: self.vcpus }
    }

    /// Reads the stats socket once.
    #[must_use]
    pub fn read(&self) -> Reading {
        let reading = Reading::take(&self.stats_socket, self.timeout);
        match &reading.result {
            Ok(snapshot) => {
                if self.down.swap(false, Ordering::Relaxed) {
                    info!(
                        vms = snapshot.vms.len(),
                        "The stats socket can be read again"
                    );
                }
            }
            Err(error) => {
                if !self.down.swap(true, Ordering::Relaxed) {
                    warn!(
                        error = chain(error),
                        "The stats socket cannot be read: ecs_up is 0"
                    );
                }
            }
        }
        reading
    }

    /// The exposition of one reading, as text.
    ///
    /// # Errors
    /// See [`ScrapeError`]. A reading that failed is none: it yields `ecs_up 0`.
    pub fn expose(
        &self,
        reading: Reading,
        scope: Scope,
        format: Format,
    ) -> Result<String, ScrapeError> {
        if let Scope::Vm(name) = &scope
            && reading.lacks_vm(name)
        {
            return Err(ScrapeError::NoSuchVm(name.clone()));
        }
        let families = self.gather(reading, scope)?;
        match format {
            Format::Text => Ok(TextEncoder::new().encode_to_string(&families)?),
            Format::OpenMetrics => Ok(openmetrics::encode(&families)?),
        }
    }

    fn gather(&self, reading: Reading, scope: Scope) -> Result<Vec<MetricFamily>, ScrapeError> {
        let registry = Registry::new();
        if matches!(scope, Scope::Host { .. }) {
            registry.register(Box::new(self.requests.clone()))?;
        }
        registry.register(Box::new(ScrapeCollector::new(reading, scope)?))?;
        let mut families = registry.gather();
        // Two VMs of one name would make the whole scrape invalid. Series are sorted by now.
        for family in &mut families {
            family
                .mut_metric()
                .dedup_by(|a, b| a.get_label() == b.get_label());
        }
        Ok(families)
    }

    /// Reads the stats socket and throws the snapshot away.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn check(&self) -> Result<(), StatsError> {
        self.read().result.map(drop)
    }

    /// Counts one HTTP request by route and status code.
    pub fn count_request(&self, handler: &str, code: u16) {
        self.requests
            .with_label_values(&[handler, &code.to_string()])
            .inc();
    }
}

/// Compresses a body.
///
/// # Errors
/// None in practice: the target is memory.
pub(crate) fn gzip(body: &str) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::new(GZIP_LEVEL));
    encoder.write_all(body.as_bytes())?;
    encoder.finish()
}

/// An error and its sources in one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}
