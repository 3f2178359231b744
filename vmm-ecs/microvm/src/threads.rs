//! The vCPU as a plain thread.

use std::sync::atomic::AtomicU32;

use ecs_guest::{Doorbell, Halt};

use crate::machine::Machine;
use crate::sys::futex_wake;
use crate::workload::run_vcpu;

struct ThreadPlatform<'m> {
    machine: &'m Machine,
    vcpu: usize,
}

impl Doorbell for ThreadPlatform<'_> {
    fn ring(&self) {
        if let Some(bell) = self.machine.doorbell_of(self.vcpu) {
            // A counter at its limit has been rung often enough.
            let _ = bell.write(1);
        }
    }
}

impl Halt for ThreadPlatform<'_> {
    fn halt(&self, word: &AtomicU32, expected: u32) {
        self.machine.sleepers.sleep(self.vcpu, word, expected);
    }

    fn wake(&self, word: &AtomicU32, nr: u32) {
        futex_wake(word, nr);
    }
}

/// Runs vCPU `number` in the calling thread until it stops.
pub(crate) fn run(machine: &Machine, number: u32) {
    let platform = ThreadPlatform {
        machine,
        vcpu: number as usize,
    };
    run_vcpu(machine.ram.shared(), number, &platform);
}
