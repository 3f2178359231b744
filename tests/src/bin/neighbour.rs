//! A VM and a neighbour of its vCPU, for an emulated host: prints how soon the guest hears that its
//! CPU is wanted.
//!
//! `neighbour SOCKET STATS CPU OTHER`: the sockets of the VM and of its daemon's statistics, the CPU of
//! vCPU and neighbour, and the one from which the neighbour is woken.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::{Context, ensure};
use ecs_microvm::{KindUsed, WorkloadKind};
use ecs_tests::hints;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().with_context(|| format!("No {what}"));
    let socket: PathBuf = next("socket")?.into();
    let stats: PathBuf = next("socket of the statistics")?.into();
    let cpu: u32 = next("CPU")?.parse()?;
    let other: u32 = next("other CPU")?.parse()?;
    let vm = hints::vm(&socket, &stats, 1, &[cpu], WorkloadKind::Compute)?;
    ensure!(vm.kind() == KindUsed::Kvm, "No KVM: {}", vm.why());
    let heard = hints::of_a_neighbour(vm, cpu, other)?;
    println!("{}", heard.to_line());
    Ok(())
}
