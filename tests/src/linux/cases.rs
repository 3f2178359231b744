//! What the cases of a Linux guest share. They end a test by a panic, as cases do.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::{Guest, Kernel, Machine, Meddling, Parts, Relay, Tally, Truth, Watch, on_emulator};

/// Kernels that cases run on.
pub const KERNELS: [&str; 2] = ["7.3", "6.12"];
/// Time for what the driver does by itself, once a second, on a slow machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Boots every kernel in turn with a device, and runs a case; `device` says where the device
/// listens. Where the emulator itself fails it is run again, on another guest.
///
/// # Panics
/// As the case does, and if the guest's kernel complains.
pub fn on_devices<D>(
    parts: &Parts,
    machine: &Machine,
    device: impl Fn() -> D,
    socket: impl Fn(&D) -> std::path::PathBuf,
    case: impl Fn(&Kernel, &mut D, &mut Guest),
) {
    for name in KERNELS {
        let kernel = parts.kernel(name).unwrap();
        let boot = || {
            let device = device();
            let guest = Guest::boot(parts, &kernel, machine, &socket(&device)).unwrap();
            (device, guest)
        };
        let check = |(device, guest): &mut (D, Guest)| {
            case(&kernel, device, guest);
            assert_eq!(guest.complaints(), Vec::<String>::new(), "Linux {name}");
        };
        on_emulator(&kernel, boot, |(_, guest)| guest, check);
    }
}

/// The same with our device in the test, whose reads must all make sense.
///
/// # Panics
/// As the case does.
pub fn on_machines(
    parts: &Parts,
    machine: &Machine,
    case: impl Fn(&Kernel, &mut Watch, &mut Guest),
) {
    let device = || Watch::new().unwrap();
    let socket = |watch: &Watch| watch.socket().to_owned();
    on_devices(parts, machine, device, socket, |kernel, watch, guest| {
        case(kernel, watch, guest);
        assert_eq!(watch.faults(), 0, "Linux {}", kernel.version());
    });
}

/// The same on the default machine.
///
/// # Panics
/// As the case does.
pub fn on_every_kernel(parts: &Parts, case: impl Fn(&Kernel, &mut Watch, &mut Guest)) {
    on_machines(parts, &Machine::default(), case);
}

/// The same with a relay between QEMU and our device, so that it may come and go, or misbehave.
///
/// # Panics
/// As the case does.
pub fn with_relay(
    parts: &Parts,
    meddling: &Meddling,
    case: impl Fn(&Kernel, &mut Watch, &Relay, &mut Guest),
) {
    let device = || {
        let watch = Watch::new().unwrap();
        let relay = Relay::meddling(watch.socket(), meddling.clone()).unwrap();
        (watch, relay)
    };
    let socket = |(_, relay): &(Watch, Relay)| relay.socket().to_owned();
    let machine = Machine::default();
    on_devices(
        parts,
        &machine,
        device,
        socket,
        |kernel, (watch, relay), guest| {
            case(kernel, watch, relay, guest);
            assert_eq!(watch.faults(), 0, "Linux {}", kernel.version());
        },
    );
}

/// Loads driver and test module, with every CPU registered.
///
/// # Panics
/// If it is not so.
pub fn loaded(watch: &Watch, guest: &mut Guest, parameters: &str) -> Truth {
    guest.load_driver(parameters).unwrap();
    watch.wait_for(&[0, 1, 2, 3], PATIENCE).unwrap();
    Truth::load(guest).unwrap()
}

/// What the host reads of every CPU of four is true.
///
/// # Panics
/// If it is not.
pub fn judge(watch: &Watch, guest: &mut Guest, truth: &Truth) {
    // An interrupt is short, and rare where the machine is busy.
    for (work, wanted) in [
        ("spin cpu=0,1", 5_000),
        ("spin cpu=2,3", 5_000),
        ("irq cpu=3", 100),
    ] {
        let work = format!("{work} ms=1500 hold_us=30 gap_us=30");
        let enough = |tally: &Tally| tally.np > wanted;
        let tally = watch.judge(guest, truth, &work, enough).unwrap();
        assert_eq!(tally.np_missed, 0, "{work}: {tally:?}");
    }
}

/// Lines of the kernel's log that name the driver, after it was loaded.
#[must_use]
pub fn said(guest: &Guest) -> Vec<String> {
    let console = guest.console();
    let ours = |line: &&str| line.contains("virtio_ecs: ") && !line.contains("taints");
    console.lines().filter(ours).map(str::to_owned).collect()
}

/// One of the driver's own counts.
///
/// # Panics
/// If there is none of that name.
pub fn counter(guest: &mut Guest, name: &str) -> u64 {
    let counters = guest
        .sh("cat /sys/kernel/debug/virtio_ecs/counters")
        .unwrap();
    let of = |line: &str| line.strip_prefix(name)?.trim().parse().ok();
    counters.lines().find_map(of).unwrap()
}
