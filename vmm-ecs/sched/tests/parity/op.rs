//! Operations, and how they are written: as `bpf/ops.h` takes them.

use ecs_policy::{Candidate, CsSnapshot, Event, Input, Params, Queue, Rank, Wait};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    Params(Params),
    New {
        vm: usize,
        weight: u32,
        vclock_ns: u64,
    },
    Begin {
        slot: usize,
        vm: usize,
        vcpu: usize,
        bonus_ns: u64,
    },
    Look {
        slot: usize,
        input: Input,
    },
    Charge {
        vm: usize,
        ran_ns: u64,
    },
    Weight {
        vm: usize,
        weight: u32,
    },
    Wake {
        vm: usize,
        vclock_ns: u64,
        slack_ns: u64,
    },
    Rein {
        vm: usize,
        vclock_ns: u64,
        nr_vcpus: u64,
    },
    Enable {
        vm: usize,
        enabled: bool,
    },
    Forgive {
        vm: usize,
    },
    Abort {
        vm: usize,
    },
    Queue {
        me: usize,
        vcpus: Vec<(CsSnapshot, bool)>,
    },
    Pick {
        candidates: Vec<Candidate>,
    },
    Urgent {
        head_ns: u64,
        current_ns: u64,
    },
}

/// A snapshot as the driver reads it.
fn snapshot_line(snap: &CsSnapshot) -> String {
    let (wait, holder, lock) = match snap.wait {
        Wait::None => (0, None, 0),
        Wait::Entering => (1, None, 0),
        Wait::Unknown { holder } => (2, holder, 0),
        Wait::Pending { lock, holder } => (3, holder, lock),
        Wait::Ended { lock } => (4, None, lock),
    };
    let holder = holder.map_or(0, |vcpu| u32::from(vcpu) + 1);
    let bits = [
        snap.non_preemptable,
        snap.preemptable,
        snap.blocked,
        snap.idle,
    ]
    .map(u8::from);
    let [np, p, blocked, idle] = bits;
    format!("{np} {p} {blocked} {idle} {wait} {holder} {lock}")
}

impl Op {
    pub(crate) fn line(&self) -> String {
        match self {
            Self::Params(p) => format!(
                "P {} {} {} {} {} {}",
                p.slice_ns,
                p.extension_ns,
                p.budget_ns,
                p.cooldown_max,
                u8::from(p.extensions),
                u8::from(p.queue_rules)
            ),
            Self::New {
                vm,
                weight,
                vclock_ns,
            } => format!("N {vm} {weight} {vclock_ns}"),
            Self::Begin {
                slot,
                vm,
                vcpu,
                bonus_ns,
            } => format!("B {slot} {vm} {vcpu} {bonus_ns}"),
            Self::Look { slot, input } => format!(
                "L {slot} {} {} {} {} {} {}",
                input.event as u8,
                input.ran_ns,
                snapshot_line(&input.snap),
                input.queue as u8,
                u8::from(input.others),
                u8::from(input.urgent)
            ),
            Self::Charge { vm, ran_ns } => format!("C {vm} {ran_ns}"),
            Self::Weight { vm, weight } => format!("W {vm} {weight}"),
            Self::Wake {
                vm,
                vclock_ns,
                slack_ns,
            } => format!("K {vm} {vclock_ns} {slack_ns}"),
            Self::Rein {
                vm,
                vclock_ns,
                nr_vcpus,
            } => format!("I {vm} {vclock_ns} {nr_vcpus}"),
            Self::Enable { vm, enabled } => format!("E {vm} {}", u8::from(*enabled)),
            Self::Forgive { vm } => format!("F {vm}"),
            Self::Abort { vm } => format!("A {vm}"),
            Self::Queue { me, vcpus } => {
                let vcpu = |(snap, runs): &(CsSnapshot, bool)| {
                    format!(" {} {}", snapshot_line(snap), u8::from(*runs))
                };
                let vcpus_text: String = vcpus.iter().map(vcpu).collect();
                format!("Q {} {me}{vcpus_text}", vcpus.len())
            }
            Self::Pick { candidates } => {
                let candidate = |c: &Candidate| {
                    format!(" {} {} {}", c.vm_vtime_ns, c.vcpu_cpu_ns, c.rank as u8)
                };
                let text: String = candidates.iter().map(candidate).collect();
                format!("R {}{text}", candidates.len())
            }
            Self::Urgent {
                head_ns,
                current_ns,
            } => format!("U {head_ns} {current_ns}"),
        }
    }
}

/// Reads the line back.
struct Parser<'a>(std::str::SplitAsciiWhitespace<'a>);

impl Parser<'_> {
    fn number(&mut self) -> u64 {
        self.0.next().unwrap().parse().unwrap()
    }

    fn index(&mut self) -> usize {
        usize::try_from(self.number()).unwrap()
    }

    fn short(&mut self) -> u32 {
        u32::try_from(self.number()).unwrap()
    }

    fn bit(&mut self) -> bool {
        match self.number() {
            0 => false,
            1 => true,
            other => panic!("{other} is no bit"),
        }
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.index()]
    }

    fn snapshot(&mut self) -> CsSnapshot {
        let [non_preemptable, preemptable, blocked, idle] = std::array::from_fn(|_| self.bit());
        let (wait, holder, lock) = (self.number(), self.short(), self.number());
        let holder = holder.checked_sub(1).map(|vcpu| vcpu.try_into().unwrap());
        CsSnapshot {
            non_preemptable,
            preemptable,
            wait: match wait {
                0 => Wait::None,
                1 => Wait::Entering,
                2 => Wait::Unknown { holder },
                3 => Wait::Pending { lock, holder },
                4 => Wait::Ended { lock },
                other => panic!("{other} is no wait"),
            },
            blocked,
            idle,
        }
    }

    fn input(&mut self) -> Input {
        Input {
            event: self.one_of(&[Event::Look, Event::HandBack, Event::Blocked]),
            ran_ns: self.number(),
            snap: self.snapshot(),
            queue: self.one_of(&[
                Queue::NotWaiting,
                Queue::Head,
                Queue::HeadRuns,
                Queue::Hopeless,
                Queue::Unknown,
            ]),
            others: self.bit(),
            urgent: self.bit(),
        }
    }
}

impl Op {
    /// # Panics
    /// If the line is not one that [`Op::line`] writes.
    pub(crate) fn parse(line: &str) -> Self {
        let mut words = line.split_ascii_whitespace();
        let letter = words.next().unwrap();
        let mut of = Parser(words);
        let op = match letter {
            "P" => Self::Params(Params {
                slice_ns: of.number(),
                extension_ns: of.number(),
                budget_ns: of.number(),
                cooldown_max: of.short(),
                extensions: of.bit(),
                queue_rules: of.bit(),
            }),
            "N" => Self::New {
                vm: of.index(),
                weight: of.short(),
                vclock_ns: of.number(),
            },
            "B" => Self::Begin {
                slot: of.index(),
                vm: of.index(),
                vcpu: of.index(),
                bonus_ns: of.number(),
            },
            "L" => Self::Look {
                slot: of.index(),
                input: of.input(),
            },
            "C" => Self::Charge {
                vm: of.index(),
                ran_ns: of.number(),
            },
            "W" => Self::Weight {
                vm: of.index(),
                weight: of.short(),
            },
            "K" => Self::Wake {
                vm: of.index(),
                vclock_ns: of.number(),
                slack_ns: of.number(),
            },
            "I" => Self::Rein {
                vm: of.index(),
                vclock_ns: of.number(),
                nr_vcpus: of.number(),
            },
            "E" => Self::Enable {
                vm: of.index(),
                enabled: of.bit(),
            },
            "F" => Self::Forgive { vm: of.index() },
            "A" => Self::Abort { vm: of.index() },
            "Q" => {
                let nr = of.index();
                Self::Queue {
                    me: of.index(),
                    vcpus: (0..nr).map(|_| (of.snapshot(), of.bit())).collect(),
                }
            }
            "R" => {
                let nr = of.index();
                let candidate = |of: &mut Parser<'_>| Candidate {
                    vm_vtime_ns: of.number(),
                    vcpu_cpu_ns: of.number(),
                    rank: of.one_of(&[Rank::Head, Rank::Ready, Rank::Hopeless]),
                };
                Self::Pick {
                    candidates: (0..nr).map(|_| candidate(&mut of)).collect(),
                }
            }
            "U" => Self::Urgent {
                head_ns: of.number(),
                current_ns: of.number(),
            },
            other => panic!("{other:?} is no operation"),
        };
        assert_eq!(of.0.next(), None, "{line:?}");
        op
    }
}
