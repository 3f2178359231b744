//! Runs the programs of `bpf/check.bpf.c` in the kernel of this machine.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use ecs_policy::Params;
use ecs_shm::SlotAddresses;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{ErrorKind, MapCore, MapFlags, ProgramInput, ProgramMut};

#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    dead_code,
    missing_docs,
    unreachable_pub
)]
mod compiled {
    include!(concat!(env!("OUT_DIR"), "/check.skel.rs"));
}

#[path = "../../src/scx/named.rs"]
mod named;

pub(crate) use compiled::types;

/// The loaded programs, and the memory they share.
pub(crate) struct Checker {
    pub(crate) skel: compiled::CheckSkel<'static>,
}

impl Checker {
    /// Loads them, with these parameters of the policy; the reason where this machine cannot.
    ///
    /// # Panics
    /// If the kernel takes programs, and not these.
    pub(crate) fn load(params: &Params) -> Result<Self, String> {
        if !std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
            return Err("this kernel has no type information (BTF)".to_owned());
        }
        // Lives as long as the test.
        let storage = Box::leak(Box::new(MaybeUninit::uninit()));
        let mut open = compiled::CheckSkelBuilder::default().open(storage).unwrap();
        let rodata = open.maps.rodata_data.as_deref_mut().unwrap();
        rodata.setup.params = types::ecs_params {
            slice_ns: params.slice_ns,
            extension_ns: params.extension_ns,
            budget_ns: params.budget_ns,
            cooldown_max: params.cooldown_max,
            extensions: u8::from(params.extensions),
            queue_rules: u8::from(params.queue_rules),
            ..types::ecs_params::default()
        };
        rodata.setup.nr_cpus = 1;
        match open.load() {
            Ok(skel) => Ok(Self { skel }),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                Err("no permission to load programs into the kernel (root)".to_owned())
            }
            Err(error) => panic!("{error:?}"),
        }
    }

    /// The memory shared with the programs.
    pub(crate) fn shared(&mut self) -> &mut types::bss {
        self.skel.maps.bss_data.as_deref_mut().unwrap()
    }

    /// Says that this thread is that vCPU, and where its words are: the kernel pins them.
    pub(crate) fn name_thread(&self, vcpu: usize, words: SlotAddresses) {
        let number = u64::try_from(vcpu + 1).unwrap();
        let value = named::value(number, words);
        // SAFETY: the call takes integers and gives a new descriptor.
        let descriptor =
            unsafe { libc::syscall(libc::SYS_pidfd_open, libc::gettid(), libc::PIDFD_THREAD) };
        // SAFETY: that descriptor, which nobody else owns.
        let descriptor = unsafe { OwnedFd::from_raw_fd(i32::try_from(descriptor).unwrap()) };
        let threads = &self.skel.maps.threads;
        let key = descriptor.as_raw_fd().to_ne_bytes();
        threads
            .update(&key, value.as_flattened(), MapFlags::ANY)
            .unwrap();
    }

    /// Runs one of the programs, in this thread.
    pub(crate) fn run(&mut self, program: impl FnOnce(&Self) -> &ProgramMut<'static>) {
        let output = program(self).test_run(ProgramInput::default()).unwrap();
        assert_eq!(output.return_value, 0);
    }
}
