//! Kernels in which everything takes ten times as long.

use std::fs;

use anyhow::Result;

/// Whether this is a kernel that checks every access and lock.
pub fn checks_everything() -> Result<bool> {
    Ok(fs::exists("/proc/lockdep")?)
}

/// Whether this is a kernel that looks for data races.
fn looks_for_races() -> Result<bool> {
    Ok(fs::exists("/sys/kernel/debug/kcsan")?)
}

/// So many, or a quarter of them in a kernel of either kind: for counts that are many times what the test needs.
pub fn quarter_where_slow(count: usize) -> Result<usize> {
    Ok(if checks_everything()? || looks_for_races()? {
        count / 4
    } else {
        count
    })
}
