//! `ecs_policy.h` in the kernel is `ecs-policy`.

use ecs_policy::Params;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestError, TestRunner};

use crate::checker::Checker;
use crate::draw::{self, SLOTS, VCPUS, VMS};
use crate::golden::{self, Golden};
use crate::host::Host;
use crate::op::Op;

/// Histories, and episodes of each at most.
const HISTORIES: u32 = 200;
const LENGTH: usize = 200;

/// What the kernel makes of a history, an answer for each operation.
fn run(checker: &mut Checker, ops: &[Op]) -> Vec<Vec<u64>> {
    let mut answers = Vec::new();
    let at_once = checker.shared().check_ops.len();
    for (part, ops) in ops.chunks(at_once).enumerate() {
        let shared = checker.shared();
        for (op, place) in ops.iter().zip(&mut shared.check_ops) {
            let line = op.line();
            let (letter, rest) = line.split_at(1);
            let numbers = golden::numbers(rest);
            place.letter = u64::from(letter.as_bytes()[0]);
            place.numbers[..numbers.len()].copy_from_slice(&numbers);
        }
        shared.anew = u32::from(part == 0);
        shared.nr_check_ops = ops.len().try_into().unwrap();
        checker.run(|checker| &checker.skel.progs.check_apply);
        let shared = checker.shared();
        assert_eq!(shared.nr_refused, 0);
        let of = |answer: &crate::checker::types::check_answer| {
            answer.numbers[..usize::try_from(answer.nr).unwrap()].to_vec()
        };
        answers.extend(shared.check_answers[..ops.len()].iter().map(of));
    }
    answers
}

#[test]
fn the_kernel_decides_and_books_as_the_policy_does() {
    let mut checker = match Checker::load(&Params::default()) {
        Ok(checker) => checker,
        Err(reason) => {
            println!("SKIPPED: the_kernel_decides_and_books_as_the_policy_does: {reason}");
            return;
        }
    };
    for trace in Golden::all() {
        let ops: Vec<Op> = trace.ops().cloned().collect();
        assert_eq!(run(&mut checker, &ops), trace.answers());
    }
    let checker = std::cell::RefCell::new(checker);
    let config = Config {
        cases: HISTORIES,
        failure_persistence: None,
        ..Config::default()
    };
    let (nr, grants) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let result = TestRunner::new(config).run(&draw::history(LENGTH), |ops| {
        let theirs = run(&mut checker.borrow_mut(), &ops);
        let mut host = Host::new(VMS, VCPUS, SLOTS);
        for (op, theirs) in ops.iter().zip(&theirs) {
            prop_assert_eq!(&host.apply(op), theirs, "{:?}", op);
        }
        nr.set(nr.get() + ops.len());
        let granted = host.vms().iter().flat_map(|vm| vm.counters.grants);
        grants.set(grants.get() + granted.sum::<u64>());
        Ok(())
    });
    // Without the whole input, which is long.
    if let Err(TestError::Fail(reason, _)) = result {
        panic!("{reason}");
    }
    println!("{} operations, {} grants", nr.get(), grants.get());
    assert!(grants.get() > 100);
}
