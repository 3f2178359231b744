//! The socket of one device: bound once, never over something else.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind as bind_fd, connect, listen, socket,
};

/// Longest wait for another daemon that is binding in the same directory.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
/// Front-ends that may wait to be accepted.
const BACKLOG: i32 = 16;

/// Why a socket cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody accepts connections on it.
    #[error("Another daemon serves {0}: stop it, or configure another socket")]
    Served(PathBuf),
    /// The path is taken by something that is not a socket; it is left alone.
    #[error("{0} exists and is not a socket: move it away, or configure another socket")]
    NotASocket(PathBuf),
    /// There is no such directory.
    #[error("The directory of the socket {0} does not exist: create it")]
    NoDirectory(PathBuf),
    /// Permission denied.
    #[error("No permission to create the socket {path}: let the daemon write to its directory")]
    Permission {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The path does not fit into a socket address.
    #[error("The socket path {0} is longer than 107 bytes: choose a shorter one")]
    TooLong(PathBuf),
    /// The mode has bits that are not permissions.
    #[error("Socket mode {0:#o} is no file mode: use 0o660, for example")]
    Mode(u32),
    /// Anything else.
    #[error("Cannot bind the socket {path}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// A bound socket; its file goes when this is dropped, if it is still the same file.
#[derive(Debug)]
pub(crate) struct BoundSocket {
    path: PathBuf,
    id: (u64, u64),
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        let same = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.id);
        if same && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "Cannot remove the socket");
        }
    }
}

/// Binds `path` with exactly `mode`, over a stale socket at most.
pub(crate) fn bind(path: &Path, mode: u32) -> Result<(UnixListener, BoundSocket), SocketError> {
    if mode & !0o777 != 0 {
        return Err(SocketError::Mode(mode));
    }
    let address = UnixAddr::new(path).map_err(|_| SocketError::TooLong(path.to_owned()))?;
    let fail = |source: io::Error| classify(path, source);
    // Two daemons that find the same stale socket must not remove each other's new one.
    let _lock = lock_directory(path)?;
    make_way(path, &address)?;
    let fd = new_socket().map_err(fail)?;
    bind_fd(fd.as_raw_fd(), &address).map_err(|errno| fail(errno.into()))?;
    let found = fs::symlink_metadata(path).map_err(fail)?;
    let bound = BoundSocket {
        path: path.to_owned(),
        id: (found.dev(), found.ino()),
    };
    // Nobody can connect before `listen`, so nobody gets past the mode.
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(fail)?;
    let backlog = Backlog::new(BACKLOG).map_err(|errno| fail(errno.into()))?;
    listen(&fd, backlog).map_err(|errno| fail(errno.into()))?;
    Ok((UnixListener::from(fd), bound))
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::Stream, flags, None)?)
}

fn classify(path: &Path, source: io::Error) -> SocketError {
    let path = path.to_owned();
    match source.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => SocketError::NoDirectory(path),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            SocketError::Permission { path, source }
        }
        _ => SocketError::Io { path, source },
    }
}

fn lock_directory(path: &Path) -> Result<Flock<File>, SocketError> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let mut file = File::open(dir).map_err(|source| classify(path, source))?;
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, errno)) => {
                let source = io::Error::from(errno);
                if source.kind() != ErrorKind::WouldBlock || Instant::now() >= deadline {
                    return Err(classify(path, source));
                }
                file = back;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }
}

/// Removes a stale socket, and nothing else.
fn make_way(path: &Path, address: &UnixAddr) -> Result<(), SocketError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(classify(path, source)),
    };
    if !found.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    let probe = new_socket().map_err(|source| classify(path, source))?;
    match connect(probe.as_raw_fd(), address).map_err(io::Error::from) {
        Ok(()) => Err(SocketError::Served(path.to_owned())),
        Err(error) => match error.kind() {
            // Somebody listens, and has not accepted others for a while.
            ErrorKind::WouldBlock => Err(SocketError::Served(path.to_owned())),
            ErrorKind::NotFound => Ok(()),
            ErrorKind::ConnectionRefused => {
                tracing::info!(path = %path.display(), "Removing a socket nobody serves");
                fs::remove_file(path).map_err(|source| classify(path, source))
            }
            _ => Err(classify(path, error)),
        },
    }
}
