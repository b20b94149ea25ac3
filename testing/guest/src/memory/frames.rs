//! The physical pages behind what `sksm merge` takes of processes.

use std::collections::BTreeSet;

use anyhow::Result;
use sksm::{Kind, Process};

use super::pagemap::{Flags, Pagemap};
use crate::page::PAGE;

/// Those of anonymous memory, by their frame numbers; without the zero page. Needs root.
pub fn of(pids: impl IntoIterator<Item = u32>) -> Result<BTreeSet<u64>> {
    let mut frames = BTreeSet::new();
    for pid in pids {
        let pagemap = Pagemap::of(pid as i32)?;
        for mapping in Process::open(pid)?.mappings()? {
            if !matches!(mapping.kind, Kind::Text | Kind::Data | Kind::Heap) {
                continue;
            }
            let pages = mapping.region.len / PAGE;
            for entry in pagemap.entries(mapping.region.start, pages)? {
                let Some(pfn) = entry.pfn().filter(|_| !entry.file_or_shared()) else {
                    continue;
                };
                if !frames.contains(&pfn) && !Flags::of(pfn)?.zero_page() {
                    frames.insert(pfn);
                }
            }
        }
    }
    Ok(frames)
}
