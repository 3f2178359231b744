//! A guest with our driver.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};

use super::shell::Hardware;
use super::{Initramfs, Kernel, Parts, Shell};

/// Virtio device id: QEMU's test device takes only ids that it knows the name of.
pub const DEVICE_ID: u32 = 45;

/// A machine to boot.
#[derive(Debug, Clone)]
pub struct Machine {
    /// CPUs.
    pub cpus: usize,
    /// Size of the device's config space, and its queues; the defaults fit our device.
    pub queues: usize,
    /// Words for the kernel's command line.
    pub append: String,
    /// Counts instructions in place of time: the guest's clock goes on by one nanosecond with each,
    /// so that what it measures repeats. For one CPU.
    pub count_instructions: bool,
    /// Programs to have in `/bin`.
    pub programs: Vec<PathBuf>,
    /// Memory, MiB.
    pub memory: usize,
    /// How many times the usual time a boot and a command have.
    pub patience: u32,
    /// Whether the guest has MONITOR and MWAIT, which KVM hides from guests unless told otherwise.
    pub mwait: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            cpus: 4,
            queues: 6,
            append: String::new(),
            count_instructions: false,
            programs: Vec::new(),
            memory: 256,
            patience: 1,
            mwait: false,
        }
    }
}

/// A running guest: a [`Shell`] with our device and our modules. Dropping it ends it.
#[derive(Debug)]
pub struct Guest {
    shell: Shell,
}

impl Guest {
    /// Boots a kernel with the modules in `/`, attached to the device at `socket`.
    ///
    /// # Errors
    /// With the console, if it does not come up.
    pub fn boot(
        parts: &Parts,
        kernel: &Kernel,
        machine: &Machine,
        socket: &Path,
    ) -> anyhow::Result<Self> {
        let files = Initramfs::new(parts)?;
        files.add_modules(&kernel.modules()?)?;
        for program in &machine.programs {
            files.add_program(program)?;
        }
        let accelerator = if machine.count_instructions {
            ["-accel", "tcg,thread=single", "-icount", "shift=0"].as_slice()
        } else {
            ["-accel", "tcg,thread=multi,tb-size=256"].as_slice()
        };
        // With the hypervisor bit Linux uses a spinlock without contention tracepoints, unless
        // KVM's paravirtual one is there.
        let cpu = if machine.mwait {
            ["-cpu", "max,-hypervisor"]
        } else {
            ["-cpu", "max,-hypervisor,-monitor"]
        };
        let mut arguments: Vec<String> = [accelerator, &cpu]
            .concat()
            .into_iter()
            .map(str::to_owned)
            .collect();
        arguments.extend([
            "-chardev".to_owned(),
            format!("socket,id=ecs,path={}", socket.display()),
            "-device".to_owned(),
            format!(
                "vhost-user-test-device-pci,chardev=ecs,virtio-id={DEVICE_ID},num_vqs={},config_size=64",
                machine.queues
            ),
        ]);
        let hardware = Hardware {
            cpus: machine.cpus,
            threads: 1,
            nodes: 1,
            memory: machine.memory,
            append: machine.append.clone(),
            arguments,
            patience: machine.patience,
        };
        let shell = Shell::boot(parts, kernel, &files, &hardware)?;
        Ok(Self { shell })
    }

    /// Loads the driver; `parameters` are added to those it needs here.
    ///
    /// # Errors
    /// If it does not load.
    pub fn load_driver(&mut self, parameters: &str) -> anyhow::Result<()> {
        self.sh(&Self::insmod(parameters)).map(|_| ())
    }

    /// The shell command that does it.
    #[must_use]
    pub fn insmod(parameters: &str) -> String {
        format!("insmod /virtio_ecs.ko virtio_id={DEVICE_ID} {parameters}")
    }
}

impl Deref for Guest {
    type Target = Shell;

    fn deref(&self) -> &Shell {
        &self.shell
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Shell {
        &mut self.shell
    }
}
