//! A daemon of a test.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context;

use crate::process::{Process, Signal, arguments, children, is_alive, until};

/// Time the daemon has for anything on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running `vmm-ecs serve`. Dropping it ends it and waits until its watchdog is gone as well, so
/// that nothing of it is left for the next test.
#[derive(Debug)]
pub struct Daemon {
    pub(crate) process: Process,
    pub(crate) log: PathBuf,
}

impl Daemon {
    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Process id of its watchdog.
    ///
    /// # Errors
    /// If it has none for long.
    pub fn watchdog(&self) -> anyhow::Result<u32> {
        until("a watchdog of the daemon", PATIENCE, || {
            watchdogs(self.pid()).first().copied()
        })
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// If it has ended.
    pub fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        self.process
            .signal(signal)
            .with_context(|| format!("The daemon said:\n{}", self.said()))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it does not end.
    pub fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        self.process.wait(PATIENCE)
    }

    /// Whether it runs.
    ///
    /// # Errors
    /// What the system says.
    pub fn is_alive(&mut self) -> anyhow::Result<bool> {
        Ok(self.process.ended()?.is_none())
    }

    /// What it has logged so far.
    #[must_use]
    pub fn said(&self) -> String {
        read(&self.log)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let watchdogs = watchdogs(self.pid());
        if let Ok(None) = self.process.ended() {
            let _ = self.process.signal(Signal::SIGTERM);
            let _ = self.process.signal(Signal::SIGCONT);
            if self.process.wait(PATIENCE).is_err() {
                let _ = self.process.signal(Signal::SIGKILL);
                let _ = self.process.wait(PATIENCE);
            }
        }
        let _ = until("the end of the watchdog", PATIENCE, || {
            watchdogs.iter().all(|&pid| !is_alive(pid)).then_some(())
        });
    }
}

fn watchdogs(daemon: u32) -> Vec<u32> {
    let mut pids = children(daemon);
    pids.retain(|&pid| arguments(pid).get(1).is_some_and(|what| what == "watchdog"));
    pids
}

pub(crate) fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
