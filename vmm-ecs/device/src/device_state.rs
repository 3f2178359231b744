//! Moves saved state through a descriptor of the front-end, in bounded time.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::state::MAX_STATE;

/// Longest transfer.
const LIMIT: Duration = Duration::from_secs(2);

/// Waits until the descriptor is ready, or the time is up.
fn wait(file: &File, flags: PollFlags, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
    let mut fds = [PollFd::new(file.as_fd(), flags)];
    match poll(&mut fds, timeout)? {
        0 => Err(ErrorKind::TimedOut.into()),
        _ => Ok(()),
    }
}

fn set_nonblocking(file: &File) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    fcntl(file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn again(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Writes all of `bytes` and closes the descriptor.
pub(crate) fn send(mut file: File, mut bytes: &[u8]) -> io::Result<()> {
    set_nonblocking(&file)?;
    let deadline = Instant::now() + LIMIT;
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(error) if again(&error) => wait(&file, PollFlags::POLLOUT, deadline)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads to the end, at most what a saved state can be.
pub(crate) fn receive(mut file: File) -> io::Result<Vec<u8>> {
    set_nonblocking(&file)?;
    let deadline = Instant::now() + LIMIT;
    let mut bytes = Vec::new();
    let mut part = [0u8; 4096];
    loop {
        match file.read(&mut part) {
            Ok(0) => return Ok(bytes),
            Ok(n) => bytes.extend_from_slice(part.get(..n).unwrap_or_default()),
            Err(error) if again(&error) => wait(&file, PollFlags::POLLIN, deadline)?,
            Err(error) => return Err(error),
        }
        if bytes.len() > MAX_STATE {
            return Err(io::Error::new(
                ErrorKind::FileTooLarge,
                "more than a state can be",
            ));
        }
    }
}
