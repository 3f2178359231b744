//! The exporter over loopback HTTP, in front of the real server of the stats socket.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use ecs_exporter::{Config, Limits, ServeError, spawn_in_thread};
use ecs_stats::{STATS_VERSION, Snapshot};
use flate2::read::GzDecoder;

const OPEN_METRICS: &str = "Accept: application/openmetrics-text;version=1.0.0\r\n";

#[test]
fn each_format_has_its_exact_content_type() {
    let stack = Stack::start();
    let _daemon = stack.daemon(fixture());
    let text = stack.get("/metrics");
    assert_eq!(
        text.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    assert!(text.text().ends_with('\n') && !text.text().contains("# EOF"));
    let open = get(stack.addr(), "/metrics", OPEN_METRICS);
    assert_eq!(
        open.header("content-type"),
        Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
    );
    assert!(open.text().ends_with("\n# EOF\n"));
    for response in [text, open] {
        assert_eq!(response.status, 200);
        assert_eq!(response.header("content-encoding"), None);
        assert_eq!(response.header("vary"), Some("Accept, Accept-Encoding"));
        assert_eq!(value(&response.text(), "ecs_up"), Some(1.0));
    }
}

#[test]
fn gzip_is_used_where_accepted_and_holds_the_same() {
    let stack = Stack::start();
    let _daemon = stack.daemon(fixture());
    let packed = get(stack.addr(), "/metrics/vm/web", "Accept-Encoding: gzip\r\n");
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    let mut text = String::new();
    GzDecoder::new(packed.body.as_slice())
        .read_to_string(&mut text)
        .unwrap();
    assert!(
        packed.body.len() < text.len() / 3,
        "{} {}",
        packed.body.len(),
        text.len()
    );
    let vm_lines = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| line.starts_with("ecs_vm_"))
            .map(str::to_owned)
            .collect()
    };
    assert!(vm_lines(&text).len() > 20);
    assert_eq!(
        vm_lines(&text),
        vm_lines(&stack.get("/metrics/vm/web").text())
    );
}

#[test]
fn the_daemon_may_be_absent_appear_lose_a_vm_and_disappear() {
    let stack = Stack::start();
    let away = |when: &str| {
        let text = stack.metrics();
        assert_eq!(value(&text, "ecs_up"), Some(0.0), "{when}");
        assert_eq!(
            value(&text, "ecs_scrape_collector_success{collector=\"stats\"}"),
            Some(0.0)
        );
        assert_eq!(
            value(&text, "ecs_scrape_collector_success{collector=\"process\"}"),
            Some(1.0)
        );
        assert!(
            !text.contains("ecs_vm_") && !text.contains("ecs_host_"),
            "{when}: {text}"
        );
        let ready = stack.get("/-/ready");
        assert_eq!(ready.status, 503, "{when}");
        assert!(
            ready.text().contains("is vmm-ecs running"),
            "{when}: {}",
            ready.text()
        );
        assert_eq!(stack.get("/-/healthy").status, 200, "{when}");
        let vm = stack.get("/metrics/vm/web");
        assert_eq!(
            (vm.status, value(&vm.text(), "ecs_up")),
            (200, Some(0.0)),
            "{when}"
        );
        assert!(
            stack.get("/").text().contains("is vmm-ecs running"),
            "{when}"
        );
    };
    away("before the daemon");

    let daemon = stack.daemon(fixture());
    let text = stack.metrics();
    assert_eq!(value(&text, "ecs_up"), Some(1.0));
    assert!(text.contains("vm=\"web\"") && text.contains("vm=\"batch\""));
    assert_eq!(stack.get("/-/ready").status, 200);

    let mut less = fixture();
    less.vms.retain(|vm| vm.name != "web");
    daemon.set(less);
    let text = stack.metrics();
    assert!(
        !text.contains("vm=\"web\"") && text.contains("vm=\"batch\""),
        "{text}"
    );
    assert_eq!(value(&text, "ecs_host_vms{state=\"active\"}"), Some(0.0));
    assert_eq!(stack.get("/metrics/vm/web").status, 404);

    drop(daemon);
    away("after the daemon");
}

/// A server that answers every connection with the same bytes, until the test ends.
fn answers(stack: &Stack, bytes: &[u8]) {
    let listener = UnixListener::bind(&stack.socket).unwrap();
    let bytes = bytes.to_vec();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // The client may have left; the test looks at the client's side.
            let _ = stream.write_all(&bytes);
        }
    });
}

#[test]
fn a_bad_document_is_a_failed_collector_not_a_failed_scrape() {
    let newer = Snapshot {
        version: STATS_VERSION + 1,
        ..fixture()
    };
    let newer = serde_json::to_string(&newer).unwrap() + "\n";
    for (bytes, reason) in [
        ("{\"version\":1,\n", "is not a snapshot"),
        ("", "without its end"),
        ("{\"version\":1,\"taken_ns\":", "without its end"),
        (newer.as_str(), "speaks stats version"),
    ] {
        let stack = Stack::start();
        answers(&stack, bytes.as_bytes());
        let text = stack.metrics();
        assert_eq!(value(&text, "ecs_up"), Some(0.0), "{bytes}");
        assert!(!text.contains("ecs_vm_"), "{bytes}");
        let ready = stack.get("/-/ready");
        assert_eq!(ready.status, 503);
        assert!(ready.text().contains(reason), "{reason}: {}", ready.text());
    }
}

#[test]
fn a_stuck_daemon_costs_the_timeout_and_no_more() {
    let stack = Stack::with_config(Config {
        stats_timeout: Duration::from_millis(200),
        ..Config::default()
    });
    let _stuck = UnixListener::bind(&stack.socket).unwrap();
    let begin = Instant::now();
    assert_eq!(value(&stack.metrics(), "ecs_up"), Some(0.0));
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "{:?}",
        begin.elapsed()
    );
}

#[test]
fn one_vm_has_a_page_of_its_own_whatever_its_name() {
    let stack = Stack::start();
    let daemon = stack.daemon(fixture());
    let text = stack.get("/metrics/vm/web").text();
    assert!(
        text.contains("ecs_vcpu_cpu_seconds_total{vm=\"web\",vcpu=\"1\"} 0.5\n"),
        "{text}"
    );
    assert_eq!(value(&text, "ecs_up"), Some(1.0));
    assert_eq!(value(&text, "ecs_vm_weight_ratio{vm=\"web\"}"), Some(0.75));
    for absent in ["batch", "ecs_host_", "process_", "ecs_exporter_"] {
        assert!(!text.contains(absent), "{absent}: {text}");
    }
    let missing = stack.get("/metrics/vm/nobody");
    assert_eq!(missing.status, 404);
    assert!(missing.text().contains("\"nobody\""), "{}", missing.text());

    let name = "a/b \"ü\"\n<i>";
    daemon.set(with_vms(&[name]));
    let page = stack.get("/").text();
    assert!(!page.contains("<i>"), "{page}");
    let link = page
        .split("href=\"")
        .find(|part| part.starts_with("/metrics/vm/"))
        .unwrap();
    let vm = stack.get(link.split_once('"').unwrap().0);
    assert_eq!(vm.status, 200, "{link}");
    assert_eq!(
        value(&vm.text(), r#"ecs_vm_vcpus{vm="a/b \"ü\"\n<i>"}"#),
        Some(0.0)
    );
}

#[test]
fn the_landing_page_links_everything() {
    let stack = Stack::start();
    let _daemon = stack.daemon(fixture());
    let page = stack.get("/");
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let page = page.text();
    let links: Vec<&str> = page
        .split("href=\"")
        .skip(1)
        .map(|part| part.split_once('"').unwrap().0)
        .collect();
    assert!(
        links.contains(&"/metrics") && links.contains(&"/metrics/vm/web"),
        "{links:?}"
    );
    for link in links {
        assert_eq!(stack.get(link).status, 200, "{link}");
    }
    assert!(page.contains(env!("CARGO_PKG_VERSION")));
    let style = stack.get("/live/style.css").text();
    assert!(style.contains("color-scheme: light dark"));
}

#[test]
fn requests_are_counted_by_route_and_code() {
    let stack = Stack::start();
    let _daemon = stack.daemon(fixture());
    for path in [
        "/nope",
        "/else?x=1",
        "/metrics/vm/web",
        "/metrics/vm/batch",
        "/metrics/vm/x",
    ] {
        stack.get(path);
    }
    let post =
        "POST /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(request(stack.addr(), post).status, 405);
    let head = request(
        stack.addr(),
        "HEAD /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    assert_eq!((head.status, head.body.len()), (200, 0));
    let text = stack.metrics();
    let count = |handler: &str, code: u16| {
        let labels = format!("{{code=\"{code}\",handler=\"{handler}\"}}");
        value(&text, &format!("ecs_exporter_http_requests_total{labels}"))
    };
    assert_eq!(count("other", 404), Some(2.0), "{text}");
    assert_eq!(count("/metrics/vm/{vm}", 200), Some(2.0));
    assert_eq!(count("/metrics/vm/{vm}", 404), Some(1.0));
    assert_eq!(count("/metrics", 405), Some(1.0));
    assert_eq!(count("/metrics", 200), Some(1.0));
}

#[test]
fn nonsense_requests_leave_the_exporter_alive() {
    let stack = Stack::start();
    let _daemon = stack.daemon(fixture());
    for bytes in [
        "\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET /metrics HTTP/9.9\r\n\r\n".to_owned(),
        format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1 << 20)),
        format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(5000)),
        "GET /metrics/vm/%ff%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(),
    ] {
        let mut stream = TcpStream::connect(stack.addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        // The exporter may close before all is written, or reset what was unread.
        let _ = stream.write_all(bytes.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 2") && !answer.starts_with(b"HTTP/1.1 5"));
    }
    assert_eq!(value(&stack.metrics(), "ecs_up"), Some(1.0));
}

/// What comes back on a connection until it ends; it must be no good answer.
fn is_cut_off(mut stream: TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = Vec::new();
    // Closed, or reset because of what was unread.
    if let Err(error) = stream.read_to_end(&mut rest) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    assert!(!rest.starts_with(b"HTTP/1.1 200"));
}

#[test]
fn a_slow_header_is_cut_off() {
    let stack = Stack::with_limits(Limits {
        header_timeout: Duration::from_millis(300),
        ..Limits::default()
    });
    let mut slow = TcpStream::connect(stack.addr()).unwrap();
    slow.write_all(b"GET /metr").unwrap();
    is_cut_off(slow);
}

#[test]
fn one_who_says_nothing_makes_room_for_one_who_asks() {
    let stack = Stack::with_limits(Limits {
        connections: 1,
        ..Limits::default()
    });
    let mut silent = TcpStream::connect(stack.addr()).unwrap();
    silent.write_all(b"GET /metr").unwrap();
    assert_eq!(stack.get("/-/healthy").status, 200);
    is_cut_off(silent);
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let stack = Stack::with_limits(Limits {
        write_timeout: Duration::from_millis(500),
        connections: 1,
        ..Limits::default()
    });
    let names: Vec<String> = (0..4000).map(|i| format!("{i:0100}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let _daemon = stack.daemon(with_vms(&names));
    let mut deaf = TcpStream::connect(stack.addr()).unwrap();
    deaf.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    // Only once the deaf client has lost the one slot.
    assert_eq!(stack.get("/-/healthy").status, 200);
}

#[test]
fn a_connection_serves_several_scrapes() {
    let stack = Stack::start();
    let _daemon = stack.daemon(fixture());
    let mut stream = TcpStream::connect(stack.addr()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    for _ in 0..3 {
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            .unwrap();
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        assert!(String::from_utf8(body).unwrap().contains("ecs_up 1\n"));
    }
}

#[test]
fn an_address_in_use_is_named() {
    let stack = Stack::start();
    let taken = Config {
        listen: vec![loopback(), stack.addr()],
        ..Config::default()
    };
    let error = spawn_in_thread(taken).unwrap_err();
    assert!(matches!(&error, ServeError::Listen { addr, .. } if *addr == stack.addr()));
    assert!(
        error.to_string().contains(&stack.addr().to_string()),
        "{error}"
    );
    let none = Config {
        listen: vec![],
        ..Config::default()
    };
    assert!(matches!(
        spawn_in_thread(none).unwrap_err(),
        ServeError::NoAddress
    ));
}

#[test]
fn dropping_the_handle_stops_it() {
    let stack = Stack::start();
    let addr = stack.addr();
    // An idle connection must not hold it up.
    let _idle = TcpStream::connect(addr).unwrap();
    assert_eq!(stack.get("/-/healthy").status, 200);
    let begin = Instant::now();
    drop(stack);
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "{:?}",
        begin.elapsed()
    );
    assert!(TcpStream::connect(addr).is_err());
}

#[test]
fn the_binary_announces_its_addresses_and_ends_well_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let _daemon = Daemon::start(&socket, fixture());
    for name in ["TERM", "INT"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ecs-exporter"))
            .args([
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--listen",
                "127.0.0.1:0",
                "--no-collector.host",
                "--vcpus=.*",
            ])
            .arg("--stats-socket")
            .arg(&socket)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for _ in 0..2 {
            let line = lines.next().unwrap().unwrap();
            let addr = line.strip_prefix("listening on http://").unwrap();
            let addr = addr.strip_suffix("/metrics").unwrap().parse().unwrap();
            let text = get(addr, "/metrics", "").text();
            assert_eq!(value(&text, "ecs_up"), Some(1.0));
            assert!(text.contains("ecs_vcpu_"), "--vcpus");
        }
        let pid = child.id().to_string();
        let sent = Command::new("sh")
            .args(["-c", &format!("kill -{name} {pid}")])
            .status();
        assert!(sent.unwrap().success());
        let mut status = None;
        wait_for("the exporter ends", PATIENCE, || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success(), "{name}: {status:?}");
    }
}

#[test]
fn scrape_prints_once_and_tells_by_its_status() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let scrape = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_ecs-exporter"))
            .args(["scrape", "--no-collector.host"])
            .args(arguments)
            .arg("--stats-socket")
            .arg(&socket)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (code, out, err) = scrape(&[]);
    assert_eq!((code, value(&out, "ecs_up")), (Some(1), Some(0.0)));
    assert!(err.contains("is vmm-ecs running"), "{err}");
    let _daemon = Daemon::start(&socket, fixture());
    let (code, out, err) = scrape(&["--openmetrics"]);
    assert_eq!(
        (code, value(&out, "ecs_up"), err.as_str()),
        (Some(0), Some(1.0), "")
    );
    assert!(out.ends_with("# EOF\n"));
    let (code, out, _) = scrape(&["--vm", "web"]);
    assert_eq!(code, Some(0));
    assert!(out.contains("ecs_vcpu_") && !out.contains("batch"));
    let (code, out, err) = scrape(&["--vm", "nobody"]);
    assert_eq!((code, out.as_str()), (Some(1), ""));
    assert!(err.contains("No VM named \"nobody\""), "{err}");
}
