//! What /proc tells of one Cloud Hypervisor process: identity, command line, cgroup.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A process id and its start time: together they name a process for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ProcessId {
    /// Process id.
    pub(crate) pid: u32,
    /// Clock ticks since boot.
    pub(crate) start: u64,
}

/// Start time and number of threads, from `/proc/PID/stat`.
pub(crate) fn start_and_threads(process: &Path) -> io::Result<(u64, u64)> {
    let stat = fs::read_to_string(process.join("stat"))?;
    // The name, in parentheses, may hold anything; what follows begins with field 3 of proc(5).
    let fields = stat.rsplit_once(')').and_then(|(_, rest)| {
        let mut fields = rest.split_ascii_whitespace().skip(20 - 3);
        let threads = fields.next()?.parse().ok()?;
        let start = fields.nth(1)?.parse().ok()?;
        Some((start, threads))
    });
    fields.ok_or_else(|| io::Error::other("a field is missing in stat"))
}

/// What does not change while the process lives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Best name to be had without asking anybody.
    pub(crate) name: String,
    /// UUID, if the command line has one.
    pub(crate) uuid: Option<String>,
    /// Path of the API socket.
    pub(crate) api_socket: Option<PathBuf>,
    /// cgroup v2 path.
    pub(crate) cgroup: Option<String>,
}

impl Facts {
    /// Reads the folder of a process. What may not be read is left out.
    pub(crate) fn read(process: &Path, pid: u32) -> Self {
        let command = fs::read(process.join("cmdline")).unwrap_or_default();
        let arguments: Vec<String> = command
            .split(|byte| *byte == 0)
            .map(|argument| String::from_utf8_lossy(argument).into_owned())
            .collect();
        let cgroup = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        Self::from_parts(&arguments, &cgroup, pid)
    }

    fn from_parts(arguments: &[String], cgroup: &str, pid: u32) -> Self {
        let api_socket = values(arguments, "--api-socket")
            .next()
            .filter(|value| !value.starts_with("fd="))
            .map(|value| PathBuf::from(value.strip_prefix("path=").unwrap_or(value)));
        let uuid = values(arguments, "--platform")
            .find_map(|value| field(value, "uuid"))
            .map(str::to_owned);
        // cgroup v2 has one line, "0::/path".
        let cgroup = cgroup
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .filter(|path| *path != "/")
            .map(str::to_owned);
        let device = values(arguments, "--generic-vhost-user")
            .find(|value| field(value, "device_type") == Some(VIRTIO_ID_ECS))
            .and_then(|value| field(value, "socket"));
        let name = device
            .and_then(|socket| stem(Path::new(socket)))
            .or_else(|| api_socket.as_deref().and_then(stem))
            .or_else(|| cgroup.as_deref().and_then(|path| stem(Path::new(path))))
            .or_else(|| uuid.clone())
            .unwrap_or_else(|| format!("pid-{pid}"));
        Self {
            name,
            uuid,
            api_socket,
            cgroup,
        }
    }
}

/// Device type of eCS on Cloud Hypervisor's command line.
const VIRTIO_ID_ECS: &str = "63";

/// Values of an option, as `--option value` or `--option=value`. An option may take several values,
/// up to the next one that begins with a dash.
fn values<'a>(arguments: &'a [String], option: &'a str) -> impl Iterator<Item = &'a str> {
    let mut open = false;
    arguments.iter().filter_map(move |argument| {
        if let Some(rest) = argument.strip_prefix(option)
            && let Some(value) = rest.strip_prefix('=')
        {
            open = false;
            return Some(value);
        }
        if argument.starts_with('-') {
            open = argument == option;
            return None;
        }
        (open && !argument.is_empty()).then_some(argument.as_str())
    })
}

/// Value of a key in `key=value,key=value`.
fn field<'a>(list: &'a str, key: &str) -> Option<&'a str> {
    list.split(',')
        .find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='))
}

/// Names that say nothing about the VM: the folder above is looked at instead.
const NO_NAMES: [&str; 8] = [
    "api",
    "ch",
    "chv",
    "clh",
    "clh-api",
    "cloud-hypervisor",
    "vmm",
    "sock",
];

/// What a path calls the VM: `/run/vms/web1.sock`, `/run/vms/web1/api.sock`,
/// `/run/libvirt/ch/web1-socket` and `/machine.slice/web1.scope` are all `web1`.
fn stem(path: &Path) -> Option<String> {
    let last = path.file_name()?.to_str()?;
    let bare = [
        ".sock", ".socket", "-socket", ".service", ".scope", ".slice",
    ]
    .iter()
    .find_map(|end| last.strip_suffix(end))
    .unwrap_or(last);
    if bare.is_empty() || NO_NAMES.contains(&bare) {
        return stem(path.parent()?);
    }
    Some(bare.to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn facts(command: &str, cgroup: &str) -> Facts {
        let arguments: Vec<String> = command.split(' ').map(str::to_owned).collect();
        Facts::from_parts(&arguments, cgroup, 7)
    }

    #[test]
    fn a_vm_is_named_after_what_its_operator_named() {
        for (command, cgroup, name) in [
            ("ch --api-socket /run/vms/web1.sock", "", "web1"),
            ("ch --api-socket=path=/run/vms/web1/api.sock", "", "web1"),
            (
                "ch --api-socket /run/libvirt/ch/web1-socket --x",
                "",
                "web1",
            ),
            ("ch --api-socket /run/vc/vm/4f5e/clh-api.sock", "", "4f5e"),
            (
                "ch --api-socket fd=3",
                "0::/machine.slice/web1.scope\n",
                "web1",
            ),
            (
                "ch --platform num_pci_segments=1,uuid=6b2f",
                "0::/\n",
                "6b2f",
            ),
            ("ch --cpus boot=2", "0::/\n", "pid-7"),
            ("ch --api-socket /api.sock", "", "pid-7"),
            (
                "ch --api-socket /run/a.sock --generic-vhost-user \
                 socket=/run/vmm-ecs/db.sock,device_type=63,id=ecs0",
                "",
                "db",
            ),
            (
                "ch --generic-vhost-user socket=/x/gpu.sock,device_type=16 \
                 socket=/x/db.sock,device_type=63 --api-socket /run/a.sock",
                "",
                "db",
            ),
        ] {
            assert_eq!(facts(command, cgroup).name, name, "{command}");
        }
    }

    #[test]
    fn facts_are_found_wherever_they_stand() {
        let facts = facts(
            "ch --disk path=/a path=/b --api-socket path=/run/w.sock --platform uuid=1-2",
            "1:name=systemd:/x\n0::/vms/w\n",
        );
        assert_eq!(facts.uuid.as_deref(), Some("1-2"));
        assert_eq!(facts.api_socket.as_deref(), Some(Path::new("/run/w.sock")));
        assert_eq!(facts.cgroup.as_deref(), Some("/vms/w"));
    }

    #[test]
    fn own_start_and_threads_can_be_read() {
        let (start, threads) = start_and_threads(Path::new("/proc/self")).unwrap();
        assert!(start > 0 && threads >= 1);
        assert!(start_and_threads(Path::new("/proc/0")).is_err());
    }
}
