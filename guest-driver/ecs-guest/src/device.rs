//! The device `/dev/virtio_ecs`: `guest-driver/uapi/virtio_ecs_user.h`.
#![expect(unsafe_code, reason = "ioctl, mmap")]

use std::fs::{File, OpenOptions};
use std::io;

use rustix::io::Errno;
use rustix::ioctl::{NoArg, Opcode, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap};

use crate::hints::Line;

const PATH: &str = "/dev/virtio_ecs";
/// Ranges of CPU numbers, in order. There is a line for each up to the last.
const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
const ENTER: Opcode = opcode::none(0xec, 0);
const LEAVE: Opcode = opcode::none(0xec, 1);

/// Why sections do not reach the guest's driver.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// There is no device: no driver, or one without `user_sections=1`.
    #[error("There is no {PATH}: load virtio_ecs with user_sections=1")]
    Absent,
    /// The device is there and cannot be opened: no permission, or too many users.
    #[error("Cannot open {PATH}")]
    Open(#[source] io::Error),
    /// What is at that path is something else.
    #[error("{PATH} is not the device of virtio_ecs")]
    NotTheDevice(#[source] io::Error),
}

#[derive(Debug)]
pub(crate) struct Device {
    file: File,
    lines: Option<&'static [Line]>,
}

impl Device {
    pub(crate) fn open() -> Result<Self, UserError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(PATH)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => UserError::Absent,
                _ => UserError::Open(error),
            })?;
        Self::recognise(file)
    }

    /// The driver answers a LEAVE without ENTER in a way of its own.
    fn recognise(file: File) -> Result<Self, UserError> {
        let mut device = Self { file, lines: None };
        match device.call::<LEAVE>() {
            Err(Errno::ALREADY) => {
                device.lines = device.map();
                Ok(device)
            }
            Err(error) => Err(UserError::NotTheDevice(error.into())),
            Ok(()) => Err(UserError::NotTheDevice(io::ErrorKind::Unsupported.into())),
        }
    }

    /// What the host writes of each CPU; `None` where the driver does not show it.
    pub(crate) fn lines(&self) -> Option<&'static [Line]> {
        self.lines
    }

    /// Maps the lines, for as long as the process lives.
    fn map(&self) -> Option<&'static [Line]> {
        let cpus = possible_cpus(&std::fs::read_to_string(POSSIBLE).ok()?)?;
        let size = cpus.checked_mul(size_of::<Line>())?;
        // SAFETY: the kernel chooses the place, so that no memory in use becomes another.
        let at = unsafe {
            mmap(
                core::ptr::null_mut(),
                size,
                ProtFlags::READ,
                MapFlags::SHARED,
                &self.file,
                0,
            )
        };
        let lines = at.ok()?.cast::<Line>().cast_const();
        // SAFETY: `size` bytes lie there, at the beginning of a page, readable until the process ends:
        // nothing unmaps them, and the device, whose answer was its own, keeps their pages. A line is
        // made of atomics, valid whatever their bytes are, and only loaded from.
        Some(unsafe { core::slice::from_raw_parts(lines, cpus) })
    }

    /// Begins the section of the calling thread; returns whether the driver took note of it.
    pub(crate) fn enter(&self) -> bool {
        self.call::<ENTER>().is_ok()
    }

    /// Ends the section of the calling thread.
    pub(crate) fn leave(&self) {
        // It fails only if there is none, which a driver that was reloaded may rightly say.
        let _ = self.call::<LEAVE>();
    }

    fn call<const OPCODE: Opcode>(&self) -> Result<(), Errno> {
        // SAFETY: OPCODE is made by `opcode::none`, and these calls neither take an argument nor touch
        // memory of the process.
        let call = unsafe { NoArg::<OPCODE>::new() };
        // SAFETY: as above.
        unsafe { ioctl(&self.file, call) }
    }
}

/// How many CPU numbers there are, by the kernel's list of the possible ones.
fn possible_cpus(list: &str) -> Option<usize> {
    let last = list.trim().rsplit(['-', ',']).next()?;
    last.parse::<usize>().ok()?.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calls_are_those_of_the_header() {
        let header = include_str!("../../uapi/virtio_ecs_user.h");
        for (name, number) in [("ENTER", 0), ("LEAVE", 1)] {
            let define = std::format!("VIRTIO_ECS_USER_{name}\t_IO(0xec, {number})");
            assert!(header.contains(&define), "{define}");
        }
        assert_eq!((ENTER, LEAVE), (0xec00, 0xec01));
    }

    #[test]
    fn there_are_lines_up_to_the_last_cpu() {
        assert_eq!(possible_cpus("0\n"), Some(1));
        assert_eq!(possible_cpus("0-3\n"), Some(4));
        assert_eq!(possible_cpus("0,2-255\n"), Some(256));
        assert_eq!(possible_cpus("\n"), None);
    }

    #[test]
    fn another_device_is_not_taken_for_it() {
        let null = File::open("/dev/null").unwrap();
        let error = Device::recognise(null).unwrap_err();
        assert!(matches!(error, UserError::NotTheDevice(_)), "{error}");
    }
}
