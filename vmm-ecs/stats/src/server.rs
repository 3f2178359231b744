//! Serves snapshots on a Unix socket, from a thread of its own.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use tracing::{debug, warn};

use crate::client;
use crate::error::StatsError;
use crate::snapshot::Snapshot;

/// Time one client may take to fetch its document before it is dropped.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a possible other daemon may take to accept before the socket counts as in use.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// Connections that wait while one is served; more of them wait in `connect`.
const BACKLOG: i32 = 64;

/// Pause after an accept that failed, e.g. for want of descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Makes the snapshot to send.
type Provider = Arc<dyn Fn() -> Snapshot + Send + Sync>;

/// A thread that answers each connection with one snapshot. Dropping it stops it.
#[derive(Debug)]
pub struct StatsServer {
    path: PathBuf,
    /// Device and inode of our socket: what was put in its place later is not ours to remove.
    inode: (u64, u64),
    listener: UnixListener,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StatsServer {
    /// Listens at `path` with file mode `mode` (e.g. `0o660`) and serves what `provider` returns,
    /// one client after another. `provider` runs on the server's thread and must not panic.
    ///
    /// # Errors
    /// [`StatsError::InUse`] if another daemon answers there, [`StatsError::NotASocket`] if
    /// something else lies there, [`StatsError::Bind`] or [`StatsError::Thread`] if the system
    /// refuses. A socket nobody answers is replaced.
    pub fn bind(path: &Path, mode: u32, provider: Provider) -> Result<Self, StatsError> {
        remove_stale(path)?;
        let listener = listen(path, mode)?;
        let inode = inode(path).map_err(|source| bind_error("find", path, source))?;
        let stopping = Arc::new(AtomicBool::new(false));
        let mut server = Self {
            path: path.to_owned(),
            inode,
            listener,
            stopping: Arc::clone(&stopping),
            thread: None,
        };
        let accepting = server
            .listener
            .try_clone()
            .map_err(|source| bind_error("share", path, source))?;
        let thread = thread::Builder::new()
            .name("ecs-stats".into())
            .spawn(move || serve(&accepting, &stopping, &provider))
            .map_err(StatsError::Thread)?;
        server.thread = Some(thread);
        Ok(server)
    }

    /// Path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Stops serving, waits for the thread (at most about [`WRITE_TIMEOUT`] and one call of the
    /// provider) and removes the socket.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for StatsServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the thread from accept() and refuses whoever comes now.
        if let Err(error) = SockRef::from(&self.listener).shutdown(std::net::Shutdown::Both) {
            warn!(path = %self.path.display(), %error, "Cannot shut the stats socket down");
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!(path = %self.path.display(), "The stats thread had panicked");
        }
        if inode(&self.path).is_ok_and(|now| now == self.inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            warn!(path = %self.path.display(), %error, "Cannot remove the stats socket");
        }
    }
}

/// Makes room for a new socket at `path`, if nobody answers there.
fn remove_stale(path: &Path) -> Result<(), StatsError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(bind_error("look at", path, source)),
        Ok(_) if !client::is_socket(path) => {
            return Err(StatsError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match client::connect(path, PROBE_TIMEOUT) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            debug!(path = %path.display(), "Removing a stale stats socket");
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(bind_error("remove the stale", path, error))
                }
                _ => Ok(()),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full backlog is a daemon too, though a busy one.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(StatsError::InUse {
            path: path.to_owned(),
        }),
        Err(source) => Err(bind_error("probe", path, source)),
        Ok(_) => Err(StatsError::InUse {
            path: path.to_owned(),
        }),
    }
}

/// Binds and listens. The mode is set on the unbound socket, whose file then never has more
/// permissions than asked for; the second step only gives back what the umask took away.
fn listen(path: &Path, mode: u32) -> Result<UnixListener, StatsError> {
    let bind = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        let file = File::from(OwnedFd::from(socket));
        file.set_permissions(Permissions::from_mode(mode))?;
        let socket = Socket::from(OwnedFd::from(file));
        socket.bind(&SockAddr::unix(path)?)?;
        Ok(socket)
    };
    let socket = bind().map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => StatsError::InUse {
            path: path.to_owned(),
        },
        _ => bind_error("create", path, source),
    })?;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .and_then(|()| socket.listen(BACKLOG))
        .map_err(|source| {
            // Ours and unused: not worth a second error.
            let _ = fs::remove_file(path);
            bind_error("open", path, source)
        })?;
    Ok(UnixListener::from(OwnedFd::from(socket)))
}

fn bind_error(what: &'static str, path: &Path, source: io::Error) -> StatsError {
    StatsError::Bind {
        what,
        path: path.to_owned(),
        source,
    }
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// Answers one connection after another until told to stop.
fn serve(listener: &UnixListener, stopping: &AtomicBool, provider: &Provider) {
    while !stopping.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = answer(stream, &provider()) {
                    debug!(%error, "A stats client left before its snapshot was written");
                }
            }
            Err(_) if stopping.load(Ordering::Acquire) => return,
            Err(error) => {
                warn!(%error, "Cannot accept on the stats socket");
                thread::sleep(ACCEPT_RETRY);
            }
        }
    }
}

fn answer(mut stream: UnixStream, snapshot: &Snapshot) -> io::Result<()> {
    let mut document = serde_json::to_vec(snapshot)?;
    document.push(b'\n');
    let deadline = Instant::now() + WRITE_TIMEOUT;
    let mut rest = document.as_slice();
    while !rest.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        match stream.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::snapshot::{STATS_VERSION, VmStats};
    use crate::{InvariantError, read_snapshot};
    use std::io::Read;
    use std::sync::atomic::AtomicU64;

    const LONG: Duration = Duration::from_secs(5);

    fn provider(snapshot: Snapshot) -> Provider {
        Arc::new(move || snapshot.clone())
    }

    fn small() -> Snapshot {
        Snapshot {
            version: STATS_VERSION,
            ..Snapshot::default()
        }
    }

    /// More than any socket buffer holds.
    fn large() -> Snapshot {
        let vms = (0..2000).map(|i| VmStats {
            name: format!("vm{i:05}"),
            ..VmStats::default()
        });
        Snapshot {
            vms: vms.collect(),
            ..small()
        }
    }

    #[test]
    fn each_connection_gets_a_fresh_document_and_a_newline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let calls = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&calls);
        let server = StatsServer::bind(
            &path,
            0o660,
            Arc::new(move || Snapshot {
                taken_ns: counted.fetch_add(1, Ordering::Relaxed),
                ..small()
            }),
        )
        .unwrap();
        assert_eq!(server.path(), path);
        assert_eq!(read_snapshot(&path, LONG).unwrap().taken_ns, 0);
        let mut text = String::new();
        UnixStream::connect(&path)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert!(text.ends_with("}\n"));
        assert_eq!(text.lines().count(), 1);
        assert_eq!(calls.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_large_snapshot_arrives_whole_and_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _server = StatsServer::bind(&path, 0o660, provider(large())).unwrap();
        let read = read_snapshot(&path, LONG).unwrap();
        assert_eq!(read, large());
        assert_eq!(read.check_invariants(), Ok::<(), InvariantError>(()));
    }

    #[test]
    fn the_mode_is_exact() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o600, 0o660, 0o666] {
            let path = dir.path().join(format!("{mode:o}"));
            let _server = StatsServer::bind(&path, mode, provider(small())).unwrap();
            assert_eq!(
                fs::metadata(&path).unwrap().permissions().mode() & 0o7777,
                mode
            );
        }
    }

    #[test]
    fn slow_and_dead_clients_do_not_block_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _server = StatsServer::bind(&path, 0o660, provider(large())).unwrap();
        let _slow = UnixStream::connect(&path).unwrap();
        for _ in 0..8 {
            drop(UnixStream::connect(&path).unwrap());
        }
        let begin = Instant::now();
        assert_eq!(read_snapshot(&path, LONG).unwrap().vms.len(), 2000);
        assert!(begin.elapsed() < WRITE_TIMEOUT * 3, "{:?}", begin.elapsed());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves its socket behind");
        let first = StatsServer::bind(&path, 0o660, provider(small())).unwrap();
        let error = StatsServer::bind(&path, 0o660, provider(small())).unwrap_err();
        assert!(matches!(error, StatsError::InUse { .. }), "{error}");
        assert!(error.to_string().contains("Another daemon"), "{error}");
        read_snapshot(&path, LONG).unwrap();
        drop(first);
    }

    #[test]
    fn a_busy_daemon_with_a_full_backlog_counts_as_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let busy = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        busy.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        busy.listen(0).unwrap();
        let _first = UnixStream::connect(&path).unwrap();
        let error = StatsServer::bind(&path, 0o660, provider(small())).unwrap_err();
        assert!(matches!(error, StatsError::InUse { .. }), "{error}");
    }

    #[test]
    fn what_is_not_a_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [file.as_path(), link.as_path(), dir.path()] {
            let error = StatsServer::bind(path, 0o660, provider(small())).unwrap_err();
            assert!(matches!(error, StatsError::NotASocket { .. }), "{error}");
        }
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none/s");
        let error = StatsServer::bind(&path, 0o660, provider(small())).unwrap_err();
        assert!(matches!(error, StatsError::Bind { .. }), "{error}");
        assert!(error.to_string().contains("directory"), "{error}");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn stop_returns_at_once_and_removes_only_its_own_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let server = StatsServer::bind(&path, 0o660, provider(small())).unwrap();
        let begin = Instant::now();
        server.stop();
        assert!(begin.elapsed() < WRITE_TIMEOUT, "{:?}", begin.elapsed());
        assert!(!path.exists());

        let server = StatsServer::bind(&path, 0o660, provider(small())).unwrap();
        fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        server.stop();
        assert!(path.exists(), "removed a socket that was not its own");
    }
}
