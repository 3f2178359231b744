//! The device `/dev/virtio_ecs`: `guest-driver/uapi/virtio_ecs_user.h`.
#![expect(unsafe_code, reason = "ioctl")]

use std::fs::{File, OpenOptions};
use std::io;

use rustix::io::Errno;
use rustix::ioctl::{NoArg, Opcode, ioctl, opcode};

const PATH: &str = "/dev/virtio_ecs";
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
pub(crate) struct Device(File);

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
        let device = Self(file);
        match device.call::<LEAVE>() {
            Err(Errno::ALREADY) => Ok(device),
            Err(error) => Err(UserError::NotTheDevice(error.into())),
            Ok(()) => Err(UserError::NotTheDevice(io::ErrorKind::Unsupported.into())),
        }
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
        unsafe { ioctl(&self.0, call) }
    }
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
    fn another_device_is_not_taken_for_it() {
        let null = File::open("/dev/null").unwrap();
        let error = Device::recognise(null).unwrap_err();
        assert!(matches!(error, UserError::NotTheDevice(_)), "{error}");
    }
}
