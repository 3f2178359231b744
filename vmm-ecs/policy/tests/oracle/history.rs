//! Oracle of the decisions: every event of every vCPU, from which all state is told anew.

use super::books::{Books, Entry};
use ecs_policy::{
    Counters, Decision, Denial, Event, Input, Leave, Outcome, Params, Queue, Section, Vm,
};

/// One line of a VM's history.
#[derive(Debug, Clone, Copy)]
pub(super) enum Line {
    Began {
        slot: usize,
        vcpu: usize,
        length_ns: i128,
    },
    Looked {
        slot: usize,
        vcpu: usize,
        input: Input,
        decision: Decision,
    },
}

/// A VM as its history tells it.
#[derive(Debug, Clone)]
pub(super) struct VmHistory {
    pub(super) params: Params,
    pub(super) books: Books,
    pub(super) enabled: bool,
    pub(super) lines: Vec<Line>,
}

/// The turn in progress in one slot.
struct Told {
    vcpu: usize,
    left_ns: i128,
    granted: bool,
    /// CPU time since the grant, while the extension runs.
    extended_ns: Option<i128>,
}

impl VmHistory {
    pub(super) fn new(params: Params, weight: u32, vclock_ns: u64) -> Self {
        let books = Books::new(weight, vclock_ns, &params);
        Self {
            params,
            books,
            enabled: true,
            lines: Vec::new(),
        }
    }

    /// A turn begins; returns its length and the time taken back.
    pub(super) fn begin(&mut self, slot: usize, vcpu: usize, bonus_ns: u64) -> (i128, i128) {
        let base = self.params.slice_ns;
        let taken = self.books.sum().debt().min(i128::from(base / 2));
        let credit = self.credit_ns(vcpu).min(i128::from(base));
        let bonus = i128::from(bonus_ns).min(i128::from(base));
        let length_ns = i128::from(base) - taken + credit + bonus;
        self.books.book(Entry::Repaid { most_ns: base / 2 });
        self.lines.push(Line::Began {
            slot,
            vcpu,
            length_ns,
        });
        (length_ns, taken)
    }

    fn turn(&self, slot: usize) -> Told {
        let began = self
            .lines
            .iter()
            .rposition(|line| matches!(line, Line::Began { slot: theirs, .. } if *theirs == slot));
        let Line::Began {
            vcpu, length_ns, ..
        } = self.lines[began.unwrap()]
        else {
            unreachable!()
        };
        let mut told = Told {
            vcpu,
            left_ns: length_ns,
            granted: false,
            extended_ns: None,
        };
        for line in &self.lines[began.unwrap()..] {
            let Line::Looked {
                slot: theirs,
                input,
                decision,
                ..
            } = line
            else {
                continue;
            };
            if *theirs != slot {
                continue;
            }
            told.left_ns = (told.left_ns - i128::from(input.ran_ns)).max(0);
            told.extended_ns = match (told.extended_ns, decision) {
                (None, Decision::Extend { .. }) => Some(0),
                (Some(ns), Decision::Keep { .. }) => Some(ns + i128::from(input.ran_ns)),
                _ => None,
            };
            told.granted |= matches!(decision, Decision::Extend { .. });
        }
        told
    }

    /// Slice time a vCPU gave up in its last turn and did not get back yet.
    pub(super) fn credit_ns(&self, vcpu: usize) -> i128 {
        let mut credit = 0;
        for (index, line) in self.lines.iter().enumerate() {
            match line {
                Line::Began { vcpu: theirs, .. } if *theirs == vcpu => credit = 0,
                Line::Looked {
                    slot,
                    vcpu: theirs,
                    input,
                    decision,
                    ..
                } if *theirs == vcpu => {
                    let before = Self {
                        lines: self.lines[..index].to_vec(),
                        ..self.clone()
                    };
                    let told = before.turn(*slot);
                    let gave = matches!(
                        decision,
                        Decision::Leave(Leave::Hopeless | Leave::HandBack | Leave::Urgent)
                    );
                    if gave && told.extended_ns.is_none() {
                        credit = (told.left_ns - i128::from(input.ran_ns)).max(0);
                    }
                }
                _ => {}
            }
        }
        credit
    }

    /// Turns without an extension still to come, and expiries in a row.
    pub(super) fn cooldown(&self, vcpu: usize) -> (u64, u64) {
        let (mut turns, mut streak) = (0u64, 0u64);
        for line in &self.lines {
            match line {
                Line::Began { vcpu: theirs, .. } if *theirs == vcpu => {
                    turns = turns.saturating_sub(1);
                }
                Line::Looked {
                    vcpu: theirs,
                    decision,
                    ..
                } if *theirs == vcpu => match decision {
                    Decision::Leave(Leave::Yielded) => streak = 0,
                    Decision::Leave(Leave::Expired) => {
                        if streak > 0 {
                            let doubled = 2u64.saturating_pow(streak as u32 - 1);
                            turns = doubled.min(u64::from(self.params.cooldown_max)) + 1;
                        }
                        streak += 1;
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        (turns, streak)
    }

    /// What must be decided; books and writes down the look as decided.
    pub(super) fn look(&mut self, slot: usize, input: Input) -> Decision {
        let told = self.turn(slot);
        let decision = self.expected(&told, &input);
        self.books.book(Entry::Charged(input.ran_ns));
        if let Some(before) = told.extended_ns
            && !matches!(decision, Decision::Keep { .. })
        {
            let used = before + i128::from(input.ran_ns);
            self.books.book(Entry::Borrowed(used as u64));
        }
        self.lines.push(Line::Looked {
            slot,
            vcpu: told.vcpu,
            input,
            decision,
        });
        decision
    }

    fn expected(&self, told: &Told, input: &Input) -> Decision {
        let params = &self.params;
        let section = self.section(input);
        let hopeless = params.queue_rules && input.queue == Queue::Hopeless;
        let ran = i128::from(input.ran_ns);
        let left = (told.left_ns - ran).max(0);
        let limit = i128::from(params.extension_ns);
        let extended = told.extended_ns.map(|ns| ns + ran);
        // The first rule that holds decides.
        let rules = [
            (
                input.event == Event::Blocked,
                Decision::Leave(Leave::Blocked),
            ),
            (extended.is_some() && !input.others, Decision::Renew),
            (input.others && hopeless, Decision::Leave(Leave::Hopeless)),
            (
                extended.is_some() && section.is_none(),
                Decision::Leave(Leave::Yielded),
            ),
            (
                extended.is_some_and(|ns| ns >= limit),
                Decision::Leave(Leave::Expired),
            ),
            (
                extended.is_some(),
                Decision::Keep {
                    for_ns: (limit - extended.unwrap_or(0)).max(0) as u64,
                },
            ),
            (
                input.others && input.event == Event::HandBack && section.is_none(),
                Decision::Leave(Leave::HandBack),
            ),
            (
                input.urgent && section.is_none(),
                Decision::Leave(Leave::Urgent),
            ),
            (
                left > 0,
                Decision::Keep {
                    for_ns: left as u64,
                },
            ),
            (!input.others, Decision::Renew),
            (section.is_none(), Decision::Leave(Leave::SliceEnd)),
        ];
        if let Some((_, decision)) = rules.iter().find(|(holds, _)| *holds) {
            return *decision;
        }
        let running: i128 = self.counters().running.into();
        let worst = self.books.sum().debt() + (running + 1) * limit;
        let refusals = [
            (!params.extensions || !self.enabled, Denial::Disabled),
            (told.granted, Denial::Used),
            (self.cooldown(told.vcpu).0 > 0, Denial::Cooldown),
            (worst > i128::from(params.budget_ns), Denial::Budget),
        ];
        match refusals.iter().find(|(holds, _)| *holds) {
            Some((_, denial)) => Decision::Leave(Leave::Denied(*denial)),
            None => Decision::Extend {
                for_ns: params.extension_ns,
                section: section.unwrap(),
            },
        }
    }

    fn section(&self, input: &Input) -> Option<Section> {
        let protects = matches!(input.queue, Queue::Head | Queue::HeadRuns);
        let kinds = [
            (input.snap.non_preemptable, Section::NonPreemptable),
            (input.snap.preemptable, Section::Preemptable),
            (
                protects && self.params.queue_rules && !input.snap.blocked,
                Section::Wait,
            ),
        ];
        let found = kinds
            .iter()
            .find(|(holds, _)| *holds)
            .map(|(_, section)| *section);
        found.filter(|_| !input.snap.idle)
    }

    /// Counts the decisions from the beginning.
    pub(super) fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        let mut running = Vec::new();
        for line in &self.lines {
            let Line::Looked { slot, decision, .. } = line else {
                continue;
            };
            if running.contains(slot) {
                let outcome = match decision {
                    Decision::Keep { .. } => continue,
                    Decision::Leave(Leave::Yielded) => Outcome::Yielded,
                    Decision::Leave(Leave::Expired) => Outcome::Expired,
                    Decision::Leave(Leave::Hopeless) => Outcome::Revoked,
                    Decision::Leave(Leave::Blocked) | Decision::Renew => Outcome::Aborted,
                    other => unreachable!("{other:?} inside an extension"),
                };
                counters.ended[outcome as usize] += 1;
                running.retain(|theirs| theirs != slot);
                continue;
            }
            match decision {
                Decision::Extend { section, .. } => {
                    counters.grants[*section as usize] += 1;
                    running.push(*slot);
                }
                Decision::Leave(Leave::Denied(denial)) => counters.denials[*denial as usize] += 1,
                Decision::Leave(Leave::Hopeless) => counters.stepped_aside += 1,
                Decision::Leave(Leave::HandBack) => counters.handed_back += 1,
                _ => {}
            }
        }
        counters.running = running.len() as u64;
        counters.requests =
            counters.grants.iter().sum::<u64>() + counters.denials.iter().sum::<u64>();
        counters
    }

    /// Compares a VM with its history, and checks the invariants.
    pub(super) fn check(&self, vm: &Vm) -> Result<(), String> {
        self.books.check(&vm.ledger)?;
        let counters = self.counters();
        if vm.counters != counters {
            return Err(format!(
                "counters {:?}, history says {counters:?}",
                vm.counters
            ));
        }
        let sum = |counts: &[u64]| counts.iter().sum::<u64>();
        let c = &vm.counters;
        if sum(&c.grants) != sum(&c.ended) + c.running {
            return Err(format!("grants are not ended + running: {c:?}"));
        }
        if c.requests != sum(&c.grants) + sum(&c.denials) {
            return Err(format!("requests are not grants + denials: {c:?}"));
        }
        Ok(())
    }

    /// Extensions granted in the turn in progress.
    pub(super) fn grants_in_turn(&self, slot: usize) -> usize {
        let began = self
            .lines
            .iter()
            .rposition(|line| matches!(line, Line::Began { slot: theirs, .. } if *theirs == slot));
        let since = began.map_or(&[][..], |index| &self.lines[index..]);
        since
            .iter()
            .filter(|line| {
                matches!(line, Line::Looked { slot: theirs, decision: Decision::Extend { .. }, .. }
                    if *theirs == slot)
            })
            .count()
    }
}
