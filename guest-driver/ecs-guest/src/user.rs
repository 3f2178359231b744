//! Sections of a Linux process: the thread says to `/dev/virtio_ecs` that it holds a lock others wait for.
//!
//! The device belongs to the guest's driver, and is there if that was loaded with `user_sections=1`.
//! Without it, everything here works and tells the host nothing; [`available`] says why.
//!
//! A section costs two system calls, some hundred nanoseconds: worth it for locks that are held for
//! microseconds and that many threads want, and for no others.
//!
//! What the host says ([`is_vcpu_preempted`], [`is_pcpu_overloaded`]) is read from a page that the device
//! maps, without a system call. Waiters for a [`UserMutex`] go by it: they spin while the host lives, the
//! pCPU below them is free and the holder's vCPU runs, for 100 us at most, and sleep otherwise. Where other
//! threads want the same *guest* CPU a process cannot know: the bound is what such a spin can cost them.

use core::cell::Cell;
use core::marker::PhantomData;
use core::sync::atomic::AtomicU32;
use std::sync::OnceLock;
use std::thread_local;

use rustix::thread::{futex, sched_getcpu};
use rustix::time::{ClockId, clock_gettime};

use crate::blocking::{BlockingMutex, Halt};
use crate::device::Device;
use crate::hints::{self, Line, Listener};
use crate::raw::{CurrentHalt, CurrentVcpu, RawEcsMutex};
use crate::vcpu::{Annotate, Outer, Spin, Unannotated, WaitFor};

pub use crate::device::UserError;

/// Mutex of a process whose waiters spin while the host says that it is worth it, then sleep, and whose
/// holder is in a section.
pub type UserMutex<T> = lock_api::Mutex<RawEcsMutex<BlockingMutex, UserThread>, T>;

#[derive(Clone, Copy)]
struct Sections {
    /// Sections this thread is in.
    open: u32,
    /// Whether the device has taken note of the first of them.
    announced: bool,
}

thread_local! {
    static SECTIONS: Cell<Sections> = const { Cell::new(Sections { open: 0, announced: false }) };
    static LISTENER: Listener = const { Listener::new() };
    static SPINS: Cell<Spins> = const { Cell::new(Spins { paid: 0, wasted: 0 }) };
}

fn device() -> Result<&'static Device, &'static UserError> {
    static DEVICE: OnceLock<Result<Device, UserError>> = OnceLock::new();
    DEVICE.get_or_init(Device::open).as_ref()
}

/// Whether the sections of this process reach the guest's driver. Opens the device when it, or a
/// section, is asked for first; the process keeps what it found then.
///
/// # Errors
/// Why they do not.
pub fn available() -> Result<(), &'static UserError> {
    device().map(|_| ())
}

fn lines() -> Option<&'static [Line]> {
    device().ok()?.lines()
}

/// The CPU that this thread is on, at this instant.
fn current_cpu() -> u32 {
    u32::try_from(sched_getcpu()).unwrap_or(u32::MAX)
}

/// Nanoseconds, of a clock that does not go back.
fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |part: i64| u64::try_from(part).unwrap_or(0);
    part(now.tv_sec)
        .saturating_mul(1_000_000_000)
        .saturating_add(part(now.tv_nsec))
}

/// What a host that lives says, by `hint`. This thread believes it for 100 ms from its look before the
/// one that found another heartbeat: who asks rarely is told nothing.
fn told(hint: impl FnOnce(&[Line]) -> bool) -> bool {
    let Some(lines) = lines() else { return false };
    let now = now();
    LISTENER.with(|listener| listener.hears_host(lines, current_cpu(), now)) && hint(lines)
}

/// Host to guest: whether vCPU `cpu` is off its pCPU although it had work. `false` if unknown: no device,
/// no such CPU, or no sign of life of the host in the 100 ms before this thread asked last.
#[must_use]
pub fn is_vcpu_preempted(cpu: u32) -> bool {
    told(|lines| hints::is_preempted(lines, cpu))
}

/// Host to guest: whether the pCPU of vCPU `cpu` has more than one runnable task. `false` if unknown, as
/// with [`is_vcpu_preempted`].
#[must_use]
pub fn is_pcpu_overloaded(cpu: u32) -> bool {
    told(|lines| hints::is_overloaded(lines, cpu))
}

/// Spins of a thread for mutexes that it could have slept for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spins {
    /// Those that got the mutex.
    pub paid: u64,
    /// Those that ended asleep.
    pub wasted: u64,
}

/// The spins of this thread so far.
#[must_use]
pub fn spins() -> Spins {
    SPINS.get()
}

/// A section of this thread, until it is dropped.
#[derive(Debug)]
#[must_use = "the section ends when it is dropped"]
pub struct Section {
    announced: bool,
    /// It belongs to the thread.
    not_send: PhantomData<*const ()>,
}

impl Section {
    /// Begins a section. Sections of a thread nest; only the outermost costs system calls.
    pub fn enter() -> Self {
        Self {
            announced: raise(),
            not_send: PhantomData,
        }
    }

    /// Whether the driver took note of it. Not without the device, nor while this process has too many
    /// threads in sections.
    #[must_use]
    pub fn announced(&self) -> bool {
        self.announced
    }
}

impl Drop for Section {
    fn drop(&mut self) {
        lower();
    }
}

fn raise() -> bool {
    let mut sections = SECTIONS.get();
    if sections.open == 0 {
        sections.announced = device().is_ok_and(Device::enter);
    }
    sections.open = sections.open.saturating_add(1);
    SECTIONS.set(sections);
    sections.announced
}

fn lower() {
    let mut sections = SECTIONS.get();
    sections.open = sections.open.saturating_sub(1);
    if sections.open == 0
        && sections.announced
        && let Ok(device) = device()
    {
        device.leave();
        sections.announced = false;
    }
    SECTIONS.set(sections);
}

/// A thread of a process in the place of a vCPU: its sections go to the device, its waits nowhere. The
/// guest's scheduler knows those that sleep, and those that spin do so for 100 us.
#[derive(Debug, Clone, Copy)]
pub struct UserThread;

const QUIET: Unannotated = Unannotated {
    number: u32::MAX,
    polls: false,
};

impl Annotate for UserThread {
    /// The CPU it is on, as a hint: the guest may move the thread at any moment. Unknown where nobody
    /// could use it, without a device.
    fn number(&self) -> u32 {
        lines().map_or(QUIET.number, |_| current_cpu())
    }
    fn enter_non_preemptable(&self) {
        raise();
    }
    fn leave_non_preemptable(&self) {
        lower();
    }
    fn enter_preemptable(&self) {
        raise();
    }
    fn leave_preemptable(&self) {
        lower();
    }
    fn wait_enter(&self) -> Outer {
        QUIET.wait_enter()
    }
    fn wait_retry(&self) {}
    fn wait_spin(&self, _: &WaitFor<'_>) {}
    fn wait_block(&self, _: &WaitFor<'_>) {}
    fn wait_holder(&self, _: u32) {}
    fn wait_end(&self, _: Outer) {}
    fn spin(&self, spin: &mut Spin) -> bool {
        QUIET.spin(spin);
        spin.pauses = spin.pauses.saturating_add(1);
        // The holder is in the line that is looked at in any case, and nobody is told of it.
        true
    }
    fn keep_spinning(&self, spin: &Spin, holder: u32) -> bool {
        let Some(lines) = lines() else { return false };
        LISTENER.with(|listener| listener.keeps_spinning(lines, current_cpu(), holder, spin, now))
    }
    fn spun(&self, _: &Spin, paid: bool) {
        let mut spins = SPINS.get();
        spins.paid = spins.paid.wrapping_add(paid.into());
        spins.wasted = spins.wasted.wrapping_add((!paid).into());
        SPINS.set(spins);
    }
}

impl CurrentVcpu for UserThread {
    type Vcpu = Self;
    fn with<R>(call: impl FnOnce(&Self) -> R) -> R {
        call(&Self)
    }
}

/// Sleeps and wakes by futex, within the process.
#[derive(Debug, Clone, Copy)]
pub struct Futex;

impl Halt for Futex {
    fn halt(&self, word: &AtomicU32, expected: u32) {
        // Whatever ends the sleep (a wake-up, another value, a signal), the lock looks again.
        let _ = futex::wait(word, futex::Flags::PRIVATE, expected, None);
    }
    fn wake(&self, word: &AtomicU32, nr: u32) {
        // It fails for bad addresses only, and this one is a reference's.
        let _ = futex::wake(word, futex::Flags::PRIVATE, nr);
    }
}

impl CurrentHalt for UserThread {
    type Halt = Futex;
    fn halt() -> &'static Futex {
        &Futex
    }
}
