// SPDX-License-Identifier: GPL-2.0-only

//! Counters of the whole system, of a process, and of one call. Per CPU, and summed up when read.

use kernel::bindings;

use super::mm::{functions, Mm};

/// A counter that any context may change.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Stat {
    /// Calls of `MADV_MERGE`.
    Calls = bindings::SKSM_STAT_CALLS,
    /// Pages whose bytes were looked at.
    Scanned = bindings::SKSM_STAT_SCANNED,
    /// Mappings redirected to a merged page or to the zero page.
    Merged = bindings::SKSM_STAT_MERGED,
    /// Pages that became merged pages in place.
    Published = bindings::SKSM_STAT_PUBLISHED,
    /// Pages that their only user took back.
    Withdrawn = bindings::SKSM_STAT_WITHDRAWN,
    /// Pages left alone because somebody else used them.
    Busy = bindings::SKSM_STAT_BUSY,
    /// Pages passed over because they may not merge with anything.
    Refused = bindings::SKSM_STAT_REFUSED,
    /// Mappings of merged pages that became swap entries.
    Swapped = bindings::SKSM_STAT_SWAPPED,
    /// Swap entries that became mappings of merged pages.
    SwappedIn = bindings::SKSM_STAT_SWAPPED_IN,
    /// Merged pages that failed, and of which another copy was there.
    Rescued = bindings::SKSM_STAT_RESCUED,
    /// Merged pages there are now, in memory.
    Pages = bindings::SKSM_STAT_PAGES,
    /// Merged pages that are in swap space only.
    Asleep = bindings::SKSM_STAT_ASLEEP,
    /// Merged pages in memory with a saved mapping.
    Shared = bindings::SKSM_STAT_SHARED,
    /// Saved mappings, see `Node::saved`.
    Sharing = bindings::SKSM_STAT_SHARING,
    /// Bytes of nodes and reverse maps.
    Metadata = bindings::SKSM_STAT_METADATA,
}

impl Stat {
    pub(crate) fn add(self, count: isize) {
        add(self as u32, count);
    }

    /// Adds pages, also to what `/proc/vmstat` has of it.
    fn event(self, item: bindings::vm_event_item, pages: usize) {
        if pages > 0 {
            self.add(pages as isize);
            count(item, pages);
        }
    }

    /// The sum, which a change on another CPU may have missed.
    pub(crate) fn get(self) -> isize {
        read(self as u32)
    }
}

functions! {
    fn add(stat: u32, count: isize) = sksm_stat_add;
    fn read(stat: u32) -> isize = sksm_stat_read;
    fn count(item: bindings::vm_event_item, pages: usize) = sksm_count;
}

/// A page was taken back by its only user.
pub(crate) fn withdrawn() {
    Stat::Withdrawn.event(bindings::vm_event_item_SKSM_WITHDRAW, 1);
}

/// What a process is said to have merged, in its `/proc/PID/ksm_stat`.
#[derive(Clone, Copy)]
pub(crate) struct Process<'a>(pub(crate) &'a Mm);

impl Process<'_> {
    /// Mappings that were redirected to merged pages.
    pub(crate) fn merged(self, mappings: isize) {
        self.0.add_merged(mappings);
    }

    /// A page that became a merged page, or did not after all.
    pub(crate) fn published(self, pages: isize) {
        self.0.add_published(pages);
    }

    /// A merged page is not mapped any more. Whether by fork, merge or publication is not known:
    /// true if it may have been a merge. So neither count is ever too high.
    pub(crate) fn unmapped(self) -> bool {
        let merged = self.0.take_merged();
        if !merged {
            self.0.take_published();
        }
        merged
    }

    /// The same, of a mapping that became a swap entry. If it was counted, it will be again.
    pub(crate) fn swapped(self) -> bool {
        let merged = self.0.take_merged();
        if merged || self.0.take_published() {
            self.0.add_swapped(1);
        }
        merged
    }

    /// A swap entry became a mapping: true if it was counted when it was one before.
    pub(crate) fn swapped_in(self) -> bool {
        self.0.take_swapped()
    }
}

/// What one call did, in pages. Counted here first: one update a call.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) scanned: usize,
    pub(crate) merged: usize,
    pub(crate) published: usize,
    pub(crate) busy: usize,
    pub(crate) refused: usize,
}

impl Tally {
    /// Adds the call to the system's counters and traces it.
    pub(crate) fn close(&self, mm: &Mm) {
        Stat::Calls.add(1);
        Stat::Scanned.add(self.scanned as isize);
        Stat::Merged.event(bindings::vm_event_item_SKSM_MERGE, self.merged);
        Stat::Published.event(bindings::vm_event_item_SKSM_PUBLISH, self.published);
        Stat::Busy.event(bindings::vm_event_item_SKSM_BUSY, self.busy);
        Stat::Refused.add(self.refused as isize);
        mm.trace_call(self.scanned, self.merged, self.published, self.busy);
    }
}
