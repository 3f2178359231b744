//! A directory of VM definitions is followed while the daemon runs.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use ecs_microvm::WorkloadKind;
use ecs_tests::process::until;
use ecs_tests::rig;
use ecs_tests::scheduling::{Scheduling, policy};

/// The daemon looks once a second.
const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn definitions_come_and_go() {
    let rig = rig!("definitions_come_and_go");
    let dir = rig.dir().join("vms");
    fs::create_dir(&dir).unwrap();
    let define = |name: &str, text: &str| {
        // Never half a file: renamed into place.
        fs::write(dir.join("new"), text).unwrap();
        fs::rename(dir.join("new"), dir.join(format!("{name}.toml"))).unwrap();
    };
    let appears = |name: &str, there: bool| {
        until(&format!("socket of {name}: {there}"), PATIENCE, || {
            (rig.socket(name).exists() == there).then_some(())
        })
        .unwrap();
    };
    let mut daemon = rig
        .serve(&rig.config(&format!("vms_dir = {dir:?}"), &["fixed"]))
        .unwrap();
    assert!(rig.socket("fixed").exists());

    define("web", "weight = 300\n");
    appears("web", true);
    let mut web = rig.vm(&rig.vm_config("web", WorkloadKind::Ticket)).unwrap();
    web.go().unwrap();
    assert_eq!(rig.registered("web", 2).unwrap().weight, 300);

    // A bad definition is reported, once, and disturbs nobody; put right, it counts.
    define("bad", "wieght = 3\n");
    until("a report of the bad definition", PATIENCE, || {
        let said = daemon.said();
        (said.contains("Cannot use a VM definition") && said.contains("wieght")).then_some(())
    })
    .unwrap();
    define("db", "");
    appears("db", true);
    assert!(!rig.socket("bad").exists());
    assert!(
        daemon.said().matches("Cannot use a VM definition").count() == 1,
        "{}",
        daemon.said()
    );
    rig.registered("web", 2).unwrap();
    web.wait_for_work().unwrap();
    define("bad", "weight = 3\n");
    appears("bad", true);

    // A definition that turns bad leaves the VM as it was.
    define("web", "weight = 0\n");
    until("a report of the weight", PATIENCE, || {
        daemon.said().contains("weight 0").then_some(())
    })
    .unwrap();
    assert_eq!(rig.registered("web", 2).unwrap().weight, 300);

    // Gone: the socket too, and its vCPUs are scheduled as they were.
    fs::remove_file(dir.join("web.toml")).unwrap();
    appears("web", false);
    let tids = web.vcpus().unwrap();
    until("threads put back", PATIENCE, || {
        tids.iter()
            .all(|&tid| {
                let now = Scheduling::of(tid).unwrap();
                now.attr.policy == policy::OTHER && now.cpus.cpus() == rig.pcpus()
            })
            .then_some(())
    })
    .unwrap();
    web.wait_for_work().unwrap();
    assert!(
        rig.snapshot()
            .unwrap()
            .vms
            .iter()
            .all(|vm| vm.name != "web")
    );
    for name in ["fixed", "db", "bad"] {
        assert!(rig.socket(name).exists(), "{name}");
    }
    assert!(web.stop().unwrap().exclusion_held());
    assert!(daemon.is_alive().unwrap());
}
