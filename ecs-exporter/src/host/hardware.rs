//! Cycles and instructions of vCPU threads.

use std::io;

use ecs_threads::Tid;
use perf_event::events::Hardware;
use perf_event::{Builder, Counter};

/// Counters of one thread, its time in the guest included.
#[derive(Debug)]
pub(crate) struct ThreadCounters {
    cycles: Counter,
    instructions: Counter,
}

impl ThreadCounters {
    /// Starts counting.
    ///
    /// # Errors
    /// `ESRCH` if the thread is gone, `EACCES` without privilege, `EMFILE` without descriptors.
    pub(crate) fn open(tid: Tid) -> io::Result<Self> {
        let counter = |event| {
            let mut builder = Builder::new().kind(event).observe_pid(tid).any_cpu();
            // With them excluded a guest's kernel would not be counted either.
            builder.include_kernel().include_hv();
            let mut counter = builder.build()?;
            counter.enable()?;
            Ok::<_, io::Error>(counter)
        };
        Ok(Self {
            cycles: counter(Hardware::CPU_CYCLES)?,
            instructions: counter(Hardware::INSTRUCTIONS)?,
        })
    }

    /// Cycles and instructions so far, `None` once they cannot be read. Where the kernel had to
    /// share a counter they are scaled up.
    pub(crate) fn read(&mut self) -> Option<(u64, u64)> {
        Some((scaled(&mut self.cycles)?, scaled(&mut self.instructions)?))
    }
}

fn scaled(counter: &mut Counter) -> Option<u64> {
    let count = counter.read_count_and_time().ok()?;
    if count.time_running == 0 {
        return Some(0);
    }
    let exact =
        u128::from(count.count) * u128::from(count.time_enabled) / u128::from(count.time_running);
    u64::try_from(exact).ok()
}

/// Whether this machine has the counters.
///
/// # Errors
/// Why it has them and we may not use them.
pub(crate) fn is_present() -> io::Result<bool> {
    match Builder::new().kind(Hardware::CPU_CYCLES).build() {
        Ok(_) => Ok(true),
        // What the kernel says where there is no PMU, or one without this event.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::Unsupported
            ) || error.raw_os_error() == Some(ENODEV) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// `ENODEV`, for which the standard library has no kind.
const ENODEV: i32 = 19;
