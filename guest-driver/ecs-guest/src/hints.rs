//! What the host says of every CPU, in lines that a process can read, and what a waiting thread makes of
//! it.
//!
//! A process knows less than a kernel: not whether its thread is alone on its CPU, and not whether the
//! holder runs, only where it was when it locked. So a spin is short in any case.

use core::cell::Cell;
use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicU32, Ordering};

use ecs_abi::{VIRTIO_ECS_LINE_SIZE, VirtioEcsHostLine};

use crate::vcpu::{BEAT_TRUSTED_US, Heart, SPIN_BEFORE_BLOCK_US, Spin};

const WORDS: usize = VIRTIO_ECS_LINE_SIZE / size_of::<u32>();
const PREEMPTED: usize = offset_of!(VirtioEcsHostLine, preempted) / size_of::<u32>();
const OVERLOADED: usize = offset_of!(VirtioEcsHostLine, overloaded) / size_of::<u32>();
const HEARTBEAT: usize = offset_of!(VirtioEcsHostLine, heartbeat) / size_of::<u32>();

/// Turns of a spin loop between two looks at the clock: some hundred nanoseconds, where a look costs
/// tens.
const TURNS: u32 = 16;

const BEAT_TRUSTED_NS: u64 = BEAT_TRUSTED_US * 1_000;
const SPIN_BEFORE_BLOCK_NS: u64 = SPIN_BEFORE_BLOCK_US as u64 * 1_000;

/// The line that the host writes of a CPU. Its atomics are the machine's, also under the model checker:
/// the memory is the kernel's. It may be mapped read only, so that nothing but relaxed loads is allowed.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub(crate) struct Line([AtomicU32; WORDS]);

const _: () = assert!(size_of::<Line>() == VIRTIO_ECS_LINE_SIZE);

impl Line {
    fn word(&self, at: usize) -> u32 {
        self.0
            .get(at)
            .map_or(0, |word| word.load(Ordering::Relaxed))
    }
}

/// What a thread remembers of its looks at the lines. Times are in ns, of a clock that does not go back.
#[derive(Debug)]
pub(crate) struct Listener {
    heart: Heart,
    /// The CPU whose heartbeat was looked at last.
    cpu: Cell<u32>,
    /// When the spin began that is under way.
    since: Cell<u64>,
}

impl Listener {
    pub(crate) const fn new() -> Self {
        Self {
            heart: Heart::new(),
            cpu: Cell::new(u32::MAX),
            since: Cell::new(0),
        }
    }

    /// Whether the words of a host mean something that writes to the line of `cpu`, the CPU this thread
    /// is on. `now` was read before this was called.
    pub(crate) fn hears_host(&self, lines: &[Line], cpu: u32, now: u64) -> bool {
        let beat = word(lines, cpu, HEARTBEAT);
        if self.cpu.replace(cpu) != cpu {
            self.heart.turns_to(beat, now);
        }
        self.heart.beats(beat, now, BEAT_TRUSTED_NS)
    }

    /// Whether this thread, on `cpu`, had better go on spinning than sleep: the host lives, the pCPU is
    /// free, the vCPU of the holder (its number plus one, 0: unknown) runs, and it has not spun for
    /// 100 us.
    pub(crate) fn keeps_spinning(
        &self,
        lines: &[Line],
        cpu: u32,
        holder: u32,
        spin: &Spin,
        clock: impl FnOnce() -> u64,
    ) -> bool {
        if spin.pauses.is_multiple_of(TURNS) {
            let now = clock();
            if spin.pauses == 0 {
                self.since.set(now);
            }
            // Also where it will not spin: who looks rarely believes nothing.
            if !self.hears_host(lines, cpu, now)
                || now.saturating_sub(self.since.get()) >= SPIN_BEFORE_BLOCK_NS
            {
                return false;
            }
        }
        // A holder that was on this very CPU does not run there now.
        let runs = |holder| holder != cpu && !is_preempted(lines, holder);
        !is_overloaded(lines, cpu) && holder.checked_sub(1).is_none_or(runs)
    }
}

fn word(lines: &[Line], cpu: u32, at: usize) -> u32 {
    let line = usize::try_from(cpu).ok().and_then(|cpu| lines.get(cpu));
    line.map_or(0, |line| line.word(at))
}

/// Whether the vCPU is off its pCPU although it had work, if its host lives.
pub(crate) fn is_preempted(lines: &[Line], cpu: u32) -> bool {
    word(lines, cpu, PREEMPTED) != 0
}

/// Whether the pCPU of this vCPU has more than one runnable task, if its host lives.
pub(crate) fn is_overloaded(lines: &[Line], cpu: u32) -> bool {
    word(lines, cpu, OVERLOADED) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::vec::Vec;

    const MS: u64 = 1_000_000;
    const US: u64 = 1_000;

    /// A host, a thread on one of its vCPUs, and the time.
    struct World {
        lines: Vec<Line>,
        listener: Listener,
        now: u64,
        beat: u32,
    }

    impl World {
        /// The host has been heard by a thread on CPU 0.
        fn new() -> Self {
            let mut world = Self {
                lines: (0..4).map(|_| Line::default()).collect(),
                listener: Listener::new(),
                now: 0,
                beat: 0,
            };
            world.beat();
            assert!(!world.hears(0), "a beat that was there before");
            world.now += 20 * MS;
            world.beat();
            assert!(world.hears(0));
            world
        }

        fn set(&self, cpu: usize, at: usize, value: u32) {
            self.lines[cpu].0[at].store(value, Ordering::Relaxed);
        }

        /// As a host does: all lines, each with a number of its own.
        fn beat(&mut self) {
            self.beat += 1;
            for cpu in 0..4 {
                self.set(cpu, HEARTBEAT, self.beat * 10 + u32::try_from(cpu).unwrap());
            }
        }

        fn hears(&self, cpu: u32) -> bool {
            self.listener.hears_host(&self.lines, cpu, self.now)
        }

        /// Whether a thread on `cpu` begins to spin.
        fn spins(&self, cpu: u32, holder: u32) -> bool {
            self.turn(cpu, holder, 0)
        }

        fn turn(&self, cpu: u32, holder: u32, pauses: u32) -> bool {
            let spin = Spin {
                pauses,
                ..Spin::default()
            };
            self.listener
                .keeps_spinning(&self.lines, cpu, holder, &spin, || self.now)
        }
    }

    /// CPU `n` as the holder of a lock.
    const fn held_by(cpu: u32) -> u32 {
        cpu + 1
    }

    #[test]
    fn it_spins_while_its_pcpu_is_free_and_the_holder_runs() {
        let world = World::new();
        assert!(world.spins(0, held_by(1)) && world.spins(0, 0));
        world.set(0, OVERLOADED, 1);
        assert!(!world.spins(0, held_by(1)) && !world.spins(0, 0));
        world.set(0, OVERLOADED, 0);
        world.set(1, OVERLOADED, 1);
        assert!(world.spins(0, held_by(1)), "the holder's pCPU is not ours");
        world.set(1, PREEMPTED, 1);
        assert!(!world.spins(0, held_by(1)));
        assert!(world.spins(0, held_by(2)) && world.spins(0, 0));
    }

    #[test]
    fn it_stops_in_the_midst_of_a_spin() {
        let world = World::new();
        assert!(world.spins(0, held_by(1)));
        assert!(world.turn(0, held_by(1), 1));
        world.set(1, PREEMPTED, 1);
        assert!(!world.turn(0, held_by(1), 2));
        world.set(1, PREEMPTED, 0);
        world.set(0, OVERLOADED, 1);
        assert!(!world.turn(0, held_by(1), 3));
    }

    #[test]
    fn a_holder_that_was_on_this_cpu_does_not_run() {
        let world = World::new();
        assert!(!world.spins(0, held_by(0)));
    }

    #[test]
    fn a_spin_ends_after_100_us_by_the_clock() {
        let mut world = World::new();
        assert!(world.spins(0, held_by(1)));
        world.now += 99 * US;
        assert!(world.turn(0, held_by(1), TURNS));
        world.now += US;
        assert!(world.turn(0, held_by(1), TURNS + 1), "no look at the clock");
        assert!(!world.turn(0, held_by(1), 2 * TURNS));
        assert!(world.spins(0, held_by(1)), "another spin");
    }

    #[test]
    fn a_host_that_falls_silent_is_believed_for_100_ms() {
        let mut world = World::new();
        // The beat it heard at 20 ms may have been written just after the look at 0.
        world.now = 100 * MS - 1;
        assert!(world.spins(0, 0));
        world.now += 1;
        assert!(!world.spins(0, 0));
        world.beat();
        assert!(world.spins(0, 0), "it beats again");
    }

    #[test]
    fn another_line_is_not_a_beat() {
        let mut world = World::new();
        // To and fro, after the host's last beat: each line has another number.
        for turn in 0..20 {
            world.now += 10 * MS;
            let heard = world.hears(turn % 2 + 1);
            assert_eq!(heard, world.now < 100 * MS, "{} ms", world.now / MS);
        }
    }

    #[test]
    fn a_line_that_is_cleared_is_no_beat() {
        let mut world = World::new();
        world.now = 90 * MS;
        world.set(0, HEARTBEAT, 0);
        assert!(world.hears(0), "within the 100 ms");
        world.now = 100 * MS;
        assert!(!world.hears(0));
    }

    #[test]
    fn a_cpu_without_a_line_has_no_host() {
        let mut world = World::new();
        assert!(world.spins(0, held_by(7)), "no word against that holder");
        world.now = 200 * MS;
        world.beat();
        assert!(!world.spins(7, held_by(1)));
        world.now += 20 * MS;
        world.beat();
        assert!(!world.spins(7, held_by(1)));
    }
}
