//! Processes of the demo: they end with it.

use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use ecs_microvm::{Progress, VmReport};

use super::PATIENCE;

/// A process of ours; it does not outlive us.
#[derive(Debug)]
pub(crate) struct Guarded {
    pub(super) child: Child,
}

impl Guarded {
    /// Asks it to end, and waits; ends it if it does not.
    fn end(&mut self) {
        // SIGTERM by way of its pid: it is our child and has not been waited for.
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").arg(pid).stderr(Stdio::null()).status();
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if let Ok(Some(_)) = self.child.try_wait() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.end();
        }
    }
}

/// The exporter, while it runs.
#[derive(Debug)]
pub(crate) struct Exporter {
    pub(super) _process: Guarded,
    /// Where it serves metrics.
    pub(crate) address: String,
}

/// What a VM says, a line each.
#[derive(Debug)]
pub(super) enum Message {
    Ready,
    Progress(Progress),
    Final(Box<VmReport>),
}

impl Message {
    pub(super) fn parse(line: &str) -> Option<Self> {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        if value.get("ready").is_some() {
            Some(Self::Ready)
        } else if value.get("final").is_some() {
            serde_json::from_value(value)
                .ok()
                .map(|report| Self::Final(Box::new(report)))
        } else {
            serde_json::from_value(value).ok().map(Self::Progress)
        }
    }
}

/// A VM of a run, as a process.
pub(super) struct VmProcess {
    pub(super) name: String,
    pub(super) process: Guarded,
    pub(super) stdin: ChildStdin,
    pub(super) messages: Receiver<Message>,
}

/// The final report of a VM, once it has come.
pub(super) fn last_word(messages: &Receiver<Message>) -> Option<Box<VmReport>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match messages.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Message::Final(report)) => return Some(report),
            Ok(_) => {}
            Err(_) => return None,
        }
    }
}
