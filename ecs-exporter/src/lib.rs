//! Prometheus exporter for eCS: extensions, critical preemptions and fairness per VM.
//!
//! # Problem
//! The figures live in a privileged daemon that opens no network port; Prometheus scrapes over
//! HTTP, and VMs come and go between two scrapes.
//!
//! # Approach
//! Each scrape reads one snapshot from the stats socket on a thread that may block, and a custom
//! collector makes the metrics from it ([`Exporter`]). Every family comes from one table,
//! [`catalogue`], which docs/metrics.md is generated from. [`serve`] puts it on HTTP.
//!
//! # Invariants
//! - Nothing is kept between scrapes but the request counter: a VM that is gone leaves no series.
//! - While the daemon is away a scrape succeeds and says `ecs_up 0`.
//! - Names, types and labels are those of the catalogue; no two series have the same labels.
//! - A client that sends or reads slowly is dropped, and holds one of a bounded number of slots.
//!
//! # What it does not do
//! It needs no privilege but access to the stats socket. It computes no rates, averages or
//! percentiles, stores nothing, and offers neither TLS nor authentication: listen on loopback or
//! put a proxy before it.
#![forbid(unsafe_code)]

pub mod catalogue;
mod collector;
mod exporter;
mod http;
mod negotiate;
mod openmetrics;
mod page;
mod process;
mod server;

pub use collector::{Reading, Scope};
pub use exporter::{Exporter, ScrapeError, chain};
pub use negotiate::Format;
pub use server::{Config, Handle, Limits, ServeError, runtime, serve, spawn_in_thread};
