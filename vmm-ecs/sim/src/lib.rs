//! Deterministic simulator of over-committed hosts, over the real policy.
//!
//! # Problem
//! What eCS gives on eighty cores, at eightfold over-commit or with another slice cannot be measured on
//! the machines at hand; and a figure that differs from run to run cannot guard a policy.
//!
//! # Approach
//! A scenario file ([`Scenario`]) names a host, VMs and their workloads. [`run`] plays it, event by
//! event in integer nanoseconds, under one [`Arm`]: a stock-like weighted fair scheduler, or the
//! controller of `ecs-sched` on [`ecs_policy`] itself, which decides, picks and keeps the books exactly
//! as in the daemon. Guests take the locks of `ecs-guest` in the workloads of `ecs-microvm`. What comes
//! out is a [`Report`]. docs/simulation.md says what is modelled, what is not, and how far it is from
//! measured runs.
//!
//! ```text
//! scenario.toml ─▶ scenario ─▶ world (clock, CPUs, vCPUs) ◀─▶ guest: locks, sections
//!                                ▲ stock: ticks │ ecs: looks, ecs-policy
//!                                ▼
//!                              report
//! ```
//!
//! # Invariants
//! - Same scenario, arm and seed: the same report, byte for byte, on every machine.
//! - CPU time of the VMs, host time and idle time add up to CPUs x duration, to the nanosecond.
//! - No clock, no files, no threads.
//!
//! # What it does not do
//! Caches, memory, frequency, SMT and devices have no model. Costs of switching are constants of the
//! scenario, not results.
#![forbid(unsafe_code)]

mod clock;
mod ecs;
mod examples;
mod fair;
mod fleet;
mod guest;
mod histogram;
mod ids;
mod observed;
mod report;
mod rng;
mod scenario;
mod stock;
mod view;
mod world;

pub use examples::EXAMPLES;
pub use fleet::{Fleet, FleetError};
pub use observed::Observed;
pub use report::{Critical, Handoff, Policy, Report, VmReport};
pub use scenario::{
    Arm, Guest, HostSection, Kind, Point, PolicySection, Scenario, ScenarioError, StockSection,
    VmSection, Workload, points,
};

use world::World;

/// Runs a scenario under one arm, once.
///
/// # Errors
/// The first value of the scenario that is out of its range.
pub fn run(scenario: &Scenario, arm: Arm, seed: u64) -> Result<Report, ScenarioError> {
    let mut world = World::build(scenario, arm, seed)?;
    let warmup_ns = scenario.warmup_ms * 1_000_000;
    world.start();
    world.run_until(warmup_ns);
    let before = world.baseline();
    world.run_until(warmup_ns + scenario.duration_ms * 1_000_000);
    Ok(world.report(seed, &before))
}
