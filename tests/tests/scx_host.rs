//! A host whose scheduler is ours: it stays a good one for everything else, and goes without a hitch.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::path::PathBuf;
use std::time::Duration;

use ecs_tests::linux::{Host, HostVm};
use ecs_tests::process::until;
use ecs_tests::{scx_host, skip, slow};
use serde_json::Value;

/// Time for what takes a second or two of the host's.
const PATIENCE: Duration = Duration::from_secs(40);

/// Linux 7.2 is built so that no scheduler can call what it needs.
#[test]
fn a_kernel_that_cannot_is_steered_from_user_space() {
    slow!("a_kernel_that_cannot_is_steered_from_user_space");
    let (parts, host) = scx_host!(
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

/// A daemon on sched_ext with two VMs of the demo, which stay.
struct Running {
    /// Process id of the demo, whose end is the end of all.
    demo: String,
    dir: String,
    /// Of each VM.
    vcpus: usize,
}

impl Running {
    fn start(host: &mut HostVm) -> Self {
        Self::start_on(host, "0-1", 2)
    }

    /// With so many vCPUs a VM, on these CPUs.
    fn start_on(host: &mut HostVm, pcpus: &str, vcpus: usize) -> Self {
        let command = format!(
            "vmm-ecs demo --quiet --keep --controller scx --arms stock --runs 1 --seconds 0.2 \
             --kind kvm --html /tmp/demo.html --policy 'look_us = 100' --pcpus {pcpus} \
             --vcpus {vcpus} >/tmp/keep.log 2>&1 & echo $!"
        );
        let demo = host.sh(&command).unwrap().trim().to_owned();
        wait_for(host, "enabled");
        // The demo's first run, of the stock arm, is over: this is the daemon that stays.
        let dir = host
            .sh("echo /tmp/vmm-ecs-demo-*")
            .unwrap()
            .trim()
            .to_owned();
        let running = Self { demo, dir, vcpus };
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
                vm["state"] == "active" && vm["vcpus"].as_array().map(Vec::len) == Some(self.vcpus)
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

    /// Every vCPU runs on.
    fn assert_alive(&self, host: &mut HostVm, when: &str) {
        let before = vcpu_ticks(host);
        assert_eq!(before.len(), 2 * self.vcpus, "{when}: vCPU threads");
        until("every vCPU to run", PATIENCE, || {
            host.sh("sleep 0.2").unwrap();
            let now = vcpu_ticks(host);
            let ran = now.iter().zip(&before).all(|(now, before)| now > before);
            (now.len() == before.len() && ran).then_some(())
        })
        .unwrap_or_else(|error| panic!("{when}: {error:#}"));
    }

    fn serve_again(&self, host: &mut HostVm) {
        let dir = &self.dir;
        // VMs wait for it no longer than a minute, and busy ones let the kernel verify programs at leisure.
        host.sh(&format!(
            "vmm-ecs serve --config {dir}/config.toml >/tmp/again.log 2>&1 & renice -n -20 -p $!"
        ))
        .unwrap();
        wait_for(host, "enabled");
        self.wait_until_served(host);
    }

    /// CPUs that each VM has over five seconds, and others meanwhile: `others` says what these have used so
    /// far, s.
    fn cpus(
        &self,
        host: &mut HostVm,
        others: impl Fn(&mut HostVm) -> Vec<f64>,
    ) -> (Vec<f64>, Vec<f64>) {
        let vms = |host: &mut HostVm| -> Vec<f64> {
            let stats = self.stats(host).unwrap();
            let vcpus = |vm: &Value| vm["vcpus"].as_array().unwrap().clone();
            let used = |vm: &Value| vcpus(vm).iter().map(cpu_s).sum();
            stats["vms"].as_array().unwrap().iter().map(used).collect()
        };
        let now = |host: &mut HostVm| (vms(host), others(host), now_s(host));
        let before = now(host);
        host.sh("sleep 5").unwrap();
        let after = now(host);
        let rates = |before: &[f64], after: &[f64], passed: f64| {
            let pairs = before.iter().zip(after);
            pairs
                .map(|(before, after)| (after - before) / passed)
                .collect()
        };
        let passed = after.2 - before.2;
        (
            rates(&before.0, &after.0, passed),
            rates(&before.1, &after.1, passed),
        )
    }

    fn status(&self, host: &mut HostVm) -> String {
        host.sh(&format!("vmm-ecs status --socket {}/stats.sock", self.dir))
            .unwrap()
    }

    /// What the daemon says of a scheduler that the kernel has ended, as soon as it knows.
    fn status_once_ended(&self, host: &mut HostVm) -> String {
        until("the reason", PATIENCE, || {
            let status = self.status(host);
            status.contains("ended: ").then_some(status)
        })
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

/// CPU time that each vCPU thread has had, in ticks of the kernel's clock.
fn vcpu_ticks(host: &mut HostVm) -> Vec<u64> {
    let sum = "{ for t in /proc/[0-9]*/task/*; do case $(cat $t/comm) in vcpu*) \
               cut -d' ' -f14,15 $t/stat;; esac; done; } 2>/dev/null; true";
    let said = host.sh(sum).unwrap();
    said.lines()
        .map(|line| numbers(line).iter().sum())
        .collect()
}

fn numbers(said: &str) -> Vec<u64> {
    let words = said.split_whitespace();
    words.map(|word| word.parse().unwrap()).collect()
}

/// The programs are verified anew each time, on CPUs that others use.
fn wait_for(host: &mut HostVm, state: &str) {
    let what = format!("sched_ext {state}");
    let found = until(&what, PATIENCE * 5, || {
        (host.sched_ext().unwrap() == state).then_some(())
    });
    if let Err(error) = found {
        panic!("{error:#}\n{}", logs(host));
    }
}

/// What our programs said.
fn logs(host: &mut HostVm) -> String {
    let logs = host.sh(
        "tail -n 20 /tmp/*.log /tmp/vmm-ecs-demo-*/daemon.log; ps -o pid,ppid,stat,args | \
         grep -v '\\]$'; cat /sys/kernel/sched_ext/state; dmesg | tail -n 20; true",
    );
    logs.unwrap_or_else(|error| format!("{error:#}"))
}

#[test]
fn however_the_daemon_goes_the_vms_run_on() {
    slow!("however_the_daemon_goes_the_vms_run_on");
    let (parts, host) = scx_host!("however_the_daemon_goes_the_vms_run_on", "7.3");
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
        println!("{}", running.status_once_ended(host));
        running.end(host);
    });
}

/// A thread that something above the scheduler's class keeps from its CPU for too long.
#[test]
fn a_starved_thread_ends_the_scheduler_and_nothing_else() {
    slow!("a_starved_thread_ends_the_scheduler_and_nothing_else");
    let name = "a_starved_thread_ends_the_scheduler_and_nothing_else";
    let (parts, mut host) = scx_host!(
        "a_starved_thread_ends_the_scheduler_and_nothing_else",
        "7.3"
    );
    let chrt = PathBuf::from("/usr/bin/chrt");
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
        let status = running.status_once_ended(host);
        println!("{status}");
        assert!(status.contains("runnable task stall"), "{status}");
        running.assert_alive(host, "after the watchdog");
        running.end(host);
    });
}

#[test]
fn it_stays_while_cpus_come_and_go() {
    slow!("it_stays_while_cpus_come_and_go");
    let (parts, host) = scx_host!("it_stays_while_cpus_come_and_go", "7.3");
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
    // In turns, a hundred times would take the better part of an hour.
    let (parts, host) = scx_host!("it_comes_and_goes_under_load", "7.3", false);
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        // Both VMs compete for one CPU: on the other one the kernel verifies the programs.
        let running = Running::start_on(host, "1", 1);
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
            println!("{} of {TIMES} times attached and detached", time + 1);
        }
        running.assert_alive(host, "after all");
        running.serve_again(host);
        running.end(host);
    });
}

#[test]
fn limits_and_weights_of_cgroups_hold() {
    slow!("limits_and_weights_of_cgroups_hold");
    let (parts, host) = scx_host!("limits_and_weights_of_cgroups_hold", "7.3");
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        host.sh(
            "echo +cpu >/sys/fs/cgroup/cgroup.subtree_control; mkdir /sys/fs/cgroup/vm0 \
                 /sys/fs/cgroup/vm1",
        )
        .unwrap();
        let running = Running::start(host);
        let stats = running.stats(host).unwrap();
        let enter = |host: &mut HostVm, slice: &str| {
            for vm in stats["vms"].as_array().unwrap() {
                let (name, pid) = (vm["name"].as_str().unwrap(), &vm["pid"]);
                host.sh(&format!(
                    "echo {pid} >/sys/fs/cgroup/{slice}{name}/cgroup.procs"
                ))
                .unwrap();
            }
        };
        enter(host, "");
        // A daemon learns where a VM is when the VM connects.
        let daemon = running.daemon(host);
        host.sh(&format!("kill {daemon}")).unwrap();
        wait_for(host, "disabled");
        running.serve_again(host);

        let mut shares = |words: &str| {
            host.sh(words).unwrap();
            // Read once a second.
            host.sh("sleep 2").unwrap();
            running.cpus(host, |_| Vec::new()).0
        };
        let weighed = shares("echo 300 >/sys/fs/cgroup/vm1/cpu.weight");
        println!("cpu.weight 100 and 300: {weighed:.3?} CPUs");
        let ratio = weighed[1] / weighed[0];
        assert!((2.9..3.1).contains(&ratio), "{weighed:?}");
        let limited = shares("echo '30000 100000' >/sys/fs/cgroup/vm1/cpu.max");
        println!("cpu.max 30 % of a CPU for the second: {limited:.3?} CPUs");
        // A period more or less is within the five seconds.
        assert!((0.28..0.32).contains(&limited[1]), "{limited:?}");
        // What it may not use is the other's.
        assert!(limited[0] > 1.4, "{limited:?}");

        // One limit for two VMs, and one for threads of which each is in a cgroup of its own, with one.
        let made = "cd /sys/fs/cgroup; mkdir vms jobs; for slice in vms jobs; do \
                    echo +cpu >$slice/cgroup.subtree_control; mkdir $slice/vm0 $slice/vm1; done; \
                    echo '80000 100000' >vms/cpu.max; echo '30000 50000' >jobs/cpu.max; \
                    echo '10000 20000' >jobs/vm0/cpu.max";
        host.sh(made).unwrap();
        enter(host, "vms/");
        for group in ["vm0", "vm1"] {
            host.sh(&format!(
                "(echo 0 >/sys/fs/cgroup/jobs/{group}/cgroup.procs; {BUSY})"
            ))
            .unwrap();
        }
        let (vms, jobs) = running.cpus(host, |host| {
            ["jobs", "jobs/vm0", "vms"]
                .map(|group| group_s(host, group))
                .to_vec()
        });
        println!("cpu.max 0.8 for two VMs: {vms:.3?} CPUs");
        println!(
            "0.6 for two threads, 0.5 for one of them: {jobs:.3?} CPUs, last the VMs' processes"
        );
        assert!((0.76..0.83).contains(&vms.iter().sum()), "{vms:?}");
        assert!(
            (0.54..0.63).contains(&jobs[0]) && jobs[1] < 0.52,
            "{jobs:?}"
        );

        // A limit that the time between two ticks is many times more than.
        host.sh("echo '1000 1000000' >/sys/fs/cgroup/jobs/vm0/cpu.max; sleep 5")
            .unwrap();
        let (_, jobs) = running.cpus(host, |host| vec![group_s(host, "jobs/vm0")]);
        println!("cpu.max 0.001 for a thread: {jobs:.4?} CPUs");
        assert!((0.0001..0.006).contains(&jobs[0]), "{jobs:?}");
        assert_eq!(host.sched_ext().unwrap(), "enabled");
        running.end(host);
    });
}

/// CPU time of a vCPU in the daemon's words, s.
fn cpu_s(vcpu: &Value) -> f64 {
    vcpu["cpu_ns"].as_f64().unwrap() / 1e9
}

/// A thread that never sleeps.
const BUSY: &str = "sh -c 'while :; do :; done' >/dev/null 2>&1 & echo $!";

/// Starts one, by way of another program; its process id.
fn busy(host: &mut HostVm, by: &str) -> String {
    host.sh(&format!("{by} {BUSY}")).unwrap().trim().to_owned()
}

/// CPU time that a process has had, s.
fn process_s(host: &mut HostVm, pid: &str) -> f64 {
    let said = host
        .sh(&format!("cut -d' ' -f1 /proc/{pid}/schedstat"))
        .unwrap();
    said.trim().parse::<f64>().unwrap() / 1e9
}

/// CPU time that a cgroup has had, s.
fn group_s(host: &mut HostVm, group: &str) -> f64 {
    let said = host
        .sh(&format!("head -n 1 /sys/fs/cgroup/{group}/cpu.stat"))
        .unwrap();
    said.trim()
        .rsplit(' ')
        .next()
        .unwrap()
        .parse::<f64>()
        .unwrap()
        / 1e6
}

/// Has cyclictest in a host; false where this machine has none.
fn add_cyclictest(host: &mut Host) -> bool {
    let program = PathBuf::from("/usr/bin/cyclictest");
    let is_there = program.exists();
    if is_there {
        host.programs.push(program);
    }
    is_there
}

/// How late a thread that wakes up a hundred times a second runs at most, us; `words` are further options
/// of cyclictest, which says more.
fn worst_latency_us(host: &mut HostVm, words: &str) -> u64 {
    let command = format!("cyclictest --policy=other {words} -i 10000 -l 100 -q");
    let said = host.sh_within(&command, PATIENCE).unwrap();
    println!("{}", said.trim());
    let (_, worst_us) = said.rsplit_once("Max:").unwrap();
    worst_us.trim().parse().unwrap()
}

/// Seconds since the host booted.
fn now_s(host: &mut HostVm) -> f64 {
    let text = host.sh("cat /proc/uptime").unwrap();
    text.split(' ').next().unwrap().parse().unwrap()
}

/// How a thread that wakes up a hundred times a second and one that never sleeps fare beside two VMs.
#[test]
fn threads_of_the_host_run_soon_and_get_their_share() {
    let name = "threads_of_the_host_run_soon_and_get_their_share";
    slow!(name);
    let (parts, mut host) = scx_host!(name, "7.3");
    if !add_cyclictest(&mut host) {
        skip!(name, "this machine has no cyclictest (rt-tests)");
    }
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        let mut worst_us = Vec::new();
        for arm in ["stock", "ecs --controller scx"] {
            // First one VM alone, which is not what is looked at.
            let demo = host
                .sh(&format!(
                    "vmm-ecs demo --quiet --kind kvm --workload compute --seconds 6 --runs 1 \
                     --html /tmp/demo.html --arms {arm} >/tmp/demo.log 2>&1 & echo $!"
                ))
                .unwrap();
            until("both VMs", PATIENCE * 3, || {
                (vcpu_ticks(host).len() == 4).then_some(())
            })
            .unwrap();
            println!("{arm}:");
            worst_us.push(worst_latency_us(host, ""));
            let busy =
                "sh -c 'while :; do :; done' & sleep 2; cut -d' ' -f14,15 /proc/$!/stat; kill $!";
            let ran: u64 = numbers(&host.sh_within(busy, PATIENCE).unwrap())
                .iter()
                .sum();
            println!("{arm}: a busy thread ran {ran} of 200 ticks");
            // Two VMs and a thread on two CPUs: no less than half of its share.
            assert!(ran > 50, "{arm}: {ran}");
            let ends = format!(
                "while kill -0 {} 2>/dev/null; do sleep 0.2; done",
                demo.trim()
            );
            host.sh_within(&ends, PATIENCE * 3).unwrap();
        }
        // A turn and its extension at most.
        assert!(worst_us[1] < 5000, "{worst_us:?} us");
    });
}

/// One CPU does more work a head than the other: virtual time runs faster there. Who sleeps now and then on
/// the slow one must not wait for it.
#[test]
fn cpus_of_unequal_load_starve_nobody() {
    let name = "cpus_of_unequal_load_starve_nobody";
    slow!(name);
    let (parts, mut host) = scx_host!(name, "7.3");
    if !add_cyclictest(&mut host) {
        skip!(name, "this machine has no cyclictest (rt-tests)");
    }
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        let running = Running::start_on(host, "0", 2);
        // Alone on its CPU but for what the kernel does there.
        let alone = busy(host, "taskset 2");
        host.sh("sleep 6").unwrap();
        let worst_us = worst_latency_us(host, "-a 0");
        // Nor must a VM that begins now where the other thread is.
        let another = busy(host, "taskset 2");
        let (_, cpus) = running.cpus(host, |host| {
            [&alone, &another].map(|pid| process_s(host, pid)).to_vec()
        });
        println!("Two on one CPU, one 7 s older: {cpus:.3?} CPUs");
        // A turn and its extension at most.
        assert!(worst_us < 5000, "{worst_us} us");
        assert!(cpus.iter().all(|cpus| *cpus > 0.4), "{cpus:?}");
        running.end(host);
    });
}

/// A cgroup's threads have what its weight says, however many they are; a thread what its nice value says.
#[test]
fn weights_of_other_threads_hold() {
    let name = "weights_of_other_threads_hold";
    slow!(name);
    let (parts, host) = scx_host!(name, "7.3");
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        let running = Running::start(host);
        let made = "cd /sys/fs/cgroup; echo +cpu >cgroup.subtree_control; mkdir light heavy; \
                    echo +cpu >heavy/cgroup.subtree_control; mkdir heavy/inner; \
                    echo 20 >light/cpu.weight; echo 400 >heavy/cpu.weight; \
                    echo 50 >heavy/inner/cpu.weight";
        host.sh(made).unwrap();
        let enter = |group: &str| format!("echo 0 >/sys/fs/cgroup/{group}/cgroup.procs;");
        for group in ["light", "light", "light", "heavy/inner", "heavy/inner"] {
            host.sh(&format!("({} {BUSY})", enter(group))).unwrap();
        }
        let nice = busy(host, "");
        host.sh(&format!("renice -n 10 -p {nice}")).unwrap();
        let (vms, others) = running.cpus(host, |host| {
            let mut used: Vec<f64> = ["light", "heavy"]
                .map(|group| group_s(host, group))
                .to_vec();
            used.push(process_s(host, &nice));
            used
        });
        println!("VMs {vms:.3?}, light, heavy and nice {others:.3?} CPUs");
        // 110 of 1024 is 10.7 of 100.
        let weights = [20.0, 200.0, 10.7];
        let of_one: f64 = vms.iter().sum::<f64>() / 200.0;
        for (had, weight) in others.iter().zip(weights) {
            let ratio = had / weight / of_one;
            assert!((0.85..1.15).contains(&ratio), "{weight}: {ratio:.3} of it");
        }
        running.end(host);
    });
}
