//! Listens, bounds what clients may hold, reloads, and stops in good order.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc as channel, oneshot};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tracing::{debug, error, info, warn};

use crate::config::{Config, Limits};
use crate::connections::{Connections, Seat};
use crate::exporter::{Exporter, ScrapeError, chain};
use crate::file::FileError;
use crate::http::{self, Gate, Reload};
use crate::live::hub::Hub;
use crate::systemd;
use crate::web::{Web, WebError, WebSource};

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Threads that read sources, encode and verify passwords; more requests than these wait in line.
const BLOCKING_THREADS: usize = 4;

/// Connections the kernel keeps for us until they are accepted.
const BACKLOG: i32 = 4096;

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
    /// systemd passed something else than TCP sockets, or nothing.
    #[error("systemd passed no TCP socket; check that the unit has a .socket with ListenStream=")]
    NoSocket(#[source] Option<io::Error>),
    /// The web configuration is bad.
    #[error("Cannot use the web configuration")]
    Web(#[from] WebError),
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

/// Reads the configuration again, for SIGHUP and `/-/reload`.
pub type Loader = Arc<dyn Fn() -> Result<Config, FileError> + Send + Sync>;

/// Serves until `shutdown` ends, then lets running requests end. `bound` gets the addresses
/// listened on, in the order of `config.listen`.
///
/// # Errors
/// See [`ServeError`]; all come before `bound` is called.
pub async fn serve(
    config: Config,
    loader: Loader,
    bound: impl FnOnce(&[SocketAddr]),
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let limits = config.limits;
    let (listeners, addrs) = listen(&config)?;
    let web = Arc::new(WebSource::new(config.web_config.clone())?);
    let exporter = Arc::new(Exporter::new(&config)?);
    let (reload, reloads) = channel::channel(1);
    let gate = Gate::new(Arc::clone(&web), limits.requests);
    let lifecycle = config.lifecycle.then_some(reload);
    let hub = Hub::new(limits.live_views);
    let router = http::router(Arc::clone(&exporter), gate, Arc::clone(&hub), lifecycle);
    let graceful = Arc::new(GracefulShutdown::new());
    let connections = Connections::new(limits.connections);
    let mut tasks = JoinSet::new();
    for listener in listeners {
        let door = Door {
            router: router.clone(),
            web: Arc::clone(&web),
            connections: Arc::clone(&connections),
            limits,
        };
        tasks.spawn(accept(listener, door, Arc::clone(&graceful)));
    }
    tasks.spawn(ask_apis(Arc::clone(&exporter)));
    tasks.spawn(Arc::clone(&hub).run(Arc::clone(&exporter)));
    tasks.spawn(follow_reloads(exporter, loader, config, reloads));
    tasks.spawn(systemd::watchdog());
    info!(addresses = ?addrs, "Listening");
    bound(&addrs);
    systemd::ready();

    shutdown.await;
    info!("Stopping");
    systemd::stopping();
    hub.close();
    // Closes the listeners; connections are tasks of their own.
    tasks.shutdown().await;
    if let Some(graceful) = Arc::into_inner(graceful)
        && tokio::time::timeout(limits.drain, graceful.shutdown())
            .await
            .is_err()
    {
        warn!("Some requests did not end in time");
    }
    Ok(())
}

fn listen(config: &Config) -> Result<(Vec<TcpListener>, Vec<SocketAddr>), ServeError> {
    let sockets = if config.systemd_socket {
        let passed = systemd::sockets().map_err(|error| ServeError::NoSocket(Some(error)))?;
        if passed.is_empty() {
            return Err(ServeError::NoSocket(None));
        }
        passed
    } else {
        let bind =
            |&addr: &SocketAddr| bind(addr).map_err(|source| ServeError::Listen { addr, source });
        config.listen.iter().map(bind).collect::<Result<_, _>>()?
    };
    if sockets.is_empty() {
        return Err(ServeError::NoAddress);
    }
    let mut addrs = Vec::new();
    let mut listeners = Vec::new();
    for socket in sockets {
        let prepare = || {
            socket.set_nonblocking(true)?;
            Ok::<_, io::Error>((socket.local_addr()?, TcpListener::from_std(socket)?))
        };
        let (addr, listener) = prepare().map_err(ServeError::Start)?;
        addrs.push(addr);
        listeners.push(listener);
    }
    Ok((listeners, addrs))
}

fn bind(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // An exporter that starts again must not wait for old connections to be forgotten.
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        // `[::]` and `0.0.0.0` may then be given both, whatever the system's default.
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Asks the VMMs' APIs now and then.
async fn ask_apis(exporter: Arc<Exporter>) {
    loop {
        let host = exporter.host();
        let api = host.as_ref().and_then(|host| host.config().api);
        if let Some(host) = host
            && let Err(error) = host.refresh_api().await
        {
            debug!(error = chain(&error), "Cannot find VMMs to ask");
        }
        tokio::time::sleep(api.map_or(API_CHECK, |api| api.interval)).await;
    }
}

/// Time after which it is seen that a reload has switched the APIs on.
const API_CHECK: Duration = Duration::from_secs(60);

/// Carries out reloads, one after the other.
async fn follow_reloads(
    exporter: Arc<Exporter>,
    loader: Loader,
    running: Config,
    mut reloads: channel::Receiver<Reload>,
) {
    let mut hangup = match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => {
            error!(%error, "Cannot handle SIGHUP");
            return;
        }
    };
    loop {
        let asked = tokio::select! {
            // Without /-/reload there is no sender: this branch is then switched off.
            Some(asked) = reloads.recv() => Some(asked),
            _ = hangup.recv() => None,
        };
        systemd::reloading();
        let (exporter, loader, running) = (exporter.clone(), loader.clone(), running.clone());
        // Reads files and opens perf rings.
        let result = tokio::task::spawn_blocking(move || {
            let loaded = loader();
            if let Ok(config) = &loaded
                && needs_restart(&running, config)
            {
                warn!("Changes of web and of limits other than max_series need a restart");
            }
            exporter.reload(loaded.as_ref());
            loaded.map(drop).map_err(|error| chain(&error))
        });
        let result = result.await.unwrap_or_else(|error| Err(error.to_string()));
        match &result {
            Ok(()) => info!("Read the configuration again"),
            Err(problem) => error!(problem, "The configuration is bad: the last good one stays"),
        }
        systemd::ready();
        if let Some(Reload(answer)) = asked {
            // The client may have left.
            drop(answer.send(result));
        }
    }
}

fn needs_restart(running: &Config, new: &Config) -> bool {
    let fixed = |config: &Config| {
        let Limits {
            header_timeout,
            write_timeout,
            connections,
            requests,
            live_views,
            drain,
            max_series: _,
        } = config.limits;
        (
            (
                config.listen.clone(),
                config.systemd_socket,
                config.web_config.clone(),
            ),
            (config.lifecycle, header_timeout, write_timeout),
            (connections, requests, live_views, drain),
        )
    };
    fixed(running) != fixed(new)
}

/// What a connection comes through.
#[derive(Clone)]
struct Door {
    router: Router,
    web: Arc<WebSource>,
    connections: Arc<Connections>,
    limits: Limits,
}

/// Accepts on one listener for ever.
async fn accept(listener: TcpListener, door: Door, graceful: Arc<GracefulShutdown>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let seat = door.connections.take().await;
                let (door, watcher) = (door.clone(), graceful.watcher());
                tokio::spawn(async move {
                    if let Err(error) = connection(stream, door, seat, watcher).await {
                        debug!(%peer, error, "A connection ended early");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "Cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// Serves one connection; the error is for the log.
async fn connection(
    stream: TcpStream,
    door: Door,
    seat: Seat,
    watcher: Watcher,
) -> Result<(), String> {
    let socket = SockRef::from(&stream);
    // hyper bounds the header only; the kernel gives up on a client that does not read.
    if let Err(error) = socket
        .set_tcp_user_timeout(Some(door.limits.write_timeout))
        .and_then(|()| socket.set_tcp_nodelay(true))
    {
        debug!(%error, "Cannot set socket options");
    }
    let Web { tls, sans, .. } = door.web.get();
    let Some(tls) = tls else {
        return converse(stream, door, &seat, watcher).await;
    };
    let handshake = TlsAcceptor::from(tls).accept(stream);
    let limit = door.limits.write_timeout;
    let stream = tokio::select! {
        result = tokio::time::timeout(limit, handshake) => {
            let in_time = result.map_err(|_| "no TLS handshake in time".to_owned())?;
            in_time.map_err(|error| error.to_string())?
        }
        () = seat.evicted() => return Err("its place was needed".to_owned()),
    };
    let (_, session) = stream.get_ref();
    let certificate = session.peer_certificates().and_then(<[_]>::first);
    if !sans.admit(certificate.map(AsRef::as_ref)) {
        return Err("the client's certificate has none of client_allowed_sans".to_owned());
    }
    converse(stream, door, &seat, watcher).await
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    door: Door,
    seat: &Seat,
    watcher: Watcher,
) -> Result<(), String> {
    let router = door.router.layer(Extension(seat.busy()));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(door.limits.header_timeout)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::select! {
        result = watcher.watch(connection) => result.map_err(|error| error.to_string()),
        () = seat.evicted() => Err("its place was needed".to_owned()),
    }
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
            let again = config.clone();
            let result = runtime.block_on(serve(
                config,
                // There is no file to read again: what was given stays.
                Arc::new(move || Ok(again.clone())),
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
