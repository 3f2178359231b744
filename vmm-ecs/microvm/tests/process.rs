//! A VM as a child process: commands in, JSON lines out.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use ecs_microvm::{Kind, Progress, VmConfig, VmReport, Workload, WorkloadKind, run};
use serde_json::Value;

const CONFIG: &str = "ECS_MICROVM_TEST_CONFIG";

/// Not a test of its own: the child process of the others.
#[test]
fn child() {
    if let Ok(text) = std::env::var(CONFIG) {
        run(serde_json::from_str(&text).unwrap()).unwrap();
    }
}

struct Vm {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Value>,
}

impl Vm {
    fn spawn(change: impl FnOnce(&mut VmConfig)) -> Self {
        let workload = Workload::new(WorkloadKind::Ticket, 2.0, 2.0);
        let mut config = VmConfig::new("child", 2, workload);
        config.kind = Kind::Thread;
        config.duration_ms = 20_000;
        change(&mut config);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(CONFIG, serde_json::to_string(&config).unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                // The test harness of the child writes to the same stream.
                let json = line.find('{').and_then(|start| line.get(start..));
                if let Some(Ok(value)) = json.map(serde_json::from_str)
                    && sender.send(value).is_err()
                {
                    return;
                }
            }
        });
        Self {
            child,
            stdin,
            lines,
        }
    }

    fn line(&self) -> Value {
        self.lines.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    fn say(&mut self, text: &str) {
        self.stdin
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    /// Lines up to the final report.
    fn rest(&self) -> (Vec<Progress>, VmReport) {
        let mut progress = Vec::new();
        loop {
            let line = self.line();
            if line.get("final").is_some() {
                return (progress, serde_json::from_value(line).unwrap());
            }
            progress.push(serde_json::from_value(line).unwrap());
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn go_progress_and_stop() {
    let mut vm = Vm::spawn(|config| config.report_ms = 20);
    let ready = vm.line();
    assert_eq!(ready.get("ready"), Some(&Value::Bool(true)), "{ready}");
    assert_eq!(ready.get("registered"), Some(&Value::Bool(false)));
    assert!(
        vm.lines.recv_timeout(Duration::from_millis(60)).is_err(),
        "it works before go"
    );
    vm.say("what\ngo\n");
    let first: Progress = serde_json::from_value(vm.line()).unwrap();
    let second: Progress = serde_json::from_value(vm.line()).unwrap();
    assert!(second.t_ms > first.t_ms && second.ops.iter().sum::<u64>() > 0);
    vm.say("stop\n");
    let (_, report) = vm.rest();
    assert!(report.exclusion_held() && report.elapsed_ns < 15_000_000_000);
    assert!(vm.child.wait().unwrap().success());
}

#[test]
fn the_duration_ends_it() {
    let mut vm = Vm::spawn(|config| config.duration_ms = 60);
    vm.line();
    vm.say("go\n");
    let (progress, report) = vm.rest();
    assert!(progress.is_empty(), "no progress was asked for");
    assert!(report.elapsed_ns >= 60_000_000, "{report:?}");
    assert!(vm.child.wait().unwrap().success());
}

#[test]
fn a_parent_that_dies_ends_it() {
    for before in ["", "go\n"] {
        let mut vm = Vm::spawn(|_| ());
        vm.line();
        vm.say(before);
        drop(vm.stdin.take());
        vm.rest();
        assert!(vm.child.wait().unwrap().success());
    }
}
