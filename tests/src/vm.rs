//! A VM of a test: a process of its own, as a VMM is.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use ecs_microvm::{Progress, VmReport};
use ecs_sched::sys::Tid;
use ecs_sched::threads::vcpu_threads;

use crate::daemon::read;
use crate::process::{Process, until};

/// Time a VM has for anything on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a VM has said so far.
#[derive(Debug, Default)]
struct Said {
    ready: bool,
    progress: Option<Progress>,
    report: Option<VmReport>,
    over: bool,
}

/// A running `vmm-ecs microvm`. Dropping it ends it.
#[derive(Debug)]
pub struct TestVm {
    name: String,
    process: Process,
    stdin: Option<ChildStdin>,
    said: Arc<Mutex<Said>>,
    log: PathBuf,
}

impl TestVm {
    /// Takes over a VM that has just been started, and waits until it is ready.
    pub(crate) fn new(name: &str, mut process: Process, log: PathBuf) -> anyhow::Result<Self> {
        let stdin = process.child().stdin.take();
        let stdout = process
            .child()
            .stdout
            .take()
            .context("A VM has no output")?;
        let said = Arc::new(Mutex::new(Said::default()));
        std::thread::spawn({
            let said = said.clone();
            move || listen(stdout, &said)
        });
        let vm = Self {
            name: name.to_owned(),
            process,
            stdin,
            said,
            log,
        };
        vm.wait_for("ready", |said| said.ready.then_some(()))?;
        Ok(vm)
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Its vCPU threads, by vCPU number.
    ///
    /// # Errors
    /// If it has ended.
    pub fn vcpus(&self) -> anyhow::Result<Vec<Tid>> {
        let threads = vcpu_threads(self.pid())
            .with_context(|| format!("{} is gone: {}", self.name, read(&self.log)))?;
        Ok(threads.into_iter().map(|thread| thread.tid).collect())
    }

    /// Starts the work.
    ///
    /// # Errors
    /// If it has ended.
    pub fn go(&mut self) -> anyhow::Result<()> {
        self.say("go\n")
    }

    /// Its latest progress.
    ///
    /// # Errors
    /// If there is none for long.
    pub fn progress(&self) -> anyhow::Result<Progress> {
        self.wait_for("progress", |said| said.progress.clone())
    }

    /// Waits until it has done more operations than it has now.
    ///
    /// # Errors
    /// If it does not.
    pub fn wait_for_work(&self) -> anyhow::Result<()> {
        let ops = |progress: &Progress| progress.ops.iter().sum::<u64>();
        // Two lines on: the next one may tell of work done before the call.
        let before = self.progress()?;
        let line = self.wait_for("progress", |said| {
            said.progress.clone().filter(|now| now.t_ms > before.t_ms)
        })?;
        self.wait_for("work", |said| {
            said.progress
                .as_ref()
                .filter(|now| now.t_ms > line.t_ms && ops(now) > ops(&line))
                .map(|_| ())
        })
    }

    /// Ends the work, and takes its report.
    ///
    /// # Errors
    /// If it ends without one.
    pub fn stop(&mut self) -> anyhow::Result<VmReport> {
        self.say("stop\n")?;
        let report = self.wait_for("a report", |said| said.report.clone())?;
        let status = self.process.wait(PATIENCE)?;
        if !status.success() {
            bail!("{} ended with {status}:\n{}", self.name, read(&self.log));
        }
        Ok(report)
    }

    /// Kills it, as a VMM that crashes.
    ///
    /// # Errors
    /// If it had ended before.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.signal(crate::process::Signal::SIGKILL)?;
        self.process.wait(PATIENCE).map(|_| ())
    }

    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        let stdin = self.stdin.as_mut().context("A VM has no input")?;
        stdin
            .write_all(text.as_bytes())
            .with_context(|| format!("{} is gone:\n{}", self.name, read(&self.log)))
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_for<T>(
        &self,
        what: &str,
        mut probe: impl FnMut(&Said) -> Option<T>,
    ) -> anyhow::Result<T> {
        let what = format!("{what} of {}", self.name);
        let answer = until(&what, PATIENCE, || {
            let said = self.said();
            match probe(&said) {
                Some(answer) => Some(Some(answer)),
                None => said.over.then_some(None),
            }
        })?;
        answer.with_context(|| format!("It ended before {what}:\n{}", read(&self.log)))
    }
}

fn listen(stdout: ChildStdout, said: &Mutex<Said>) {
    let lock = || said.lock().unwrap_or_else(PoisonError::into_inner);
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        let Ok(value) = serde_json::from_str::<serde_json::Value>(&line) else {
            continue;
        };
        let mut said = lock();
        if value.get("ready").is_some() {
            said.ready = true;
        } else if value.get("final").is_some() {
            said.report = serde_json::from_value(value).ok();
        } else if let Ok(progress) = serde_json::from_value(value) {
            said.progress = Some(progress);
        }
    }
    lock().over = true;
}
