//! The engine's source under a checker. See `README.md`.

// What the engine calls `kernel`.
extern crate self as kernel;

mod check;
mod engine;
mod linux;
mod lock;
mod mistakes;
mod mm;
mod planted;
mod scenario;
mod swap;
mod world;

pub(crate) use linux::{alloc, atomic, bindings, cell, error, ffi, page, prelude, sync, types};

pub use mistakes::MISTAKES;
pub use planted::Planted;
pub use scenario::{scenario, Scenario, SCENARIOS};
