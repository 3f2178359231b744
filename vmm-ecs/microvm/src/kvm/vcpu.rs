//! One vCPU of a KVM guest: its registers, and its run loop.

use std::io;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::paging::{GDT_LIMIT, PageTables, USER_CODE, USER_DATA};
use super::{EXIT_DONE, EXIT_HALT, EXIT_WAKE, KvmError, MMIO_GPA};
use crate::machine::Machine;
use crate::sys::futex_wake;

/// Protection, monitor, extension type, numeric errors, write protection, paging.
const CR0: u64 = 0x8005_0033;
/// Physical address extension, SSE state, SSE exceptions.
const CR4: u64 = 0x620;
/// XSAVE for the guest.
const CR4_OSXSAVE: u64 = 1 << 18;
/// SYSCALL, long mode, long mode active, no-execute.
const EFER: u64 = 0xd01;
/// Reserved bit, interrupts on.
const RFLAGS: u64 = 0x202;
/// x87 and SSE state; AVX; AVX-512.
const XCR0_BASE: u64 = 0x3;
const XCR0_AVX: u64 = 0x4;
const XCR0_AVX512: u64 = 0xe0;
/// What a caller leaves on the stack: it keeps the alignment a function expects at its entry.
const RETURN_ADDRESS: u64 = 8;

/// Where a vCPU starts.
pub(super) struct Start<'a> {
    pub(super) entry: u64,
    pub(super) args: [u64; 2],
    pub(super) stack_top: u64,
    pub(super) tables: &'a PageTables,
}

/// Makes a vCPU that starts as a 64-bit program at CPL3.
pub(super) fn create(
    kvm: &Kvm,
    vm: &VmFd,
    number: usize,
    start: &Start<'_>,
) -> Result<VcpuFd, KvmError> {
    let call = |what| move |error| KvmError::Call(what, error);
    let fd = vm
        .create_vcpu(number as u64)
        .map_err(call("create a vCPU"))?;
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(call("tell its CPUID"))?;
    let supported = cpuid
        .as_slice()
        .iter()
        .find(|leaf| leaf.function == 0xd && leaf.index == 0)
        .map_or(0, |leaf| u64::from(leaf.eax));
    fd.set_cpuid2(&cpuid).map_err(call("take the CPUID"))?;

    let mut sregs = fd.get_sregs().map_err(call("tell a vCPU's registers"))?;
    let segment = kvm_segment {
        limit: u32::MAX,
        present: 1,
        dpl: 3,
        s: 1,
        g: 1,
        ..<_>::default()
    };
    sregs.cs = kvm_segment {
        selector: USER_CODE,
        type_: 11,
        l: 1,
        ..segment
    };
    let data = kvm_segment {
        selector: USER_DATA,
        type_: 3,
        db: 1,
        ..segment
    };
    [sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss] = [data; 5];
    sregs.gdt.base = start.tables.gdt();
    sregs.gdt.limit = GDT_LIMIT;
    sregs.idt.limit = 0;
    sregs.cr0 = CR0;
    sregs.cr3 = start.tables.root();
    sregs.cr4 = CR4 | if supported == 0 { 0 } else { CR4_OSXSAVE };
    sregs.efer = EFER;
    fd.set_sregs(&sregs).map_err(call("set a vCPU's mode"))?;

    if supported != 0 {
        let mut xcrs = fd.get_xcrs().map_err(call("tell a vCPU's XCR0"))?;
        let full = XCR0_BASE | XCR0_AVX | XCR0_AVX512;
        let mut value = supported & full;
        if value & XCR0_AVX512 != XCR0_AVX512 {
            value &= !XCR0_AVX512;
        }
        xcrs.nr_xcrs = 1;
        if let Some(xcr) = xcrs.xcrs.first_mut() {
            xcr.xcr = 0;
            xcr.value = value | XCR0_BASE;
        }
        fd.set_xcrs(&xcrs).map_err(call("set a vCPU's XCR0"))?;
    }

    let regs = kvm_regs {
        rip: start.entry,
        rsp: start.stack_top - RETURN_ADDRESS,
        rdi: start.args[0],
        rsi: start.args[1],
        rflags: RFLAGS,
        ..<_>::default()
    };
    fd.set_regs(&regs).map_err(call("set a vCPU's registers"))?;
    Ok(fd)
}

/// Runs a vCPU until its guest says it is done, or [`Machine::abort`] is set.
pub(super) fn run(machine: &Machine, fd: &mut VcpuFd, number: usize) -> Result<(), KvmError> {
    const DONE: u64 = MMIO_GPA + EXIT_DONE as u64;
    const HALT: u64 = MMIO_GPA + EXIT_HALT as u64;
    const WAKE: u64 = MMIO_GPA + EXIT_WAKE as u64;
    while !machine.abort.load(Ordering::Acquire) {
        let exit = match fd.run() {
            Ok(VcpuExit::MmioWrite(DONE, _)) => return Ok(()),
            Ok(VcpuExit::MmioWrite(HALT, _)) => {
                futex(machine, number, |word, expected| {
                    machine.sleepers.sleep(number, word, expected);
                });
                continue;
            }
            Ok(VcpuExit::MmioWrite(WAKE, _)) => {
                futex(machine, number, futex_wake);
                continue;
            }
            Ok(exit) => format!("{exit:?}"),
            Err(error) if [libc::EINTR, libc::EAGAIN].contains(&error.errno()) => continue,
            Err(error) => error.to_string(),
        };
        let rip = fd.get_regs().map_or(0, |regs| regs.rip);
        return Err(KvmError::Guest {
            vcpu: number,
            exit,
            rip,
        });
    }
    Ok(())
}

/// Takes a vCPU's request to sleep or wake from its area; nonsense in it is ignored.
fn futex(machine: &Machine, number: usize, call: impl FnOnce(&std::sync::atomic::AtomicU32, u32)) {
    let Some(own) = machine.ram.shared().vcpus.get(number) else {
        return;
    };
    let addr = own.halt_word.load(Ordering::Relaxed);
    if let Some(word) = machine.ram.word_at(addr) {
        call(word, own.halt_arg.load(Ordering::Relaxed));
    }
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Makes a signal interrupt KVM_RUN instead of ending the process.
pub(crate) fn register_kick() -> io::Result<()> {
    register_signal_handler(SIGRTMIN(), on_kick).map_err(io::Error::from)
}

/// Takes a thread out of KVM_RUN, if it is there; one that has ended needs nothing.
pub(crate) fn kick<T>(thread: &JoinHandle<T>) {
    let _ = thread.kill(SIGRTMIN());
}
