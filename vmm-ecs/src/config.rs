//! The configuration file: parsed once, into types that are valid by construction.

use std::path::{Path, PathBuf};

use ecs_policy::{BadParam, Params, WEIGHT_DEFAULT, WEIGHT_RANGE};
use ecs_sched::sys::CpuSet;
use ecs_sched::userspace::Mechanism;
use serde::{Deserialize, Serialize};

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("Cannot read the configuration {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("Cannot understand the configuration {path}")]
    Parse {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
    #[error("In [policy]: {0}")]
    Params(#[from] BadParam),
    #[error("In [host]: pcpus = {list:?} is no list of CPUs at {part:?}: write it like \"2-7,10\"")]
    Pcpus { list: String, part: String },
    #[error("In [host]: {0}")]
    Mechanism(String),
    #[error("In [host]: socket_mode = {0:?} is no octal file mode: write it like \"0660\"")]
    SocketMode(String),
    #[error("In [host]: scx_timeout_ms = {0} is outside 1000 to 30000")]
    ScxTimeout(u32),
    #[error("In [policy]: look_us = {0} is outside 5 to 1000")]
    Look(u64),
    #[error("VM name {0:?}: use 1 to 64 of a-z A-Z 0-9 . _ - and begin with a letter or digit")]
    VmName(String),
    #[error("VM {0:?} is defined twice")]
    VmTwice(String),
    #[error("VM {name:?}: weight {weight} is outside 1 to 10000")]
    Weight { name: String, weight: u32 },
    #[error("VM {name:?}: doorbells = {doorbells} is outside 0 to 254")]
    Doorbells { name: String, doorbells: u16 },
}

/// The file as it is written.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ConfigFile {
    pub(crate) host: HostSection,
    pub(crate) policy: PolicySection,
    #[serde(rename = "vm", skip_serializing_if = "Vec::is_empty")]
    pub(crate) vms: Vec<VmSection>,
}

/// `[host]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HostSection {
    /// CPUs to manage, e.g. `"2-7,10"`; every online CPU when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) pcpus: Option<String>,
    /// `auto`, `scx`, `userspace` or `observe`.
    pub(crate) controller: ControllerChoice,
    /// How the userspace controller steers.
    pub(crate) mechanism: String,
    /// Controller `scx`: time a runnable thread may wait until the kernel goes back to its own
    /// scheduler, ms.
    pub(crate) scx_timeout_ms: u32,
    /// Controller `scx`: a file for every operation on the books, to look for faults in them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) scx_record: Option<PathBuf>,
    /// Where sockets and state live.
    pub(crate) runtime_dir: PathBuf,
    /// Mode of every socket.
    pub(crate) socket_mode: String,
    /// A directory of VM definitions, one file `NAME.toml` each, watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) vms_dir: Option<PathBuf>,
}

impl Default for HostSection {
    fn default() -> Self {
        Self {
            pcpus: None,
            controller: ControllerChoice::Auto,
            mechanism: Mechanism::default().name().to_owned(),
            scx_timeout_ms: 10_000,
            scx_record: None,
            runtime_dir: PathBuf::from("/run/vmm-ecs"),
            socket_mode: "0660".to_owned(),
            vms_dir: None,
        }
    }
}

/// Which controller is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ControllerChoice {
    /// The best one this host allows; observes when none can steer.
    #[default]
    Auto,
    /// Steer from a scheduler in the kernel (sched_ext), or fail.
    Scx,
    /// Steer from user space, or fail.
    Userspace,
    /// Steer nothing.
    Observe,
}

/// `[policy]`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PolicySection {
    /// Slice, us.
    pub(crate) slice_us: u64,
    /// Longest extension, us.
    pub(crate) extension_us: u64,
    /// Debt at which a VM gets no more extensions, us.
    pub(crate) budget_us: u64,
    /// Longest cool-down of a vCPU whose extensions expire, slices.
    pub(crate) cooldown_max: u32,
    /// Whether extensions are given at all.
    pub(crate) extensions: bool,
    /// Whether the queue rules apply.
    pub(crate) queue_rules: bool,
    /// Controller `scx`: time between two looks at a vCPU in an extension or a lock queue, us.
    pub(crate) look_us: u64,
    /// Controller `scx`, of the queue rules: a hopeless spinner leaves before its slice ends.
    pub(crate) step_aside: bool,
    /// Controller `scx`, of the queue rules: the vCPU that others wait for runs first.
    pub(crate) head_first: bool,
    /// Controller `scx`, of the queue rules: VMs that wait for their own locks run on few CPUs at a
    /// time.
    pub(crate) apart: bool,
    /// Controller `scx`: vCPUs stay near the cache, or the NUMA node, where they ran.
    pub(crate) near: bool,
    /// Controller `scx`, only to measure it (docs/adr/0007-sched-ext.md): it schedules vCPUs
    /// alone, below all other threads of the host.
    pub(crate) partial: bool,
}

impl Default for PolicySection {
    fn default() -> Self {
        let params = Params::default();
        Self {
            slice_us: params.slice_ns / 1000,
            extension_us: params.extension_ns / 1000,
            budget_us: params.budget_ns / 1000,
            cooldown_max: params.cooldown_max,
            extensions: params.extensions,
            queue_rules: params.queue_rules,
            look_us: 50,
            step_aside: true,
            head_first: true,
            apart: true,
            near: true,
            partial: false,
        }
    }
}

/// `[[vm]]`, or the content of `NAME.toml` in the watched directory (without `name`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct VmSection {
    /// Name, unique on the host.
    pub(crate) name: String,
    /// Socket; `NAME.sock` in the runtime directory when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) socket: Option<PathBuf>,
    /// CPU weight, 100 is the default.
    pub(crate) weight: u32,
    /// Whether it may have extensions.
    pub(crate) enabled: bool,
    /// Doorbell queues offered; at best one a vCPU.
    pub(crate) doorbells: u16,
}

impl Default for VmSection {
    fn default() -> Self {
        Self {
            name: String::new(),
            socket: None,
            weight: WEIGHT_DEFAULT,
            enabled: true,
            doorbells: 8,
        }
    }
}

/// A valid configuration.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) pcpus: Option<CpuSet>,
    pub(crate) controller: ControllerChoice,
    pub(crate) mechanism: Mechanism,
    pub(crate) runtime_dir: PathBuf,
    pub(crate) socket_mode: u32,
    pub(crate) vms_dir: Option<PathBuf>,
    pub(crate) params: Params,
    #[cfg_attr(not(feature = "scx"), allow(dead_code))]
    pub(crate) scx: ScxSection,
    pub(crate) vms: Vec<VmSection>,
}

/// What only the controller `scx` asks for.
#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "scx"), allow(dead_code))]
pub(crate) struct ScxSection {
    pub(crate) record: Option<PathBuf>,
    pub(crate) timeout_ms: u32,
    pub(crate) look_ns: u64,
    pub(crate) step_aside: bool,
    pub(crate) head_first: bool,
    pub(crate) apart: bool,
    pub(crate) near: bool,
    pub(crate) partial: bool,
}

impl ConfigFile {
    /// Reads a file, without a look at what it means.
    pub(crate) fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }
}

impl Config {
    /// Reads and checks a file.
    pub(crate) fn load(path: &Path) -> Result<Self, ConfigError> {
        ConfigFile::read(path)?.try_into()
    }

    /// Where the journal of steered threads is.
    pub(crate) fn journal(&self) -> PathBuf {
        self.runtime_dir.join("threads.journal")
    }

    /// Where statistics are served.
    pub(crate) fn stats_socket(&self) -> PathBuf {
        self.runtime_dir.join("stats.sock")
    }

    /// Socket of a VM.
    pub(crate) fn socket_of(&self, vm: &VmSection) -> PathBuf {
        vm.socket
            .clone()
            .unwrap_or_else(|| self.runtime_dir.join(format!("{}.sock", vm.name)))
    }
}

impl TryFrom<ConfigFile> for Config {
    type Error = ConfigError;

    fn try_from(file: ConfigFile) -> Result<Self, ConfigError> {
        let ConfigFile { host, policy, vms } = file;
        let pcpus = host
            .pcpus
            .map(|list| CpuSet::parse(&list).map_err(|part| ConfigError::Pcpus { list, part }))
            .transpose()?;
        let params = Params {
            slice_ns: policy.slice_us.saturating_mul(1000),
            extension_ns: policy.extension_us.saturating_mul(1000),
            budget_ns: policy.budget_us.saturating_mul(1000),
            cooldown_max: policy.cooldown_max,
            extensions: policy.extensions,
            queue_rules: policy.queue_rules,
        };
        params.validate()?;
        if !(1000..=30_000).contains(&host.scx_timeout_ms) {
            return Err(ConfigError::ScxTimeout(host.scx_timeout_ms));
        }
        if !(5..=1000).contains(&policy.look_us) {
            return Err(ConfigError::Look(policy.look_us));
        }
        for (index, vm) in vms.iter().enumerate() {
            vm.check()?;
            if vms.iter().take(index).any(|before| before.name == vm.name) {
                return Err(ConfigError::VmTwice(vm.name.clone()));
            }
        }
        let socket_mode = u32::from_str_radix(&host.socket_mode, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
            .ok_or(ConfigError::SocketMode(host.socket_mode))?;
        Ok(Self {
            pcpus,
            controller: host.controller,
            mechanism: host.mechanism.parse().map_err(ConfigError::Mechanism)?,
            runtime_dir: host.runtime_dir,
            socket_mode,
            vms_dir: host.vms_dir,
            params,
            scx: ScxSection {
                record: host.scx_record,
                timeout_ms: host.scx_timeout_ms,
                look_ns: policy.look_us * 1000,
                step_aside: policy.step_aside,
                head_first: policy.head_first,
                apart: policy.apart,
                near: policy.near,
                partial: policy.partial,
            },
            vms,
        })
    }
}

impl VmSection {
    /// Checks one VM.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if ecs_device::watch::check_name(&self.name).is_err() {
            return Err(ConfigError::VmName(self.name.clone()));
        }
        if !WEIGHT_RANGE.contains(&self.weight) {
            return Err(ConfigError::Weight {
                name: self.name.clone(),
                weight: self.weight,
            });
        }
        if self.doorbells > 254 {
            return Err(ConfigError::Doorbells {
                name: self.name.clone(),
                doorbells: self.doorbells,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let file: ConfigFile = toml::from_str(text).map_err(|error| error.to_string())?;
        Config::try_from(file).map_err(|error| error.to_string())
    }

    #[test]
    fn an_empty_file_is_the_default() {
        let config = parse("").unwrap();
        assert_eq!(config.params, Params::default());
        assert_eq!(
            config.stats_socket(),
            PathBuf::from("/run/vmm-ecs/stats.sock")
        );
        assert!(config.vms.is_empty());
    }

    #[test]
    fn everything_can_be_said() {
        let config = parse(
            "[host]\npcpus = \"0-1\"\ncontroller = \"observe\"\n[policy]\nslice_us = 4000\n\
             [[vm]]\nname = \"a\"\nweight = 300\nenabled = false\n[[vm]]\nname = \"b\"\n",
        )
        .unwrap();
        assert_eq!(config.controller, ControllerChoice::Observe);
        assert_eq!(config.pcpus, Some(CpuSet::new(vec![0, 1])));
        assert_eq!(config.vms.len(), 2);
    }

    #[test]
    fn bad_input_is_named() {
        for (text, part) in [
            ("[host]\npcpu = \"0\"", "unknown field `pcpu`"),
            ("[host]\npcpus = \"0-x\"", "\"0-x\""),
            (
                "[host]\nmechanism = \"magic\"",
                "use one of rt, rt-strict, fair",
            ),
            ("[host]\nsocket_mode = \"999\"", "octal"),
            ("[policy]\nlook_us = 1", "look_us = 1"),
            ("[host]\nscx_timeout_ms = 9", "1000 to 30000"),
            ("[policy]\nslice_us = 1", "slice must be 0.5 to 100 ms"),
            ("[policy]\nextension_us = 4000", "extension must be"),
            ("[[vm]]\nname = \"../x\"", "VM name"),
            (
                "[[vm]]\nname = \"a\"\n[[vm]]\nname = \"a\"",
                "defined twice",
            ),
            ("[[vm]]\nname = \"a\"\nweight = 0", "weight 0"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text:?} gave {error:?}");
        }
    }
}
