//! The host's clock is set, forwards and back, under the daemon and the exporter. In a machine of its
//! own: the clock of the one that runs tests is others', too.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Duration;

use ecs_tests::linux::{Host, HostVm};
use ecs_tests::process::until;
use ecs_tests::{parts, release_program, slow};

/// Time for what takes a second or two.
const PATIENCE: Duration = Duration::from_secs(90);

/// What is scraped, by series: counters only ever grow.
fn scrape(host: &mut HostVm) -> BTreeMap<String, f64> {
    let said = host
        .sh_within(
            "wget -q -O - http://127.0.0.1:9752/metrics 2>/dev/null",
            PATIENCE,
        )
        .unwrap();
    let lines = said.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        })
        .collect()
}

fn value(scraped: &BTreeMap<String, f64>, start: &str) -> f64 {
    let found = scraped.iter().find(|(series, _)| series.starts_with(start));
    *found
        .unwrap_or_else(|| panic!("no {start}: {scraped:#?}"))
        .1
}

#[test]
fn a_clock_that_jumps_changes_no_counter() {
    slow!("a_clock_that_jumps_changes_no_counter");
    let parts = parts!("a_clock_that_jumps_changes_no_counter", "7.3");
    let host = Host {
        programs: ["vmm-ecs", "ecs-exporter"]
            .map(|name| release_program(name).unwrap())
            .into(),
        ..Host::default()
    };
    let kernel = parts.kernel("7.3").unwrap();
    HostVm::run(&parts, &kernel, &host, |host| {
        host.sh(
            "vmm-ecs demo --quiet --arms stock --runs 1 --seconds 300 --kind kvm \
             --html /tmp/demo.html >/tmp/demo.log 2>&1 & true",
        )
        .unwrap();
        until("a VM", PATIENCE, || {
            let stats = "vmm-ecs stats --socket /tmp/vmm-ecs-demo-*/stats.sock";
            let (status, said) = host.try_sh(stats, PATIENCE).unwrap();
            (status == 0 && said.contains("\"active\"")).then_some(())
        })
        .unwrap();
        host.sh(
            "ip link set lo up; \
             ecs-exporter serve --stats.socket /tmp/vmm-ecs-demo-*/stats.sock >/tmp/exporter.log 2>&1 & \
             true",
        )
        .unwrap();
        until("the exporter", PATIENCE, || {
            scrape(host).contains_key("ecs_up").then_some(())
        })
        .unwrap();
        let mut before = scrape(host);
        for jump in ["+ 86400", "- 172800"] {
            host.sh(&format!("date -s @$(($(date +%s) {jump}))"))
                .unwrap();
            host.sh("sleep 4").unwrap();
            let now = scrape(host);
            assert_eq!(value(&now, "ecs_up"), 1.0);
            let mut compared = 0;
            for (series, was) in &before {
                if !series.contains("_total{") {
                    continue;
                }
                let is = now
                    .get(series)
                    .unwrap_or_else(|| panic!("{series} is gone"));
                assert!(is >= was, "{jump}: {series} fell from {was} to {is}");
                // No counter of seconds can have run for more than the CPUs did.
                if series.contains("_seconds_total{") {
                    assert!(is - was < 60.0, "{jump}: {series} leapt from {was} to {is}");
                }
                compared += 1;
            }
            let cpu = "ecs_vm_cpu_seconds_total";
            assert!(compared > 20, "{compared} counters");
            assert!(
                value(&now, cpu) > value(&before, cpu),
                "{before:#?} {now:#?}"
            );
            println!("{jump} s: {compared} counters went on");
            before = now;
        }
        let said = host.sh("cat /tmp/exporter.log").unwrap();
        assert!(
            !said.contains("ERROR") && !said.contains("panicked"),
            "{said}"
        );
    });
}
