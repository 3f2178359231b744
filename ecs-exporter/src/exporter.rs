//! One exposition from one look at the sources.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, Opts, Registry, TextEncoder};
use tracing::{info, warn};

use crate::catalogue::HTTP_REQUESTS;
use crate::collector::{Scope, ScrapeCollector, Setting};
use crate::config::{Config, VmFilter};
use crate::host::HostCollector;
use crate::negotiate::Format;
use crate::openmetrics;
use crate::reading::{Reading, Timed};

/// Level 1 costs a tenth of level 6 for 8 % more bytes.
const GZIP_LEVEL: u32 = 1;

/// Why there is no exposition.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// The sources could be read and have no such VM.
    #[error("No VM named {0:?}; the page at / lists the names")]
    NoSuchVm(String),
    /// The catalogue holds a name Prometheus does not allow.
    #[error("Cannot build the metrics; report this as a bug of ecs-exporter")]
    Build(#[from] prometheus::Error),
    /// The text could not be written.
    #[error("Cannot write the metrics; report this as a bug of ecs-exporter")]
    Encode(#[from] fmt::Error),
}

/// Makes expositions. What is not `async` here may block: call it off the event loop.
#[derive(Debug)]
pub struct Exporter {
    sources: RwLock<Arc<Sources>>,
    requests: IntCounterVec,
    /// Collectors whose last run failed; a change is logged, not each scrape.
    failing: Mutex<BTreeSet<&'static str>>,
    /// Whether the last reload succeeded, and the time of the last good one, s since the epoch.
    reload: Mutex<(bool, f64)>,
}

/// What is read, and what of it is told: all that a reload may change.
#[derive(Debug)]
struct Sources {
    stats: Option<(PathBuf, Duration)>,
    host: Option<Arc<HostCollector>>,
    vcpus: VmFilter,
    max_series: usize,
}

impl Sources {
    /// `before` lends its host collector if nothing about that has changed: its counts go on.
    fn new(config: &Config, before: Option<&Self>) -> Self {
        let host = config.host.as_ref().map(|wanted| {
            let same = before
                .and_then(|before| before.host.as_ref())
                .filter(|host| host.config() == wanted);
            same.map_or_else(|| Arc::new(HostCollector::new(wanted.clone())), Arc::clone)
        });
        Self {
            stats: config
                .stats
                .then(|| (config.stats_socket.clone(), config.stats_timeout)),
            host,
            vcpus: config.vcpus.clone(),
            max_series: config.limits.max_series,
        }
    }
}

impl Exporter {
    /// Reads what `config` names.
    ///
    /// # Errors
    /// [`ScrapeError::Build`].
    pub fn new(config: &Config) -> Result<Self, ScrapeError> {
        let opts = Opts::new(HTTP_REQUESTS.name, HTTP_REQUESTS.help);
        let requests = IntCounterVec::new(opts, HTTP_REQUESTS.labels)?;
        Ok(Self {
            sources: RwLock::new(Arc::new(Sources::new(config, None))),
            requests,
            failing: Mutex::default(),
            reload: Mutex::new((true, now())),
        })
    }

    /// Takes over another configuration's sources, `vcpus` and `max_series`; `Err` is a
    /// configuration that could not be read, which changes nothing but the gauge.
    pub fn reload<E>(&self, config: Result<&Config, E>) {
        let mut reload = self.reload.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(config) = config else {
            reload.0 = false;
            return;
        };
        let before = self.sources();
        let after = Arc::new(Sources::new(config, Some(&before)));
        *self.sources.write().unwrap_or_else(PoisonError::into_inner) = after;
        *reload = (true, now());
    }

    fn sources(&self) -> Arc<Sources> {
        Arc::clone(&self.sources.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The collector of the host's own VMs, if it is switched on.
    #[must_use]
    pub fn host(&self) -> Option<Arc<HostCollector>> {
        self.sources().host.clone()
    }

    /// Looks at every source once.
    #[must_use]
    pub fn read(&self) -> Reading {
        let sources = self.sources();
        let stats = sources.stats.as_ref();
        let host = sources.host.as_deref();
        let reading = Reading {
            stats: stats
                .map(|(path, timeout)| Timed::take(|| ecs_stats::read_snapshot(path, *timeout))),
            host: host.map(|host| Timed::take(|| host.read())),
            perf: host.and_then(|host| {
                let Timed { result, took } = Timed::take(|| host.perf());
                Some(Timed {
                    result: result?,
                    took,
                })
            }),
            hardware: host.and_then(HostCollector::hardware),
        };
        self.log_changes(&reading);
        reading
    }

    fn log_changes(&self, reading: &Reading) {
        let problems = reading.problems();
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        for (collector, problem) in &problems {
            if failing.insert(collector) {
                warn!(collector, problem, "A collector fails");
            }
        }
        failing.retain(|collector| {
            let fails = problems.iter().any(|(name, _)| name == collector);
            if !fails {
                info!(collector, "The collector works again");
            }
            fails
        });
    }

    /// The exposition of one reading, as text.
    ///
    /// # Errors
    /// See [`ScrapeError`]. A collector that failed is none.
    pub fn expose(
        &self,
        reading: Reading,
        scope: Scope,
        format: Format,
    ) -> Result<String, ScrapeError> {
        if let Scope::Vm(name) = &scope
            && reading.is_useful()
            && !reading.vms().iter().any(|vm| vm.name == name.as_str())
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
        if scope == Scope::Host {
            registry.register(Box::new(self.requests.clone()))?;
        }
        let sources = self.sources();
        let setting = Setting {
            vcpus: sources.vcpus.clone(),
            max_series: sources.max_series,
            reload: *self.reload.lock().unwrap_or_else(PoisonError::into_inner),
        };
        registry.register(Box::new(ScrapeCollector::new(reading, scope, setting)?))?;
        Ok(registry.gather())
    }

    /// Counts one HTTP request by route and status code.
    pub fn count_request(&self, handler: &str, code: u16) {
        self.requests
            .with_label_values(&[handler, &code.to_string()])
            .inc();
    }
}

/// Seconds since the epoch; 0 on a clock before it.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
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
