//! A mutex with priority inheritance.
//!
//! Agents run in a real-time class and share state with ordinary threads. If an ordinary thread
//! were preempted inside a plain mutex by a vCPU that an agent must move away, the agent would wait
//! for it, and it for the agent. Priority inheritance lets the owner run at the waiter's priority.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;

/// Attempts before a thread sleeps, some 10 us: agents look at the same moments, hold the lock for a
/// few microseconds, and to sleep and be woken costs more than that.
const SPINS: u32 = 400;

/// Mutual exclusion over `T`, with priority inheritance and without poisoning.
pub(crate) struct PiMutex<T> {
    raw: Pin<Box<UnsafeCell<libc::pthread_mutex_t>>>,
    value: UnsafeCell<T>,
}

// SAFETY: the raw mutex lets one thread at a time reach `value`; `T: Send` lets it be any thread.
unsafe impl<T: Send> Send for PiMutex<T> {}
// SAFETY: as above; shared references give access to `value` only through the lock.
unsafe impl<T: Send> Sync for PiMutex<T> {}

impl<T> PiMutex<T> {
    pub(crate) fn new(value: T) -> Self {
        let raw = Box::pin(UnsafeCell::new(libc::PTHREAD_MUTEX_INITIALIZER));
        let mut attr = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        // SAFETY: `attr` is initialised before it is used and destroyed after; the mutex is pinned,
        // not locked, and not yet shared, so it may be initialised again.
        unsafe {
            libc::pthread_mutexattr_init(attr.as_mut_ptr());
            libc::pthread_mutexattr_setprotocol(attr.as_mut_ptr(), libc::PTHREAD_PRIO_INHERIT);
            libc::pthread_mutex_init(raw.get(), attr.as_ptr());
            libc::pthread_mutexattr_destroy(attr.as_mut_ptr());
        }
        Self {
            raw,
            value: UnsafeCell::new(value),
        }
    }

    pub(crate) fn lock(&self) -> PiGuard<'_, T> {
        for _ in 0..SPINS {
            // SAFETY: as for the lock below.
            if unsafe { libc::pthread_mutex_trylock(self.raw.get()) } == 0 {
                return PiGuard { mutex: self };
            }
            std::hint::spin_loop();
        }
        // SAFETY: the mutex is initialised and pinned for as long as `self` lives. The default type
        // does not detect relocking; no code path of this crate locks twice.
        let rc = unsafe { libc::pthread_mutex_lock(self.raw.get()) };
        assert_eq!(rc, 0, "pthread_mutex_lock cannot fail on a valid mutex");
        PiGuard { mutex: self }
    }
}

impl<T> Drop for PiMutex<T> {
    fn drop(&mut self) {
        // SAFETY: `&mut self` shows that no guard is alive, so the mutex is not locked.
        unsafe { libc::pthread_mutex_destroy(self.raw.get()) };
    }
}

/// Access to the value; dropping it unlocks.
pub(crate) struct PiGuard<'a, T> {
    mutex: &'a PiMutex<T>,
}

impl<T> Deref for PiGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard holds the lock.
        unsafe { &*self.mutex.value.get() }
    }
}

impl<T> DerefMut for PiGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the lock and is borrowed mutably.
        unsafe { &mut *self.mutex.value.get() }
    }
}

impl<T> Drop for PiGuard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: the guard's existence shows that this thread holds the lock.
        unsafe { libc::pthread_mutex_unlock(self.mutex.raw.get()) };
    }
}
