//! Helpers of the policy tests: one vCPU on a bench, and a small deterministic host.

mod sim;

pub(crate) use sim::{Load, Sim};

use ecs_policy::{
    CsSnapshot, Decision, Event, Input, Ledger, Params, Queue, Turn, VcpuState, Vm, Wait,
};

/// One millisecond, ns.
pub(crate) const MS: u64 = 1_000_000;

/// Outside every section.
pub(crate) const OUTSIDE: CsSnapshot = CsSnapshot {
    non_preemptable: false,
    preemptable: false,
    wait: Wait::None,
    blocked: false,
    idle: false,
};
/// In a section the guest cannot preempt.
pub(crate) const IN_SPINLOCK: CsSnapshot = CsSnapshot {
    non_preemptable: true,
    ..OUTSIDE
};
/// In a section the guest may schedule out.
pub(crate) const IN_MUTEX: CsSnapshot = CsSnapshot {
    preemptable: true,
    ..OUTSIDE
};

/// Spins on `lock`; the wait has not ended.
pub(crate) fn pending(lock: u64) -> CsSnapshot {
    CsSnapshot {
        wait: Wait::Pending { lock, holder: None },
        ..OUTSIDE
    }
}

/// Spins on `lock`; the wait has ended.
pub(crate) fn ended(lock: u64) -> CsSnapshot {
    CsSnapshot {
        wait: Wait::Ended { lock },
        ..OUTSIDE
    }
}

/// A look after `ran_ns` more, outside any queue, with somebody else runnable.
pub(crate) fn seen(ran_ns: u64, snap: CsSnapshot) -> Input {
    Input {
        event: Event::Look,
        ran_ns,
        snap,
        queue: Queue::NotWaiting,
        others: true,
        urgent: false,
    }
}

/// A VM that just appeared at virtual time zero.
pub(crate) fn new_vm(weight: u32) -> Vm {
    Vm {
        ledger: Ledger::new(weight, 0),
        counters: Default::default(),
        enabled: true,
    }
}

/// One vCPU, alone in its VM, in a turn on a pCPU.
pub(crate) struct Bench {
    pub(crate) params: Params,
    pub(crate) vm: Vm,
    pub(crate) vcpu: VcpuState,
    pub(crate) turn: Turn,
}

impl Bench {
    /// In its first turn, with default parameters.
    pub(crate) fn new() -> Self {
        Self::with(Params::default())
    }

    pub(crate) fn with(params: Params) -> Self {
        let mut vm = new_vm(100);
        let mut vcpu = VcpuState::default();
        let (turn, taken) = Turn::start(&params, &mut vm, &mut vcpu, 0);
        assert_eq!(taken, 0, "a new VM owes nothing");
        Self {
            params,
            vm,
            vcpu,
            turn,
        }
    }

    /// Begins the next turn; returns the time taken back.
    pub(crate) fn next_turn(&mut self, bonus_ns: u64) -> u64 {
        let (turn, taken) = Turn::start(&self.params, &mut self.vm, &mut self.vcpu, bonus_ns);
        self.turn = turn;
        taken
    }

    /// Looks after `ran_ns` more, with somebody else runnable.
    pub(crate) fn look(&mut self, ran_ns: u64, snap: CsSnapshot) -> Decision {
        self.look_in(ran_ns, snap, Queue::NotWaiting)
    }

    /// The same for a vCPU in a lock queue.
    pub(crate) fn look_in(&mut self, ran_ns: u64, snap: CsSnapshot, queue: Queue) -> Decision {
        self.decide(Input {
            queue,
            ..seen(ran_ns, snap)
        })
    }

    /// Runs the rest of the slice, then looks.
    pub(crate) fn slice_end(&mut self, snap: CsSnapshot) -> Decision {
        self.look(self.turn.left_ns(), snap)
    }

    /// Charges the time and decides, as every controller does.
    pub(crate) fn decide(&mut self, input: Input) -> Decision {
        self.vm.ledger.charge(input.ran_ns);
        self.vcpu.cpu_ns += input.ran_ns;
        self.turn
            .decide(&self.params, &mut self.vm, &mut self.vcpu, &input)
    }

    /// Takes the vCPU into an extension.
    pub(crate) fn extend(&mut self) {
        let decision = self.slice_end(IN_SPINLOCK);
        assert!(matches!(decision, Decision::Extend { .. }), "{decision:?}");
    }
}
