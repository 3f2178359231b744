//! QEMU's monitor (QMP): commands to the machine, not to the guest.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// Time a command has.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs one command without arguments; what it returned.
///
/// # Errors
/// If the monitor refuses it, or does not answer.
pub(super) fn command(socket: &Path, name: &str) -> anyhow::Result<Value> {
    let mut stream = UnixStream::connect(socket).context("No monitor")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    for execute in ["qmp_capabilities", name] {
        writeln!(stream, "{}", json!({ "execute": execute }))?;
        loop {
            let line = lines.next().context("The monitor is gone")??;
            let answer: Value = serde_json::from_str(&line)?;
            if let Some(error) = answer.get("error") {
                bail!("The monitor refuses {execute}: {error}");
            }
            if let Some(value) = answer.get("return") {
                if execute == name {
                    return Ok(value.clone());
                }
                break;
            }
            // A greeting or an event.
        }
    }
    bail!("No answer to {name}")
}
