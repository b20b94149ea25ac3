//! What people get to see: lines, progress, tables and pictures; and the terminal itself.

// First, as its macros are for all the others.
#[macro_use]
pub mod say;

pub mod format;
pub mod progress;
pub mod table;
pub mod tty;
