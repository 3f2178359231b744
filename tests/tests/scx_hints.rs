//! How soon a guest hears that its CPU is wanted when the controller in the kernel steers, beside the
//! programs that tell it with the other controllers, on one kernel.
//!
//! The host counts instructions, and its clock goes by them: the figures are the path's length, whatever
//! else this machine does. A CPU that spins takes turns with the others; few of the waits meet that.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::time::Duration;

use ecs_tests::hints::{CHANGES, Heard};
use ecs_tests::linux::HostVm;
use ecs_tests::process::until;
use ecs_tests::{host_program, scx_host, slow};

/// Time for what takes a second or two of the host's.
const PATIENCE: Duration = Duration::from_secs(200);
/// Longest a hint may take in the median; and how many times what it takes beside the observer it may
/// take with the controller in the kernel, whose way in a wake-up is a longer one.
const SOON: Duration = Duration::from_micros(100);
const TIMES: u32 = 2;
/// Longest between two heartbeats.
const BEAT: Duration = Duration::from_millis(50);

/// What a guest hears while this controller is at work.
fn heard(host: &mut HostVm, controller: &str) -> Heard {
    let dir = format!("/tmp/{controller}");
    let log = format!("{dir}/daemon.log");
    let config = format!(
        "[host]\\npcpus = \"0-1\"\\nruntime_dir = \"{dir}\"\\ncontroller = \"{controller}\"\\n\
         [[vm]]\\nname = \"vm1\"\\n"
    );
    let start = format!(
        "mkdir -p {dir} && printf '{config}' >{dir}/config.toml && \
         {{ vmm-ecs serve --config {dir}/config.toml >{log} 2>&1 & echo $!; }}"
    );
    let daemon = host.sh(&start).unwrap();
    let daemon = daemon.trim();
    let stats = format!("{dir}/stats.sock");
    let up = until("the daemon", PATIENCE, || {
        let answers = format!("vmm-ecs stats --socket {stats} >/dev/null 2>&1");
        let (status, _) = host.try_sh(&answers, PATIENCE).unwrap();
        let steers = controller != "scx" || host.sched_ext().unwrap() == "enabled";
        (status == 0 && steers).then_some(())
    });
    let said = |host: &mut HostVm| host.sh(&format!("cat {log}")).unwrap();
    if let Err(error) = up {
        panic!("{error:#}\n{}", said(host));
    }
    let measure = format!("neighbour {dir}/vm1.sock {stats} 1 0");
    let line = match host.try_sh(&measure, PATIENCE).unwrap() {
        (0, line) => line,
        (status, why) => panic!("{controller}, {status}: {why}\n{}", said(host)),
    };
    let said = said(host);
    assert!(!said.contains("at each look only"), "{said}");
    let end = format!("kill {daemon}; while kill -0 {daemon} 2>/dev/null; do sleep 0.1; done");
    host.sh_within(&end, PATIENCE).unwrap();
    until("its scheduler to go", PATIENCE, || {
        (host.sched_ext().unwrap() == "disabled").then_some(())
    })
    .unwrap();
    Heard::from_line(&line).unwrap()
}

#[test]
fn the_controller_in_the_kernel_tells_as_soon_as_the_programs_beside_others() {
    let name = "the_controller_in_the_kernel_tells_as_soon_as_the_programs_beside_others";
    slow!(name);
    let (parts, mut host) = scx_host!(name, "7.3");
    host.programs.push(host_program("neighbour").unwrap());
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        let [observe, _, scx] = ["observe", "userspace", "scx"].map(|controller| {
            let heard = heard(host, controller);
            println!("{controller}: {}", heard.summary());
            let Some((half, _)) = heard.quantiles() else {
                panic!("{controller}: nothing told");
            };
            assert!(half < SOON, "{controller}: {half:?}");
            assert!(heard.cleared, "{controller}: {heard:?}");
            assert!(
                heard.beats > 0 && heard.took / heard.beats < BEAT,
                "{heard:?}"
            );
            if controller == "userspace" {
                // Who comes while its agent looks is not behind a vCPU.
                assert!(heard.waits.len() > CHANGES / 2, "{heard:?}");
            } else {
                // The emulator's CPUs take turns: a neighbour may come and go while the one that looks
                // does not run.
                let least = CHANGES - CHANGES / 20;
                assert!(heard.waits.len() >= least, "{controller}: {heard:?}");
                assert!(heard.preempted > 0.9, "{controller}: {heard:?}");
            }
            half
        });
        assert!(scx < observe * TIMES, "{scx:?}, {observe:?}");
    });
}
