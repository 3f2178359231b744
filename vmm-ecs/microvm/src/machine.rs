//! What both kinds of VM need: memory, doorbells, sleeping vCPUs.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::shared::{GuestRam, MAX_VCPUS};
use crate::sys::{Woken, futex_wait, futex_wake};

/// A sleeper is looked after this often.
const LOST_AFTER: Duration = Duration::from_secs(2);
/// Its wake-up was lost if the word differs at this many looks in a row; for an instant it differs at
/// every hand-over.
const LOST_LOOKS: u32 = 10;
const LOST_LOOK_EVERY: Duration = Duration::from_millis(5);

/// One VM's parts.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) ram: GuestRam,
    /// Kick eventfds of the doorbell queues, one a vCPU.
    pub(crate) doorbells: Vec<EventFd>,
    pub(crate) sleepers: Sleepers,
    /// Leave the guest at the next opportunity, whatever it does.
    pub(crate) abort: AtomicBool,
    pub(crate) nr_vcpus: usize,
}

impl Machine {
    pub(crate) fn new(nr_vcpus: usize) -> io::Result<Arc<Self>> {
        let doorbells = (0..nr_vcpus)
            .map(|_| EventFd::new(EFD_NONBLOCK))
            .collect::<io::Result<_>>()?;
        Ok(Arc::new(Self {
            ram: GuestRam::new(nr_vcpus)?,
            doorbells,
            sleepers: Sleepers::default(),
            abort: AtomicBool::new(false),
            nr_vcpus,
        }))
    }

    /// Doorbell queue that vCPU `vcpu` rings.
    pub(crate) fn doorbell_of(&self, vcpu: usize) -> Option<&EventFd> {
        let nr = self
            .ram
            .shared()
            .control
            .nr_doorbells
            .load(Ordering::Relaxed) as usize;
        self.doorbells.get(if nr == 0 { vcpu } else { vcpu % nr })
    }

    /// Wakes every vCPU that sleeps.
    pub(crate) fn wake_all(&self) {
        for place in &self.sleepers.words {
            let addr = place.load(Ordering::Acquire);
            if let Some(word) = self.ram.word_at(addr) {
                futex_wake(word, u32::MAX);
            }
        }
    }
}

/// vCPUs that sleep for a word.
#[derive(Debug)]
pub(crate) struct Sleepers {
    /// Address of the word by vCPU; 0: awake.
    words: [AtomicU64; MAX_VCPUS],
    lost_after: Duration,
    pub(crate) nr_halts: AtomicU64,
    pub(crate) lost_wakeups: AtomicU64,
}

impl Default for Sleepers {
    fn default() -> Self {
        Self {
            words: std::array::from_fn(|_| AtomicU64::new(0)),
            lost_after: LOST_AFTER,
            nr_halts: AtomicU64::new(0),
            lost_wakeups: AtomicU64::new(0),
        }
    }
}

impl Sleepers {
    /// Sleeps on behalf of a vCPU while `*word == expected`. Wakes it, and counts that, if its
    /// wake-up was lost.
    pub(crate) fn sleep(&self, vcpu: usize, word: &AtomicU32, expected: u32) {
        let Some(place) = self.words.get(vcpu) else {
            return;
        };
        self.nr_halts.fetch_add(1, Ordering::Relaxed);
        place.store(word.as_ptr().addr() as u64, Ordering::Release);
        while futex_wait(word, expected, self.lost_after) == Woken::TimedOut {
            let changed = (0..LOST_LOOKS).all(|_| {
                std::thread::sleep(LOST_LOOK_EVERY);
                word.load(Ordering::Relaxed) != expected
            });
            if changed {
                self.lost_wakeups.fetch_add(1, Ordering::Relaxed);
                break;
            }
        }
        place.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_sleeper_is_woken_and_a_changed_word_is_not_slept_on() {
        let machine = Machine::new(1).unwrap();
        let word = &machine.ram.shared().control.max_ops;
        let word = machine.ram.word_at(word.as_ptr().addr() as u64).unwrap();
        machine.sleepers.sleep(0, word, 1);
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| machine.sleepers.sleep(0, word, 0));
            while !sleeper.is_finished() {
                machine.wake_all();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        assert_eq!(machine.sleepers.nr_halts.load(Ordering::Relaxed), 2);
        assert_eq!(machine.sleepers.lost_wakeups.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_lost_wake_up_is_counted_and_made_good() {
        let word = AtomicU32::new(7);
        let sleepers = Sleepers {
            lost_after: Duration::from_millis(20),
            ..Sleepers::default()
        };
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| sleepers.sleep(0, &word, 7));
            while sleepers.nr_halts.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(45));
            assert!(!sleeper.is_finished(), "nothing has changed");
            word.store(8, Ordering::Relaxed);
        });
        assert_eq!(sleepers.lost_wakeups.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn only_aligned_words_of_guest_memory_are_words() {
        let machine = Machine::new(1).unwrap();
        let start = machine.ram.addr() as u64;
        let end = start + machine.ram.len() as u64;
        assert!(machine.ram.word_at(start).is_some() && machine.ram.word_at(end - 4).is_some());
        for addr in [0, start - 4, start + 2, end - 2, end, u64::MAX] {
            assert!(machine.ram.word_at(addr).is_none(), "{addr:#x}");
        }
    }
}
