//! What the emulator gets wrong.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use super::{Kernel, Shell};

/// Runs a case on a machine of its own.
///
/// QEMU's emulation of several CPUs is not always right when a kernel patches its own code, as it
/// does for every tracepoint: the kernel then dies of the breakpoint it patches with, also without
/// anything of ours. Such a machine proves nothing; the case is tried again on another one. No other
/// failure is. A guest of KVM inside dies of it, too ("left the guest with Shutdown at 0xfff0"), one for every few
/// hundred switches of a static key, with nothing of ours on the host but the guest. Where a case switches
/// schedulers a few times, CPUs therefore take turns ([`super::Host::count_instructions`]): 3 000 switches then did no harm.
///
/// # Panics
/// If the case panics.
pub fn on_emulator<M>(
    kernel: &Kernel,
    boot: impl Fn() -> M,
    shell: impl Fn(&M) -> &Shell,
    case: impl Fn(&mut M),
) {
    for last in [false, false, false, false, true] {
        let mut machine = boot();
        match catch_unwind(AssertUnwindSafe(|| case(&mut machine))) {
            Ok(()) => break,
            Err(_) if !last && shell(&machine).console().contains("Oops: int3") => {
                println!(
                    "Linux {}: the emulator failed a patched instruction, again",
                    kernel.version()
                );
            }
            Err(panic) => resume_unwind(panic),
        }
    }
}
