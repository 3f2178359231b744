//! Real servers on the loopback, for the length of a test.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{get, loopback, request, wait_for};

/// How long a server may take to be ready.
const START: Duration = Duration::from_secs(30);

/// A server that ends with the test.
pub struct Server {
    child: Child,
    pub addr: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts Prometheus in `dir`, with `config` and its data there.
    pub fn prometheus(program: &Path, dir: &Path, config: &str) -> Self {
        fs::write(dir.join("prometheus.yml"), config).unwrap();
        Self::start(Command::new(program), dir, |addr| {
            vec![
                "--config.file=prometheus.yml".into(),
                "--storage.tsdb.path=data".into(),
                "--storage.tsdb.retention.time=10y".into(),
                "--rules.alert.resend-delay=1s".into(),
                format!("--web.listen-address={addr}"),
            ]
        })
    }

    /// Starts an Alertmanager in `dir`, without a cluster.
    pub fn alertmanager(program: Command, dir: &Path, config: &str) -> Self {
        fs::write(dir.join("alertmanager.yml"), config).unwrap();
        Self::start(program, dir, |addr| {
            vec![
                "--config.file=alertmanager.yml".into(),
                "--storage.path=data".into(),
                "--cluster.listen-address=".into(),
                format!("--web.listen-address={addr}"),
            ]
        })
    }

    fn start(mut command: Command, dir: &Path, args: impl Fn(SocketAddr) -> Vec<String>) -> Self {
        let addr = TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
        let log = dir.join("log");
        let file = fs::File::create(&log).unwrap();
        let child = command
            .args(args(addr))
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .unwrap();
        let mut server = Self { child, addr };
        wait_for("the server is ready", START, || {
            if let Some(status) = server.child.try_wait().unwrap() {
                panic!(
                    "{:?} ended: {status}\n{}",
                    command.get_program(),
                    fs::read_to_string(&log).unwrap()
                );
            }
            TcpStream::connect(addr).is_ok() && get(addr, "/-/ready", "").status == 200
        });
        server
    }

    /// JSON of a GET; `Null` if the answer is none.
    pub fn json(&self, path: &str) -> Value {
        // Of HTTP/1.0, which has no chunks.
        let answer = request(
            self.addr,
            &format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n"),
        );
        serde_json::from_slice(&answer.body).unwrap_or(Value::Null)
    }

    /// Series of an instant query of a Prometheus, at `time` in seconds or now.
    pub fn query(&self, expr: &str, time: Option<u64>) -> Vec<Value> {
        let time = time.map_or(String::new(), |time| format!("&time={time}"));
        let answer = self.json(&format!("/api/v1/query?query={}{time}", encode(expr)));
        let result = answer["data"]["result"].as_array().cloned();
        result.unwrap_or_else(|| panic!("{expr}: {answer}"))
    }

    /// Series of a query from one time to another, seconds since 1970.
    pub fn query_range(&self, expr: &str, start: u64, end: u64, step: usize) -> Vec<Value> {
        let path = format!(
            "/api/v1/query_range?query={}&start={start}&end={end}&step={step}",
            encode(expr)
        );
        let answer = self.json(&path);
        let result = answer["data"]["result"].as_array().cloned();
        result.unwrap_or_else(|| panic!("{expr}: {answer}"))
    }
}

/// Percent-encodes all of a query parameter.
fn encode(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}
