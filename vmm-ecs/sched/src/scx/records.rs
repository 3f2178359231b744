//! What the programs did to the books, for a replay by `ecs-policy`.
//!
//! An operation is written as `bpf/ops.h` takes it; its turn has the number of its vCPU over all VMs.

use std::fmt;

use libbpf_rs::RingBufferBuilder;

use super::ScxError;
use super::kernel::{MAX_VCPUS, MAX_VMS, Program, types};

/// One line of a recording: of the same VM, the order is that of `seq`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Place of the VM.
    pub vm: usize,
    /// Number of the change of its books.
    pub seq: u64,
    /// What happened; `None`: the books as they are at `seq`.
    pub op: Option<String>,
    /// What the operation gave, or the books.
    pub numbers: Vec<u64>,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let op = self.op.as_deref().unwrap_or("=");
        write!(f, "{} {}: {op} =", self.vm, self.seq)?;
        self.numbers.iter().try_for_each(|n| write!(f, " {n}"))
    }
}

/// The books of every VM now, then all operations recorded since the last time.
pub(super) fn take(program: &Program) -> Result<Vec<Record>, ScxError> {
    let mut found: Vec<Record> = (0..MAX_VMS).filter_map(|vm| books(program, vm)).collect();
    let mut ring = RingBufferBuilder::new();
    ring.add(program.records(), |bytes| {
        found.extend(parse(bytes));
        0
    })
    .map_err(ScxError::Records)?;
    let ring = ring.build().map_err(ScxError::Records)?;
    ring.consume().map_err(ScxError::Records)?;
    drop(ring);
    Ok(found)
}

/// Records that found no room.
pub(super) fn lost(program: &Program) -> u64 {
    let cpus = (0..).map_while(|cpu| program.cpu(cpu));
    cpus.map(|cpu| cpu.records_lost).sum()
}

fn books(program: &Program, vm: usize) -> Option<Record> {
    let state = program.vm(vm).filter(|state| state.epoch != 0)?;
    let (ledger, counters) = (&state.vm.ledger, &state.vm.counters);
    let debt = ledger.extension_ns.wrapping_sub(ledger.penalty_ns);
    let mut numbers = vec![
        ledger.weight.into(),
        ledger.vtime_ns,
        ledger.cpu_ns,
        ledger.extension_ns,
        ledger.penalty_ns,
        ledger.forgiven_ns,
        debt.wrapping_sub(ledger.forgiven_ns),
        counters.requests,
    ];
    numbers.extend(counters.grants);
    numbers.extend(counters.denials);
    numbers.extend(counters.ended);
    numbers.extend([
        counters.running,
        counters.stepped_aside,
        counters.handed_back,
    ]);
    Some(Record {
        vm,
        seq: state.seq,
        op: None,
        numbers,
    })
}

/// `None` for what is no record.
fn parse(bytes: &[u8]) -> Option<Record> {
    if bytes.len() != size_of::<types::ecs_record>() {
        return None;
    }
    // SAFETY: the size is right, and the type consists of integers only.
    let r: types::ecs_record =
        unsafe { bytes.as_ptr().cast::<types::ecs_record>().read_unaligned() };
    let index = usize::try_from(r.vcpu).ok()?;
    let (vm, vcpu) = (index / MAX_VCPUS, index % MAX_VCPUS);
    let (input, snap, out) = (&r.r#in, &r.r#in.snap, &r.out);
    let mut numbers = Vec::new();
    // In the order of `enum ecs_op`.
    let op = match r.op {
        0 => format!("N {vm} {} {}", r.a, r.b),
        1 => format!("W {vm} {}", r.a),
        2 => format!("E {vm} {}", r.a),
        3 => format!("K {vm} {} {}", r.a, r.b),
        4 => format!("C {vm} {}", r.a),
        5 => {
            numbers.push(r.b);
            format!("B {index} {vm} {vcpu} {}", r.a)
        }
        6 => {
            let (kind, leave) = (u64::from(out.kind), u64::from(out.leave));
            numbers.extend([
                kind,
                out.for_ns,
                leave,
                out.section.into(),
                out.denial.into(),
            ]);
            format!(
                "L {index} {} {} {} {} {} {} {} {} {} {} {} {}",
                input.event,
                input.ran_ns,
                snap.non_preemptable,
                snap.preemptable,
                snap.blocked,
                snap.idle,
                snap.wait,
                snap.holder,
                snap.lock,
                input.queue,
                input.others,
                input.urgent
            )
        }
        7 => format!("A {vm}"),
        8 => format!("I {vm} {} {}", r.a, r.b),
        _ => return None,
    };
    Some(Record {
        vm,
        seq: r.seq,
        op: Some(op),
        numbers,
    })
}
