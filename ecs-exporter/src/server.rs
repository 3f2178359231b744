//! Listens, bounds what clients may hold, and stops in good order.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::exporter::{Exporter, ScrapeError};
use crate::http;

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Threads that read the stats socket and encode; more scrapes than these wait in line.
const BLOCKING_THREADS: usize = 4;

/// What the exporter listens on and reads.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses to listen on; port 0 takes a free one.
    pub listen: Vec<SocketAddr>,
    /// Stats socket of vmm-ecs.
    pub stats_socket: PathBuf,
    /// Time one read of the stats socket may take; below Prometheus' scrape timeout of 10 s.
    pub stats_timeout: Duration,
    /// Whether `/metrics` has the per-vCPU families.
    pub vcpu_metrics: bool,
    /// Bounds on the clients.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 9752))],
            stats_socket: ecs_stats::DEFAULT_SOCKET.into(),
            stats_timeout: Duration::from_secs(5),
            vcpu_metrics: false,
            limits: Limits::default(),
        }
    }
}

/// Bounds on what clients may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Time for a whole request header, and for which an idle connection is kept.
    pub header_timeout: Duration,
    /// Time for which a client may leave sent bytes unread.
    pub write_timeout: Duration,
    /// Connections at a time over all listeners; more wait to be accepted.
    pub connections: usize,
    /// Time for running requests to end when the exporter stops.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Off the usual scrape intervals, so that a connection is not closed just as it is used.
            header_timeout: Duration::from_secs(25),
            write_timeout: Duration::from_secs(10),
            connections: 64,
            drain: Duration::from_secs(5),
        }
    }
}

/// Why the exporter does not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// An address cannot be had.
    #[error("Cannot listen on {addr}; choose a free port and an address of this host")]
    Listen {
        /// Address asked for.
        addr: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// No address was given.
    #[error("No address to listen on; give at least one")]
    NoAddress,
    /// The exposition cannot be built.
    #[error(transparent)]
    Scrape(#[from] ScrapeError),
    /// The event loop or its thread cannot be started.
    #[error("Cannot start the event loop; check the limits on threads and descriptors")]
    Start(#[source] io::Error),
}

/// Serves until `shutdown` ends, then lets running requests end. `bound` gets the addresses
/// listened on, in the order of `config.listen`.
///
/// # Errors
/// See [`ServeError`]; all come before `bound` is called.
pub async fn serve(
    config: Config,
    bound: impl FnOnce(&[SocketAddr]),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let limits = config.limits;
    let mut listeners = Vec::new();
    let mut addrs = Vec::new();
    for addr in config.listen {
        let listen_error = |source| ServeError::Listen { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(listen_error)?;
        addrs.push(listener.local_addr().map_err(listen_error)?);
        listeners.push(listener);
    }
    if addrs.is_empty() {
        return Err(ServeError::NoAddress);
    }
    let exporter = Exporter::new(
        config.stats_socket,
        config.stats_timeout,
        config.vcpu_metrics,
    )?;
    let router = http::router(Arc::new(exporter));
    let slots = Arc::new(Semaphore::new(limits.connections));
    let graceful = Arc::new(GracefulShutdown::new());
    let mut accepting = JoinSet::new();
    for listener in listeners {
        let (router, slots, graceful) = (router.clone(), Arc::clone(&slots), Arc::clone(&graceful));
        accepting.spawn(accept(listener, router, limits, slots, graceful));
    }
    info!(addresses = ?addrs, "Listening");
    bound(&addrs);

    shutdown.await;
    info!("Stopping");
    // Closes the listeners; connections are tasks of their own.
    accepting.shutdown().await;
    if let Some(graceful) = Arc::into_inner(graceful)
        && tokio::time::timeout(limits.drain, graceful.shutdown())
            .await
            .is_err()
    {
        warn!("Some requests did not end in time");
    }
    Ok(())
}

/// Accepts on one listener for ever.
async fn accept(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    slots: Arc<Semaphore>,
    graceful: Arc<GracefulShutdown>,
) {
    loop {
        // The semaphore is never closed.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (router, watcher) = (router.clone(), graceful.watcher());
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, router, limits, watcher).await {
                        debug!(%peer, %error, "A connection ended early");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                warn!(%error, "Cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    router: Router,
    limits: Limits,
    watcher: Watcher,
) -> Result<(), hyper::Error> {
    let socket = SockRef::from(&stream);
    // hyper bounds the header only; the kernel gives up on a client that does not read.
    if let Err(error) = socket
        .set_tcp_user_timeout(Some(limits.write_timeout))
        .and_then(|()| socket.set_tcp_nodelay(true))
    {
        debug!(%error, "Cannot set socket options");
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    watcher.watch(connection).await
}

/// The event loop the exporter runs on: one thread, and a few for what blocks.
///
/// # Errors
/// [`ServeError::Start`].
pub fn runtime() -> Result<tokio::runtime::Runtime, ServeError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()
        .map_err(ServeError::Start)
}

/// An exporter on a thread of its own. Dropping it stops it.
#[derive(Debug)]
pub struct Handle {
    addrs: Vec<SocketAddr>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Handle {
    /// Addresses listened on, in the order of the configuration; at least one.
    #[must_use]
    pub fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Dropping the sender ends the shutdown future.
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("The exporter's thread had panicked");
        }
    }
}

/// Starts an exporter on a thread of its own, and returns once it listens.
///
/// # Errors
/// See [`ServeError`].
pub fn spawn_in_thread(config: Config) -> Result<Handle, ServeError> {
    let runtime = runtime()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let (report, reported) = mpsc::channel();
    let thread = std::thread::Builder::new()
        .name("ecs-exporter".into())
        .spawn(move || {
            let announce = report.clone();
            let result = runtime.block_on(serve(
                config,
                // Whoever waits may be gone; there is nobody else to tell.
                move |addrs| drop(announce.send(Ok(addrs.to_vec()))),
                async move { drop(stopped.await) },
            ));
            if let Err(error) = result {
                drop(report.send(Err(error)));
            }
        })
        .map_err(ServeError::Start)?;
    let gone = |_| ServeError::Start(io::Error::other("the exporter's thread ended"));
    let addrs = reported.recv().map_err(gone)??;
    Ok(Handle {
        addrs,
        stop: Some(stop),
        thread: Some(thread),
    })
}
