//! What one read of a vCPU's slots says.

/// What a vCPU waits for, as far as its guest tells and the host could verify.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wait {
    /// It does not wait.
    #[default]
    None,
    /// It is about to join a queue; nanoseconds later it holds the lock or says what it waits for.
    Entering,
    /// It waits without saying for what.
    Unknown {
        /// vCPU that holds the lock, where the guest knows it.
        holder: Option<u16>,
    },
    /// It waits for the word at `lock`; the host read that word and the wait has not ended.
    Pending {
        /// Guest-physical address of the word: waits on one address belong to one queue.
        lock: u64,
        /// vCPU that holds the lock, where the guest knows it.
        holder: Option<u16>,
    },
    /// The word has reached the awaited value: this vCPU is the head of its queue.
    Ended {
        /// Guest-physical address of the word.
        lock: u64,
    },
}

/// One consistent-enough view of a vCPU: each word was read once, none is trusted.
///
/// The default value is "not in a critical section", which is also what every unreadable or
/// nonsensical slot yields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CsSnapshot {
    /// In a section that the guest itself cannot preempt: spinlock, rwlock, interrupt, softirq.
    pub non_preemptable: bool,
    /// In a section of the current guest task that the guest may schedule out: mutex, rwsem.
    pub preemptable: bool,
    /// What it waits for, spinning.
    pub wait: Wait,
    /// It is halted, or about to halt, until its wait ends.
    pub blocked: bool,
    /// The guest's idle task runs.
    pub idle: bool,
}

impl CsSnapshot {
    /// Whether the vCPU holds something others may wait for. A spinning waiter does not.
    #[must_use]
    pub fn holds(&self) -> bool {
        !self.idle && (self.non_preemptable || self.preemptable)
    }

    /// Whether the vCPU spins in a lock queue.
    #[must_use]
    pub fn spins(&self) -> bool {
        !self.idle && !self.blocked && self.wait != Wait::None
    }
}
