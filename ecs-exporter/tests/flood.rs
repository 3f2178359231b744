//! More clients than there is room for, and clients that stall.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use common::*;
use ecs_exporter::{Config, Limits};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

const FLOOD: usize = 10_000;

/// Connections that say nothing. Those the exporter has closed meanwhile are no error.
fn flood(addr: SocketAddr, count: usize) -> Vec<TcpStream> {
    (0..count)
        .map(|_| TcpStream::connect_timeout(&addr, PATIENCE).unwrap())
        .collect()
}

#[test]
fn ten_thousand_silent_connections_do_not_keep_prometheus_out() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let count = FLOOD + FLOOD / 10;
    if hard < count as u64 {
        println!(
            "SKIPPED: ten_thousand_silent_connections_do_not_keep_prometheus_out: \
             {count} file descriptors are needed and {hard} allowed"
        );
        return;
    }
    let stack = Stack::start();
    let _daemon = stack.daemon(fixture());
    let silent = flood(stack.addr(), FLOOD);
    let begin = Instant::now();
    assert_eq!(value(&stack.metrics(), "ecs_up"), Some(1.0));
    // Prometheus waits that long by default.
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    // The exporter holds no more than its limit, whatever clients hold.
    let text = stack.metrics();
    let open = value(&text, "process_open_fds").unwrap();
    let theirs = silent.len() as f64;
    let ours = Limits::default().connections as f64;
    // Clients and exporter share this process; a few descriptors are for other things.
    assert!(open - theirs < ours + 100.0, "{open} - {theirs}");
}

#[test]
fn requests_beyond_the_limit_are_refused_and_health_is_not() {
    let stack = Stack::with_config(Config {
        stats_timeout: Duration::from_secs(2),
        limits: Limits {
            requests: 2,
            ..Limits::default()
        },
        ..Config::default()
    });
    // A daemon that hangs: scrapes take as long as its time-out.
    let _hung = UnixListener::bind(&stack.socket).unwrap();
    let running: Vec<TcpStream> = (0..2)
        .map(|_| {
            let mut stream = TcpStream::connect(stack.addr()).unwrap();
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                .unwrap();
            stream
        })
        .collect();
    wait_for("the limit is reached", PATIENCE, || {
        let refused = stack.get("/metrics/vm/x");
        refused.status == 503 && refused.text().contains("2 requests")
    });
    assert_eq!(stack.get("/-/healthy").status, 200);
    for mut stream in running {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(value(&answer, "ecs_up"), Some(0.0), "{answer}");
    }
}

#[test]
fn clients_that_do_not_read_lose_their_places_to_those_who_do() {
    let stack = Stack::with_limits(Limits {
        connections: 20,
        requests: 40,
        write_timeout: Duration::from_millis(500),
        ..Limits::default()
    });
    // Answers that fit into no socket buffer, and no more: rendering twenty of them is the work here.
    let names: Vec<String> = (0..1500).map(|i| format!("{i:0100}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let _daemon = stack.daemon(with_vms(&names));
    let deaf: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = TcpStream::connect(stack.addr()).unwrap();
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                .unwrap();
            stream
        })
        .collect();
    assert_eq!(stack.get("/-/healthy").status, 200);
    let text = stack.metrics();
    assert!(text.contains(names[1499]));
    for mut stream in deaf {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut rest = Vec::new();
        // Whole, cut short or reset; but ended.
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        }
    }
}
