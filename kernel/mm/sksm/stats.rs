// SPDX-License-Identifier: GPL-2.0-only

//! Counters of the whole system.

use core::sync::atomic::{AtomicUsize, Ordering};

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

/// Calls of `MADV_MERGE`.
pub(crate) static CALLS: Counter = Counter::new();
/// Pages whose bytes were looked at.
pub(crate) static SCANNED: Counter = Counter::new();
/// Mappings redirected to a merged page or to the zero page.
pub(crate) static MERGED: Counter = Counter::new();
/// Pages that became merged pages in place.
pub(crate) static PUBLISHED: Counter = Counter::new();
/// Pages that their only user took back.
pub(crate) static WITHDRAWN: Counter = Counter::new();
/// Pages left alone because somebody else used them.
pub(crate) static BUSY: Counter = Counter::new();
/// Bytes of nodes and reverse maps.
pub(crate) static METADATA: Counter = Counter::new();
