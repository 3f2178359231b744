//! The arms of a comparison.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use ecs_microvm::Waiters;
use ecs_sched::sys::SchedAttr;

use crate::config::{ConfigFile, ControllerChoice};

/// How the host schedules the VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Arm {
    /// The host's own scheduler; vmm-ecs observes, and waiters halt as those of a stock guest.
    Stock,
    /// The same, and waiters that could halt poll instead, whoever wants the CPU.
    Poll,
    /// The same, and waiters poll or halt as the observing vmm-ecs tells them.
    Hints,
    /// The host's own scheduler with slices of 100 ms, the longest it takes.
    LongSlice,
    /// The host's own scheduler, vCPUs as `SCHED_BATCH`.
    Batch,
    /// vCPUs as `SCHED_RR`: the real-time class, up to its own limit of the CPU.
    RoundRobin,
    /// The controller rotates vCPUs, without extensions and queue rules.
    Rotate,
    /// The controller extends holders, without the queue rules.
    HolderOnly,
    /// All of eCS but that waiters halt.
    Halt,
    /// All of eCS.
    Ecs,
}

impl Arm {
    /// The arms of the demo, in order.
    pub(crate) const DEMO: [Self; 3] = [Self::Stock, Self::Rotate, Self::Ecs];

    /// Name for people.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Stock => "stock scheduler",
            Self::Poll => "stock, waiters poll",
            Self::Hints => "stock, waiters told",
            Self::LongSlice => "stock, slices of 100 ms",
            Self::Batch => "stock, SCHED_BATCH",
            Self::RoundRobin => "stock, SCHED_RR",
            Self::Rotate => "controller, no extensions",
            Self::HolderOnly => "extensions, no queue rules",
            Self::Halt => "eCS, waiters halt",
            Self::Ecs => "eCS",
        }
    }

    /// Turns a configuration into this arm's; `steering` is the controller of those that steer.
    pub(crate) fn apply(self, file: &mut ConfigFile, steering: ControllerChoice) {
        let (controller, extensions, queue_rules) = match self {
            Self::Stock
            | Self::Poll
            | Self::Hints
            | Self::LongSlice
            | Self::Batch
            | Self::RoundRobin => (ControllerChoice::Observe, false, false),
            Self::Rotate => (steering, false, false),
            Self::HolderOnly => (steering, true, false),
            Self::Halt | Self::Ecs => (steering, true, true),
        };
        file.host.controller = controller;
        file.policy.extensions = extensions;
        file.policy.queue_rules = queue_rules;
    }

    /// How its vCPU threads are scheduled where nobody steers them; None: as every other thread.
    pub(crate) fn threads(self) -> Option<SchedAttr> {
        match self {
            Self::LongSlice => Some(SchedAttr::long_slice(100_000_000)),
            Self::Batch => Some(SchedAttr::batch()),
            Self::RoundRobin => Some(SchedAttr::round_robin(1)),
            _ => None,
        }
    }

    /// How its VMs wait for locks that they could wait for asleep.
    pub(crate) fn waiters(self) -> Waiters {
        match self {
            Self::Stock | Self::LongSlice | Self::Batch | Self::RoundRobin | Self::Halt => {
                Waiters::Halt
            }
            Self::Poll => Waiters::Poll,
            Self::Hints | Self::Rotate | Self::HolderOnly | Self::Ecs => Waiters::Wise,
        }
    }
}
