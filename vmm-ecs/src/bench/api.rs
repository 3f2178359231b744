//! What the guest's six calls cost, by the crate that Rust guests use.

use std::hint::black_box;
use std::time::Instant;

use ecs_guest::{Doorbell, OffsetMap, Vcpu, VcpuLines};
use serde::{Deserialize, Serialize};

/// Calls in a row whose time is taken, and how often.
const CALLS: u32 = 1_000_000;
const TIMES: usize = 11;

/// Nobody waits here, so nobody is rung for.
struct Silent;

impl Doorbell for Silent {
    fn ring(&self) {}
}

/// Cost of one call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct CallCost {
    /// The call, or a pair of calls.
    pub(super) call: String,
    /// Time, ns, median of several series.
    pub(super) ns: f64,
}

/// Measures the calls of a vCPU that nobody waits for.
pub(super) fn measure() -> Vec<CallCost> {
    let lines = [VcpuLines::default(), VcpuLines::default()];
    let Some(vcpu) = Vcpu::new(0, &lines, Silent, OffsetMap(0), 1) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let mut time = |call: &str, one: &dyn Fn()| {
        let series: Vec<f64> = (0..TIMES)
            .map(|_| {
                let start = Instant::now();
                for _ in 0..CALLS {
                    one();
                }
                start.elapsed().as_nanos() as f64 / f64::from(CALLS)
            })
            .collect();
        found.push(CallCost {
            call: call.to_owned(),
            ns: crate::demo::median(&series),
        });
    };
    time("(an empty call, included in the others)", &|| {
        black_box(&vcpu);
    });
    time("activate and deactivate_non_preemptable_ecs", &|| {
        black_box(&vcpu).activate_non_preemptable_ecs();
        black_box(&vcpu).deactivate_non_preemptable_ecs();
    });
    time("activate and deactivate_preemptable_ecs", &|| {
        black_box(&vcpu).activate_preemptable_ecs();
        black_box(&vcpu).deactivate_preemptable_ecs();
    });
    time("is_vcpu_preempted", &|| {
        black_box(black_box(&vcpu).is_vcpu_preempted(1));
    });
    time("is_pcpu_overloaded", &|| {
        black_box(black_box(&vcpu).is_pcpu_overloaded(1));
    });
    found
}
