//! How long tests wait for what comes.

use std::time::{Duration, Instant};

/// Longer than anything takes that comes at all, on a machine with much other work and under emulation: whatever is not there by
/// then hangs.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// When a wait that begins now has failed.
pub fn deadline() -> Instant {
    Instant::now() + PATIENCE
}
