//! Reads one snapshot from the stats socket.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Deserialize;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::error::StatsError;
use crate::snapshot::{STATS_VERSION, Snapshot};

/// Longest document a reader accepts, bytes.
pub const MAX_DOCUMENT_BYTES: u64 = 64 << 20;

/// Reads one snapshot from the socket at `path`, in at most about `timeout`, connecting included.
///
/// # Errors
/// One variant of [`StatsError`] a cause; the text says what to do.
pub fn read_snapshot(path: &Path, timeout: Duration) -> Result<Snapshot, StatsError> {
    let deadline = Instant::now() + timeout;
    let mut stream =
        connect(path, timeout).map_err(|source| connect_error(path, timeout, source))?;
    let mut document = Vec::new();
    let mut limited = Deadlined {
        stream: &mut stream,
        deadline,
    }
    .take(MAX_DOCUMENT_BYTES + 1);
    limited
        .read_to_end(&mut document)
        .map_err(|source| read_error(path, timeout, source))?;
    decode(path, &document)
}

/// Connects, waiting at most `timeout` for room in the backlog of the listener.
pub(crate) fn connect(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A full backlog blocks connect(); on a Unix socket the send timeout bounds that wait.
    socket.set_write_timeout(Some(timeout.max(MIN_TIMEOUT)))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(UnixStream::from(OwnedFd::from(socket)))
}

/// Zero means "for ever" to the kernel, and std refuses it.
const MIN_TIMEOUT: Duration = Duration::from_millis(1);

/// Reader that gives up at a deadline, however slowly the bytes trickle in.
struct Deadlined<'a> {
    stream: &'a mut UnixStream,
    deadline: Instant,
}

impl Read for Deadlined<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left.max(MIN_TIMEOUT)))?;
        self.stream.read(buf)
    }
}

fn connect_error(path: &Path, timeout: Duration, source: io::Error) -> StatsError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => StatsError::Absent { path },
        io::ErrorKind::PermissionDenied => StatsError::Permission { path, source },
        // connect() refuses a path that is no socket with the same code as one nobody listens on.
        io::ErrorKind::ConnectionRefused if !is_socket(&path) => StatsError::NotASocket { path },
        io::ErrorKind::ConnectionRefused => StatsError::Refused { path },
        _ => read_error(&path, timeout, source),
    }
}

fn read_error(path: &Path, timeout: Duration, source: io::Error) -> StatsError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            StatsError::Timeout { path, timeout }
        }
        _ => StatsError::Read { path, source },
    }
}

pub(crate) fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

fn decode(path: &Path, document: &[u8]) -> Result<Snapshot, StatsError> {
    let path = path.to_owned();
    if document.len() as u64 > MAX_DOCUMENT_BYTES {
        return Err(StatsError::TooLarge {
            path,
            limit: MAX_DOCUMENT_BYTES,
        });
    }
    let Some(body) = document.strip_suffix(b"\n") else {
        return Err(StatsError::Truncated {
            path,
            bytes: document.len(),
        });
    };
    match serde_json::from_slice::<Snapshot>(body) {
        Ok(snapshot) if snapshot.version == STATS_VERSION => Ok(snapshot),
        Ok(snapshot) => Err(StatsError::Version {
            path,
            theirs: snapshot.version,
        }),
        // Another version need not have our fields: say so rather than name a missing field.
        Err(source) => match serde_json::from_slice::<VersionOnly>(body) {
            Ok(VersionOnly { version }) if version != STATS_VERSION => Err(StatsError::Version {
                path,
                theirs: version,
            }),
            _ => Err(StatsError::Malformed { path, source }),
        },
    }
}

/// The one field that every version has.
#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixListener;
    use std::thread;

    const LONG: Duration = Duration::from_secs(5);

    /// What the client says when a server sends `bytes` and closes.
    fn answer(bytes: Vec<u8>) -> Result<Snapshot, StatsError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // The client may hang up first, as it does on a document that is too large.
            let _ = stream.write_all(&bytes);
        });
        let result = read_snapshot(&path, LONG);
        server.join().unwrap();
        result
    }

    fn document(version: u32) -> Vec<u8> {
        let snapshot = Snapshot {
            version,
            ..Snapshot::default()
        };
        let mut bytes = serde_json::to_vec(&snapshot).unwrap();
        bytes.push(b'\n');
        bytes
    }

    #[test]
    fn a_whole_document_is_read() {
        assert_eq!(
            answer(document(STATS_VERSION)).unwrap().version,
            STATS_VERSION
        );
    }

    #[test]
    fn an_absent_socket_asks_whether_the_daemon_runs() {
        let dir = tempfile::tempdir().unwrap();
        let error = read_snapshot(&dir.path().join("s"), LONG).unwrap_err();
        assert!(matches!(error, StatsError::Absent { .. }));
        assert!(error.to_string().contains("is vmm-ecs running"), "{error}");
    }

    #[test]
    fn a_socket_without_listener_and_a_plain_file_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let stale = dir.path().join("stale");
        drop(UnixListener::bind(&stale).unwrap());
        assert!(matches!(
            read_snapshot(&stale, LONG).unwrap_err(),
            StatsError::Refused { .. }
        ));
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(matches!(
            read_snapshot(&file, LONG).unwrap_err(),
            StatsError::NotASocket { .. }
        ));
    }

    #[test]
    fn a_refused_permission_names_the_group_and_keeps_its_source() {
        // Root passes every permission check, so the mapping itself is what can be tested anywhere.
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = connect_error(Path::new("/s"), LONG, denied);
        assert!(error.to_string().contains("join the group"), "{error}");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn a_document_cut_anywhere_is_truncated() {
        let whole = document(STATS_VERSION);
        for keep in [0, 1, whole.len() / 2, whole.len() - 1] {
            let error = answer(whole.iter().copied().take(keep).collect()).unwrap_err();
            assert!(
                matches!(error, StatsError::Truncated { bytes, .. } if bytes == keep),
                "{keep}: {error}"
            );
        }
    }

    #[test]
    fn another_version_is_named_even_if_its_fields_differ() {
        let other = format!("{{\"version\":{},\"vms\":7}}\n", STATS_VERSION + 1);
        for bytes in [document(STATS_VERSION + 1), other.into_bytes()] {
            let error = answer(bytes).unwrap_err();
            assert!(
                matches!(error, StatsError::Version { theirs, .. } if theirs == STATS_VERSION + 1),
                "{error}"
            );
            assert!(error.to_string().contains("same release"), "{error}");
        }
    }

    #[test]
    fn what_is_no_snapshot_is_malformed() {
        let bare = format!("{{\"version\":{STATS_VERSION}}}\n");
        for bytes in [
            "\n",
            "hello\n",
            "[]\n",
            "{}\n",
            bare.as_str(),
            "{\"version\":-1}\n",
        ] {
            let error = answer(bytes.into()).unwrap_err();
            assert!(
                matches!(error, StatsError::Malformed { .. }),
                "{bytes:?}: {error}"
            );
        }
        assert!(matches!(
            answer(vec![0xff, 0xfe, b'\n']).unwrap_err(),
            StatsError::Malformed { .. }
        ));
    }

    #[test]
    fn a_document_over_the_limit_is_refused() {
        let size = usize::try_from(MAX_DOCUMENT_BYTES).unwrap() + 2;
        let error = answer(vec![b' '; size]).unwrap_err();
        assert!(matches!(error, StatsError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn a_server_that_trickles_or_says_nothing_is_left_at_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            // Ends when the client hangs up; bounded in case it never does.
            for _ in 0..1000 {
                if stream.write_all(b" ").is_err() {
                    return true;
                }
                thread::sleep(Duration::from_millis(10));
            }
            false
        });
        let begin = Instant::now();
        let error = read_snapshot(&path, Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, StatsError::Timeout { .. }), "{error}");
        assert!(
            begin.elapsed() < Duration::from_secs(3),
            "{:?}",
            begin.elapsed()
        );
        assert!(server.join().unwrap(), "the client never hung up");
    }

    #[test]
    fn a_full_backlog_does_not_block_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&SockAddr::unix(&path).unwrap()).unwrap();
        listener.listen(0).unwrap();
        let _first = connect(&path, LONG).unwrap();
        let error = read_snapshot(&path, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, StatsError::Timeout { .. }), "{error}");
    }
}
