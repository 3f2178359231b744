//! Serves one VM and prints what a controller would be told, to look at a VMM with.
//!
//! `cargo run -p ecs-device --example serve -- SOCKET STATE_DIR [DOORBELLS]`, then for example
//! `cloud-hypervisor --generic-vhost-user socket=SOCKET,device_type=63,queue_sizes=[16,16,16,16]`
//! with `--memory size=512M,shared=on`. It ends when its input does.
#![allow(missing_docs)]

use std::error::Error;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use ecs_device::{Device, DeviceConfig, VmSink, VmView};

struct Print;

impl VmSink for Print {
    fn update(&self, view: VmView) {
        println!(
            "update pid={} generation={} running={} registered={} doorbells={:?} memory={:x?}",
            view.pid,
            view.generation,
            view.running,
            view.slots.nr_registered(),
            view.doorbells
                .iter()
                .map(Option::is_some)
                .collect::<Vec<_>>(),
            view.mem_userspace,
        );
    }

    fn gone(&self, name: &str) {
        println!("gone {name}");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt::init();
    let mut args = std::env::args().skip(1);
    let (Some(socket), Some(state_dir)) = (args.next(), args.next()) else {
        return Err("Usage: serve SOCKET STATE_DIR [DOORBELLS]".into());
    };
    let nr_doorbells = args.next().map_or(Ok(2), |arg| arg.parse())?;
    let device = Device::bind(
        DeviceConfig {
            name: "vm".to_owned(),
            socket: PathBuf::from(socket),
            socket_mode: 0o660,
            nr_doorbells,
            extension_ns: 1_000_000,
            slice_ns: 3_000_000,
            state_dir: Some(PathBuf::from(state_dir)),
        },
        Arc::new(Print),
    )?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    println!("{:?}", device.counters());
    device.stop();
    Ok(())
}
