//! The live page, in a real browser and with clients that misbehave.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::browser::{Browser, chromium};
use common::*;
use ecs_exporter::{Config, Limits};
use ecs_stats::*;

const EVIL: &str = "<img src=x onerror=alert(1)>\"'\n";

/// A host in motion: `db` gets a fifth less than its share, `web` has it, `batch` is idle.
fn moving(since: Duration) -> Snapshot {
    let ms = u64::try_from(since.as_millis()).unwrap();
    let wave = (since.as_secs_f64() * 0.7).sin();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let whole = |value: f64| value as u64;
    let debt = whole((wave + 1.0) * 4e6);
    let vm = |name: &str, cpu: f64, fair: u64, grants: u64| VmStats {
        name: name.to_owned(),
        pid: 4000 + u32::try_from(name.len()).unwrap(),
        state: VmState::Active,
        enabled: true,
        weight: 100,
        cpu_ns: whole((fair * ms) as f64 * 1000.0 * cpu),
        fair_cpu_ns: fair * ms * 1000,
        delay_ns: fair * ms * 300,
        preemptions: ms / 4,
        grants: Grants {
            non_preemptable: grants * ms / 1000,
            ..Grants::default()
        },
        ended: Outcomes {
            yielded: grants * ms * 95 / 100_000,
            expired: grants * ms * 5 / 100_000,
            ..Outcomes::default()
        },
        debt_ns: debt,
        extension_ns: grants * ms * 4,
        critical_preemptions: CriticalCauses {
            denied: grants * ms / 40_000,
            ..CriticalCauses::default()
        },
        vcpus: vec![VcpuStats::default(); 4],
        ..VmStats::default()
    };
    let mut vms = vec![
        vm(EVIL, 0.98, 210, 40),
        vm("batch", 1.0, 2, 0),
        vm("db", 0.8, 1200, 620),
        vm("web", 1.03, 1600, 870),
        vm("mail", 1.07, 700, 64),
    ];
    vms[1].state = VmState::Unhinted;
    vms.sort_by(|a, b| a.name.cmp(&b.name));
    Snapshot {
        host: HostStats {
            pcpus: vec![0, 1, 2, 3],
            ..fixture().host
        },
        vms,
        ..fixture()
    }
}

/// Keeps a daemon's snapshot in motion.
struct Mover {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Mover {
    fn start(stack: &Stack) -> Self {
        let daemon = stack.daemon(moving(Duration::ZERO));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let begin = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                daemon.set(moving(begin.elapsed()));
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Canvas points that are painted.
const PAINTED: &str = "[...document.querySelectorAll('section:not([hidden]) canvas')].map((it) => \
    it.getContext('2d').getImageData(0, 0, it.width, it.height).data.filter((value, i) => i % 4 === 3 && value).length)";

#[test]
fn the_live_page_works_in_a_browser() {
    let Some(program) = chromium("the_live_page_works_in_a_browser") else {
        return;
    };
    let stack = Stack::start();
    let mover = Mover::start(&stack);
    let origin = format!("http://{}", stack.addr());
    let mut browser = Browser::start(&program, 1280, 800);
    browser.prefer("light");
    browser.go(&format!("{origin}/live"));

    // VMs, the greatest share first.
    browser.wait("document.querySelectorAll('#table tbody tr').length === 5");
    let names = "[...document.querySelectorAll('#table tbody th')].map((it) => it.textContent)";
    browser.wait(&format!("{names}[0] === 'web'"));
    assert_eq!(
        browser.eval("document.querySelectorAll('#table img').length"),
        0
    );
    assert_eq!(browser.eval(&format!("{names}.includes({EVIL:?})")), true);
    browser.wait("document.querySelector('[data-state=live]')");
    browser.wait("document.getElementById('say').textContent.includes('1 starved: db')");
    // Bad by colour, and in words.
    browser.wait("[...document.querySelectorAll('#table td[data-bad=\"2\"]')].some((it) => it.innerText.match(/^−2\\d\\.\\d\\s+starved$/) || it.innerText.match(/^−1\\d\\.\\d\\s+starved$/))");
    browser.screenshot("vms-light");

    // The keyboard: sort, filter, open, back.
    browser.press("s");
    browser.press("s");
    let sorted = "document.querySelector('#table [aria-sort]').dataset.id";
    assert_eq!(browser.eval(sorted), "deviation");
    browser.wait(&format!("{names}[0] === 'db'"));
    browser.press("r");
    browser.wait(&format!("{names}[0] === 'mail'"));
    browser.press("/");
    for key in ["d", "B", "Enter"] {
        browser.press(key);
    }
    browser.wait(&format!("{names}.join() === 'db'"));
    browser.press("j");
    browser.press("Enter");
    browser.wait("location.hash === '#vm=db' && !document.getElementById('vm').hidden");
    browser.wait(&format!(
        "{PAINTED}.length === 6 && {PAINTED}.every((points) => points > 500)"
    ));
    // Some history, for the eye.
    browser.wait("document.querySelector('#vm figcaption span').textContent.includes(' to ')");
    if std::env::var_os("ECS_SCREENSHOTS").is_some() {
        std::thread::sleep(Duration::from_secs(20));
    }
    browser.screenshot("vm-light");
    browser.prefer("dark");
    browser.screenshot("vm-dark");
    browser.press("o");
    browser.wait(&format!(
        "{PAINTED}.length === 5 && {PAINTED}.every((points) => points > 500)"
    ));
    browser.screenshot("host-dark");
    browser.press("Escape");
    browser.wait("!document.getElementById('vms').hidden");

    // Light and dark by the button, whatever the system likes.
    let ground = "getComputedStyle(document.body).backgroundColor";
    let dark = browser.eval(ground);
    browser.press("t");
    assert_ne!(browser.eval(ground), dark);
    browser.press("t");
    assert_eq!(browser.eval(ground), dark);

    // What is heard.
    browser.eval("document.getElementById('filter').value = ''; document.getElementById('filter').dispatchEvent(new Event('input'))");
    browser.wait("document.querySelectorAll('#table tbody tr').length === 5");
    let heard = browser.accessible();
    for (role, name) in [
        ("heading", "eCS live"),
        ("navigation", "Views"),
        ("link", "Host"),
        ("searchbox", "Filter"),
        ("columnheader", "Deviation"),
        ("rowheader", "db"),
        ("link", "web"),
        ("button", "Pause"),
        ("status", ""),
    ] {
        let told = |(r, n): &(String, String)| r == role && n.contains(name);
        assert!(heard.iter().any(told), "no {role} {name:?} in {heard:?}");
    }
    let table =
        |(role, name): &(String, String)| role == "table" && name.starts_with("VMs and what");
    assert!(heard.iter().any(table), "{heard:?}");

    // Paused, nothing moves.
    browser.press("p");
    let text = browser.eval("document.getElementById('table').innerText");
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(
        browser.eval("document.getElementById('table').innerText"),
        text
    );
    browser.press("p");
    browser.press("?");
    browser.wait("document.getElementById('help').open");
    browser.screenshot("help-dark");
    browser.press("Escape");
    browser.wait("!document.getElementById('help').open");
    browser.resize(400, 800);
    browser.screenshot("phone-dark");
    let overflow = "document.documentElement.scrollWidth <= document.documentElement.clientWidth";
    assert_eq!(
        browser.eval(overflow),
        true,
        "a phone scrolls the table, not the page"
    );

    assert_eq!(browser.complaints(), [""; 0]);
    for url in browser.requests() {
        let own = url.starts_with(&origin) || url.starts_with("data:") || url == "about:blank";
        assert!(own, "{url}");
    }
    // The policy is in force: this is refused, and told.
    browser.eval("document.body.insertAdjacentHTML('beforeend', '<p style=\"color: red\">x</p>')");
    assert!(
        browser
            .complaints()
            .iter()
            .any(|it| it.contains("Content Security Policy"))
    );

    // vmm-ecs ends: the page says so and stays.
    drop(mover);
    browser.wait("document.getElementById('problems').innerText.includes('stats: ')");
    // The exporter ends: the page says that, and comes back by itself.
    drop(stack);
    browser.wait("document.querySelector('[data-state=lost]')");
}

/// An event stream, after its head.
fn watch(stack: &Stack) -> TcpStream {
    let mut stream = TcpStream::connect(stack.addr()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(b"GET /live/events HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    stream
}

/// Reads until the text is there.
fn read_until(stream: &mut TcpStream, text: &str) -> String {
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    while !seen.contains(text) {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "no {text} in {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    seen
}

#[test]
fn watchers_are_bounded_and_scrapes_go_on() {
    let limits = Limits {
        live_views: 3,
        ..Limits::default()
    };
    let stack = Stack::with_limits(limits);
    let _mover = Mover::start(&stack);
    let mut streams: Vec<TcpStream> = (0..3).map(|_| watch(&stack)).collect();
    for stream in &mut streams {
        let seen = read_until(stream, "event: frame");
        assert!(
            seen.contains("content-type: text/event-stream\r\n"),
            "{seen}"
        );
        assert!(seen.contains("event: columns"), "{seen}");
    }
    let refused = stack.get("/live/events");
    assert_eq!(refused.status, 503);
    assert_eq!(refused.header("retry-after"), Some("5"));
    assert!(stack.metrics().contains("ecs_up 1"));
    // One that leaves makes room.
    streams.pop();
    wait_for("a place is free", PATIENCE, || {
        let mut stream = watch(&stack);
        read_until(&mut stream, "\r\n\r\n").starts_with("HTTP/1.1 200")
    });
}

#[test]
fn a_watcher_that_does_not_read_is_dropped() {
    let limits = Limits {
        live_views: 1,
        write_timeout: Duration::from_secs(2),
        ..Limits::default()
    };
    let stack = Stack::with_limits(limits);
    // Frames that fill what the kernel keeps for a client.
    let names: Vec<String> = (0..8000).map(|n| format!("vm{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let _daemon = stack.daemon(with_vms(&names));
    let mut silent = watch(&stack);
    read_until(&mut silent, "event: columns");
    wait_for("the place is free", Duration::from_secs(60), || {
        let mut stream = watch(&stack);
        read_until(&mut stream, "\r\n\r\n").starts_with("HTTP/1.1 200")
    });
}

#[test]
fn an_orderly_stop_ends_the_streams() {
    let stack = Stack::start();
    let _mover = Mover::start(&stack);
    let mut stream = watch(&stack);
    read_until(&mut stream, "event: frame");
    let begin = Instant::now();
    drop(stack);
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    // Not only when the time for draining is over.
    assert!(begin.elapsed() < Config::default().limits.drain);
}

#[test]
fn parts_of_the_page_are_kept_by_their_tag() {
    let stack = Stack::start();
    for path in [
        "/live",
        "/live/main.js",
        "/live/uplot.js",
        "/live/style.css",
    ] {
        let whole = stack.get(path);
        assert_eq!(whole.status, 200, "{path}");
        let policy = whole.header("content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"));
        assert_eq!(whole.header("x-content-type-options"), Some("nosniff"));
        let tag = whole.header("etag").unwrap();
        let again = get(stack.addr(), path, &format!("If-None-Match: {tag}\r\n"));
        assert_eq!((again.status, again.body.len()), (304, 0), "{path}");
    }
    assert_eq!(stack.get("/live/x.js").status, 404);
    assert_eq!(stack.get("/live/..%2Fmetrics").status, 404);
}
