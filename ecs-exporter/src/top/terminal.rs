//! The terminal, and the thread that looks at the sources.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyEventKind};
use signal_hook::consts::{SIGHUP, SIGTERM};

use super::app::{App, Setup};
use crate::exporter::Exporter;
use crate::live::{Frame, Sampler};

/// How soon a frame or a signal is seen.
const TICK: Duration = Duration::from_millis(100);

/// Time between the first look and the second, which has the first rates.
const FIRST: Duration = Duration::from_millis(500);

/// Why there is no `top`.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// Nobody could see it or press a key.
    #[error("top needs a terminal; use -b for text")]
    NoTerminal,
    /// The terminal does not do what it is told.
    #[error("Cannot use the terminal")]
    Terminal(#[source] io::Error),
}

/// Shows it until the user ends it.
///
/// # Errors
/// [`TopError`].
pub fn run(exporter: Exporter, setup: &Setup) -> Result<(), TopError> {
    if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        return Err(TopError::NoTerminal);
    }
    let is_stopped = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&is_stopped)).map_err(TopError::Terminal)?;
    }
    let mut app = App::new(setup);
    app.set_colourful(std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()));
    let (frames, received) = mpsc::channel();
    let (delay, delays) = mpsc::channel();
    let first = setup.delay;
    // It ends when either channel closes; a look that hangs ends with the process.
    thread::spawn(move || look(&exporter, first, &delays, &frames));
    let mut terminal = ratatui::try_init().map_err(TopError::Terminal)?;
    let result = show(&mut terminal, &mut app, &received, &delay, &is_stopped);
    ratatui::restore();
    result.map_err(TopError::Terminal)
}

fn show(
    terminal: &mut ratatui::DefaultTerminal,
    app: &mut App,
    frames: &Receiver<Frame>,
    delay: &Sender<Duration>,
    is_stopped: &AtomicBool,
) -> io::Result<()> {
    let mut is_changed = true;
    while !app.has_ended() && !is_stopped.load(Ordering::Relaxed) {
        for frame in frames.try_iter() {
            app.push(frame);
            is_changed = true;
        }
        if is_changed {
            terminal.draw(|screen| app.draw(screen))?;
            is_changed = false;
        }
        if !event::poll(TICK)? {
            continue;
        }
        let before = app.delay();
        match event::read()? {
            Event::Key(key) if key.kind == KeyEventKind::Press => app.key(key),
            _ => {}
        }
        is_changed = true;
        if app.delay() != before {
            // The thread ends only with us.
            let _ = delay.send(app.delay());
        }
    }
    Ok(())
}

fn look(
    exporter: &Exporter,
    mut delay: Duration,
    delays: &Receiver<Duration>,
    frames: &Sender<Frame>,
) {
    let mut sampler = Sampler::default();
    let mut pause = FIRST.min(delay);
    loop {
        if frames.send(sampler.take(&exporter.read())).is_err() {
            return;
        }
        match delays.recv_timeout(pause) {
            Ok(new) => delay = new,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        pause = delay;
    }
}
