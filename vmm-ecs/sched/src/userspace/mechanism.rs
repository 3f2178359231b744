//! How the controller makes the kernel run the vCPU it chose: scheduling classes as levers.
//!
//! Measured against each other in docs/adr/0003-steering-mechanism.md.

use std::io;

use crate::sys::{SchedAttr, Tid};

/// Real-time priority of a waiting vCPU, where the mechanism has it in a real-time class.
const PRIORITY_WAITING: u32 = 1;
/// Real-time priority of the current vCPU: below every kernel thread of a real-time class.
const PRIORITY_CURRENT: u32 = 2;
/// Real-time priority of the agents.
pub(crate) const PRIORITY_AGENT: u32 = 3;
/// Real-time priority of the supervisor.
pub(crate) const PRIORITY_SUPERVISOR: u32 = 4;
/// Real-time priority of the watchdog process.
pub(crate) const PRIORITY_WATCHDOG: u32 = 5;

/// Which scheduling classes steer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Mechanism {
    /// The current vCPU in `SCHED_FIFO`, waiting ones in `SCHED_IDLE`. One real-time thread a pCPU
    /// at most; a regular window in the fair class lets everybody else run.
    #[default]
    Rt,
    /// Current and waiting vCPUs in `SCHED_FIFO`, one level apart. Exact, but the fair class gets
    /// only what the kernel's real-time throttling leaves it.
    RtStrict,
    /// The current vCPU in `SCHED_OTHER`, waiting ones in `SCHED_IDLE`. Needs no real-time class,
    /// but the kernel often picks another one, and one cgroup a VM defeats it.
    Fair,
}

/// What a vCPU thread is on its pCPU; a released one is scheduled as its VMM left it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It runs, and only the agent takes it off.
    Current,
    /// It runs in the fair class, beside the rest of the host.
    CurrentFair,
    /// It waits for its turn, and fills in when the current vCPU sleeps.
    Waiting,
}

impl Mechanism {
    /// Name in configuration and statistics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Rt => "rt",
            Self::RtStrict => "rt-strict",
            Self::Fair => "fair",
        }
    }

    /// Every mechanism.
    pub const ALL: [Self; 3] = [Self::Rt, Self::RtStrict, Self::Fair];

    /// Whether the current vCPU leaves the real-time class now and then.
    pub(crate) fn has_windows(self) -> bool {
        self == Self::Rt
    }

    pub(crate) fn attr(self, role: Role) -> SchedAttr {
        match (self, role) {
            (Self::Rt | Self::RtStrict, Role::Current) | (Self::RtStrict, Role::CurrentFair) => {
                SchedAttr::fifo(PRIORITY_CURRENT)
            }
            // Behind every other thread of the host: the window is theirs if they want it, and
            // waiting vCPUs are parked.
            (Self::Rt, Role::CurrentFair) => SchedAttr::idle(),
            (Self::Fair, Role::CurrentFair | Role::Current) => SchedAttr::other(0),
            (Self::RtStrict, Role::Waiting) => SchedAttr::fifo(PRIORITY_WAITING),
            (Self::Rt | Self::Fair, Role::Waiting) => SchedAttr::idle(),
        }
    }

    /// Gives a thread its role. A thread that is gone is no error: its VM is about to be.
    pub(crate) fn assign(self, tid: Tid, role: Role) -> io::Result<()> {
        match self.attr(role).set(tid) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }
}

impl std::str::FromStr for Mechanism {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|mechanism| mechanism.name() == name)
            .ok_or_else(|| {
                let names = Self::ALL.map(Self::name).join(", ");
                format!("Unknown mechanism {name:?}: use one of {names}")
            })
    }
}
