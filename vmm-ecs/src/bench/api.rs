//! What the guest's six calls cost, by the crate that Rust guests use.
//!
//! Time is measured here; instructions are counted by valgrind, where it is installed, in a process of
//! their own that makes one call many times.

use std::hint::black_box;
use std::process::Command;
use std::time::Instant;

use clap::ValueEnum;
use ecs_guest::{Doorbell, OffsetMap, Vcpu, VcpuLines};
use serde::{Deserialize, Serialize};

/// Calls in a row whose time is taken, and how often.
const CALLS: u32 = 1_000_000;
const TIMES: usize = 11;

/// Calls whose instructions are counted: what a process costs besides is in both counts.
const FEW: u32 = 1000;
const MANY: u32 = 11_000;

/// Nobody waits here, so nobody is rung for.
#[derive(Debug)]
struct Silent;

impl Doorbell for Silent {
    fn ring(&self) {}
}

/// A call of the guest's interface, or a pair of calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Call {
    Empty,
    NonPreemptable,
    Preemptable,
    Preempted,
    Overloaded,
}

impl Call {
    fn name(self) -> &'static str {
        match self {
            Self::Empty => "(an empty call, included in the others)",
            Self::NonPreemptable => "activate and deactivate_non_preemptable_ecs",
            Self::Preemptable => "activate and deactivate_preemptable_ecs",
            Self::Preempted => "is_vcpu_preempted",
            Self::Overloaded => "is_pcpu_overloaded",
        }
    }

    /// Makes the call `times` in a row, for a vCPU that nobody waits for; returns the time, ns.
    pub(super) fn repeat(self, times: u32) -> f64 {
        let lines = [VcpuLines::default(), VcpuLines::default()];
        let Some(vcpu) = Vcpu::new(0, &lines, Silent, OffsetMap(0), 1) else {
            return 0.0;
        };
        // The loop is in each, so that nothing but the call is between two turns of it.
        match self {
            Self::Empty => time(times, || {
                black_box(&vcpu);
            }),
            Self::NonPreemptable => time(times, || {
                black_box(&vcpu).activate_non_preemptable_ecs();
                black_box(&vcpu).deactivate_non_preemptable_ecs();
            }),
            Self::Preemptable => time(times, || {
                black_box(&vcpu).activate_preemptable_ecs();
                black_box(&vcpu).deactivate_preemptable_ecs();
            }),
            Self::Preempted => time(times, || {
                black_box(black_box(&vcpu).is_vcpu_preempted(1));
            }),
            Self::Overloaded => time(times, || {
                black_box(black_box(&vcpu).is_pcpu_overloaded(1));
            }),
        }
    }
}

fn time(times: u32, one: impl Fn()) -> f64 {
    let start = Instant::now();
    for _ in 0..times {
        one();
    }
    start.elapsed().as_nanos() as f64
}

/// Cost of one call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct CallCost {
    /// The call, or a pair of calls.
    pub(super) call: String,
    /// Time, ns, median of several series.
    pub(super) ns: f64,
    /// Instructions, where they could be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) instructions: Option<f64>,
}

/// Measures the calls.
pub(super) fn measure() -> Vec<CallCost> {
    let cost = |&call: &Call| {
        let series: Vec<f64> = (0..TIMES)
            .map(|_| call.repeat(CALLS) / f64::from(CALLS))
            .collect();
        CallCost {
            call: call.name().to_owned(),
            ns: crate::demo::median(&series),
            instructions: instructions(call),
        }
    };
    Call::value_variants().iter().map(cost).collect()
}

/// Instructions of one call; `None` without valgrind.
fn instructions(call: Call) -> Option<f64> {
    let more = count(call, MANY)?.checked_sub(count(call, FEW)?)?;
    Some(more as f64 / f64::from(MANY - FEW))
}

/// Instructions of a process that makes a call `times`.
fn count(call: Call, times: u32) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().ok()?)
        .args(["bench", "--call", call.to_possible_value()?.get_name()])
        .args(["--times", &times.to_string()])
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let (_, counted) = said.split_once("Collected :")?;
    counted.split_whitespace().next()?.parse().ok()
}
