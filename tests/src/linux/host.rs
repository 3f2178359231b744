//! A host with sched_ext and KVM, to run programs of this tree in.

use std::ops::{Deref, DerefMut};
use std::path::PathBuf;

use anyhow::bail;

use super::shell::Hardware;
use super::{Initramfs, Kernel, Parts, Shell, on_emulator};

/// A host to boot.
#[derive(Debug, Clone)]
pub struct Host {
    /// CPUs. Each is a thread here.
    pub cpus: usize,
    /// CPUs of each core.
    pub threads: usize,
    /// NUMA nodes, each with its part of CPUs and memory.
    pub nodes: usize,
    /// Memory, MiB.
    pub memory: usize,
    /// Words for the kernel's command line.
    pub append: String,
    /// Programs to have in `/bin`, with the shared libraries they need.
    pub programs: Vec<PathBuf>,
    /// Other files to have: which, and where.
    pub files: Vec<(PathBuf, String)>,
    /// Time goes by the instructions executed, 8 ns each, and jumps over what would be waited for:
    /// whatever else the machine does changes nothing. CPUs then take turns.
    pub count_instructions: bool,
}

impl Default for Host {
    fn default() -> Self {
        Self {
            cpus: 2,
            threads: 1,
            nodes: 1,
            memory: 1024,
            append: String::new(),
            programs: Vec::new(),
            files: Vec::new(),
            count_instructions: false,
        }
    }
}

/// A running host: a [`Shell`] with sched_ext, `/dev/kvm`, cgroup2, debugfs, tracefs, bpffs and a
/// loopback. Dropping it ends it.
#[derive(Debug)]
pub struct HostVm {
    shell: Shell,
}

impl HostVm {
    /// Boots a kernel with the host's programs and files.
    ///
    /// # Errors
    /// With the console, if it does not come up, or has no sched_ext or no KVM.
    pub fn boot(parts: &Parts, kernel: &Kernel, host: &Host) -> anyhow::Result<Self> {
        let mut files = Initramfs::new(parts)?;
        for program in &host.programs {
            files.add_program(program)?;
        }
        for (file, path) in &host.files {
            files.add(file, path)?;
        }
        // KVM inside: the emulator has AMD's virtualization, and does well with nested paging only.
        if kernel.has_modules() {
            files.add_module(kernel, "kvm-amd")?;
        }
        let mut append = host.append.clone();
        if host.threads > 1 {
            // The emulator tells how its CPUs share cores, but not that it does.
            append.push_str(" setcpuid=topoext");
        }
        let accelerator = if host.count_instructions {
            "-accel tcg,thread=single,tb-size=512 -icount shift=3,sleep=off"
        } else {
            "-accel tcg,thread=multi,tb-size=512"
        };
        let arguments = accelerator.split(' ').chain(["-cpu", "qemu64,+svm,+npt"]);
        let hardware = Hardware {
            cpus: host.cpus,
            threads: host.threads,
            nodes: host.nodes,
            memory: host.memory,
            append,
            arguments: arguments.map(str::to_owned).collect(),
            patience: 1,
        };
        let mut shell = Shell::boot(parts, kernel, &files, &hardware)?;
        for needed in ["/dev/kvm", "/sys/kernel/sched_ext/state"] {
            if let Err(error) = shell.sh(&format!("test -e {needed}")) {
                bail!("Linux {} has no {needed}: {error}", kernel.version());
            }
        }
        Ok(Self { shell })
    }

    /// Runs a case on a host; the kernel must have nothing to complain about afterwards. Where the
    /// emulator itself fails it is run again, on another one.
    ///
    /// # Panics
    /// If the host does not boot, the kernel complains, or the case panics.
    pub fn run(parts: &Parts, kernel: &Kernel, host: &Host, case: impl Fn(&mut Self)) {
        let boot = || match Self::boot(parts, kernel, host) {
            Ok(vm) => vm,
            Err(error) => panic!("{error:?}"),
        };
        on_emulator(kernel, boot, Self::deref, |vm| {
            case(vm);
            assert_eq!(vm.complaints(), Vec::<String>::new(), "{kernel:?}");
        });
    }

    /// What sched_ext does: `enabled`, `disabled` or something in between.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub fn sched_ext(&mut self) -> anyhow::Result<String> {
        let state = self.sh("cat /sys/kernel/sched_ext/state")?;
        Ok(state.trim().to_owned())
    }
}

impl Deref for HostVm {
    type Target = Shell;

    fn deref(&self) -> &Shell {
        &self.shell
    }
}

impl DerefMut for HostVm {
    fn deref_mut(&mut self) -> &mut Shell {
        &mut self.shell
    }
}
