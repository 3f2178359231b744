//! The daemon: wires devices, controller and statistics together, and decides nothing itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ecs_device::{Device, DeviceConfig, DeviceError, VmSink, VmView};
use ecs_sched::observe::{ObserveError, Observer};
use ecs_sched::sys::CpuSet;
use ecs_sched::userspace::{StartError, UserspaceConfig, UserspaceController};
use ecs_sched::{Controller, VmSpec};
use ecs_stats::{StatsError, StatsServer};

use crate::config::{Config, ControllerChoice, VmSection};

/// Time between two looks at the watched directory.
const WATCH: Duration = Duration::from_secs(1);

/// Why the daemon cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    #[error("Cannot make the runtime directory {path}: run as root, or set host.runtime_dir")]
    RuntimeDir {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[cfg(feature = "scx")]
    #[error("Cannot start the controller in the kernel")]
    Scx(#[from] ecs_sched::scx::ScxError),
    #[cfg(feature = "scx")]
    #[error("Cannot write what the controller records")]
    Record(#[source] std::io::Error),
    #[cfg(not(feature = "scx"))]
    #[error("This vmm-ecs was built without sched_ext: build it with --features scx")]
    NoScx,
    #[error("Cannot start the userspace controller")]
    Userspace(#[from] StartError),
    #[error("Cannot start the observer")]
    Observe(#[from] ObserveError),
    #[error("Cannot serve VM {name}")]
    Device {
        name: String,
        #[source]
        source: DeviceError,
    },
    #[error("Cannot serve statistics")]
    Stats(#[from] StatsError),
    #[error("Cannot find out which CPUs are online")]
    Online(#[source] std::io::Error),
    #[error("Cannot find the program of this process, for its watchdog")]
    Program(#[source] std::io::Error),
}

/// A running daemon; dropping it puts every thread back and removes every socket.
pub(crate) struct Daemon {
    devices: BTreeMap<String, (Device, VmSection)>,
    sink: Arc<Sink>,
    config: Config,
    stats: Option<StatsServer>,
}

/// Hands what devices report to the controller, with what the operator wants for each VM.
struct Sink {
    controller: Arc<dyn Controller>,
    wanted: Mutex<BTreeMap<String, VmSection>>,
}

impl VmSink for Sink {
    fn update(&self, view: VmView) {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(section) = wanted.get(&view.name) else {
            return;
        };
        self.controller.update(VmSpec {
            weight: section.weight,
            enabled: section.enabled,
            name: view.name,
            pid: view.pid,
            // While the rings stand still, what was registered may be ordinary memory again.
            slots: if view.running {
                view.slots
            } else {
                Arc::default()
            },
            doorbells: view.doorbells,
            generation: view.generation,
            regions: view.mem_userspace,
        });
    }

    fn gone(&self, name: &str) {
        self.controller.gone(name);
    }
}

impl Daemon {
    /// Starts everything the configuration names.
    pub(crate) fn start(config: Config) -> Result<Self, DaemonError> {
        std::fs::create_dir_all(&config.runtime_dir).map_err(|source| DaemonError::RuntimeDir {
            path: config.runtime_dir.clone(),
            source,
        })?;
        let controller = start_controller(&config)?;
        let sink = Arc::new(Sink {
            controller: controller.clone(),
            wanted: Mutex::default(),
        });
        let stats = StatsServer::bind(
            &config.stats_socket(),
            config.socket_mode,
            Arc::new(move || controller.snapshot()),
        )?;
        let vms = config.vms.clone();
        let mut daemon = Self {
            devices: BTreeMap::new(),
            sink,
            config,
            stats: Some(stats),
        };
        for vm in vms {
            daemon.add(vm)?;
        }
        Ok(daemon)
    }

    /// Runs until `stop` is set, looking after the watched directory.
    pub(crate) fn run(&mut self, stop: &AtomicBool) {
        let mut refused = BTreeMap::new();
        while !stop.load(Ordering::Acquire) {
            if let Some(dir) = self.config.vms_dir.clone() {
                self.follow(&dir, &mut refused);
            }
            // A signal ends the wait early.
            std::thread::park_timeout(WATCH);
        }
    }

    fn add(&mut self, vm: VmSection) -> Result<(), DaemonError> {
        let name = vm.name.clone();
        self.wanted().insert(name.clone(), vm.clone());
        let device = DeviceConfig {
            name: name.clone(),
            socket: self.config.socket_of(&vm),
            socket_mode: self.config.socket_mode,
            nr_doorbells: vm.doorbells,
            extension_ns: u32::try_from(self.config.params.extension_ns).unwrap_or(u32::MAX),
            slice_ns: u32::try_from(self.config.params.slice_ns).unwrap_or(u32::MAX),
            state_dir: Some(self.config.runtime_dir.clone()),
        };
        tracing::info!(vm = name, socket = %device.socket.display(), "Serving a VM");
        match Device::bind(device, self.sink.clone()) {
            Ok(device) => {
                self.devices.insert(name, (device, vm));
                Ok(())
            }
            Err(source) => {
                self.wanted().remove(&name);
                Err(DaemonError::Device { name, source })
            }
        }
    }

    fn wanted(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, VmSection>> {
        self.sink
            .wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&mut self, name: &str) {
        if let Some((device, _)) = self.devices.remove(name) {
            tracing::info!(vm = name, "Serving a VM no longer");
            device.stop();
        }
        self.wanted().remove(name);
    }

    /// Makes the VMs served those of the directory and of the configuration. A definition that
    /// cannot be used is logged once per content, and leaves the VM as it was.
    fn follow(&mut self, dir: &Path, refused: &mut BTreeMap<String, String>) {
        let defined = match read_definitions(dir) {
            Ok(defined) => defined,
            Err(error) => {
                if refused.insert(String::new(), error.clone()).as_deref() != Some(&error) {
                    tracing::warn!(dir = %dir.display(), error, "Cannot read VM definitions");
                }
                return;
            }
        };
        let fixed = |name: &str| self.config.vms.iter().any(|vm| vm.name == name);
        let gone: Vec<String> = self
            .devices
            .keys()
            .filter(|name| !defined.contains_key(*name) && !fixed(name))
            .cloned()
            .collect();
        for name in gone {
            self.remove(&name);
        }
        for (name, definition) in defined {
            let result = definition.and_then(|vm| {
                if self.devices.get(&name).is_some_and(|(_, old)| *old == vm) {
                    return Ok(());
                }
                self.remove(&name);
                self.add(vm)
                    .map_err(|error| format!("{:#}", anyhow::Error::from(error)))
            });
            match result {
                Ok(()) => drop(refused.remove(&name)),
                Err(error) => {
                    if refused.insert(name.clone(), error.clone()).as_deref() != Some(&error) {
                        tracing::warn!(vm = name, error, "Cannot use a VM definition");
                    }
                }
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        while let Some((_, (device, _))) = self.devices.pop_first() {
            device.stop();
        }
        if let Some(stats) = self.stats.take() {
            stats.stop();
        }
    }
}

type Definition = Result<VmSection, String>;

/// Reads every `NAME.toml` of a directory.
fn read_definitions(dir: &Path) -> Result<BTreeMap<String, Definition>, String> {
    let found = ecs_device::watch::scan(dir).map_err(|error| error.to_string())?;
    let refused = found.refused.into_iter().map(|name| {
        let error = ecs_device::watch::check_name(&name).err();
        let error = error.map_or_else(String::new, |error| error.to_string());
        (name, Err(error))
    });
    let good = found.names.into_iter().map(|name| {
        let definition = std::fs::read_to_string(dir.join(format!("{name}.toml")))
            .map_err(|error| error.to_string())
            .and_then(|text| toml::from_str(&text).map_err(|error| error.to_string()))
            .map(|vm: VmSection| VmSection {
                name: name.clone(),
                ..vm
            })
            .and_then(|vm| vm.check().map(|()| vm).map_err(|error| error.to_string()));
        (name, definition)
    });
    Ok(good.chain(refused).collect())
}

fn start_controller(config: &Config) -> Result<Arc<dyn Controller>, DaemonError> {
    match config.controller {
        ControllerChoice::Observe => observe(config),
        ControllerChoice::Userspace => userspace(config),
        ControllerChoice::Scx => scx(config),
        ControllerChoice::Auto => scx(config)
            .or_else(|error| next_best(error, || userspace(config)))
            .or_else(|error| next_best(error, || observe(config))),
    }
}

/// Only what this host does not have or allow is a reason to try another controller: not a mistake
/// in the configuration, nor another daemon on the same CPUs.
fn next_best(
    error: DaemonError,
    next: impl FnOnce() -> Result<Arc<dyn Controller>, DaemonError>,
) -> Result<Arc<dyn Controller>, DaemonError> {
    match &error {
        #[cfg(not(feature = "scx"))]
        DaemonError::NoScx => {}
        #[cfg(feature = "scx")]
        DaemonError::Scx(ecs_sched::scx::ScxError::Missing) => {}
        #[cfg(feature = "scx")]
        DaemonError::Scx(error) if error.is_not_allowed() => tracing::warn!(
            error = with_causes(error),
            "No controller in the kernel here: steering from user space"
        ),
        DaemonError::Userspace(error) if error.is_not_allowed() => tracing::warn!(
            error = with_causes(error),
            "This host does not let vmm-ecs steer: observing only"
        ),
        _ => return Err(error),
    }
    next()
}

fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let words: Vec<String> = causes.map(ToString::to_string).collect();
    words.join(": ")
}

fn observe(config: &Config) -> Result<Arc<dyn Controller>, DaemonError> {
    Ok(Arc::new(Observer::start(config.params)?))
}

#[cfg(feature = "scx")]
fn scx(config: &Config) -> Result<Arc<dyn Controller>, DaemonError> {
    let controller = ecs_sched::scx::ScxController::start(&ecs_sched::scx::ScxConfig {
        params: config.params,
        look_ns: config.scx.look_ns,
        step_aside: config.scx.step_aside,
        head_first: config.scx.head_first,
        apart: config.scx.apart,
        near: config.scx.near,
        partial: config.scx.partial,
        record: config.scx.record.is_some(),
        timeout_ms: config.scx.timeout_ms,
    })?;
    let controller = Arc::new(controller);
    if let Some(path) = &config.scx.record {
        let file = std::fs::File::create(path).map_err(DaemonError::Record)?;
        let controller = Arc::downgrade(&controller);
        std::thread::spawn(move || {
            if let Err(error) = record(&controller, file) {
                tracing::error!(%error, "The recording ends here");
            }
        });
    }
    Ok(controller)
}

/// Writes what the controller records, a line each, as long as the daemon lives.
#[cfg(feature = "scx")]
fn record(
    controller: &std::sync::Weak<ecs_sched::scx::ScxController>,
    mut file: std::fs::File,
) -> std::io::Result<()> {
    use std::io::Write;

    for program in controller.upgrade().iter().flat_map(|of| of.programs()) {
        writeln!(
            file,
            "program {} {} {} {}",
            program.name, program.verified_insns, program.translated, program.machine
        )?;
    }
    while let Some(controller) = controller.upgrade() {
        let records = controller.records().map_err(std::io::Error::other)?;
        let text: String = records.iter().map(|record| format!("{record}\n")).collect();
        writeln!(file, "{text}lost {}", controller.records_lost())?;
        drop(controller);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Ok(())
}

#[cfg(not(feature = "scx"))]
fn scx(_: &Config) -> Result<Arc<dyn Controller>, DaemonError> {
    Err(DaemonError::NoScx)
}

fn userspace(config: &Config) -> Result<Arc<dyn Controller>, DaemonError> {
    let pcpus = match &config.pcpus {
        Some(pcpus) => pcpus.clone(),
        None => CpuSet::online().map_err(DaemonError::Online)?,
    };
    let program = std::env::current_exe().map_err(DaemonError::Program)?;
    let watchdog = vec![
        program.to_string_lossy().into_owned(),
        "watchdog".to_owned(),
        "--daemon".to_owned(),
        std::process::id().to_string(),
        "--journal".to_owned(),
        config.journal().to_string_lossy().into_owned(),
    ];
    let controller = UserspaceController::start(UserspaceConfig {
        params: config.params,
        pcpus,
        mechanism: config.mechanism,
        journal: config.journal(),
        watchdog: Some(watchdog),
    })?;
    Ok(Arc::new(controller))
}
