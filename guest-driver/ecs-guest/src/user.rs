//! Sections of a Linux process: the thread says to `/dev/virtio_ecs` that it holds a lock others wait for.
//!
//! The device belongs to the guest's driver, and is there if that was loaded with `user_sections=1`.
//! Without it, everything here works and tells the host nothing; [`available`] says why.
//!
//! A section costs two system calls, some hundred nanoseconds: worth it for locks that are held for
//! microseconds and that many threads want, and for no others.

use core::cell::Cell;
use core::marker::PhantomData;
use core::sync::atomic::AtomicU32;
use std::sync::OnceLock;
use std::thread_local;

use rustix::thread::futex;

use crate::blocking::{BlockingMutex, Halt};
use crate::device::Device;
use crate::raw::{CurrentHalt, CurrentVcpu, RawEcsMutex};
use crate::vcpu::{Annotate, Outer, Spin, Unannotated, WaitFor};

pub use crate::device::UserError;

/// Mutex of a process whose waiters sleep, and whose holder is in a section.
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

/// A thread of a process in the place of a vCPU: its sections go to the device, its waits nowhere,
/// since waiters sleep and the guest's scheduler knows them.
#[derive(Debug, Clone, Copy)]
pub struct UserThread;

const QUIET: Unannotated = Unannotated {
    number: u32::MAX,
    polls: false,
};

impl Annotate for UserThread {
    /// Unknown: the guest may move the thread at any moment.
    fn number(&self) -> u32 {
        QUIET.number
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
        QUIET.spin(spin)
    }
    fn keep_spinning(&self, _: &Spin, _: u32) -> bool {
        false
    }
    fn spun(&self, _: &Spin, _: bool) {}
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
