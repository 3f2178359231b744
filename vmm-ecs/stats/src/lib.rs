//! Versioned statistics snapshot of `vmm-ecs`, and the Unix socket it travels over.
#![forbid(unsafe_code)]

mod snapshot;
pub use snapshot::*;
