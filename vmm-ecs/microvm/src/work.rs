//! Work that takes a known amount of CPU time, and time stamps.

use std::hint::black_box;
use std::time::Instant;

/// Multiplies and adds `iterations` times, each step needing the one before it. Runs in the guest.
#[inline(never)]
pub fn busy(iterations: u64) {
    let mut value = black_box(iterations | 1);
    let mut left = iterations;
    while left > 0 {
        value = value
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        left -= 1;
    }
    black_box(value);
}

/// Time stamp in ticks of unknown length; 0 where the architecture has none. Runs in the guest.
#[must_use]
pub fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: RDTSC exists on every x86-64 CPU and is allowed at CPL3 (CR4.TSD is clear).
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    0
}

/// Trials of which the fastest counts: the one that was not interrupted.
const TRIALS: u32 = 100;

/// Fastest of some trials of `body`, ns.
fn fastest_ns(mut body: impl FnMut()) -> u64 {
    let one = |_| {
        let start = Instant::now();
        body();
        u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    };
    (0..TRIALS).map(one).min().unwrap_or(1).max(1)
}

/// Iterations of [`busy`] per us of undisturbed CPU time. Takes a few
/// milliseconds. A busy sibling thread of the core makes the result smaller.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a rate exact to a per mille")]
pub fn calibrate() -> f64 {
    const BATCH: u64 = 10_000;
    let ns = fastest_ns(|| busy(BATCH));
    BATCH as f64 * 1e3 / ns as f64
}

/// Ticks of [`ticks`] per us; 0 where there are none.
#[must_use]
pub(crate) fn ticks_per_us() -> u32 {
    const LONG: std::time::Duration = std::time::Duration::from_millis(2);
    let (start, first) = (Instant::now(), ticks());
    while start.elapsed() < LONG {
        std::hint::spin_loop();
    }
    let (spent, passed) = (ticks().saturating_sub(first), start.elapsed());
    u32::try_from(u128::from(spent) / passed.as_micros().max(1)).unwrap_or(u32::MAX)
}

/// Turns of a spin loop per us.
#[must_use]
pub(crate) fn pauses_per_us() -> u32 {
    const BATCH: u32 = 512;
    let ns = fastest_ns(|| {
        for _ in 0..BATCH {
            std::hint::spin_loop();
        }
    });
    let per_us = u64::from(BATCH) * 1_000 / ns;
    u32::try_from(per_us).unwrap_or(u32::MAX).max(1)
}

/// Iterations of work that take `us` at `rate` iterations per us.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked by VmConfig: 0 to 1e6 us at up to 1e6 iterations"
)]
pub(crate) fn iterations(us: f64, rate: f64) -> u64 {
    (us * rate).round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calibrated_work_takes_the_time_asked_for() {
        let rate = calibrate();
        let ns = fastest_ns(|| busy(iterations(50.0, rate)));
        // A neighbour on the same core, and the clock of the core, may change between the two.
        assert!(
            (20_000..=125_000).contains(&ns),
            "50 us took {ns} ns at {rate}"
        );
        assert!(pauses_per_us() > 0);
    }
}
