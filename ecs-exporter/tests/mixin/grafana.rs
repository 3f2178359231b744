//! The dashboards as an operator sees them: drawn in a browser by Grafana's own panels, from answers of
//! a real Prometheus.
//!
//! Time series, single values and tables are in `@grafana/ui`. Heatmaps are part of Grafana's server and
//! in no package: of them, `panels.rs` and `schema.rs` check the query and the options.

use std::fs;
use std::process::Command;

use serde_json::{Map, Value, json};

use crate::common::browser::{Browser, chromium};
use crate::common::servers::Server;
use crate::common::tools::{npm, run};
use crate::files;
use crate::panels::{END, LENGTH, STEP, filled_in, with_history};

/// Exact versions: the panels change with Grafana.
const PACKAGES: [&str; 5] = [
    "@grafana/ui@13.2.3",
    "@grafana/data@13.2.3",
    "react@19.3.1",
    "react-dom@19.3.1",
    "esbuild@0.25.12",
];

const PAGE: &str = "<!doctype html><meta charset=utf-8><title>dashboard</title>\
    <link rel=stylesheet href=bundle.css><body><div id=root></div><script src=bundle.js></script>";

/// What of each panel can be seen.
const SEEN: &str = "Object.fromEntries([...document.querySelectorAll('[data-panel]')].map((it) => \
    [it.dataset.panel, { text: it.innerText, rows: it.querySelectorAll('[role=row]').length, \
    cells: it.querySelectorAll('[role=gridcell]').length, \
    empty: [...it.querySelectorAll('[role=gridcell]')].filter((it) => !it.innerText.trim()).length, \
    painted: [...it.querySelectorAll('canvas')].map((it) => it.getContext('2d').getImageData(0, 0, \
    it.width, it.height).data.filter((value, i) => i % 4 === 3 && value).length).reduce((a, b) => a + b, 0) }]))";

/// What Prometheus says to a query as Grafana asks it.
fn answer(server: &Server, target: &Value) -> Value {
    let expr = filled_in(target["expr"].as_str().unwrap());
    if target["instant"] == true {
        return server.query(&expr, Some(END)).into();
    }
    server.query_range(&expr, END - LENGTH, END, STEP).into()
}

#[test]
fn panels_of_grafana_draw_the_dashboards() {
    let test = "panels_of_grafana_draw_the_dashboards";
    if std::env::var_os("ECS_TEST_FULL").is_none() {
        println!("SKIPPED: {test}: slow; ECS_TEST_FULL=1 runs it");
        return;
    }
    let Some(program) = chromium(test) else {
        return;
    };
    let packages = match npm("grafana-ui-13.2.3", &PACKAGES) {
        Ok(packages) => packages,
        Err(reason) => {
            println!("SKIPPED: {test}: no panels of Grafana: {reason}");
            return;
        }
    };
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = with_history(test, dir.path()) else {
        return;
    };
    // In the packages' folder, where the bundler finds them.
    let work = tempfile::tempdir_in(&packages).unwrap();
    fs::write(work.path().join("grafana.jsx"), include_str!("grafana.jsx")).unwrap();
    fs::write(work.path().join("index.html"), PAGE).unwrap();
    run(Command::new(packages.join("node_modules/.bin/esbuild"))
        .args(["grafana.jsx", "--bundle", "--outfile=bundle.js"])
        .args(["--log-level=error", "--loader:.ttf=dataurl"])
        .arg("--define:process.env.NODE_ENV=\"production\"")
        .current_dir(work.path()))
    .unwrap_or_else(|error| panic!("{error}"));
    let mut browser = Browser::start(&program, 1440, 900);
    for (path, dashboard) in files::dashboards() {
        let name = path
            .trim_start_matches("grafana/")
            .trim_end_matches(".json");
        let panels: Vec<&Value> = files::panels(&dashboard)
            .filter(|panel| panel["type"] != "heatmap")
            .collect();
        let answers: Map<String, Value> = panels
            .iter()
            .map(|panel| {
                let targets = panel["targets"].as_array().unwrap().iter();
                let answers: Map<String, Value> = targets
                    .map(|target| {
                        let id = target["refId"].as_str().unwrap().to_owned();
                        (id, answer(&server, target))
                    })
                    .collect();
                (panel["id"].to_string(), answers.into())
            })
            .collect();
        browser.go(&format!("file://{}/index.html", work.path().display()));
        browser.wait("window.draw");
        let call = format!(
            "window.draw({}, {}, {}, {END})",
            json!(panels),
            Value::from(answers),
            END - LENGTH
        );
        let size = browser.eval(&call);
        let [width, height] = [0, 1].map(|at| u32::try_from(size[at].as_u64().unwrap()).unwrap());
        browser.resize(width, height);
        let nr = panels.len();
        browser.wait(&format!(
            "document.querySelectorAll('[data-panel]').length === {nr}"
        ));
        // Canvases are painted between two frames.
        browser.eval("new Promise((done) => setTimeout(done, 1000))");
        let png = browser.screenshot(name);
        assert!(png.len() > 20_000, "{name}: {} bytes", png.len());
        let seen = browser.eval(SEEN);
        for panel in &panels {
            let title = panel["title"].as_str().unwrap();
            let seen = &seen[panel["id"].to_string()];
            let problem = || format!("{name}: {title}: {seen}");
            let text = seen["text"]
                .as_str()
                .unwrap_or_else(|| panic!("{}", problem()));
            assert!(text.contains(title), "{}", problem());
            for bad in ["No data", "Error", "error", "undefined", "NaN"] {
                assert!(!text.replace(title, "").contains(bad), "{}", problem());
            }
            match panel["type"].as_str().unwrap() {
                "timeseries" => {
                    assert!(seen["painted"].as_u64().unwrap() > 1000, "{}", problem());
                    assert!(text.lines().count() > 1, "no legend: {}", problem());
                }
                "table" => {
                    let (rows, cells) = (seen["rows"].as_u64(), seen["cells"].as_u64());
                    assert!(rows > Some(1) && cells > rows, "{}", problem());
                    // All that is known of a subject is in one row.
                    assert_eq!(seen["empty"], 0, "{}", problem());
                    for target in panel["targets"].as_array().unwrap() {
                        let column = target["legendFormat"].as_str().unwrap();
                        assert!(
                            text.lines().any(|line| line == column),
                            "{column}: {}",
                            problem()
                        );
                    }
                }
                _ => assert!(text.lines().count() > 1, "{}", problem()),
            }
        }
        // The VM that gets too little is not shown as a good one.
        let losses = browser.eval(
            "[...document.querySelectorAll('[role=gridcell]')].filter((it) => it.innerText.trim() === '-20.0%') \
             .map((it) => getComputedStyle(it.querySelector('a') ?? it).color)",
        );
        for color in losses.as_array().unwrap() {
            assert_eq!(color, "rgb(242, 73, 92)", "{name}");
        }
        assert_eq!(losses.as_array().unwrap().is_empty(), name == "ecs-vm");
        // Icons and fonts come from Grafana's server.
        let mut complaints = browser.complaints();
        complaints.retain(|complaint| !complaint.contains("/public/"));
        assert_eq!(complaints, Vec::<String>::new(), "{name}");
        println!("{name}: {nr} panels drawn");
    }
}
