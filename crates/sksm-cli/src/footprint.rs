//! How much memory a process has, and how much of it is merged.

use serde::Serialize;
use sksm::{Error, MergeStatistics, ProcessStatistics};

use crate::target::name_of;

/// Memory of a process. What the kernel does not tell is none.
#[derive(Serialize, Clone, Default)]
pub struct Footprint {
    pub pid: u32,
    pub name: String,
    pub rss_bytes: u64,
    pub anonymous_bytes: u64,
    pub merged_bytes: u64,
    /// By SKSM and KSM. A count that has gone wrong may be below zero, and is told so.
    pub zero_bytes: Option<i64>,
    /// Mappings that merges of SKSM redirected and that are still there.
    pub sksm_merged_pages: Option<i64>,
    /// Its own pages that others share, or may.
    pub sksm_published_pages: Option<i64>,
    /// What SKSM saves of it, net of metadata, zero pages left out.
    pub profit_bytes: Option<i64>,
}

impl Footprint {
    pub fn of(pid: u32) -> Result<Self, Error> {
        let statistics = ProcessStatistics::of(pid)?;
        // Not every kernel has these, and who may not read them is told so by what is missing.
        let merges = MergeStatistics::of(pid).unwrap_or_default();
        let page = sksm::page_size() as i64;
        Ok(Footprint {
            pid,
            name: name_of(pid),
            rss_bytes: statistics.rss,
            anonymous_bytes: statistics.anonymous,
            merged_bytes: statistics.ksm,
            zero_bytes: merges.zero_pages.map(|pages| pages * page),
            sksm_merged_pages: merges.merged_pages,
            sksm_published_pages: merges.published_pages,
            profit_bytes: merges.profit,
        })
    }
}
