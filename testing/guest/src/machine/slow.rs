//! Kernels in which everything takes ten times as long.

use std::fs;

use anyhow::Result;

/// Whether this is a kernel that checks every access and lock.
pub fn checks_everything() -> Result<bool> {
    Ok(fs::exists("/proc/lockdep")?)
}

/// So many, or a quarter of them in such a kernel: for counts that are many times what the test needs.
pub fn quarter_where_slow(count: usize) -> Result<usize> {
    Ok(if checks_everything()? {
        count / 4
    } else {
        count
    })
}
