//! The controller in the kernel, on a real kernel with sched_ext and real KVM vCPUs.
//!
//! The host is emulated and counts instructions: its time is the emulator's, whatever else this
//! machine does, so that the figures of a run can be asserted.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_precision_loss
)]

use std::time::Duration;

use ecs_tests::linux::side_by_side::{Arm, Load, Outcome, side_by_side};
use ecs_tests::linux::{Host, HostVm};
use ecs_tests::process::until;
use ecs_tests::{parts, scx_program, skip, slow};
use serde_json::Value;

/// Time for what takes a second or two of the host's.
const PATIENCE: Duration = Duration::from_secs(40);
/// Length of a tick of the host, us: HZ is 250.
const TICK_US: u64 = 4000;
/// Hard stop of an extension by default, us.
const HARD_STOP_US: u64 = 1000;

/// The host's parts and a host with our program; skips the test where one cannot be had. `figures`
/// tells whether the host counts instructions.
macro_rules! host {
    ($name:literal, $kernel:literal) => {
        host!($name, $kernel, true)
    };
    ($name:literal, $kernel:literal, $figures:literal) => {{
        let parts = parts!($name, $kernel);
        match scx_program().unwrap() {
            Ok(program) => (
                parts,
                Host {
                    programs: vec![program],
                    count_instructions: $figures,
                    ..Host::default()
                },
            ),
            Err(reason) => skip!($name, "{reason}"),
        }
    }};
}

fn ours() -> Arm {
    Arm {
        name: "eCS".to_owned(),
        demo: "--arms ecs --controller scx".to_owned(),
        ..Arm::stock()
    }
}

/// An arm with other words for the demo.
fn ours_with(words: &str) -> Arm {
    let demo = format!("{} {words}", ours().demo);
    Arm { demo, ..ours() }
}

/// Every extension has one outcome, every request one answer; some of each may still run.
fn assert_identities(outcome: &Outcome) {
    const RUNNING: u64 = 4;
    let count = |name: &str| outcome.count(name).unwrap();
    let answers = count("grants") + count("denials");
    assert!(
        count("requests").abs_diff(answers) <= RUNNING,
        "{outcome:?}"
    );
    let outcomes = count("yielded") + count("expired") + count("revoked") + count("aborted");
    assert!(count("grants").abs_diff(outcomes) <= RUNNING, "{outcome:?}");
}

fn say(load: &Load, outcome: &Outcome) {
    let count = |name: &str| outcome.count(name).unwrap();
    println!(
        "2 VMs x {} {} on CPUs {}, {}: {:.0} ops/s, {} preemptions, {} in a section; {} requests, \
         {} granted, {} yielded, {} expired; longest extension {} us; share off {:.3} %",
        load.vcpus,
        load.workload,
        load.pcpus,
        outcome.arm,
        outcome.total(),
        count("preemptions"),
        count("critical_preemptions"),
        count("requests"),
        count("grants"),
        count("yielded"),
        count("expired"),
        outcome.extension_max_us,
        outcome.share_deviation_percent.unwrap_or(f64::NAN),
    );
}

#[test]
fn vcpus_are_not_preempted_inside_sections() {
    let (parts, host) = host!("vcpus_are_not_preempted_inside_sections", "7.3");
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        for (vcpus, pcpus) in [(2, "0"), (2, "0-1"), (4, "0"), (4, "0-1")] {
            let load = Load {
                workload: "ticket",
                vcpus,
                pcpus,
                seconds: 2,
            };
            let outcomes = side_by_side(host, &[Arm::stock(), ours()], &load).unwrap();
            let [stock, ecs] = outcomes.as_slice() else {
                panic!("{outcomes:?}");
            };
            say(&load, stock);
            say(&load, ecs);
            assert!(ecs.vcpus_are.starts_with("kvm"), "{ecs:?}");
            assert_identities(ecs);
            let count = |name: &str| ecs.count(name).unwrap();
            assert!(count("requests") > 100, "too little competition: {ecs:?}");
            // Of all that would have been preemptions inside a section.
            let avoided =
                count("yielded") as f64 / (count("yielded") + count("critical_preemptions")) as f64;
            assert!(avoided >= 0.99, "{avoided}: {ecs:?}");
            assert!(
                ecs.extension_max_us <= HARD_STOP_US + TICK_US,
                "{} us",
                ecs.extension_max_us
            );
            assert!(ecs.total() > stock.total(), "{stock:?} {ecs:?}");
            if vcpus == 4 {
                // The convoy.
                assert!(ecs.total() > 20.0 * stock.total(), "{stock:?} {ecs:?}");
            }
        }
    });
}

/// Linux 7.2 is built so that no scheduler can call what it needs.
#[test]
fn a_kernel_that_cannot_is_steered_from_user_space() {
    slow!("a_kernel_that_cannot_is_steered_from_user_space");
    let (parts, host) = host!(
        "a_kernel_that_cannot_is_steered_from_user_space",
        "7.2",
        false
    );
    let kernel = parts.kernel("7.2").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        let said = host.sh("vmm-ecs check").unwrap();
        println!("{said}");
        assert!(said.contains("lets no scheduler call"), "{said}");
        assert!(said.contains("would use: userspace"), "{said}");
        let demo = "vmm-ecs demo --quiet --arms ecs --seconds 1 --runs 1 --vms 2 --vcpus 1";
        println!(
            "{}",
            host.sh(&format!("{demo} --controller userspace")).unwrap()
        );
        let (status, said) = host
            .try_sh(&format!("{demo} --controller scx"), PATIENCE)
            .unwrap();
        println!("{said}");
        assert!(
            status != 0 && said.contains("refuses the scheduler"),
            "{said}"
        );
    });
}

#[test]
fn shares_hold_whatever_a_guest_says() {
    slow!("shares_hold_whatever_a_guest_says");
    let (parts, host) = host!("shares_hold_whatever_a_guest_says", "7.3");
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        let load = |workload, seconds| Load {
            workload,
            vcpus: 2,
            pcpus: "0-1",
            seconds,
        };
        for (workload, words, most_percent) in [
            ("ticket", "", 0.5),
            ("ticket", "--weights 100,300", 1.0),
            ("ticket", "--pinning 1", 0.5),
            ("ticket", "--unhinted 1", 0.5),
        ] {
            let load = load(workload, 10);
            let outcome = &side_by_side(host, &[ours_with(words)], &load).unwrap()[0];
            println!("{words}:");
            say(&load, outcome);
            assert_identities(outcome);
            let off = outcome.share_deviation_percent.unwrap();
            assert!(off <= most_percent, "{words}: {off} %");
        }
        // Without locks there is nothing to gain, and little may be lost.
        let load = load("compute", 5);
        let outcomes = side_by_side(host, &[Arm::stock(), ours()], &load).unwrap();
        say(&load, &outcomes[0]);
        say(&load, &outcomes[1]);
        assert!(
            outcomes[1].total() >= 0.97 * outcomes[0].total(),
            "{outcomes:?}"
        );
    });
}

/// What each rule of the lock queue is worth, one at a time and together.
#[test]
fn each_queue_rule_is_worth_something() {
    slow!("each_queue_rule_is_worth_something");
    let (parts, host) = host!("each_queue_rule_is_worth_something", "7.3");
    let kernel = parts.kernel("7.3").unwrap();
    let off = |rules: &[&str]| {
        let rules = rules
            .iter()
            .map(|rule| format!(" --policy '{rule} = false'"));
        ours_with(&rules.collect::<String>())
    };
    let arms = [
        Arm::stock(),
        Arm {
            name: "extensions only".to_owned(),
            demo: "--arms holder-only --controller scx".to_owned(),
            ..Arm::stock()
        },
        Arm {
            name: "step aside only".to_owned(),
            ..off(&["head_first", "apart"])
        },
        Arm {
            name: "no step aside".to_owned(),
            ..off(&["step_aside"])
        },
        Arm {
            name: "no head first".to_owned(),
            ..off(&["head_first"])
        },
        Arm {
            name: "not apart".to_owned(),
            ..off(&["apart"])
        },
        ours(),
    ];
    HostVm::run(&parts, &kernel, &host, |host| {
        for vcpus in [2, 4] {
            let load = Load {
                workload: "ticket",
                vcpus,
                pcpus: "0-1",
                seconds: 3,
            };
            let outcomes = side_by_side(host, &arms, &load).unwrap();
            for outcome in &outcomes {
                say(&load, outcome);
            }
            let most = outcomes.last().unwrap().total();
            assert!(most > outcomes[0].total() && most > outcomes[1].total());
        }
    });
}

/// A daemon on sched_ext with two VMs of the demo, which stay.
struct Running {
    /// Process id of the demo, whose end is the end of all.
    demo: String,
    dir: String,
}

impl Running {
    fn start(host: &mut HostVm) -> Self {
        let command = "vmm-ecs demo --quiet --keep --controller scx --arms stock --runs 1 \
                       --seconds 0.2 --kind kvm --html /tmp/demo.html --policy 'look_us = 100' \
                       >/tmp/keep.log 2>&1 & echo $!";
        let demo = host.sh(command).unwrap().trim().to_owned();
        wait_for(host, "enabled");
        // The demo's first run, of the stock arm, is over: this is the daemon that stays.
        let dir = host
            .sh("echo /tmp/vmm-ecs-demo-*")
            .unwrap()
            .trim()
            .to_owned();
        let running = Self { demo, dir };
        running.wait_until_served(host);
        running
    }

    fn stats(&self, host: &mut HostVm) -> Option<Value> {
        let command = format!("vmm-ecs stats --socket {}/stats.sock", self.dir);
        match host.try_sh(&command, PATIENCE).unwrap() {
            (0, said) => serde_json::from_str(&said).ok(),
            _ => None,
        }
    }

    /// Both VMs are known with their vCPU threads, and read.
    fn wait_until_served(&self, host: &mut HostVm) {
        let served = until("both VMs to be served", PATIENCE, || {
            let stats = self.stats(host)?;
            let vms = stats["vms"].as_array()?;
            let whole = |vm: &&Value| {
                vm["state"] == "active" && vm["vcpus"].as_array().map(Vec::len) == Some(2)
            };
            (vms.iter().filter(whole).count() == 2).then_some(())
        });
        if let Err(error) = served {
            panic!("{error:#}\n{}", logs(host));
        }
    }

    fn daemon(&self, host: &mut HostVm) -> String {
        let find = "{ for p in /proc/[0-9]*; do tr '\\000' ' ' <$p/cmdline | \
                    grep -q '^[^ ]*vmm-ecs serve' && echo ${p#/proc/}; done; } 2>/dev/null; true";
        host.sh(find).unwrap().trim().to_owned()
    }

    /// CPU time that all vCPU threads have had, in ticks of the kernel's clock.
    fn vcpu_ticks(&self, host: &mut HostVm) -> Vec<u64> {
        let sum = "{ for t in /proc/[0-9]*/task/*; do case $(cat $t/comm) in vcpu*) \
                   cut -d' ' -f14,15 $t/stat;; esac; done; } 2>/dev/null; true";
        let said = host.sh(sum).unwrap();
        said.lines()
            .map(|line| {
                line.split(' ')
                    .map(|ticks| ticks.parse::<u64>().unwrap())
                    .sum()
            })
            .collect()
    }

    /// Every vCPU runs on.
    fn assert_alive(&self, host: &mut HostVm, when: &str) {
        let before = self.vcpu_ticks(host);
        assert_eq!(before.len(), 4, "{when}: vCPU threads");
        until("every vCPU to run", PATIENCE, || {
            host.sh("sleep 0.2").unwrap();
            let now = self.vcpu_ticks(host);
            let ran = now.iter().zip(&before).all(|(now, before)| now > before);
            (now.len() == before.len() && ran).then_some(())
        })
        .unwrap_or_else(|error| panic!("{when}: {error:#}"));
    }

    fn serve_again(&self, host: &mut HostVm) {
        let dir = &self.dir;
        host.sh(&format!(
            "vmm-ecs serve --config {dir}/config.toml >/tmp/again.log 2>&1 & echo $!"
        ))
        .unwrap();
        wait_for(host, "enabled");
        self.wait_until_served(host);
    }

    fn status(&self, host: &mut HostVm) -> String {
        host.sh(&format!("vmm-ecs status --socket {}/stats.sock", self.dir))
            .unwrap()
    }

    fn end(&self, host: &mut HostVm) {
        host.sh(&format!("kill {}; wait {}; true", self.demo, self.demo))
            .unwrap();
        let daemon = self.daemon(host);
        host.sh(&format!("kill {daemon} 2>/dev/null; true"))
            .unwrap();
        wait_for(host, "disabled");
    }
}

fn wait_for(host: &mut HostVm, state: &str) {
    let what = format!("sched_ext {state}");
    let found = until(&what, PATIENCE, || {
        (host.sched_ext().unwrap() == state).then_some(())
    });
    if let Err(error) = found {
        panic!("{error:#}\n{}", logs(host));
    }
}

/// What our programs said.
fn logs(host: &mut HostVm) -> String {
    let logs = host.sh("tail -n 20 /tmp/*.log /tmp/vmm-ecs-demo-*/daemon.log; true");
    logs.unwrap_or_else(|error| format!("{error:#}"))
}

#[test]
fn however_the_daemon_goes_the_vms_run_on() {
    slow!("however_the_daemon_goes_the_vms_run_on");
    let (parts, host) = host!("however_the_daemon_goes_the_vms_run_on", "7.3", false);
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        let running = Running::start(host);
        running.assert_alive(host, "at first");

        let daemon = running.daemon(host);
        host.sh(&format!("kill -STOP {daemon}")).unwrap();
        running.assert_alive(host, "while the daemon is stopped");
        assert_eq!(host.sched_ext().unwrap(), "enabled");
        host.sh(&format!("kill -CONT {daemon}")).unwrap();

        host.sh(&format!("kill -KILL {daemon}")).unwrap();
        wait_for(host, "disabled");
        running.assert_alive(host, "after SIGKILL");
        running.serve_again(host);
        running.assert_alive(host, "under the second daemon");

        let status = running.status(host);
        assert!(status.contains("scx, full, in force"), "{status}");

        // The kernel ends it, as it does when a thread starves: the daemon says why.
        host.sh("echo S >/proc/sysrq-trigger").unwrap();
        wait_for(host, "disabled");
        running.assert_alive(host, "after the kernel ended the scheduler");
        let status = until("the reason", PATIENCE, || {
            let status = running.status(host);
            status.contains("ended: ").then_some(status)
        })
        .unwrap();
        println!("{status}");
        running.end(host);
    });
}

/// A thread that something above the scheduler's class keeps from its CPU for too long.
#[test]
fn a_starved_thread_ends_the_scheduler_and_nothing_else() {
    slow!("a_starved_thread_ends_the_scheduler_and_nothing_else");
    let name = "a_starved_thread_ends_the_scheduler_and_nothing_else";
    let (parts, mut host) = host!(
        "a_starved_thread_ends_the_scheduler_and_nothing_else",
        "7.3",
        false
    );
    let chrt = std::path::PathBuf::from("/usr/bin/chrt");
    if !chrt.exists() {
        skip!(name, "this machine has no chrt (util-linux)");
    }
    host.programs.push(chrt);
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        let running = Running::start(host);
        // Else the kernel gives the class a part of each CPU whatever runs above it.
        host.sh("echo 0 >/sys/kernel/debug/sched/ext_server/cpu1/runtime; \
             echo -1 >/proc/sys/kernel/sched_rt_runtime_us; \
             taskset 2 sh -c 'while :; do :; done' & \
             taskset 2 chrt -f 50 timeout 25 sh -c 'while :; do :; done' & true")
            .unwrap();
        wait_for(host, "disabled");
        let status = until("the reason", PATIENCE, || {
            let status = running.status(host);
            status.contains("ended: ").then_some(status)
        })
        .unwrap();
        println!("{status}");
        assert!(status.contains("runnable task stall"), "{status}");
        running.assert_alive(host, "after the watchdog");
        running.end(host);
    });
}

#[test]
fn it_stays_while_cpus_come_and_go() {
    slow!("it_stays_while_cpus_come_and_go");
    let (parts, host) = host!("it_stays_while_cpus_come_and_go", "7.3", false);
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        let running = Running::start(host);
        host.sh("echo 0 >/sys/devices/system/cpu/cpu1/online")
            .unwrap();
        running.assert_alive(host, "on one CPU");
        host.sh("echo 1 >/sys/devices/system/cpu/cpu1/online")
            .unwrap();
        running.assert_alive(host, "on two CPUs again");
        assert_eq!(
            host.sched_ext().unwrap(),
            "enabled",
            "{}",
            running.status(host)
        );
        running.end(host);
    });
}

#[test]
fn it_comes_and_goes_under_load() {
    const TIMES: u32 = 100;
    slow!("it_comes_and_goes_under_load");
    let (parts, host) = host!("it_comes_and_goes_under_load", "7.3", false);
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        let running = Running::start(host);
        let first = running.daemon(host);
        host.sh(&format!("kill -KILL {first}")).unwrap();
        wait_for(host, "disabled");
        for time in 0..TIMES {
            running.serve_again(host);
            let daemon = running.daemon(host);
            // Every other one has no time to clean up.
            let signal = if time % 2 == 0 { "TERM" } else { "KILL" };
            host.sh(&format!("kill -{signal} {daemon}")).unwrap();
            wait_for(host, "disabled");
        }
        running.assert_alive(host, "after all");
        println!("{TIMES} times attached and detached");
        running.serve_again(host);
        running.end(host);
    });
}

#[test]
fn limits_and_weights_of_cgroups_hold() {
    slow!("limits_and_weights_of_cgroups_hold");
    let (parts, host) = host!("limits_and_weights_of_cgroups_hold", "7.3", false);
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        host.sh(
            "echo +cpu >/sys/fs/cgroup/cgroup.subtree_control; mkdir /sys/fs/cgroup/vm0 \
                 /sys/fs/cgroup/vm1",
        )
        .unwrap();
        let running = Running::start(host);
        let stats = running.stats(host).unwrap();
        for vm in stats["vms"].as_array().unwrap() {
            let (name, pid) = (vm["name"].as_str().unwrap(), &vm["pid"]);
            host.sh(&format!("echo {pid} >/sys/fs/cgroup/{name}/cgroup.procs"))
                .unwrap();
        }
        // A daemon learns where a VM is when the VM connects.
        let daemon = running.daemon(host);
        host.sh(&format!("kill {daemon}")).unwrap();
        wait_for(host, "disabled");
        running.serve_again(host);

        let shares = |host: &mut HostVm, words: &str| {
            host.sh(words).unwrap();
            // Read once a second.
            host.sh("sleep 2").unwrap();
            let cpu = |host: &mut HostVm| -> Vec<f64> {
                let stats = running.stats(host).unwrap();
                let vms = stats["vms"].as_array().unwrap();
                let of = |vm: &Value| {
                    let vcpus = vm["vcpus"].as_array().unwrap();
                    vcpus
                        .iter()
                        .map(|vcpu| vcpu["cpu_ns"].as_f64().unwrap())
                        .sum()
                };
                vms.iter().map(of).collect()
            };
            let (before, start) = (cpu(host), now_s(host));
            host.sh("sleep 5").unwrap();
            let (after, end) = (cpu(host), now_s(host));
            let used = after
                .iter()
                .zip(before)
                .map(|(after, before)| after - before);
            used.map(|used| used / 1e9 / (end - start))
                .collect::<Vec<f64>>()
        };
        let weighed = shares(host, "echo 300 >/sys/fs/cgroup/vm1/cpu.weight");
        println!("cpu.weight 100 and 300: {weighed:.3?} CPUs");
        let ratio = weighed[1] / weighed[0];
        assert!((2.9..3.1).contains(&ratio), "{weighed:?}");
        let limited = shares(host, "echo '30000 100000' >/sys/fs/cgroup/vm1/cpu.max");
        println!("cpu.max 30 % of a CPU for the second: {limited:.3?} CPUs");
        assert!((0.28..0.31).contains(&limited[1]), "{limited:?}");
        // What it may not use is the other's.
        assert!(limited[0] > 1.4, "{limited:?}");
        running.end(host);
    });
}

/// Seconds since the host booted.
fn now_s(host: &mut HostVm) -> f64 {
    let text = host.sh("cat /proc/uptime").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}
