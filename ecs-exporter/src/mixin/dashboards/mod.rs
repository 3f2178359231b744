//! The dashboards. They link to each other, from all hosts down to one VM.

mod fleet;
mod host;
mod vm;

pub(super) use fleet::fleet;
pub(super) use host::host;
pub(super) use vm::vm;

/// Colour of a value that deserves a look.
const ORANGE: &str = "orange";
/// Colour of a value that needs somebody.
const RED: &str = "red";
