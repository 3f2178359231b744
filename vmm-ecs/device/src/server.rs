//! The device's thread: accepts one front-end after the other and waits for what comes.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use vhost::vhost_user::{BackendReqHandler, Error};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::backend::{Backend, Carried};
use crate::config_space::ConfigSpace;
use crate::context::{Context, Handle, lock};
use crate::counters::count;
use crate::events::Events;
use crate::limit::Limit;
use crate::peer::Peer;
use crate::registry::Registry;

/// Time a front-end has to complete a message it has begun.
const STALL_LIMIT: Duration = Duration::from_secs(2);
/// Kicks of the control queue served in a second; a guest that rings more often waits.
const KICKS_A_SECOND: u32 = 512;
/// Pause after `accept` failed, for want of descriptors perhaps.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of a vhost-user message's head, and where its length stands in it.
const HEAD: usize = 12;
const LENGTH_AT: usize = 8;
/// Longest message, bytes, without its head.
const MAX_MESSAGE: usize = 0x1000;

/// What a descriptor in the poller is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Token {
    Wake = 0,
    Listener = 1,
    Connection = 2,
    Control = 3,
    Events = 4,
}

impl Token {
    /// The queues whose kicks the device listens to.
    pub(crate) fn of_queue(index: u8) -> Option<Self> {
        match index {
            0 => Some(Self::Control),
            1 => Some(Self::Events),
            _ => None,
        }
    }
}

/// How far a message has come.
#[derive(Debug, PartialEq, Eq)]
enum Arrival {
    Nothing,
    Part,
    Whole,
    Closed,
}

/// Looks at what has arrived without taking it. The `vhost` crate would wait for the rest of a
/// message for ever. A look ends where descriptors are attached, so a message whose body is sent
/// apart from its descriptors never looks whole; front-ends send both at once.
fn arrival(stream: &UnixStream) -> io::Result<Arrival> {
    let mut seen = [0u8; HEAD + MAX_MESSAGE];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    let nr = match recv(stream.as_raw_fd(), &mut seen, flags) {
        Ok(0) => return Ok(Arrival::Closed),
        Ok(nr) => nr,
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(Arrival::Nothing),
        Err(errno) => return Err(errno.into()),
    };
    let length = seen
        .get(LENGTH_AT..HEAD)
        .and_then(|bytes| bytes.first_chunk())
        .map_or(0, |bytes| u32::from_ne_bytes(*bytes));
    // A length beyond every limit is for the handler to refuse, on the head alone.
    let length = usize::try_from(length)
        .ok()
        .filter(|length| *length <= MAX_MESSAGE)
        .unwrap_or(0);
    Ok(if nr >= HEAD + length {
        Arrival::Whole
    } else {
        Arrival::Part
    })
}

/// Why a connection ends.
enum End {
    Stop,
    Closed,
}

/// Serves one device's socket until it is told to stop.
pub(crate) struct Server {
    context: Arc<Context>,
    handle: Arc<Handle>,
    listener: UnixListener,
    carried: Option<Carried>,
    events: Events,
    /// The generation used last.
    generation: u32,
}

/// One connection, from the first message on.
struct Session {
    epoll: Arc<Epoll>,
    stream: UnixStream,
    since: Instant,
    handler: Option<Speaking>,
    stalls_at: Option<Instant>,
    kicks: Limit,
    kick_at: Option<Instant>,
}

/// The part of a session that exists once the front-end has said something. A connection that only
/// tries whether somebody listens changes nothing.
struct Speaking {
    backend: Arc<Mutex<Backend>>,
    requests: BackendReqHandler<Mutex<Backend>>,
}

impl Server {
    pub(crate) fn new(
        context: Arc<Context>,
        handle: Arc<Handle>,
        listener: UnixListener,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self {
            context,
            handle,
            listener,
            carried: None,
            events: Events::default(),
            generation: 0,
        })
    }

    fn poller(&self) -> io::Result<Epoll> {
        let epoll = Epoll::new()?;
        let add = |fd, token: Token| {
            epoll.ctl(
                ControlOperation::Add,
                fd,
                EpollEvent::new(EventSet::IN, token as u64),
            )
        };
        add(self.handle.wake_fd(), Token::Wake)?;
        add(self.listener.as_raw_fd(), Token::Listener)?;
        Ok(epoll)
    }

    pub(crate) fn run(mut self) {
        while !self.handle.stopping() {
            let end = self.accept_one().and_then(|stream| match stream {
                Some(stream) => self.serve(stream),
                None => Ok(End::Closed),
            });
            self.handle.set_connection(None);
            match end {
                Ok(End::Stop) => return,
                Ok(End::Closed) => {}
                Err(error) => {
                    self.context.warn(&error, "Cannot serve a connection");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Waits for a connection; `None` if woken for something else.
    fn accept_one(&mut self) -> io::Result<Option<UnixStream>> {
        let epoll = self.poller()?;
        let mut events = [EpollEvent::default(); 2];
        wait(&epoll, None, &mut events)?;
        self.keep(self.handle.take_mail());
        match self.listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Keeps events for a front-end to come.
    fn keep(&mut self, mail: Events) {
        let dropped = self.events.append(mail);
        count(&self.context.counters.dropped_events, dropped);
    }

    /// Serves one front-end until it is gone.
    fn serve(&mut self, stream: UnixStream) -> io::Result<End> {
        let epoll = Arc::new(self.poller()?);
        let interest = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        let event = EpollEvent::new(interest, Token::Connection as u64);
        epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event)?;
        self.handle.set_connection(Some(stream.try_clone()?));
        let mut session = Session {
            epoll,
            stream,
            since: Instant::now(),
            handler: None,
            stalls_at: None,
            kicks: Limit::new(KICKS_A_SECOND, Duration::from_secs(1)),
            kick_at: None,
        };
        let end = self.session(&mut session);
        // Our own copy must not keep the connection open.
        let _ = session.stream.shutdown(std::net::Shutdown::Both);
        if let Some(speaking) = session.handler.take() {
            let (carried, events) = lock(&speaking.backend).end();
            if let Some(held_back) = self.context.may_log() {
                let vm = self.context.config.name.as_str();
                let pid = carried.peer.map(|peer| peer.pid);
                tracing::info!(vm, pid, held_back, "The front-end is gone");
            }
            self.generation = carried.space.generation();
            self.carried = Some(carried);
            self.events = events;
        }
        end
    }

    fn session(&mut self, session: &mut Session) -> io::Result<End> {
        let mut events = [EpollEvent::default(); 8];
        loop {
            let deadline = [session.stalls_at, session.kick_at]
                .into_iter()
                .flatten()
                .min();
            let nr = wait(&session.epoll, deadline, &mut events)?;
            if self.handle.stopping() {
                return Ok(End::Stop);
            }
            for event in events.iter().take(nr) {
                match event.data() {
                    token if token == Token::Wake as u64 => self.deliver(session),
                    token if token == Token::Listener as u64 => {
                        if session.gives_way() {
                            return Ok(End::Closed);
                        }
                        self.turn_away();
                    }
                    token if token == Token::Connection as u64 => {
                        let gone = EventSet::READ_HANG_UP | EventSet::HANG_UP | EventSet::ERROR;
                        let gone = event.event_set().intersects(gone);
                        if let Some(end) = self.requests(session, gone)? {
                            return Ok(end);
                        }
                    }
                    token if token == Token::Control as u64 => session.kicked(),
                    _ => session.with(Backend::serve_events),
                }
            }
            let now = Instant::now();
            if session.kick_at.is_some_and(|at| at <= now) {
                session.kicked();
            }
            if session.stalls_at.is_some_and(|at| at <= now) {
                count(&self.context.counters.stalled_connections, 1);
                self.context.warn(
                    &io::Error::from(io::ErrorKind::TimedOut),
                    "A message never ended",
                );
                return Ok(End::Closed);
            }
        }
    }

    /// Hands the mail to the guest, or keeps it for the time there is one.
    fn deliver(&mut self, session: &mut Session) {
        let mail = self.handle.take_mail();
        if session.handler.is_none() {
            return self.keep(mail);
        }
        session.with(|backend| {
            backend.push_events(mail);
            backend.serve_events();
        });
    }

    /// Only one front-end at a time: the next one is told at once, and may try again.
    fn turn_away(&mut self) {
        match self.listener.accept() {
            Ok(_) => {
                count(&self.context.counters.refused_connections, 1);
                let why = io::Error::from(io::ErrorKind::ResourceBusy);
                self.context
                    .warn(&why, "Closed a second connection: one VM, one front-end");
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                self.context
                    .warn(&error, "Cannot close a second connection");
                std::thread::sleep(ACCEPT_PAUSE);
            }
        }
    }

    /// Handles every message that has arrived as a whole. `gone`: nothing more will come.
    fn requests(&mut self, session: &mut Session, gone: bool) -> io::Result<Option<End>> {
        while !self.handle.stopping() {
            match arrival(&session.stream) {
                Ok(Arrival::Whole) => session.stalls_at = None,
                Ok(Arrival::Nothing) => {
                    session.stalls_at = None;
                    return Ok(None);
                }
                Ok(Arrival::Part) if gone => {
                    count(&self.context.counters.stalled_connections, 1);
                    return Ok(Some(End::Closed));
                }
                Ok(Arrival::Part) => {
                    session
                        .stalls_at
                        .get_or_insert_with(|| Instant::now() + STALL_LIMIT);
                    return Ok(None);
                }
                Ok(Arrival::Closed) => return Ok(Some(End::Closed)),
                // Reset by the peer.
                Err(_) => return Ok(Some(End::Closed)),
            }
            if session.handler.is_none() {
                session.handler = Some(self.begin(session)?);
            }
            let Some(speaking) = session.handler.as_mut() else {
                return Ok(Some(End::Closed));
            };
            match speaking.requests.handle_request() {
                Ok(()) => {}
                // The device refused; the front-end was told if it asked to be.
                Err(Error::ReqHandlerError(error)) => {
                    count(&self.context.counters.refused_requests, 1);
                    self.context
                        .warn(&error, "Refused a request of the front-end");
                }
                Err(Error::Disconnected | Error::SocketBroken(_)) => {
                    return Ok(Some(End::Closed));
                }
                Err(error) => {
                    count(&self.context.counters.protocol_errors, 1);
                    self.context
                        .warn(&error, "Closed a connection that breaks the protocol");
                    return Ok(Some(End::Closed));
                }
            }
        }
        Ok(Some(End::Stop))
    }

    /// Finds out what is known of the front-end that has begun to speak.
    fn begin(&mut self, session: &Session) -> io::Result<Speaking> {
        let peer = Peer::of(&session.stream);
        let stream = session.stream.try_clone()?;
        count(&self.context.counters.connections, 1);
        let known = self.carried.take().or_else(|| self.load());
        let known = match known {
            Some(known) if known.peer.is_some_and(|before| before.is(&peer)) => Some(known),
            Some(other) => {
                // Another process: what its guest registered is nobody's business any more.
                self.generation = other.space.generation();
                self.events = Events::default();
                None
            }
            None => None,
        };
        let resumed = known.is_some();
        let carried = known.unwrap_or_else(|| Carried {
            peer: Some(peer),
            space: self.fresh_space(),
            registry: Registry::default(),
        });
        if let Some(held_back) = self.context.may_log() {
            let vm = self.context.config.name.as_str();
            let (pid, generation) = (peer.pid, carried.space.generation());
            tracing::info!(
                vm,
                pid,
                generation,
                resumed,
                held_back,
                "A front-end connected"
            );
        }
        let events = std::mem::take(&mut self.events);
        let backend = Backend::new(
            self.context.clone(),
            session.epoll.clone(),
            peer,
            carried,
            !resumed,
            events,
        )
        .map_err(io::Error::other)?;
        let backend = Arc::new(Mutex::new(backend));
        let requests = BackendReqHandler::from_stream(stream, backend.clone());
        Ok(Speaking { backend, requests })
    }

    /// What a former daemon saved.
    fn load(&mut self) -> Option<Carried> {
        match self.context.state_file.as_ref()?.load() {
            Ok(saved) => Some(Carried::restored(self.space(0), saved?)),
            Err(error) => {
                count(&self.context.counters.state_errors, 1);
                self.context.warn(
                    &error,
                    "Cannot use the saved registrations: the guest must register",
                );
                None
            }
        }
    }

    fn space(&self, generation: u32) -> ConfigSpace {
        let config = &self.context.config;
        ConfigSpace::new(
            generation,
            config.nr_doorbells,
            config.extension_ns,
            config.slice_ns,
        )
    }

    /// Config space of a device that knows no registrations. Its generation is one that the guest
    /// has not seen, even where nothing was saved: milliseconds, modulo 2^32.
    fn fresh_space(&mut self) -> ConfigSpace {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let now = u32::try_from(since.as_millis() & u128::from(u32::MAX)).unwrap_or(0);
        self.generation = if now == self.generation {
            now.wrapping_add(1)
        } else {
            now
        };
        self.space(self.generation)
    }
}

impl Session {
    fn with(&mut self, action: impl FnOnce(&mut Backend)) {
        if let Some(speaking) = &self.handler {
            action(&mut lock(&speaking.backend));
        }
    }

    /// Whether the next front-end may have the device: this one has closed its end, or has said
    /// nothing for a while.
    fn gives_way(&self) -> bool {
        matches!(arrival(&self.stream), Ok(Arrival::Closed) | Err(_))
            || (self.handler.is_none() && self.since.elapsed() > STALL_LIMIT)
    }

    /// The guest rang for the control queue.
    fn kicked(&mut self) {
        let now = Instant::now();
        match self.kicks.check(now) {
            Ok(_) => {
                self.kick_at = None;
                self.with(Backend::serve_control);
            }
            Err(later) => self.kick_at = Some(now + later),
        }
    }
}

/// Waits for descriptors, until `deadline` at most. Returns the number that are ready.
fn wait(epoll: &Epoll, deadline: Option<Instant>, events: &mut [EpollEvent]) -> io::Result<usize> {
    let timeout = deadline.map_or(-1, |at| {
        let left = at.saturating_duration_since(Instant::now());
        // Rounded up, so that the deadline has passed when it is over.
        i32::try_from(left.as_millis()).unwrap_or(i32::MAX - 1) + 1
    });
    match epoll.wait(timeout, events) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
        result => result,
    }
}
