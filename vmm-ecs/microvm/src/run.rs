//! A VM as a child process: commands on standard input, JSON lines on standard output.

use std::io::{self, BufRead, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::{Gate, VmConfig};
use crate::report::{KindUsed, VmReport};
use crate::sys;
use crate::vm::{Vm, VmError};

/// How often to look whether the guest has failed.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Serialize)]
struct Ready<'a> {
    ready: bool,
    kind_used: KindUsed,
    why: &'a str,
    /// Every vCPU is registered with the device; false without one.
    registered: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Command {
    Go,
    Stop,
}

/// Runs one VM to its end.
///
/// Prints `{"ready":true,..}`, then a progress line every `report_ms`, then the final report. With
/// [`Gate::Stdin`] the work starts at the line `go` and ends at `stop`, at the end of standard input,
/// or after `duration_ms`, whichever is first; with [`Gate::Open`] it starts at once and standard
/// input is not read.
///
/// # Errors
/// A VM that cannot start or fails, or standard output that is closed.
pub fn run(config: VmConfig) -> Result<VmReport, VmError> {
    let gate = config.sync;
    let duration = Duration::from_millis(config.duration_ms);
    let period = Duration::from_millis(config.report_ms);
    let device_wait = Duration::from_millis(config.device_wait_ms);
    let has_device = config.socket.is_some();
    if config.core_scheduling {
        sys::take_cores().map_err(VmError::CoreScheduling)?;
    }
    let mut vm = Vm::new(config)?;
    let registered = vm.wait_for_device(device_wait) && has_device;
    print(&Ready {
        ready: true,
        kind_used: vm.kind(),
        why: vm.why(),
        registered,
    })?;

    let commands = match gate {
        Gate::Stdin => Some(read_commands()?),
        Gate::Open => None,
    };
    if let Some(commands) = &commands
        && commands.recv() != Ok(Command::Go)
    {
        return finish(vm);
    }
    vm.go();
    let start = Instant::now();
    let mut next_report = period;
    while start.elapsed() < duration && !vm.has_ended() {
        let mut until = duration.min(start.elapsed() + LOOK);
        if !period.is_zero() {
            until = until.min(next_report);
        }
        if stopped(commands.as_ref(), until.saturating_sub(start.elapsed())) {
            break;
        }
        if !period.is_zero() && start.elapsed() >= next_report {
            print(&vm.progress())?;
            // A report that is late is left out, not caught up with.
            while next_report <= start.elapsed() {
                next_report += period;
            }
        }
    }
    finish(vm)
}

fn finish(vm: Vm) -> Result<VmReport, VmError> {
    let report = vm.finish()?;
    print(&report)?;
    Ok(report)
}

/// Waits for `time`, or until the parent says stop or is gone.
fn stopped(commands: Option<&Receiver<Command>>, time: Duration) -> bool {
    match commands {
        None => {
            std::thread::sleep(time);
            false
        }
        Some(commands) => match commands.recv_timeout(time) {
            Ok(Command::Go) | Err(RecvTimeoutError::Timeout) => false,
            Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => true,
        },
    }
}

fn print<T: Serialize>(line: &T) -> Result<(), VmError> {
    let mut text =
        serde_json::to_string(line).map_err(|error| VmError::Parent(io::Error::from(error)))?;
    text.push('\n');
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(VmError::Parent)
}

/// Commands of the parent, until the end of standard input. The thread ends with the process.
fn read_commands() -> Result<Receiver<Command>, VmError> {
    let (sender, receiver) = mpsc::channel();
    let body = move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            let command = match line.trim() {
                "go" => Command::Go,
                "stop" => Command::Stop,
                other => {
                    tracing::warn!(line = other, "unknown command ignored: use go or stop");
                    continue;
                }
            };
            if sender.send(command).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(body)
        .map_err(VmError::Thread)?;
    Ok(receiver)
}
