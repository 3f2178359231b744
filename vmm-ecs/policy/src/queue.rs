//! Where a waiting vCPU stands in its lock queue, and whether running it can help.
//!
//! A vCPU that is off the CPU cannot say that its wait has ended: its own words are frozen. The host
//! therefore reads the word it waits for, and knows of every vCPU, running or not, whether it can
//! make progress (semantics of the wait descriptor, docs/abi.md).

use crate::snapshot::{CsSnapshot, Wait};

/// Highest number of vCPUs of a VM, the ABI's `VIRTIO_ECS_MAX_VCPUS`.
pub const MAX_VCPUS: usize = 256;

/// Set of vCPU numbers below [`MAX_VCPUS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VcpuSet([u64; MAX_VCPUS / 64]);

impl VcpuSet {
    /// Adds a vCPU; numbers out of range are ignored.
    pub fn insert(&mut self, vcpu: usize) {
        if let Some(word) = self.0.get_mut(vcpu / 64) {
            *word |= 1 << (vcpu % 64);
        }
    }

    /// Removes a vCPU.
    pub fn remove(&mut self, vcpu: usize) {
        if let Some(word) = self.0.get_mut(vcpu / 64) {
            *word &= !(1 << (vcpu % 64));
        }
    }

    /// Whether the vCPU is in the set.
    #[must_use]
    pub fn contains(&self, vcpu: usize) -> bool {
        self.0
            .get(vcpu / 64)
            .is_some_and(|word| word & (1 << (vcpu % 64)) != 0)
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == [0; MAX_VCPUS / 64]
    }
}

/// A vCPU's place, seen from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// It waits for nothing.
    NotWaiting,
    /// It is the head: its wait has ended, running it makes progress.
    Head,
    /// It waits, and the vCPU it waits for is running: it will have the lock in microseconds.
    HeadRuns,
    /// It waits for a vCPU that is off the CPU: running it burns time.
    Hopeless,
    /// It waits for nobody knows whom.
    Unknown,
}

impl Queue {
    /// The same place of a vCPU whose VM runs together: nobody waits there without hope, as those it
    /// waits for are about to run.
    #[must_use]
    pub fn together(self) -> Self {
        match self {
            Self::Hopeless => Self::Unknown,
            place => place,
        }
    }
}

/// Finds the place of vCPU `me` among the vCPUs of its VM. Linear in the number of vCPUs.
#[must_use]
pub fn queue_of(me: usize, snaps: &[CsSnapshot], running: &VcpuSet) -> Queue {
    let Some(own) = snaps.get(me) else {
        return Queue::NotWaiting;
    };
    if own.idle {
        return Queue::NotWaiting;
    }
    let (lock, holder) = match own.wait {
        Wait::None => return Queue::NotWaiting,
        Wait::Ended { .. } => return Queue::Head,
        Wait::Entering => return Queue::HeadRuns,
        Wait::Unknown { holder } => (None, holder),
        Wait::Pending { lock, holder } => (Some(lock), holder),
    };

    // The guest's own word for the holder, where that vCPU does hold something.
    if let Some(holder) = holder.map(usize::from).filter(|&vcpu| vcpu != me)
        && snaps
            .get(holder)
            .is_some_and(|snap| snap.holds() && !snap.spins())
    {
        return if running.contains(holder) {
            Queue::HeadRuns
        } else {
            Queue::Hopeless
        };
    }
    // Without a descriptor there is no telling which holder matters.
    let Some(lock) = lock else {
        return Queue::Unknown;
    };
    let others = Others { me, snaps, running };
    // vCPUs whose wait for this very lock has ended: more than one where readers share it.
    if let Some(place) = others.place(|snap| snap.wait == Wait::Ended { lock }) {
        return place;
    }
    // A vCPU about to wait may just have got the lock.
    if others.place(|snap| snap.wait == Wait::Entering) == Some(Queue::HeadRuns) {
        return Queue::HeadRuns;
    }
    // Any holder, and any head: in an MCS queue each vCPU waits for a word of its own. With several
    // locks some other one may be meant, so one that runs gives hope.
    let holds = |snap: &CsSnapshot| {
        (snap.holds() && !snap.spins()) || matches!(snap.wait, Wait::Entering | Wait::Ended { .. })
    };
    others.place(holds).unwrap_or(Queue::Unknown)
}

/// The other vCPUs of the VM; idle ones count for nothing.
struct Others<'a> {
    me: usize,
    snaps: &'a [CsSnapshot],
    running: &'a VcpuSet,
}

impl Others<'_> {
    /// What is to be hoped for from those for which `is` holds; `None` without any.
    fn place(&self, is: impl Fn(&CsSnapshot) -> bool) -> Option<Queue> {
        let mut found = None;
        for (vcpu, snap) in self.snaps.iter().enumerate() {
            if vcpu != self.me && !snap.idle && is(snap) {
                if self.running.contains(vcpu) {
                    return Some(Queue::HeadRuns);
                }
                found = Some(Queue::Hopeless);
            }
        }
        found
    }
}

/// Whether some vCPU of the VM is off the CPU while it holds a lock or stands in a queue: every
/// running vCPU of that VM may soon wait for it.
#[must_use]
pub fn is_dirty(snaps: &[CsSnapshot], running: &VcpuSet) -> bool {
    snaps
        .iter()
        .enumerate()
        .any(|(vcpu, snap)| !running.contains(vcpu) && (snap.holds() || snap.spins()))
}
