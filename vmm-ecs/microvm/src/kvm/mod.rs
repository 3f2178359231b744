//! The vCPU as a KVM guest that works at CPL3.
//!
//! # Approach
//! A KVM may be software (nested machines) and emulate CPL0 thousands of times slower than the CPU,
//! but runs CPL3 at full speed. So the guest has no CPL0 code at all: the VMM writes page tables and
//! the registers of a 64-bit user program, and KVM_RUN starts in the workload function.
//!
//! Guest-virtual addresses are those of this process. Guest-physical memory is put together from:
//!
//! | guest-physical | what | guest may |
//! |---|---|---|
//! | `RAM_GPA` | guest memory, the memfd the daemon sees: `Shared`, stacks | read, write |
//! | `IMAGE_GPA` | this executable's segments | read, execute text |
//! | `TABLES_GPA` | page tables, GDT | nothing |
//! | `MMIO_GPA` | no memory: each store is an ioeventfd (doorbells) or an exit | write |
//!
//! There is no IDT: any fault in the guest shuts it down, and the VMM says so.

mod image;
mod paging;
mod vcpu;

use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ecs_abi::VIRTIO_ECS_YIELD_RELEASE;
use ecs_guest::{Doorbell, Halt};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};

use crate::config::Workload;
use crate::machine::Machine;
use crate::shared::{RAM_GPA, Shared};
use crate::sys::{self, Mapping};
use crate::workload::{index_of, run_vcpu};
use paging::{Access, PageTables};

const IMAGE_GPA: u64 = 0x1_0000_0000;
const TABLES_GPA: u64 = 0x2_0000_0000;
const MMIO_GPA: u64 = 0xd000_0000;
/// Doorbells in the first page, one cache line each; what exits, in the second.
const MMIO_LEN: usize = 2 * sys::PAGE;
const DOORBELL_STRIDE: usize = 64;
const EXIT_DONE: usize = sys::PAGE;
const EXIT_HALT: usize = sys::PAGE + 8;
const EXIT_WAKE: usize = sys::PAGE + 16;

/// Three pages KVM on Intel wants below 4 GiB, away from everything else.
const TSS_ADDR: usize = 0xfffb_d000;
/// How long the probe may take.
const PROBE_TIME: Duration = Duration::from_secs(2);
/// Operations the probe does.
const PROBE_OPS: u64 = 8;

/// A KVM guest cannot be made, or came to grief.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// /dev/kvm is not usable.
    #[error("Cannot open /dev/kvm: load the kvm module, or give this user access to it")]
    Open(#[source] kvm_ioctls::Error),
    /// A KVM call failed.
    #[error("KVM refused to {0}")]
    Call(&'static str, #[source] kvm_ioctls::Error),
    /// The executable's mappings cannot be found.
    #[error("Cannot read where this executable is mapped")]
    Image(#[source] io::Error),
    /// Memory for page tables or the MMIO window is refused.
    #[error("Cannot map memory for the guest")]
    Memory(#[source] io::Error),
    /// Too much to map.
    #[error("The page tables for this executable do not fit: strip it")]
    TablesFull,
    /// No thread, or no signal to interrupt it.
    #[error("Cannot start a thread that runs the guest")]
    Kick(#[source] io::Error),
    /// The guest faulted, or did something nobody understands.
    #[error("vCPU {vcpu} left the guest with {exit} at {rip:#x}")]
    Guest {
        /// vCPU.
        vcpu: usize,
        /// What KVM said.
        exit: String,
        /// Guest instruction pointer.
        rip: u64,
    },
    /// The probe did not come to its end.
    #[error("The guest did not finish the probe within {PROBE_TIME:?}")]
    ProbeTimeout,
    /// The probe came to its end without doing what it should.
    #[error("The guest did {ops} of {PROBE_OPS} operations and rang {rings} times in the probe")]
    ProbeResult {
        /// Operations done.
        ops: u64,
        /// Doorbell rings that arrived.
        rings: u64,
    },
}

/// The guest's view of the platform: stores into the MMIO window.
struct MmioPlatform<'s> {
    shared: &'s Shared,
    vcpu: usize,
}

impl MmioPlatform<'_> {
    fn store(&self, offset: usize) {
        let window = self.shared.control.mmio.load(Ordering::Relaxed);
        let addr = std::ptr::with_exposed_provenance_mut::<u32>(window + offset);
        // SAFETY: runs in the guest only (`guest_entry`), where the window is mapped writable for
        // `MMIO_LEN` bytes and `offset` lies below that. No memory is behind it: KVM turns the store
        // into an event.
        unsafe { addr.write_volatile(1) };
    }

    fn futex(&self, word: &AtomicU32, arg: u32, exit: usize) {
        if let Some(own) = self.shared.vcpus.get(self.vcpu) {
            own.halt_word
                .store(std::ptr::from_ref(word).addr() as u64, Ordering::Relaxed);
            own.halt_arg.store(arg, Ordering::Relaxed);
            self.store(exit);
        }
    }
}

impl Doorbell for MmioPlatform<'_> {
    fn ring(&self) {
        let nr = self.shared.control.nr_doorbells.load(Ordering::Relaxed) as usize;
        let bell = self.vcpu.checked_rem(nr).unwrap_or(self.vcpu);
        self.store(bell * DOORBELL_STRIDE);
    }
}

impl Halt for MmioPlatform<'_> {
    fn halt(&self, word: &AtomicU32, expected: u32) {
        self.futex(word, expected, EXIT_HALT);
    }

    fn wake(&self, word: &AtomicU32, nr: u32) {
        self.futex(word, nr, EXIT_WAKE);
    }
}

/// Where the guest starts, at CPL3, with its arguments in registers as a C caller would pass them.
extern "C" fn guest_entry(shared: *const Shared, vcpu: u32) -> ! {
    // SAFETY: the VMM passes the address of guest memory, which is mapped here at that address for
    // as long as the guest runs, and consists of atomics only.
    let shared = unsafe { &*shared };
    let platform = MmioPlatform {
        shared,
        vcpu: vcpu as usize,
    };
    run_vcpu(shared, vcpu, &platform);
    loop {
        platform.store(EXIT_DONE);
    }
}

/// A KVM VM around a machine. Fields are dropped in order: the VM before the memory it uses.
#[derive(Debug)]
pub(crate) struct KvmVm {
    vm: VmFd,
    kvm: Kvm,
    tables: PageTables,
    _mmio: Mapping,
    machine: Arc<Machine>,
}

impl KvmVm {
    /// Puts the guest's memory together.
    pub(crate) fn new(machine: Arc<Machine>) -> Result<Self, KvmError> {
        let kvm = Kvm::new().map_err(KvmError::Open)?;
        let vm = kvm
            .create_vm()
            .map_err(|error| KvmError::Call("create a VM", error))?;
        vm.set_tss_address(TSS_ADDR)
            .map_err(|error| KvmError::Call("place the task state segment", error))?;
        let mmio = Mapping::reserved(MMIO_LEN).map_err(KvmError::Memory)?;
        let mut tables = PageTables::new(TABLES_GPA).map_err(KvmError::Memory)?;
        let mut slots = Slots {
            vm: &vm,
            tables: &mut tables,
            next: 0,
        };

        let ram = &machine.ram;
        slots.add(ram.addr(), ram.len(), RAM_GPA, Access::Write, false)?;
        let read_only = kvm.check_extension(Cap::ReadonlyMem);
        let maps = fs::read_to_string("/proc/self/maps").map_err(KvmError::Image)?;
        let entry = guest_entry as *const () as usize;
        let mut gpa = IMAGE_GPA;
        for segment in image::segments_around(&maps, entry) {
            let access = if segment.executable {
                Access::Execute
            } else {
                Access::Read
            };
            slots.add(segment.start, segment.len, gpa, access, read_only)?;
            gpa += segment.len as u64;
        }
        let window = mmio.as_ptr().addr();
        slots
            .tables
            .map(window, MMIO_GPA, MMIO_LEN, Access::Write)?;
        let (addr, len) = (slots.tables.addr(), slots.tables.len());
        slots.memory(addr, len, TABLES_GPA, false)?;

        for (bell, event) in machine.doorbells.iter().enumerate() {
            let addr = IoEventAddress::Mmio(MMIO_GPA + (bell * DOORBELL_STRIDE) as u64);
            vm.register_ioevent(event, &addr, NoDatamatch)
                .map_err(|error| KvmError::Call("connect a doorbell", error))?;
        }
        let shared = machine.ram.shared();
        shared
            .control
            .mmio
            .store(mmio.as_ptr().expose_provenance(), Ordering::Relaxed);
        Ok(Self {
            vm,
            kvm,
            tables,
            _mmio: mmio,
            machine,
        })
    }

    /// Makes vCPU `number`, ready to run.
    pub(crate) fn create_vcpu(&self, number: usize) -> Result<VcpuFd, KvmError> {
        vcpu::create(
            &self.kvm,
            &self.vm,
            number,
            &vcpu::Start {
                entry: guest_entry as *const () as usize as u64,
                args: [self.machine.ram.addr() as u64, number as u64],
                stack_top: self.machine.ram.stack_top(number).unwrap_or(0) as u64,
                tables: &self.tables,
            },
        )
    }

    /// Runs a vCPU in the calling thread until the guest has stopped.
    pub(crate) fn run(&self, fd: &mut VcpuFd, number: usize) -> Result<(), KvmError> {
        vcpu::run(&self.machine, fd, number)
    }
}

/// Memory slots of a VM under construction.
struct Slots<'a> {
    vm: &'a VmFd,
    tables: &'a mut PageTables,
    next: u32,
}

impl Slots<'_> {
    fn add(
        &mut self,
        addr: usize,
        len: usize,
        gpa: u64,
        access: Access,
        read_only: bool,
    ) -> Result<(), KvmError> {
        self.memory(addr, len, gpa, read_only)?;
        self.tables.map(addr, gpa, len, access)
    }

    fn memory(
        &mut self,
        addr: usize,
        len: usize,
        gpa: u64,
        read_only: bool,
    ) -> Result<(), KvmError> {
        let region = kvm_userspace_memory_region {
            slot: self.next,
            flags: if read_only { KVM_MEM_READONLY } else { 0 },
            guest_phys_addr: gpa,
            memory_size: len as u64,
            userspace_addr: addr as u64,
        };
        self.next += 1;
        // SAFETY: the range is a mapping of this process that outlives the VM: guest memory and page
        // tables are owned by `KvmVm` and dropped after the VM, the executable stays mapped for ever.
        // The guest writes to guest memory only, through atomics: page tables and image are mapped
        // read-only, or not at all, for CPL3.
        unsafe { self.vm.set_user_memory_region(region) }
            .map_err(|error| KvmError::Call("take memory", error))
    }
}

/// Runs a small guest to see whether this KVM can do what is needed, doorbell included.
pub(crate) fn probe(workload: &Workload) -> Result<(), KvmError> {
    let machine = Machine::new(1).map_err(KvmError::Memory)?;
    let shared = machine.ram.shared();
    let control = &shared.control;
    control.vcpus.store(1, Ordering::Relaxed);
    control.annotate.store(1, Ordering::Relaxed);
    control.pauses_per_us.store(1, Ordering::Relaxed);
    control
        .workload
        .store(index_of(workload.kind), Ordering::Relaxed);
    control.max_ops.store(PROBE_OPS, Ordering::Relaxed);
    for lines in shared.lines.iter().take(1) {
        lines
            .host
            .r#yield
            .store(VIRTIO_ECS_YIELD_RELEASE, Ordering::Relaxed);
    }
    let vm = KvmVm::new(Arc::clone(&machine))?;
    let mut fd = vm.create_vcpu(0)?;
    register_kick().map_err(KvmError::Kick)?;
    let started = Instant::now();
    let guest = std::thread::Builder::new()
        .name("probe".to_owned())
        .spawn(move || vm.run(&mut fd, 0))
        .map_err(KvmError::Kick)?;
    while !guest.is_finished() && started.elapsed() < PROBE_TIME {
        std::thread::sleep(Duration::from_micros(500));
    }
    let timed_out = !guest.is_finished();
    machine.abort.store(timed_out, Ordering::Release);
    while !guest.is_finished() {
        kick(&guest);
        std::thread::sleep(Duration::from_millis(1));
    }
    match guest.join() {
        Ok(result) if !timed_out => result?,
        _ => return Err(KvmError::ProbeTimeout),
    }
    let ops = shared
        .vcpus
        .first()
        .map_or(0, |vcpu| vcpu.ops.load(Ordering::Relaxed));
    let rings = machine
        .doorbells
        .first()
        .and_then(|bell| bell.read().ok())
        .unwrap_or(0);
    let sections = !matches!(workload.kind, crate::config::WorkloadKind::Compute);
    if ops != PROBE_OPS || (sections && rings == 0) {
        return Err(KvmError::ProbeResult { ops, rings });
    }
    Ok(())
}

pub(crate) use vcpu::{kick, register_kick};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn guest(test: &str) -> Option<(Arc<Machine>, KvmVm, VcpuFd)> {
        let machine = Machine::new(1).unwrap();
        match KvmVm::new(Arc::clone(&machine)) {
            Ok(vm) => {
                let fd = vm.create_vcpu(0).unwrap();
                Some((machine, vm, fd))
            }
            Err(error) => {
                println!("SKIPPED: {test}: {error}");
                None
            }
        }
    }

    /// Runs the guest from `rip`, with `rdi` as the first argument.
    fn run_from(vm: &KvmVm, fd: &mut VcpuFd, rip: usize, rdi: u64) -> Result<(), KvmError> {
        let mut regs = fd.get_regs().unwrap();
        regs.rip = rip as u64;
        regs.rdi = rdi;
        fd.set_regs(&regs).unwrap();
        vm.run(fd, 0)
    }

    extern "C" fn store(place: *mut u64) -> ! {
        // SAFETY: runs in a guest, whose page tables decide whether the store is allowed; the tests
        // pass places where it is not.
        unsafe { place.write_volatile(1) };
        for_ever(place)
    }

    extern "C" fn for_ever(_: *mut u64) -> ! {
        loop {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn a_guest_that_leaves_its_memory_is_reported() {
        let Some((_machine, vm, mut fd)) = guest("a_guest_that_leaves_its_memory") else {
            return;
        };
        let error = run_from(&vm, &mut fd, 0x10, 0).unwrap_err();
        assert!(matches!(error, KvmError::Guest { vcpu: 0, .. }), "{error}");
    }

    #[test]
    fn a_guest_cannot_write_to_this_executable_nor_to_its_page_tables() {
        let text = store as *const () as u64;
        for place in [text, TABLES_GPA] {
            let Some((_machine, vm, mut fd)) = guest("a_guest_cannot_write") else {
                return;
            };
            let error = run_from(&vm, &mut fd, store as *const () as usize, place).unwrap_err();
            assert!(matches!(error, KvmError::Guest { .. }), "{error}");
        }
    }

    #[test]
    fn a_guest_that_hangs_can_be_taken_out() {
        let Some((machine, vm, mut fd)) = guest("a_guest_that_hangs") else {
            return;
        };
        register_kick().unwrap();
        let entry = for_ever as *const () as usize;
        let guest = std::thread::spawn(move || run_from(&vm, &mut fd, entry, 0));
        std::thread::sleep(Duration::from_millis(10));
        assert!(!guest.is_finished());
        machine.abort.store(true, Ordering::Release);
        let start = Instant::now();
        while !guest.is_finished() && start.elapsed() < Duration::from_secs(5) {
            kick(&guest);
            std::thread::sleep(Duration::from_millis(1));
        }
        guest.join().unwrap().unwrap();
    }
}
