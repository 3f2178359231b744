//! Slice extension policy and fairness ledger.
#![no_std]
#![forbid(unsafe_code)]

mod snapshot;
pub use snapshot::{CsSnapshot, Wait};
