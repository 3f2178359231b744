//! What the controller in the kernel does to the books, replayed by `ecs-policy`: every decision and
//! every book is the same.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

// Other tests use the rest of them.
#[allow(dead_code)]
#[path = "../../vmm-ecs/sched/tests/parity/host.rs"]
mod host;
#[allow(dead_code)]
#[path = "../../vmm-ecs/sched/tests/parity/op.rs"]
mod op;

use std::collections::BTreeMap;
use std::time::Duration;

use ecs_policy::Params;
use ecs_tests::linux::{Host, HostVm};
use ecs_tests::{parts, scx_program, skip};

use op::Op;

/// Time for what takes some seconds of the host's.
const PATIENCE: Duration = Duration::from_secs(300);
/// vCPUs a VM may have, as the controller numbers them.
const MAX_VCPUS: usize = 256;
const VMS: usize = 2;
/// Instructions the verifier may go through for one program, over all paths: those that look at
/// guests, and others.
const VERIFIED_MOST: [(&str, u32); 4] = [
    ("ecs_dispatch", 80_000),
    ("ecs_running", 30_000),
    ("ecs_stopping", 40_000),
    ("ecs_init", 40_000),
];
const VERIFIED_OTHERS: u32 = 15_000;

/// What was recorded of one VM.
#[derive(Debug, Default)]
struct Recording {
    /// By their number.
    ops: BTreeMap<u64, (Op, Vec<u64>)>,
    /// The books, by the number of the next operation.
    books: BTreeMap<u64, Vec<u64>>,
}

/// Every VM's, and how many records found no room.
fn parse(text: &str) -> (Vec<Recording>, u64) {
    let mut vms: Vec<Recording> = (0..VMS).map(|_| Recording::default()).collect();
    let mut lost = 0;
    // The daemon may be in the middle of the last line.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for line in whole.lines() {
        if let Some(number) = line.strip_prefix("lost ") {
            lost = number.parse().unwrap();
            continue;
        }
        if line.starts_with("program ") {
            continue;
        }
        let (place, rest) = line.split_once(": ").unwrap();
        let (vm, seq) = place.split_once(' ').unwrap();
        let (op, answer) = rest.rsplit_once('=').unwrap();
        let answer = answer.split_ascii_whitespace();
        let answer: Vec<u64> = answer.map(|number| number.parse().unwrap()).collect();
        let vm = &mut vms[vm.parse::<usize>().unwrap()];
        let seq: u64 = seq.parse().unwrap();
        if op.trim() == "=" {
            vm.books.insert(seq, answer);
        } else {
            let twice = vm.ops.insert(seq, (Op::parse(op), answer));
            assert!(twice.is_none(), "{line}");
        }
    }
    (vms, lost)
}

#[test]
fn a_replay_gives_the_same_decisions_and_books() {
    let name = "a_replay_gives_the_same_decisions_and_books";
    let parts = parts!(name, "7.3");
    let program = match scx_program().unwrap() {
        Ok(program) => program,
        Err(reason) => skip!(name, "{reason}"),
    };
    let kernel = parts.kernel("7.3").unwrap();
    let host = Host {
        programs: vec![program],
        count_instructions: true,
        ..Host::default()
    };
    HostVm::run(&parts, &kernel, &host, |host| {
        let demo = "vmm-ecs demo --quiet --arms ecs --controller scx --runs 1 --seconds 3 --vms 2 \
                    --vcpus 2 --pcpus 0 --weights 100,300 --record /tmp/records";
        host.sh_within(demo, PATIENCE).unwrap();
        let text = String::from_utf8(host.read_file("/tmp/records").unwrap()).unwrap();
        check_sizes(&text);
        let (vms, lost) = parse(&text);
        assert_eq!(lost, 0);
        replay(&vms);
    });
}

/// No program comes near the verifier's limit, which is a million, nor grows unnoticed.
fn check_sizes(text: &str) {
    let mut most = 0;
    let programs = text
        .lines()
        .filter_map(|line| line.strip_prefix("program "));
    for line in programs {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, verified, translated, machine] = words.as_slice() else {
            panic!("{line}");
        };
        let verified: u32 = verified.parse().unwrap();
        let translated: u32 = translated.parse().unwrap();
        println!(
            "{name}: {} instructions, {machine} bytes of machine code; verified {verified}",
            translated / 8
        );
        let of = VERIFIED_MOST.iter().find(|(of, _)| of == name);
        let ceiling = of.map_or(VERIFIED_OTHERS, |(_, ceiling)| *ceiling);
        assert!(verified <= ceiling, "{line}");
        most = most.max(verified);
    }
    assert!(most > 0);
}

/// Carries every VM's operations out, and compares.
fn replay(vms: &[Recording]) {
    let mut policy = host::Host::new(VMS, MAX_VCPUS, VMS * MAX_VCPUS);
    policy.result(&Op::Params(Params::default()));
    let (mut ops, mut decisions, mut books, mut grants) = (0, 0, 0, 0);
    for (index, vm) in vms.iter().enumerate() {
        // Numbers of changes are odd while they happen: 1, 3, 5.
        let mut next = 1;
        for (&seq, (op, answer)) in &vm.ops {
            if let Some(live) = vm.books.get(&(seq - 1)) {
                assert_eq!(&policy.books(index), live, "VM {index} before {seq}");
                books += 1;
            }
            assert_eq!(seq, next, "VM {index}: an operation is missing");
            next += 2;
            let ours = policy.result(op);
            assert_eq!(&ours, answer, "VM {index}, {seq}: {op:?}");
            ops += 1;
            decisions += u32::from(matches!(op, Op::Look { .. }));
        }
        if let Some(live) = vm.books.get(&(next - 1)) {
            assert_eq!(&policy.books(index), live, "VM {index} at the end");
            books += 1;
        }
        grants += policy.vms()[index].counters.grants.iter().sum::<u64>();
    }
    println!("{ops} operations, {decisions} decisions, {grants} grants, {books} times the books");
    assert!(decisions > 500 && grants > 50 && books > 10);
}
