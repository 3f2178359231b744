//! Carries operations out with `ecs-policy`, and answers as `bpf/ops.h` does.

use ecs_policy::{
    Counters, Decision, Leave, Ledger, Params, Turn, VcpuSet, VcpuState, Vm, is_urgent, pick,
    queue_of,
};

use crate::op::Op;

/// The header's words for "no section" and "no denial".
const NO_SECTION: u64 = 3;
const NO_DENIAL: u64 = 4;

#[derive(Debug)]
pub(crate) struct Host {
    params: Params,
    vms: Vec<Vm>,
    vcpus: Vec<Vec<VcpuState>>,
    turns: Vec<Option<(usize, usize, Turn)>>,
}

fn new_vm(weight: u32, vclock_ns: u64) -> Vm {
    Vm {
        ledger: Ledger::new(weight, vclock_ns),
        counters: Counters::default(),
        enabled: true,
    }
}

impl Host {
    /// With that many places for VMs, vCPUs of each, and turns.
    pub(crate) fn new(vms: usize, vcpus: usize, slots: usize) -> Self {
        Self {
            params: Params::default(),
            vms: vec![new_vm(1, 0); vms],
            vcpus: vec![vec![VcpuState::default(); vcpus]; vms],
            turns: vec![None; slots],
        }
    }

    /// Result and all books.
    pub(crate) fn apply(&mut self, op: &Op) -> Vec<u64> {
        let mut answer = self.result(op);
        self.show(&mut answer);
        answer
    }

    pub(crate) fn vms(&self) -> &[Vm] {
        &self.vms
    }

    /// The result alone.
    pub(crate) fn result(&mut self, op: &Op) -> Vec<u64> {
        match op {
            Op::Params(params) => self.params = *params,
            &Op::New {
                vm,
                weight,
                vclock_ns,
            } => {
                self.vms[vm] = new_vm(weight, vclock_ns);
                self.vcpus[vm].fill(VcpuState::default());
                for turn in &mut self.turns {
                    turn.take_if(|(of, ..)| *of == vm);
                }
            }
            &Op::Begin {
                slot,
                vm,
                vcpu,
                bonus_ns,
            } => {
                let (turn, taken) = Turn::start(
                    &self.params,
                    &mut self.vms[vm],
                    &mut self.vcpus[vm][vcpu],
                    bonus_ns,
                );
                self.turns[slot] = Some((vm, vcpu, turn));
                return vec![taken];
            }
            Op::Look { slot, input } => {
                let Some((vm, vcpu, turn)) = &mut self.turns[*slot] else {
                    return Vec::new();
                };
                let (vm, vcpu) = (*vm, *vcpu);
                let (params, vcpus) = (&self.params, &mut self.vcpus[vm][vcpu]);
                let decision = turn.decide(params, &mut self.vms[vm], vcpus, input);
                if matches!(decision, Decision::Leave(_)) {
                    self.turns[*slot] = None;
                }
                return numbers(decision).to_vec();
            }
            &Op::Charge { vm, ran_ns } => self.vms[vm].ledger.charge(ran_ns),
            &Op::Weight { vm, weight } => self.vms[vm].ledger.set_weight(weight),
            &Op::Wake {
                vm,
                vclock_ns,
                slack_ns,
            } => self.vms[vm].ledger.wake(vclock_ns, slack_ns),
            &Op::Rein {
                vm,
                vclock_ns,
                nr_vcpus,
            } => self.vms[vm].ledger.rein(vclock_ns, nr_vcpus, &self.params),
            &Op::Enable { vm, enabled } => self.vms[vm].enabled = enabled,
            &Op::Forgive { vm } => return vec![self.vms[vm].ledger.forgive()],
            &Op::Abort { vm } => self.vms[vm].abort_extension(),
            Op::Queue { me, vcpus } => {
                let (snaps, runs): (Vec<_>, Vec<_>) = vcpus.iter().copied().unzip();
                let mut running = VcpuSet::default();
                for (vcpu, _) in runs.iter().enumerate().filter(|(_, runs)| **runs) {
                    running.insert(vcpu);
                }
                return vec![queue_of(*me, &snaps, &running) as u64];
            }
            Op::Pick { candidates } => {
                let first = pick(candidates.iter().copied(), &self.params);
                return vec![first.unwrap() as u64];
            }
            &Op::Urgent {
                head_ns,
                current_ns,
            } => {
                return vec![u64::from(is_urgent(head_ns, current_ns))];
            }
        }
        Vec::new()
    }

    /// Ledger and counters of one VM.
    pub(crate) fn books(&self, vm: usize) -> Vec<u64> {
        let (ledger, counters) = (&self.vms[vm].ledger, &self.vms[vm].counters);
        let mut books = vec![
            u64::from(ledger.weight()),
            ledger.vtime_ns(),
            ledger.cpu_ns(),
            ledger.extension_ns(),
            ledger.penalty_ns(),
            ledger.forgiven_ns(),
            ledger.debt_ns(),
            counters.requests,
        ];
        books.extend(counters.grants);
        books.extend(counters.denials);
        books.extend(counters.ended);
        books.extend([
            counters.running,
            counters.stepped_aside,
            counters.handed_back,
        ]);
        books
    }

    fn show(&self, answer: &mut Vec<u64>) {
        for (vm, vcpus) in self.vcpus.iter().enumerate() {
            answer.extend(self.books(vm));
            for vcpu in vcpus {
                answer.extend([vcpu.cooldown.into(), vcpu.streak.into(), vcpu.credit_ns]);
            }
        }
        for turn in &self.turns {
            answer.extend(turn.as_ref().map_or([0; 4], |(.., turn)| {
                let extended = u64::from(turn.is_extended());
                [1, turn.left_ns(), extended, turn.extension_used_ns()]
            }));
        }
    }
}

/// Kind, time, reason to leave, section and denial.
fn numbers(decision: Decision) -> [u64; 5] {
    match decision {
        Decision::Keep { for_ns } => [0, for_ns, 0, NO_SECTION, NO_DENIAL],
        Decision::Extend { for_ns, section } => [1, for_ns, 0, section as u64, NO_DENIAL],
        Decision::Renew => [2, 0, 0, NO_SECTION, NO_DENIAL],
        Decision::Leave(leave) => {
            let (leave, denial) = match leave {
                Leave::SliceEnd => (0, NO_DENIAL),
                Leave::Yielded => (1, NO_DENIAL),
                Leave::Expired => (2, NO_DENIAL),
                Leave::Denied(denial) => (3, denial as u64),
                Leave::Hopeless => (4, NO_DENIAL),
                Leave::HandBack => (5, NO_DENIAL),
                Leave::Urgent => (6, NO_DENIAL),
                Leave::Blocked => (7, NO_DENIAL),
            };
            [3, 0, leave, NO_SECTION, denial]
        }
    }
}
