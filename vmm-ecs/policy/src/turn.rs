//! A vCPU's turn on a pCPU: its slice, at most one extension, and how it ends.

use crate::ledger::Ledger;
use crate::params::Params;
use crate::queue::Queue;
use crate::snapshot::CsSnapshot;

/// What made the controller look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Its own timer, or any other reason to look again.
    Look,
    /// The guest rang the doorbell.
    HandBack,
    /// The vCPU went to sleep or away.
    Blocked,
}

/// Kind of section an extension protects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// The guest itself cannot preempt it.
    NonPreemptable,
    /// The guest may schedule its holder out.
    Preemptable,
    /// A lock queue whose head is running, or the head itself.
    Wait,
}

impl Section {
    /// What a vCPU in a section or a queue is interrupted in: what it holds, else its wait.
    #[must_use]
    pub fn interrupted(snap: &CsSnapshot) -> Self {
        if snap.non_preemptable {
            Self::NonPreemptable
        } else if snap.preemptable {
            Self::Preemptable
        } else {
            Self::Wait
        }
    }
}

/// Why an extension was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denial {
    /// The turn had its extension already.
    Used,
    /// The VM's debt has reached its budget.
    Budget,
    /// Earlier extensions of this vCPU expired.
    Cooldown,
    /// Policy gives the VM none.
    Disabled,
}

/// How an extension ended, in rseq's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The guest left the section in time.
    Yielded,
    /// The hard stop came first.
    Expired,
    /// The controller took it back: the vCPU it waited for lost its pCPU.
    Revoked,
    /// The vCPU went to sleep, or nobody else wanted the pCPU any more.
    Aborted,
}

/// Why the vCPU leaves the pCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    /// Its slice ended outside any section.
    SliceEnd,
    /// It left its section inside the extension.
    Yielded,
    /// Its extension hit the hard stop: a critical preemption.
    Expired,
    /// Its slice ended inside a section and no extension was granted: a critical preemption.
    Denied(Denial),
    /// It would only spin; the rest of its slice is credited.
    Hopeless,
    /// It gave the pCPU back at a point that suits it; the rest of its slice is credited.
    HandBack,
    /// Outside any section, for the head of a queue that stands still; the rest of its slice is
    /// credited.
    Urgent,
    /// It went to sleep.
    Blocked,
}

/// What to do with the vCPU on the pCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It runs on; look again once it ran for `for_ns` more.
    Keep {
        /// CPU time until the next look, ns.
        for_ns: u64,
    },
    /// It runs on in an extension; the hard stop is after `for_ns`.
    Extend {
        /// CPU time until the hard stop, ns.
        for_ns: u64,
        /// What the extension protects.
        section: Section,
    },
    /// Nobody else wants the pCPU: begin a new turn for the same vCPU.
    Renew,
    /// Another vCPU runs next.
    Leave(Leave),
}

/// What the controller saw when it looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Input {
    /// Why it looked.
    pub event: Event,
    /// CPU time the vCPU ran since the last look of this turn, ns.
    pub ran_ns: u64,
    /// The vCPU's slots.
    pub snap: CsSnapshot,
    /// Its place in its lock queue.
    pub queue: Queue,
    /// Whether another vCPU that can make progress waits for this pCPU.
    pub others: bool,
    /// Whether one of them is the head of a queue that stands still for it, and is not ahead in
    /// virtual time ([`crate::is_urgent`]).
    pub urgent: bool,
}

/// Policy state of one vCPU between its turns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VcpuState {
    /// Turns without an extension still to come.
    pub cooldown: u32,
    /// Extensions in a row that expired.
    pub streak: u32,
    /// Slice time given up and not yet given back, ns.
    pub credit_ns: u64,
    /// CPU time received, ns.
    pub cpu_ns: u64,
}

/// Counters of one VM; all only grow, but `running`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Slice ends that met a section.
    pub requests: u64,
    /// Grants by section: non-preemptable, preemptable, wait.
    pub grants: [u64; 3],
    /// Denials by cause: used, budget, cooldown, disabled.
    pub denials: [u64; 4],
    /// Extensions ended by outcome: yielded, expired, revoked, aborted.
    pub ended: [u64; 4],
    /// Extensions running now.
    pub running: u64,
    /// Times a hopeless spinner stepped aside.
    pub stepped_aside: u64,
    /// Times a vCPU handed its pCPU back inside its slice.
    pub handed_back: u64,
}

/// A VM as the policy knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vm {
    /// Its books.
    pub ledger: Ledger,
    /// Its counters.
    pub counters: Counters,
    /// Whether policy lets it have extensions.
    pub enabled: bool,
}

impl Vm {
    /// A vCPU went away inside an extension: no turn is left to end it.
    pub fn abort_extension(&mut self) {
        if self.counters.running > 0 {
            self.counters.running -= 1;
            count(&mut self.counters.ended, Outcome::Aborted as usize);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extension {
    Unused,
    Running { used_ns: u64 },
    Used,
}

/// One turn of one vCPU on one pCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    length_ns: u64,
    ran_ns: u64,
    extension: Extension,
}

impl Turn {
    /// Begins a turn. The slice is shortened by what the VM owes, at most by half, and lengthened
    /// by `bonus_ns` (what the VM before it just paid back) and by the vCPU's credit. Returns the
    /// turn and the time taken back, which is the next VM's bonus.
    pub fn start(params: &Params, vm: &mut Vm, vcpu: &mut VcpuState, bonus_ns: u64) -> (Self, u64) {
        let base = params.slice_ns;
        let taken = vm.ledger.repay(base / 2);
        let credit = core::mem::take(&mut vcpu.credit_ns).min(base);
        vcpu.cooldown = vcpu.cooldown.saturating_sub(1);
        let length_ns = base - taken + credit + bonus_ns.min(base);
        (
            Self {
                length_ns,
                ran_ns: 0,
                extension: Extension::Unused,
            },
            taken,
        )
    }

    /// CPU time left of the slice, ns.
    #[must_use]
    pub fn left_ns(&self) -> u64 {
        self.length_ns.saturating_sub(self.ran_ns)
    }

    /// Whether the turn has just begun.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        self.ran_ns == 0
    }

    /// Whether an extension is running.
    #[must_use]
    pub fn is_extended(&self) -> bool {
        matches!(self.extension, Extension::Running { .. })
    }

    /// CPU time the extension has used so far, ns; zero without one.
    #[must_use]
    pub fn extension_used_ns(&self) -> u64 {
        match self.extension {
            Extension::Running { used_ns } => used_ns,
            Extension::Unused | Extension::Used => 0,
        }
    }

    /// Decides what happens to the vCPU, and books it.
    pub fn decide(
        &mut self,
        params: &Params,
        vm: &mut Vm,
        vcpu: &mut VcpuState,
        input: &Input,
    ) -> Decision {
        self.ran_ns = self.ran_ns.saturating_add(input.ran_ns);
        if input.event == Event::Blocked {
            if self.is_extended() {
                self.end_extension(params, vm, vcpu, input.ran_ns, Outcome::Aborted);
            }
            return Decision::Leave(Leave::Blocked);
        }
        let section = section_of(params, &input.snap, input.queue);
        let hopeless = params.queue_rules && input.queue == Queue::Hopeless;
        match self.extension {
            Extension::Running { used_ns } => {
                let used_ns = used_ns.saturating_add(input.ran_ns);
                let (outcome, decision) = if !input.others {
                    (Outcome::Aborted, Decision::Renew)
                } else if hopeless {
                    (Outcome::Revoked, Decision::Leave(Leave::Hopeless))
                } else if section.is_none() {
                    (Outcome::Yielded, Decision::Leave(Leave::Yielded))
                } else if used_ns >= params.extension_ns {
                    (Outcome::Expired, Decision::Leave(Leave::Expired))
                } else {
                    self.extension = Extension::Running { used_ns };
                    return Decision::Keep {
                        for_ns: params.extension_ns - used_ns,
                    };
                };
                self.end_extension(params, vm, vcpu, input.ran_ns, outcome);
                decision
            }
            Extension::Unused | Extension::Used => {
                self.decide_in_slice(params, vm, vcpu, input, section, hopeless)
            }
        }
    }

    fn decide_in_slice(
        &mut self,
        params: &Params,
        vm: &mut Vm,
        vcpu: &mut VcpuState,
        input: &Input,
        section: Option<Section>,
        hopeless: bool,
    ) -> Decision {
        let left = self.left_ns();
        if hopeless && input.others {
            vm.counters.stepped_aside += 1;
            vcpu.credit_ns = left;
            return Decision::Leave(Leave::Hopeless);
        }
        if input.event == Event::HandBack && input.others && section.is_none() {
            vm.counters.handed_back += 1;
            vcpu.credit_ns = left;
            return Decision::Leave(Leave::HandBack);
        }
        if input.urgent && section.is_none() {
            vcpu.credit_ns = left;
            return Decision::Leave(Leave::Urgent);
        }
        if left > 0 {
            return Decision::Keep { for_ns: left };
        }
        if !input.others {
            return Decision::Renew;
        }
        let Some(section) = section else {
            return Decision::Leave(Leave::SliceEnd);
        };
        vm.counters.requests += 1;
        match self.refusal(params, vm, vcpu) {
            Some(denial) => {
                count(&mut vm.counters.denials, denial as usize);
                Decision::Leave(Leave::Denied(denial))
            }
            None => {
                count(&mut vm.counters.grants, section as usize);
                vm.counters.running += 1;
                self.extension = Extension::Running { used_ns: 0 };
                Decision::Extend {
                    for_ns: params.extension_ns,
                    section,
                }
            }
        }
    }

    fn refusal(&self, params: &Params, vm: &Vm, vcpu: &VcpuState) -> Option<Denial> {
        if !params.extensions || !vm.enabled {
            Some(Denial::Disabled)
        } else if self.extension != Extension::Unused {
            Some(Denial::Used)
        } else if vcpu.cooldown > 0 {
            Some(Denial::Cooldown)
        } else if !vm.ledger.may_borrow(vm.counters.running, params) {
            Some(Denial::Budget)
        } else {
            None
        }
    }

    fn end_extension(
        &mut self,
        params: &Params,
        vm: &mut Vm,
        vcpu: &mut VcpuState,
        ran_ns: u64,
        outcome: Outcome,
    ) {
        let used_ns = self.extension_used_ns().saturating_add(ran_ns);
        self.extension = Extension::Used;
        vm.ledger.borrow(used_ns, params);
        vm.counters.running = vm.counters.running.saturating_sub(1);
        count(&mut vm.counters.ended, outcome as usize);
        match outcome {
            Outcome::Yielded => vcpu.streak = 0,
            Outcome::Expired => {
                // Once is an accident. Then doubled from one turn on; the turn that begins next
                // counts the first one down.
                if vcpu.streak > 0 {
                    let turns = 1u32.checked_shl(vcpu.streak - 1).unwrap_or(u32::MAX);
                    vcpu.cooldown = turns.min(params.cooldown_max).saturating_add(1);
                }
                vcpu.streak = vcpu.streak.saturating_add(1);
            }
            Outcome::Revoked | Outcome::Aborted => {}
        }
    }
}

/// What the vCPU would be interrupted in, if it had to leave now.
fn section_of(params: &Params, snap: &CsSnapshot, queue: Queue) -> Option<Section> {
    if snap.idle {
        return None;
    }
    match Section::interrupted(snap) {
        Section::Wait => match queue {
            Queue::Head | Queue::HeadRuns if params.queue_rules && !snap.blocked => {
                Some(Section::Wait)
            }
            _ => None,
        },
        held => Some(held),
    }
}

fn count(counters: &mut [u64], index: usize) {
    if let Some(counter) = counters.get_mut(index) {
        *counter += 1;
    }
}
