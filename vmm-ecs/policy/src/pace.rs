//! Numbers of the userspace controller: how often it looks, and for how long it remembers. Here, where
//! the simulator has them from, too.

/// Looks while an extension runs, for guests that cannot ring a doorbell, ns.
pub const POLL_NS: u64 = 30_000;
/// Looks while a vCPU may have become hopeless, for guests that cannot ring a doorbell, and while
/// a hopeless one runs for want of a better, ns.
pub const SCAN_NS: u64 = 100_000;
/// No timer is shorter, ns: it would only burn the controller's time.
pub const SHORTEST_NS: u64 = 20_000;
/// Rings of a turn that may change nothing before a doorbell is muted.
pub const VAIN_RINGS: u32 = 32;
/// Slices of virtual time that a VM may lag behind the others, whatever held it up.
pub const CREDIT_SLICES: u64 = 64;
/// The same for one that slept.
pub const SLEEPER_SLICES: u64 = 1;
/// Slices of virtual time behind the others from which a VM runs together: its spinners no longer step
/// aside, so that the next slice has all of them on their pCPUs at once (docs/adr/0010-together.md).
pub const TOGETHER_SLICES: u64 = 8;
/// Turns for which a VM counts as lock-bound after one of its vCPUs was seen in a lock queue.
pub const REMEMBER_TURNS: u32 = 32;
/// Slice ends without a section, in a row, after which a pCPU is released to the host's scheduler.
pub const QUIET_TURNS: u32 = 64;
