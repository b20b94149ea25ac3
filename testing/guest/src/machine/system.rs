//! What the kernel says of itself and its memory.

use anyhow::{Context, Result};
use procfs::{Current, Meminfo};

const MIB: u64 = 1 << 20;

pub fn kernel() -> Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("osrelease")?;
    Ok(text.trim().to_owned())
}

/// The processor, as it calls itself: emulators and User-Mode Linux tell.
pub fn processor() -> Result<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").context("cannot read /proc/cpuinfo")?;
    let value = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    Ok(value("model name")
        .or(value("vendor_id"))
        .unwrap_or_else(|| "unknown".to_owned()))
}

/// Anonymous pages that are mapped, in the whole system.
pub fn nr_anon_pages() -> Result<u64> {
    // Each CPU counts for itself; this makes them add it up. A kernel with one CPU has no need, and no such file.
    std::fs::write("/proc/sys/vm/stat_refresh", "1").ok();
    vmstat("nr_anon_pages")
}

/// A counter of the whole system.
pub fn vmstat(name: &str) -> Result<u64> {
    let counters = procfs::vmstat().context("cannot read /proc/vmstat")?;
    let value = counters
        .get(name)
        .with_context(|| format!("/proc/vmstat has no {name}"))?;
    Ok(u64::try_from(*value)?)
}

pub fn memory_mib() -> Result<u64> {
    Ok(Meminfo::current()
        .context("cannot read /proc/meminfo")?
        .mem_total
        / MIB)
}

pub fn memory_available_mib() -> Result<u64> {
    let memory = Meminfo::current().context("cannot read /proc/meminfo")?;
    Ok(memory.mem_available.unwrap_or(memory.mem_free) / MIB)
}

/// Makes this program's own memory the same before and after its measurements: whatever is large is mapped for itself, and
/// unmapped when it is freed.
pub fn give_freed_memory_back() {
    // SAFETY: sets a number in the allocator.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 64 << 10) };
}
