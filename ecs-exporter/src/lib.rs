//! Prometheus exporter for eCS: extensions, critical preemptions and fairness per VM.
//!
//! # Problem
//! The figures live in a privileged daemon that opens no network port, or nowhere at all: Cloud
//! Hypervisor tells nobody how long its vCPUs wait for a CPU. Prometheus scrapes over HTTP, and VMs
//! come and go between two scrapes.
//!
//! # Approach
//! Each scrape looks at every source once, on a thread that may block ([`Reading`]): the stats socket
//! of vmm-ecs, and the host itself, which needs no vmm-ecs ([`HostCollector`]). A custom collector
//! makes the metrics from it ([`Exporter`]). Every family comes from one table, [`catalogue`], which
//! docs/metrics.md is generated from. [`serve`] puts it on HTTP. People look at the same readings
//! with [`top`] and the live page ([`live`]).
//!
//! # Invariants
//! - A VM that is gone leaves no series; one that two sources see is one VM.
//! - A source that fails is told by its collector; the scrape succeeds with what the others know.
//! - Names, types and labels are those of the catalogue; no two series have the same labels.
//! - A client that sends or reads slowly is dropped, and holds one of a bounded number of places.
//! - A configuration that has become bad is told, and the last good one stays in force.
//!
//! # What it does not do
//! It computes no rates, averages or percentiles, stores nothing and changes nothing on the host. It
//! needs no privilege but access to the stats socket; context-switch records and performance
//! counters need CAP_PERFMON, and without it their collector says so.
#![forbid(unsafe_code)]

mod assets;
pub mod catalogue;
mod collector;
mod config;
mod connections;
mod exporter;
mod families;
mod file;
pub mod host;
mod http;
pub mod live;
pub mod mixin;
mod negotiate;
mod openmetrics;
mod page;
mod process;
mod reading;
mod server;
mod systemd;
pub mod top;
mod web;

pub use collector::Scope;
pub use config::{ApiConfig, Config, DEFAULT_PROCESS, HostConfig, Limits, VmFilter};
pub use exporter::{Exporter, ScrapeError, chain};
pub use file::{File, FileError};
pub use host::HostCollector;
pub use negotiate::Format;
pub use reading::{Reading, Timed, Vcpu, Vm};
pub use server::{Handle, Loader, ServeError, runtime, serve, spawn_in_thread};
pub use web::{WebError, check_web_config, hash_password};
