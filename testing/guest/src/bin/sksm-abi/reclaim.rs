//! Takes pages away until they are in swap space. Whoever shows that contents come back shows first that they were out.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use procfs::process::Process;
use sksm_guest::harness::patience::deadline;
use sksm_guest::machine::cgroup::Cgroup;
use sksm_guest::machine::system::vmstat;
use sksm_guest::memory::map::Map;
use sksm_guest::memory::pagemap::Pagemap;
use sksm_guest::memory::process::Child;
use sksm_guest::page::PAGE;

/// How many pages of the mapping are in swap space.
pub fn swapped(pagemap: &Pagemap, map: &Map) -> Result<usize> {
    pagemap.swapped(map.addr(), map.pages())
}

/// The same of this process.
pub fn swapped_here(map: &Map) -> Result<usize> {
    swapped(&Pagemap::own()?, map)
}

/// The same of a child.
pub fn swapped_there(child: &Child, map: &Map) -> Result<usize> {
    swapped(&child.pagemap()?, map)
}

/// Pages that were written to swap space since the start.
pub fn written() -> Result<u64> {
    vmstat("pswpout")
}

/// Pages of this process that are in swap space, by its own account.
pub fn account() -> Result<usize> {
    let kib = Process::myself()?.status()?.vmswap.context("no VmSwap")?;
    Ok(kib as usize * 1024 / PAGE)
}

/// Reclaims until none of these pages is present: all of their mappings are found.
pub fn all_out(group: &Cgroup, maps: &[(&Pagemap, &Map)]) -> Result<()> {
    let deadline = deadline();
    loop {
        group.reclaim(16 << 20)?;
        let mut present = 0;
        for (pagemap, map) in maps {
            present += map.pages() - swapped(pagemap, map)?;
        }
        if present == 0 {
            return Ok(());
        }
        // One attempt may give up at pages that are busy just then.
        ensure!(
            Instant::now() < deadline,
            "{present} mappings cannot be reclaimed"
        );
    }
}

/// The same, of one mapping of this process.
pub fn all_out_here(group: &Cgroup, map: &Map) -> Result<()> {
    all_out(group, &[(&Pagemap::own()?, map)])
}

/// Reclaims until none of these pages is present, whether it is in swap space or was dropped.
pub fn all_gone(group: &Cgroup, pagemap: &Pagemap, map: &Map) -> Result<()> {
    let deadline = deadline();
    loop {
        let entries = pagemap.entries(map.addr(), map.pages())?;
        if entries.iter().all(|entry| !entry.present()) {
            return Ok(());
        }
        group.reclaim(16 << 20)?;
        ensure!(Instant::now() < deadline, "pages cannot be reclaimed");
    }
}
