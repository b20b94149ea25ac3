//! What the rest of a busy system does to memory: reclaim and compaction.

use std::fs;
use std::time::Duration;

use anyhow::Result;

use crate::shared::Shared;

/// Between two disturbances: often enough to hit every state, rarely enough that work goes on on one CPU.
const PAUSE: Duration = Duration::from_millis(50);

/// Goes on until the time is over or something differs.
pub fn keep_up(shared: &Shared) -> Result<()> {
    for round in 0u64.. {
        if !shared.running() {
            break;
        }
        // Both are attempts: that there was nothing to reclaim or to compact is no error of the memory that is compared.
        fs::write("/sys/fs/cgroup/memory.reclaim", "1M").ok();
        if round % 8 == 0 {
            fs::write("/proc/sys/vm/compact_memory", "1").ok();
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
