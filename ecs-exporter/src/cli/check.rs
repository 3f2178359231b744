//! `check-config` and `check-host`.

use std::fmt::Write;

use anyhow::{Context, anyhow};
use ecs_exporter::{Exporter, check_web_config};

use super::serve::ServeArgs;
use super::source::SourceArgs;

/// The configuration with every default, as YAML.
pub(super) fn config(args: &ServeArgs) -> anyhow::Result<String> {
    let file = args.file()?;
    let config = file.clone().resolve(args.source.path())?;
    if let Some(web) = &config.web_config {
        check_web_config(web).context("Cannot use the web configuration")?;
    }
    file.to_yaml().map_err(|error| anyhow!(error))
}

/// One line a collector.
pub(super) fn host(source: &SourceArgs) -> anyhow::Result<String> {
    let config = source.config()?;
    let exporter = Exporter::new(&config)?;
    if let Some(host) = exporter.host() {
        // What fails is told by the reading below.
        let _ = ecs_exporter::runtime()?.block_on(host.refresh_api());
    }
    let reading = exporter.read();
    let mut out = String::new();
    let mut line = |name: &str, found: Option<Result<String, String>>| {
        let (mark, text) = match found {
            Some(Ok(text)) => ("yes", text),
            Some(Err(text)) => ("NO ", text),
            None => ("off", String::new()),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}", format!("{name:<9} {mark}  {text}").trim_end());
    };
    let problems = reading.problems();
    let problem = |name: &str| {
        let found = problems.iter().find(|(collector, _)| *collector == name);
        found.map(|(_, problem)| Err(problem.clone()))
    };
    let stats = reading.snapshot().map(|snapshot| {
        let controller = &snapshot.host.controller;
        Ok(format!(
            "vmm-ecs ({controller}) serves {} VMs",
            snapshot.vms.len()
        ))
    });
    line("stats", stats.or_else(|| problem("stats")));
    let host = reading.host().map(|host| {
        let vcpus: usize = host.vms.iter().map(|vm| vm.vcpus.len()).sum();
        Ok(format!(
            "{} Cloud Hypervisor VMs with {vcpus} vCPU threads",
            host.vms.len()
        ))
    });
    line("host", host.or_else(|| problem("host")));
    let perf = reading
        .perf
        .as_ref()
        .map(|_| Ok("context-switch records".to_owned()));
    line("perf", problem("perf").or(perf));
    let counters = match (config.host.as_ref(), &reading.hardware) {
        (Some(host), None) if host.hardware => Some(Err(
            "this machine has no counters for cycles and instructions".to_owned(),
        )),
        (_, found) => found
            .as_ref()
            .map(|_| Ok("cycles and instructions".to_owned())),
    };
    line("hardware", problem("hardware").or(counters));
    let asked = reading
        .host()
        .map(|host| host.vms.iter().filter_map(|vm| vm.api_up));
    let api = asked.map(|answers| {
        let answers: Vec<bool> = answers.collect();
        let up = answers.iter().filter(|up| **up).count();
        let text = format!("{up} of {} API sockets answer", answers.len());
        if up == answers.len() {
            Ok(text)
        } else {
            Err(text)
        }
    });
    let is_asked = config.host.is_some_and(|host| host.api.is_some());
    line("api", api.filter(|_| is_asked));
    Ok(out)
}
