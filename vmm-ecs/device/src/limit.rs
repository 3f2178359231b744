//! Limits on what a guest can make the host do.

use std::time::{Duration, Instant};

/// Lets `burst` things through in every `window`.
#[derive(Debug)]
pub(crate) struct Limit {
    burst: u32,
    window: Duration,
    start: Instant,
    passed: u32,
    held_back: u64,
}

impl Limit {
    pub(crate) fn new(burst: u32, window: Duration) -> Self {
        Self {
            burst,
            window,
            start: Instant::now(),
            passed: 0,
            held_back: 0,
        }
    }

    /// For log lines a guest or front-end can trigger: five in ten seconds.
    pub(crate) fn log() -> Self {
        Self::new(5, Duration::from_secs(10))
    }

    /// `Ok` with the number held back since the last one let through; `Err` with the time until
    /// the next one may pass.
    pub(crate) fn check(&mut self, now: Instant) -> Result<u64, Duration> {
        let age = now.saturating_duration_since(self.start);
        if age >= self.window {
            self.start = now;
            self.passed = 0;
        }
        if self.passed < self.burst {
            self.passed += 1;
            return Ok(std::mem::take(&mut self.held_back));
        }
        self.held_back += 1;
        Err(self.window.saturating_sub(age))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lets_a_burst_through_in_every_window() {
        let mut limit = Limit::new(2, Duration::from_secs(1));
        let start = limit.start;
        assert_eq!(limit.check(start), Ok(0));
        assert_eq!(limit.check(start), Ok(0));
        let half = start + Duration::from_millis(500);
        assert_eq!(limit.check(half), Err(Duration::from_millis(500)));
        assert_eq!(limit.check(half), Err(Duration::from_millis(500)));
        assert_eq!(limit.check(start + Duration::from_secs(1)), Ok(2));
    }
}
