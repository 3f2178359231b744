//! The programs in the kernel: loaded, attached, and their memory, which this process maps.

use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::AsRawFd;
use std::ptr::{NonNull, addr_of, addr_of_mut};

use ecs_policy::Params;
use ecs_shm::SlotAddresses;
use libbpf_rs::skel::{OpenSkel, Skel, SkelBuilder};
use libbpf_rs::{Link, MapCore, MapFlags, OpenObject};

pub(crate) use super::compiled::types;
use super::compiled::{EcsSkel, EcsSkelBuilder};
use super::sizes::{self, ProgramSize};
use super::{ScxConfig, ScxError, named, topology};
use crate::sys::{SchedAttr, Tid, thread_fd};

/// Places for VMs, and for the vCPUs of one; `ECS_MAX_*` of `bpf/shared.h`.
pub(crate) const MAX_VMS: usize = len(|bss: &types::bss| &bss.vms);
pub(crate) const MAX_VCPUS: usize = len(|bss: &types::bss| &bss.vcpus) / MAX_VMS;
/// Regions of guest memory the programs know of one VM.
pub(crate) const MAX_REGIONS: usize = len(|vm: &types::ecs_vm_config| &vm.regions);
const MAX_CPUS: usize = len(|bss: &types::bss| &bss.cpu_stats);

/// Length of an array field, by its type.
const fn len<S, T, const N: usize>(_: fn(&S) -> &[T; N]) -> usize {
    N
}

/// `SCX_OPS_SWITCH_PARTIAL`: only threads of the policy `SCHED_EXT` are scheduled.
const SWITCH_PARTIAL: u64 = 8;
/// Size of a page, bytes: x86-64 only.
const PAGE: u32 = 4096;

/// Why the kernel ended the scheduler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) kind: u32,
    pub(crate) reason: String,
}

/// A loaded scheduler; it schedules from [`Program::attach`] until it is dropped, or the kernel
/// ends it.
pub(crate) struct Program {
    /// First of all in [`Drop`]: without it the kernel schedules by itself again.
    link: Option<Link>,
    /// Doorbells; without it guests ring in vain.
    doorbell: Option<Link>,
    skel: ManuallyDrop<EcsSkel<'static>>,
    /// See [`ScxConfig::partial`].
    partial: bool,
    /// What `skel` borrows from.
    storage: NonNull<MaybeUninit<OpenObject>>,
    bss: NonNull<types::bss>,
}

// SAFETY: the skeleton is Send and Sync by its own word; the memory behind `bss` is shared with the
// kernel, and accessed by volatile reads and writes of plain integers only.
unsafe impl Send for Program {}
// SAFETY: as above; what must not be torn is guarded by its sequence number.
unsafe impl Sync for Program {}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program")
            .field("attached", &self.link.is_some())
            .finish_non_exhaustive()
    }
}

// Places in raw arrays, which have no `get`: each index is compared with the array's length.
#[allow(clippy::indexing_slicing)]
impl Program {
    /// Loads the programs; the kernel's verifier has its say here.
    pub(crate) fn load(config: &ScxConfig) -> Result<Self, ScxError> {
        let nr_cpus = libbpf_rs::num_possible_cpus().map_err(ScxError::Load)?;
        let storage = NonNull::from(Box::leak(Box::new(MaybeUninit::uninit())));
        match Self::load_into(storage, config, nr_cpus) {
            Ok(program) => Ok(program),
            Err(error) => {
                // SAFETY: it came from a Box above, and what borrowed it has been dropped.
                drop(unsafe { Box::from_raw(storage.as_ptr()) });
                Err(error)
            }
        }
    }

    fn load_into(
        mut storage: NonNull<MaybeUninit<OpenObject>>,
        config: &ScxConfig,
        nr_cpus: usize,
    ) -> Result<Self, ScxError> {
        // SAFETY: the storage is valid, and used by this skeleton alone, which is dropped before it.
        let place: &'static mut MaybeUninit<OpenObject> = unsafe { storage.as_mut() };
        let mut open = EcsSkelBuilder::default()
            .open(place)
            .map_err(ScxError::Load)?;
        let ops = open.struct_ops.ecs_ops_mut();
        ops.timeout_ms = config.timeout_ms;
        if config.partial {
            ops.flags |= SWITCH_PARTIAL;
        }
        let rodata = open.maps.rodata_data.as_deref_mut();
        let Some(rodata) = rodata else {
            return Err(ScxError::Broken("it has no constants"));
        };
        let domains = topology::domains(nr_cpus);
        for (place, domain) in rodata.domains.iter_mut().zip(&domains) {
            *place = *domain;
        }
        let siblings = topology::next_siblings(nr_cpus);
        for (place, next) in rodata.next_siblings.iter_mut().zip(&siblings) {
            *place = *next;
        }
        let shared_cores = siblings
            .iter()
            .enumerate()
            .any(|(cpu, next)| usize::from(*next) != cpu);
        let several = domains.iter().any(|domain| Some(domain) != domains.first());
        rodata.setup = types::ecs_setup {
            params: params(&config.params),
            look_ns: config.look_ns,
            nr_cpus: u32::try_from(nr_cpus).unwrap_or(u32::MAX),
            step_aside: u8::from(config.step_aside),
            head_first: u8::from(config.head_first),
            apart: u8::from(config.apart),
            record: u8::from(config.record),
            near: u8::from(config.near && several),
            shared_cores: u8::from(shared_cores),
            ..types::ecs_setup::default()
        };
        if !config.record {
            // The smallest ring there is.
            open.maps
                .records
                .set_max_entries(PAGE)
                .map_err(ScxError::Load)?;
        }
        let mut skel = open.load().map_err(ScxError::Load)?;
        let bss = skel.maps.bss_data.as_deref_mut().map(NonNull::from);
        let Some(bss) = bss else {
            return Err(ScxError::Broken("it has no variables"));
        };
        Ok(Self {
            link: None,
            doorbell: None,
            skel: ManuallyDrop::new(skel),
            partial: config.partial,
            storage,
            bss,
        })
    }

    /// Takes over the host's scheduling.
    pub(crate) fn attach(&mut self) -> Result<(), ScxError> {
        let link = self.skel.maps.ecs_ops.attach_struct_ops();
        self.link = Some(link.map_err(ScxError::Attach)?);
        match self.skel.progs.ecs_doorbell.attach() {
            Ok(link) => self.doorbell = Some(link),
            Err(error) => tracing::warn!(
                %error,
                "No doorbells: guests are looked at, and cannot say when they leave a section"
            ),
        }
        Ok(())
    }

    /// Why the kernel ended it, if it did.
    pub(crate) fn ended(&self) -> Option<Ended> {
        let bss = self.bss.as_ptr();
        // SAFETY: `bss` is mapped as long as the skeleton lives; see `Program`.
        let (kind, reason, message) = unsafe {
            (
                addr_of!((*bss).exit_kind).read_volatile(),
                addr_of!((*bss).exit_reason).read_volatile(),
                addr_of!((*bss).exit_message).read_volatile(),
            )
        };
        (kind != 0).then(|| {
            let (reason, message) = (text(&reason), text(&message));
            Ended {
                kind,
                reason: if message.is_empty() {
                    reason
                } else {
                    format!("{reason} ({message})")
                },
            }
        })
    }

    /// Writes what the programs should know of a VM.
    pub(crate) fn set_vm(&self, vm: usize, config: &types::ecs_vm_config) {
        if vm < MAX_VMS {
            // SAFETY: as in `ended`; the index is in range. The programs bear a torn record: it
            // leads to a read that fails or makes no sense.
            unsafe { addr_of_mut!((*self.bss.as_ptr()).vm_configs[vm]).write_volatile(*config) };
        }
    }

    /// Writes what the programs should know of a vCPU.
    pub(crate) fn set_vcpu(&self, vm: usize, vcpu: usize, config: &types::ecs_vcpu_config) {
        if vm < MAX_VMS && vcpu < MAX_VCPUS {
            let index = vm * MAX_VCPUS + vcpu;
            // SAFETY: as in `set_vm`.
            unsafe {
                addr_of_mut!((*self.bss.as_ptr()).vcpu_configs[index]).write_volatile(*config);
            }
        }
    }

    /// VMs are in the places below `nr`.
    pub(crate) fn set_nr_vms(&self, nr: usize) {
        let nr = u32::try_from(nr.min(MAX_VMS)).unwrap_or(u32::MAX);
        // SAFETY: as in `ended`.
        unsafe { addr_of_mut!((*self.bss.as_ptr()).nr_vms).write_volatile(nr) };
    }

    /// Says which vCPU a thread is, and where this process has the vCPU's words: the kernel pins
    /// their pages until it is told others. In partial mode the thread comes to this scheduler now.
    pub(crate) fn set_thread(
        &self,
        tid: Tid,
        vm: usize,
        vcpu: usize,
        words: SlotAddresses,
    ) -> Result<(), ScxError> {
        if vm >= MAX_VMS || vcpu >= MAX_VCPUS {
            return Ok(());
        }
        let number = u64::try_from(vm * MAX_VCPUS + vcpu + 1).unwrap_or(u64::MAX);
        let thread = thread_fd(tid).map_err(ScxError::NoThread)?;
        if self.partial {
            SchedAttr::ext().set(tid).map_err(ScxError::NoThread)?;
        }
        self.skel
            .maps
            .threads
            .update(
                &thread.as_raw_fd().to_ne_bytes(),
                named::value(number, words).as_flattened(),
                MapFlags::ANY,
            )
            .map_err(ScxError::Thread)
    }

    /// The thread is no vCPU any more.
    pub(crate) fn remove_thread(&self, tid: Tid) {
        // It may have ended before: then there is nothing to remove.
        if let Ok(thread) = thread_fd(tid) {
            let _ = self
                .skel
                .maps
                .threads
                .delete(&thread.as_raw_fd().to_ne_bytes());
        }
    }

    /// The books of a VM at one moment.
    pub(crate) fn vm(&self, vm: usize) -> Option<types::ecs_vm_state> {
        const TRIES: usize = 1000;
        if vm >= MAX_VMS {
            return None;
        }
        // SAFETY: as in `ended`; the index is in range.
        let place = unsafe { addr_of!((*self.bss.as_ptr()).vms[vm]) };
        for _ in 0..TRIES {
            // SAFETY: as above.
            let books = unsafe { place.read_volatile() };
            // SAFETY: as above.
            let after = unsafe { addr_of!((*place).seq).read_volatile() };
            if books.seq == after && after.is_multiple_of(2) {
                return Some(books);
            }
            std::hint::spin_loop();
        }
        None
    }

    /// What is known of a vCPU.
    pub(crate) fn vcpu(&self, vm: usize, vcpu: usize) -> Option<types::ecs_vcpu> {
        let index = vm * MAX_VCPUS + vcpu;
        (vm < MAX_VMS && vcpu < MAX_VCPUS).then(|| {
            // SAFETY: as in `ended`; the index is in range. Each word is a counter of its own.
            unsafe { addr_of!((*self.bss.as_ptr()).vcpus[index]).read_volatile() }
        })
    }

    /// Histograms and counters of a CPU.
    pub(crate) fn cpu(&self, cpu: usize) -> Option<types::ecs_cpu_stats> {
        (cpu < MAX_CPUS).then(|| {
            // SAFETY: as in `vcpu`.
            unsafe { addr_of!((*self.bss.as_ptr()).cpu_stats[cpu]).read_volatile() }
        })
    }

    /// How long the programs are.
    pub(crate) fn sizes(&self) -> Vec<ProgramSize> {
        sizes::of(self.skel.object())
    }

    /// The ring of recorded operations.
    pub(crate) fn records(&self) -> &dyn MapCore {
        &self.skel.maps.records
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        drop(self.doorbell.take());
        drop(self.link.take());
        // SAFETY: dropped once, here, before what it borrows from.
        unsafe { ManuallyDrop::drop(&mut self.skel) };
        // SAFETY: it came from a Box in `load`, and nothing borrows it any more.
        drop(unsafe { Box::from_raw(self.storage.as_ptr()) });
    }
}

fn params(params: &Params) -> types::ecs_params {
    types::ecs_params {
        slice_ns: params.slice_ns,
        extension_ns: params.extension_ns,
        budget_ns: params.budget_ns,
        cooldown_max: params.cooldown_max,
        extensions: u8::from(params.extensions),
        queue_rules: u8::from(params.queue_rules),
        ..types::ecs_params::default()
    }
}

/// A C string, as far as it is text.
fn text(bytes: &[i8]) -> String {
    let bytes: Vec<u8> = bytes
        .iter()
        .map(|byte| byte.cast_unsigned())
        .take_while(|byte| *byte != 0)
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
