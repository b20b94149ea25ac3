//! Settings of the whole system that tests change, and how they come back, also after a test that crashed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::machine::{blocks, swap};

const FILES: &[&str] = &[
    "/sys/kernel/mm/sksm/domain",
    "/sys/kernel/mm/sksm/max_page_sharing",
    "/sys/kernel/mm/sksm/merge_across_nodes",
    "/sys/kernel/mm/ksm/run",
    "/sys/kernel/mm/ksm/pages_to_scan",
    "/sys/kernel/mm/ksm/sleep_millisecs",
    "/sys/kernel/mm/ksm/use_zero_pages",
    "/sys/kernel/mm/ksm/smart_scan",
    "/sys/kernel/mm/transparent_hugepage/enabled",
    "/sys/kernel/mm/transparent_hugepage/hugepages-64kB/enabled",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/alloc_sleep_millisecs",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/defrag",
    "/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs",
    "/proc/sys/vm/nr_hugepages",
    "/sys/module/zswap/parameters/enabled",
    "/sys/kernel/slab/kmalloc-4k/failslab",
    "/proc/sys/kernel/core_pattern",
    "/sys/kernel/debug/failslab/cache-filter",
    "/sys/kernel/debug/failslab/ignore-gfp-wait",
    "/sys/kernel/debug/failslab/probability",
    "/sys/kernel/debug/failslab/task-filter",
    "/sys/kernel/debug/failslab/times",
    "/sys/kernel/debug/failslab/verbose",
    "/sys/kernel/debug/failslab/probability",
    "/sys/kernel/debug/failslab/times",
    "/sys/kernel/debug/failslab/task-filter",
    "/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait",
    "/sys/kernel/debug/fail_page_alloc/min-order",
    "/sys/kernel/debug/fail_page_alloc/probability",
    "/sys/kernel/debug/fail_page_alloc/task-filter",
    "/sys/kernel/debug/fail_page_alloc/times",
    "/sys/kernel/debug/fail_page_alloc/verbose",
    "/sys/kernel/debug/fail_page_alloc/probability",
    "/sys/kernel/debug/fail_page_alloc/times",
    "/sys/kernel/debug/fail_page_alloc/task-filter",
    "/sys/kernel/debug/fail_page_alloc/min-order",
];

/// The settings at one moment.
pub struct Settings(Vec<(&'static str, String)>);

impl Settings {
    pub fn save() -> Result<Self> {
        let there = FILES.iter().filter(|path| Path::new(path).exists());
        Ok(Self(
            there
                .map(|path| Ok((*path, read(path)?)))
                .collect::<Result<_>>()?,
        ))
    }

    /// Puts back what differs and all memory, and takes all swap space away.
    pub fn restore(&self) -> Result<()> {
        swap::off_all()?;
        blocks::online_all()?;
        for (path, value) in &self.0 {
            if read(path)? != *value {
                fs::write(path, value).with_context(|| format!("cannot restore {path}"))?;
            }
        }
        Ok(())
    }
}

/// The value in effect; of a list of choices, the one in brackets.
fn read(path: &str) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    let chosen = text
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    Ok(chosen.map_or(text.trim(), |(value, _)| value).to_owned())
}
