//! `top` for VMs: who gets how much CPU, who waits, and what extensions do about it.
//!
//! # Approach
//! [`App`] is a state that keys and frames change, and [`App::draw`] shows it; neither reads a
//! clock or a terminal. [`run`] joins them with a terminal and a thread that looks at the sources.
//! [`batch`] writes the same table as text.

mod app;
mod batch;
mod draw;
mod help;
mod terminal;

pub use app::{App, Setup};
pub use batch::batch;
pub use terminal::{TopError, run};

/// A name with everything that a terminal could take for a command made visible.
fn printable(name: &str) -> String {
    let visible = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    name.chars().map(visible).collect()
}
