// SPDX-License-Identifier: GPL-2.0-only

//! Counters of the whole system, and of one call.

use core::sync::atomic::{AtomicUsize, Ordering};
use kernel::bindings;

/// A counter that any context may change.
pub(crate) struct Counter(AtomicUsize);

impl Counter {
    const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    pub(crate) fn add(&self, count: usize) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, count: usize) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// A counter that `/proc/vmstat` has too.
pub(crate) struct Event {
    total: Counter,
    item: bindings::vm_event_item,
}

impl Event {
    const fn new(item: bindings::vm_event_item) -> Self {
        Self {
            total: Counter::new(),
            item,
        }
    }

    pub(crate) fn add(&self, pages: usize) {
        if pages > 0 {
            self.total.add(pages);
            // SAFETY: Adds to a per-CPU counter, from any context.
            unsafe { bindings::sksm_count(self.item, pages) };
        }
    }

    pub(crate) fn get(&self) -> usize {
        self.total.get()
    }
}

/// Calls of `MADV_MERGE`.
pub(crate) static CALLS: Counter = Counter::new();
/// Pages whose bytes were looked at.
pub(crate) static SCANNED: Counter = Counter::new();
/// Mappings redirected to a merged page or to the zero page.
pub(crate) static MERGED: Event = Event::new(bindings::vm_event_item_SKSM_MERGE);
/// Pages that became merged pages in place.
pub(crate) static PUBLISHED: Event = Event::new(bindings::vm_event_item_SKSM_PUBLISH);
/// Pages that their only user took back.
pub(crate) static WITHDRAWN: Event = Event::new(bindings::vm_event_item_SKSM_WITHDRAW);
/// Pages left alone because somebody else used them.
pub(crate) static BUSY: Event = Event::new(bindings::vm_event_item_SKSM_BUSY);
/// Bytes of nodes and reverse maps.
pub(crate) static METADATA: Counter = Counter::new();

/// What one call did, in pages. Counted here first: one shared counter update a call.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) scanned: usize,
    pub(crate) merged: usize,
    pub(crate) published: usize,
    pub(crate) busy: usize,
}

impl Tally {
    /// Adds the call to the system's counters and traces it.
    pub(crate) fn close(&self, mm: *mut bindings::mm_struct) {
        CALLS.add(1);
        SCANNED.add(self.scanned);
        MERGED.add(self.merged);
        PUBLISHED.add(self.published);
        BUSY.add(self.busy);
        // SAFETY: Only prints the pointer.
        unsafe {
            bindings::sksm_trace_call(mm, self.scanned, self.merged, self.published, self.busy)
        };
    }
}
