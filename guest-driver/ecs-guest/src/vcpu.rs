//! The handle of one vCPU on its lines: the six calls, waits, and the hand-back of the pCPU.

use core::cell::Cell;

use ecs_abi::{
    VIRTIO_ECS_WAIT_BLOCK, VIRTIO_ECS_WAIT_ENTER, VIRTIO_ECS_WAIT_NONE, VIRTIO_ECS_WAIT_SPIN,
    VIRTIO_ECS_WIDTH_32, VIRTIO_ECS_YIELD_BLOCK, VIRTIO_ECS_YIELD_HOPELESS,
    VIRTIO_ECS_YIELD_RELEASE,
};

use crate::atomic::{AtomicU32, Ordering, pause};
use crate::line::{GuestLine, VcpuLines, lower, raise};

/// Time of spinning before a hopeless waiter hands its pCPU back, us.
const HOPELESS_AFTER_US: u32 = 2;
/// Time between two hand-backs of the same wait, us.
const HOPELESS_AGAIN_US: u32 = 20;
/// Rings without a change of the host's heartbeat after which the host counts as gone. A live host
/// changes it every 50 ms, in which a vCPU rings once every 5 us at most.
const MAX_RINGS_PER_BEAT: u32 = 10_000;
/// Longest spin for a lock that can also be waited for asleep, us: bounds what a stale hint costs.
pub(crate) const SPIN_BEFORE_BLOCK_US: u32 = 100;
/// Longest time that hints are trusted after the host wrote its heartbeat last, us.
pub(crate) const BEAT_TRUSTED_US: u64 = 100_000;

/// What a vCPU does that waits for a lock it could also wait for asleep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Waiters {
    /// It sleeps at once.
    Halt,
    /// It spins while the host is alive, this pCPU is not overloaded and the holder runs, for
    /// 100 us at most; then it sleeps.
    #[default]
    Wise,
    /// It spins until it has the lock, whoever else wants the pCPU.
    Poll,
}

/// Time as a guest can read it.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Ticks since some moment; must not go back.
    pub ticks: fn() -> u64,
    /// Ticks in a microsecond.
    pub per_us: u64,
}

/// How this guest rings the doorbell queue of a vCPU.
pub trait Doorbell {
    /// Rings; the host may take the vCPU off its pCPU before this returns.
    fn ring(&self);
}

impl<T: Doorbell + ?Sized> Doorbell for &T {
    fn ring(&self) {
        (**self).ring();
    }
}

/// How this guest turns an address of its own into a guest-physical one.
pub trait AddressMap {
    /// Guest-physical address of the byte at `addr`.
    fn gpa(&self, addr: usize) -> u64;
}

/// A linear mapping: guest-physical is virtual plus a constant, modulo 2^64.
#[derive(Debug, Clone, Copy)]
pub struct OffsetMap(pub u64);

impl AddressMap for OffsetMap {
    fn gpa(&self, addr: usize) -> u64 {
        (addr as u64).wrapping_add(self.0)
    }
}

/// What a vCPU waits for: `*word & mask == value`.
#[derive(Debug, Clone, Copy)]
pub struct WaitFor<'w> {
    /// The awaited word.
    pub word: &'w AtomicU32,
    /// Bits that count.
    pub mask: u32,
    /// Value of those bits that ends the wait.
    pub value: u32,
    /// vCPU that holds the lock, plus one; 0: unknown.
    pub holder: u32,
}

impl WaitFor<'_> {
    /// Whether the wait has ended; acquires what the other side released.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.word.load(Ordering::Acquire) & self.mask == self.value
    }

    /// Announces the wait and spins until it has ended. `holder` is where the lock says who holds it
    /// (vCPU plus one, a hint).
    pub(crate) fn spin_out<A: Annotate>(mut self, vcpu: &A, holder: &AtomicU32) {
        self.holder = holder.load(Ordering::Relaxed);
        vcpu.wait_spin(&self);
        let mut spin = Spin::default();
        while !self.ended() {
            if vcpu.spin(&mut spin) {
                vcpu.wait_holder(holder.load(Ordering::Relaxed));
            }
        }
    }
}

/// The wait that was on when another one began, as in an interrupt that takes a lock while the
/// interrupted code spins for one.
#[derive(Debug, Default)]
#[must_use = "end the wait with it"]
pub struct Outer(Option<SavedWait>);

#[derive(Debug)]
struct SavedWait {
    waiting: u32,
    addr: u64,
    mask: u64,
    value: u64,
    holder: u32,
    width: u32,
}

/// Progress of one spin loop.
#[derive(Debug, Default)]
pub struct Spin {
    pub(crate) pauses: u32,
    pub(crate) next_ring: u32,
}

/// What a lock tells the host. Implemented by [`Vcpu`], and by [`Unannotated`], which tells nothing.
pub trait Annotate {
    /// This vCPU's number.
    fn number(&self) -> u32;
    /// A section begins that the guest itself cannot preempt.
    fn enter_non_preemptable(&self);
    /// The last such section ends; hands the pCPU back if the host asked for it.
    fn leave_non_preemptable(&self);
    /// A section begins whose holder the guest may schedule out.
    fn enter_preemptable(&self);
    /// The last such section ends; hands the pCPU back if the host asked for it.
    fn leave_preemptable(&self);
    /// Call before a place in a lock's queue is taken.
    fn wait_enter(&self) -> Outer;
    /// Call again, inside a wait that seems to have ended, before the lock is tried once more.
    fn wait_retry(&self);
    /// The lock is not free: this vCPU spins.
    fn wait_spin(&self, wait: &WaitFor<'_>);
    /// The lock is not free: this vCPU is about to halt. Gives its pCPU to another one first, if the
    /// host asked for it.
    fn wait_block(&self, wait: &WaitFor<'_>);
    /// The lock has a new holder (vCPU plus one, 0: unknown).
    fn wait_holder(&self, holder: u32);
    /// The wait is over, and the section that follows is counted already.
    fn wait_end(&self, outer: Outer);
    /// One turn of a spin loop. Returns `true` about once every 2 us, for slow checks.
    fn spin(&self, spin: &mut Spin) -> bool;
    /// Whether spinning for a lock held by `holder` (vCPU plus one, 0: unknown) beats sleeping.
    fn keep_spinning(&self, spin: &Spin, holder: u32) -> bool;
    /// A spin in place of sleeping is over; `paid`: the lock was taken.
    fn spun(&self, spin: &Spin, paid: bool);
}

/// A vCPU that tells the host nothing: the same locks, without eCS.
#[derive(Debug, Clone, Copy)]
pub struct Unannotated {
    /// This vCPU's number.
    pub number: u32,
    /// Whether it spins for locks it could wait for asleep: [`Waiters::Poll`], or [`Waiters::Halt`].
    pub polls: bool,
}

impl Annotate for Unannotated {
    fn number(&self) -> u32 {
        self.number
    }
    fn enter_non_preemptable(&self) {}
    fn leave_non_preemptable(&self) {}
    fn enter_preemptable(&self) {}
    fn leave_preemptable(&self) {}
    fn wait_enter(&self) -> Outer {
        Outer(None)
    }
    fn wait_retry(&self) {}
    fn wait_spin(&self, _: &WaitFor<'_>) {}
    fn wait_block(&self, _: &WaitFor<'_>) {}
    fn wait_holder(&self, _: u32) {}
    fn wait_end(&self, _: Outer) {}
    fn spin(&self, _: &mut Spin) -> bool {
        pause();
        false
    }
    fn keep_spinning(&self, _: &Spin, _: u32) -> bool {
        self.polls
    }
    fn spun(&self, _: &Spin, _: bool) {}
}

/// One vCPU's handle on its lines. Only that vCPU may use it: it is the single writer.
#[derive(Debug)]
pub struct Vcpu<'a, D, M> {
    number: u32,
    own: &'a VcpuLines,
    all: &'a [VcpuLines],
    doorbell: D,
    map: M,
    pauses_per_us: u32,
    last_beat: Cell<u32>,
    rings_in_beat: Cell<u32>,
    waiters: Waiters,
    clock: Option<Clock>,
    heart: Heart,
    /// Turns of spin loops that make no whole microsecond yet.
    polled_pauses: Cell<u32>,
}

/// What this vCPU knows of the host's heartbeat: a beat that differs from the one seen before was
/// written after that look.
#[derive(Debug, Default)]
pub(crate) struct Heart {
    beat: Cell<u32>,
    looked: Cell<u64>,
    trusted_until: Cell<u64>,
}

impl Heart {
    #[cfg(feature = "user")]
    pub(crate) const fn new() -> Self {
        Self {
            beat: Cell::new(0),
            looked: Cell::new(0),
            trusted_until: Cell::new(0),
        }
    }

    /// Whether a beat was certainly written less than `limit` ticks ago. `now` is from before `beat` was
    /// read, which may be newer then but never older.
    pub(crate) fn beats(&self, beat: u32, now: u64, limit: u64) -> bool {
        // Zero is no beat: this guest itself clears lines.
        if beat != self.beat.get() && beat != 0 {
            let until = self.looked.get().saturating_add(limit);
            self.trusted_until.set(until);
        }
        self.beat.set(beat);
        self.looked.set(now);
        now < self.trusted_until.get()
    }

    /// The looks that follow are at another line, which has `beat` now: that it differs says nothing.
    #[cfg(feature = "user")]
    pub(crate) fn turns_to(&self, beat: u32, now: u64) {
        self.beat.set(beat);
        self.looked.set(now);
    }
}

impl<'a, D: Doorbell, M: AddressMap> Vcpu<'a, D, M> {
    /// Handle of vCPU `number` on the lines of all vCPUs; `None` without a line of that number.
    /// `pauses_per_us` is how many turns of a spin loop take a microsecond.
    pub fn new(
        number: u32,
        all: &'a [VcpuLines],
        doorbell: D,
        map: M,
        pauses_per_us: u32,
    ) -> Option<Self> {
        let own = all.get(usize::try_from(number).ok()?)?;
        Some(Self {
            number,
            own,
            all,
            doorbell,
            map,
            pauses_per_us: pauses_per_us.clamp(1, 1 << 20),
            last_beat: Cell::new(0),
            rings_in_beat: Cell::new(0),
            waiters: Waiters::default(),
            clock: None,
            heart: Heart::default(),
            polled_pauses: Cell::new(0),
        })
    }

    /// The same, with another way to wait for locks that can be waited for asleep.
    #[must_use]
    pub fn with_waiters(mut self, waiters: Waiters) -> Self {
        self.waiters = waiters;
        self
    }

    /// The same, with a clock: hints of a host that is gone are trusted for 100 ms. Without a clock
    /// they are trusted for ever, and cost 100 us a wait.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = (clock.per_us > 0).then_some(clock);
        self
    }

    /// Guest to host: a section begins that the guest itself cannot preempt.
    pub fn activate_non_preemptable_ecs(&self) {
        raise(&self.own.guest.np_count);
    }

    /// Guest to host: such a section ended. Call after the unlock.
    pub fn deactivate_non_preemptable_ecs(&self) {
        if lower(&self.own.guest.np_count) == 0 {
            self.left_section(&self.own.guest.p_count);
        }
    }

    /// Guest to host: the current task enters a section the guest may schedule it out of.
    pub fn activate_preemptable_ecs(&self) {
        raise(&self.own.guest.p_count);
    }

    /// Guest to host: the current task left such a section. Call after the unlock.
    pub fn deactivate_preemptable_ecs(&self) {
        if lower(&self.own.guest.p_count) == 0 {
            self.left_section(&self.own.guest.np_count);
        }
    }

    /// Host to guest: whether vCPU `cpu` is off its pCPU although it had work. `false` if unknown.
    #[must_use]
    pub fn is_vcpu_preempted(&self, cpu: u32) -> bool {
        self.lines(cpu)
            .is_some_and(|lines| lines.host.preempted.load(Ordering::Relaxed) != 0)
    }

    /// Host to guest: whether the pCPU of vCPU `cpu` has more than one runnable task. `false` if
    /// unknown.
    #[must_use]
    pub fn is_pcpu_overloaded(&self, cpu: u32) -> bool {
        self.lines(cpu)
            .is_some_and(|lines| lines.host.overloaded.load(Ordering::Relaxed) != 0)
    }

    /// Whether a host has written hints into this vCPU's line.
    #[must_use]
    pub fn has_host(&self) -> bool {
        self.own.host.heartbeat.load(Ordering::Relaxed) != 0
    }

    /// Says whether the guest's idle task runs on this vCPU.
    pub fn set_idle(&self, idle: bool) {
        self.own
            .guest
            .idle
            .store(u32::from(idle), Ordering::Release);
    }

    /// The guest switches tasks on this vCPU: takes the preemptable sections of the task that
    /// leaves, and puts those of the task that comes, in sections, in their place.
    pub fn switch_task(&self, next: u32) -> u32 {
        let previous = self.own.guest.p_count.load(Ordering::Relaxed);
        self.own.guest.p_count.store(next, Ordering::Release);
        previous
    }

    /// Whether the host's words mean something now.
    fn is_host_alive(&self) -> bool {
        let beat = || self.own.host.heartbeat.load(Ordering::Relaxed);
        match self.clock {
            None => beat() != 0,
            Some(clock) => {
                let limit = clock.per_us.saturating_mul(BEAT_TRUSTED_US);
                let now = (clock.ticks)();
                self.heart.beats(beat(), now, limit)
            }
        }
    }

    fn lines(&self, cpu: u32) -> Option<&VcpuLines> {
        self.all.get(usize::try_from(cpu).ok()?)
    }

    fn left_section(&self, other: &AtomicU32) {
        if self.own.host.r#yield.load(Ordering::Relaxed) & VIRTIO_ECS_YIELD_RELEASE != 0
            && other.load(Ordering::Relaxed) == 0
        {
            self.hand_back();
        }
    }

    #[cold]
    fn hand_back(&self) {
        let beat = self.own.host.heartbeat.load(Ordering::Relaxed);
        let rings = if beat == self.last_beat.get() {
            self.rings_in_beat.get()
        } else {
            0
        };
        if rings >= MAX_RINGS_PER_BEAT {
            return;
        }
        self.last_beat.set(beat);
        self.rings_in_beat.set(rings + 1);
        let handback = &self.own.guest.handback;
        handback.store(
            handback.load(Ordering::Relaxed).wrapping_add(1),
            Ordering::Release,
        );
        self.doorbell.ring();
    }

    fn describe(&self, wait: &WaitFor<'_>, waiting: u32) {
        let line = &self.own.guest;
        let addr = core::ptr::from_ref(wait.word).addr();
        line.wait_addr.store(self.map.gpa(addr), Ordering::Relaxed);
        line.wait_mask
            .store(u64::from(wait.mask), Ordering::Relaxed);
        line.wait_value
            .store(u64::from(wait.value), Ordering::Relaxed);
        line.wait_holder.store(wait.holder, Ordering::Relaxed);
        line.wait_width
            .store(VIRTIO_ECS_WIDTH_32, Ordering::Relaxed);
        line.waiting.store(waiting, Ordering::Release);
    }
}

/// Adds to a word that only this vCPU writes.
fn add(word: &AtomicU32, more: u32) {
    word.store(
        word.load(Ordering::Relaxed).wrapping_add(more),
        Ordering::Relaxed,
    );
}

impl SavedWait {
    #[cold]
    fn take(line: &GuestLine, waiting: u32) -> Self {
        Self {
            waiting,
            addr: line.wait_addr.load(Ordering::Relaxed),
            mask: line.wait_mask.load(Ordering::Relaxed),
            value: line.wait_value.load(Ordering::Relaxed),
            holder: line.wait_holder.load(Ordering::Relaxed),
            width: line.wait_width.load(Ordering::Relaxed),
        }
    }

    #[cold]
    fn put_back(&self, line: &GuestLine) {
        line.waiting.store(VIRTIO_ECS_WAIT_ENTER, Ordering::Release);
        line.wait_addr.store(self.addr, Ordering::Relaxed);
        line.wait_mask.store(self.mask, Ordering::Relaxed);
        line.wait_value.store(self.value, Ordering::Relaxed);
        line.wait_holder.store(self.holder, Ordering::Relaxed);
        line.wait_width.store(self.width, Ordering::Relaxed);
        line.waiting.store(self.waiting, Ordering::Release);
    }
}

impl<D: Doorbell, M: AddressMap> Annotate for Vcpu<'_, D, M> {
    fn number(&self) -> u32 {
        self.number
    }

    fn enter_non_preemptable(&self) {
        self.activate_non_preemptable_ecs();
    }

    fn leave_non_preemptable(&self) {
        self.deactivate_non_preemptable_ecs();
    }

    fn enter_preemptable(&self) {
        self.activate_preemptable_ecs();
    }

    fn leave_preemptable(&self) {
        self.deactivate_preemptable_ecs();
    }

    fn wait_enter(&self) -> Outer {
        let line = &self.own.guest;
        let waiting = line.waiting.load(Ordering::Relaxed);
        let outer = (waiting != VIRTIO_ECS_WAIT_NONE).then(|| SavedWait::take(line, waiting));
        self.wait_retry();
        Outer(outer)
    }

    fn wait_retry(&self) {
        self.own
            .guest
            .waiting
            .store(VIRTIO_ECS_WAIT_ENTER, Ordering::Release);
    }

    fn wait_spin(&self, wait: &WaitFor<'_>) {
        self.describe(wait, VIRTIO_ECS_WAIT_SPIN);
    }

    fn wait_block(&self, wait: &WaitFor<'_>) {
        self.describe(wait, VIRTIO_ECS_WAIT_BLOCK);
        if self.own.host.r#yield.load(Ordering::Relaxed) & VIRTIO_ECS_YIELD_BLOCK != 0 {
            self.hand_back();
        }
    }

    fn wait_holder(&self, holder: u32) {
        self.own.guest.wait_holder.store(holder, Ordering::Release);
    }

    fn wait_end(&self, outer: Outer) {
        let line = &self.own.guest;
        match outer.0 {
            None => line.waiting.store(VIRTIO_ECS_WAIT_NONE, Ordering::Release),
            Some(saved) => saved.put_back(line),
        }
    }

    fn spin(&self, spin: &mut Spin) -> bool {
        pause();
        spin.pauses = spin.pauses.saturating_add(1);
        let after = HOPELESS_AFTER_US * self.pauses_per_us;
        if spin.pauses < spin.next_ring.max(after) {
            return spin.pauses.is_multiple_of(after);
        }
        if self.own.host.r#yield.load(Ordering::Relaxed) & VIRTIO_ECS_YIELD_HOPELESS != 0 {
            spin.next_ring = spin
                .pauses
                .saturating_add(HOPELESS_AGAIN_US * self.pauses_per_us);
            self.hand_back();
        }
        spin.pauses.is_multiple_of(after)
    }

    fn keep_spinning(&self, spin: &Spin, holder: u32) -> bool {
        match self.waiters {
            Waiters::Halt => false,
            Waiters::Poll => true,
            Waiters::Wise => {
                spin.pauses < SPIN_BEFORE_BLOCK_US * self.pauses_per_us
                    && self.is_host_alive()
                    && !self.is_pcpu_overloaded(self.number)
                    && !holder
                        .checked_sub(1)
                        .is_some_and(|cpu| self.is_vcpu_preempted(cpu))
            }
        }
    }

    fn spun(&self, spin: &Spin, paid: bool) {
        let line = &self.own.guest;
        let pauses = self.polled_pauses.get().saturating_add(spin.pauses);
        self.polled_pauses.set(pauses % self.pauses_per_us);
        add(&line.poll_us, pauses / self.pauses_per_us);
        add(
            if paid {
                &line.polls_paid
            } else {
                &line.polls_wasted
            },
            1,
        );
    }
}
