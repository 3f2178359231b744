//! Counters of one device.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$meta:meta])* $name:ident),* $(,)?) => {
        /// What one device counted since it was bound.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct DeviceCounters {
            $($(#[$meta])* pub $name: u64,)*
        }

        /// The live counters behind [`DeviceCounters`].
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl Counters {
            pub(crate) fn read(&self) -> DeviceCounters {
                DeviceCounters { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Front-ends that connected and spoke.
    connections,
    /// Connections closed at once because another front-end was served.
    refused_connections,
    /// Connections dropped in the middle of a message.
    stalled_connections,
    /// Connections dropped for a message that breaks the protocol.
    protocol_errors,
    /// Requests of a front-end answered with an error.
    refused_requests,
    /// Things a guest wrote that make no sense: rings, descriptors, buffers.
    guest_faults,
    /// Control messages answered with a status other than OK.
    refused_messages,
    /// Registrations dropped because guest memory changed under them.
    dropped_registrations,
    /// Events that found no buffer and no room to wait.
    dropped_events,
    /// Times the saved state could not be written, read or understood.
    state_errors,
}

/// Adds to a counter.
pub(crate) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
