// SPDX-License-Identifier: GPL-2.0-only

//! The reverse map of a merged page: where it may be mapped.
//!
//! An entry is an anon_vma and a page offset, the pair that finds ordinary anonymous pages too. It
//! survives mremap, VMA split and VMA merge, and covers children that fork later. An entry whose
//! mapping has gone is harmless, as every walk checks the page table; such entries are dropped
//! before the array would grow.

use core::ptr::NonNull;
use kernel::bindings;
use kernel::prelude::*;

use super::folio::{Folio, LockedFolio};
use super::gfp_account;
use super::stats;

/// A counted reference to an anon_vma. Dropping it may sleep.
///
/// # Invariants
///
/// Owns one reference.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct AnonVma(NonNull<bindings::anon_vma>);

impl Drop for AnonVma {
    fn drop(&mut self) {
        // SAFETY: By the invariant the reference is ours.
        unsafe { bindings::sksm_anon_vma_put(self.0.as_ptr()) };
    }
}

/// A place where a merged page is, or was, mapped.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    anon_vma: AnonVma,
    pgoff: usize,
}

impl Entry {
    /// # Safety
    ///
    /// `anon_vma` is in use: `mmap_lock` is held on an mm with a VMA that is linked to it.
    pub(crate) unsafe fn new(anon_vma: NonNull<bindings::anon_vma>, pgoff: usize) -> Self {
        // SAFETY: The anon_vma is in use, as the caller promises.
        unsafe { bindings::sksm_anon_vma_get(anon_vma.as_ptr()) };
        // INVARIANT: The reference was just taken.
        Self {
            anon_vma: AnonVma(anon_vma),
            pgoff,
        }
    }

    /// Calls `f` for every VMA that has this offset, until it returns false. Takes the anon_vma
    /// lock; with `try_lock` gives up and returns false when it is contended.
    fn for_each_vma(
        &self,
        try_lock: bool,
        mut f: impl FnMut(*mut bindings::vm_area_struct, usize) -> bool,
    ) -> Walk {
        let anon_vma = self.anon_vma.0.as_ptr();
        // SAFETY: Our reference keeps the anon_vma; its lock guards the tree until unlocked below.
        unsafe {
            if !bindings::sksm_anon_vma_trylock(anon_vma) {
                if try_lock {
                    return Walk::Contended;
                }
                bindings::sksm_anon_vma_lock(anon_vma);
            }
            let mut walk = Walk::Complete;
            let mut chain = bindings::sksm_anon_vma_first(anon_vma, self.pgoff);
            while !chain.is_null() {
                bindings::sksm_cond_resched();
                let vma = (*chain).vma;
                if !f(vma, bindings::sksm_vma_address(vma, self.pgoff)) {
                    walk = Walk::Stopped;
                    break;
                }
                chain = bindings::anon_vma_interval_tree_iter_next(chain, self.pgoff, self.pgoff);
            }
            bindings::sksm_anon_vma_unlock(anon_vma);
            walk
        }
    }

    /// Whether some VMA maps `folio` here.
    fn is_live(&self, folio: &Folio) -> bool {
        // SAFETY: The VMA stays while its anon_vma is locked.
        let walk = self.for_each_vma(false, |vma, addr| unsafe {
            !bindings::sksm_mapped_at(folio.as_ptr(), vma, addr)
        });
        matches!(walk, Walk::Stopped)
    }
}

/// How a walk of one entry ended.
enum Walk {
    Complete,
    Stopped,
    Contended,
}

/// The reverse map of one merged page. Guarded by its folio lock.
pub(crate) struct Rmap {
    /// The folio's own place from before the merge: finds the mappings that fork made by then.
    first: Entry,
    more: KVVec<Entry>,
}

impl Rmap {
    pub(crate) fn new(first: Entry) -> Self {
        Self {
            first,
            more: KVVec::new(),
        }
    }

    /// Adds a place. May sleep. `folio` is the merged page; `settled` says that no place is
    /// waiting to be mapped.
    pub(crate) fn push(&mut self, entry: Entry, folio: &LockedFolio, settled: bool) -> Result {
        if self.more.len() == self.more.capacity() {
            self.make_room(folio, settled)?;
        }
        self.more.push(entry, gfp_account())?;
        Ok(())
    }

    /// Drops duplicates and dead entries, and grows the array when that is not enough.
    fn make_room(&mut self, folio: &LockedFolio, settled: bool) -> Result {
        let capacity = self.more.capacity();
        self.more.as_mut_slice().sort_unstable();
        self.retain(|entry, previous| previous != Some(entry));
        // Nothing is dead while it may become a mapping: swap entries do, and places that another
        // merge is about to map. Looking pays when there are more entries than mappings; that
        // bounds the array as well.
        if settled
            && !folio.state().in_swapcache()
            && self.more.len() >= folio.mapcount().max(0) as usize
        {
            self.retain(|entry, _| entry.is_live(folio));
        }
        if self.more.len() * 4 > capacity * 3 || capacity == 0 {
            self.more.reserve(capacity.max(2), gfp_account())?;
            stats::METADATA.add((self.more.capacity() - capacity) * size_of::<Entry>());
        }
        Ok(())
    }

    /// Keeps the entries that `keep` wants, in order; it also sees the last one kept.
    fn retain(&mut self, mut keep: impl FnMut(&Entry, Option<&Entry>) -> bool) {
        let entries = self.more.as_mut_slice();
        let mut kept = 0;
        for at in 0..entries.len() {
            let (before, rest) = entries.split_at(at);
            if keep(&rest[0], before[..kept].last()) {
                entries.swap(kept, at);
                kept += 1;
            }
        }
        let dead = &mut entries[kept..] as *mut [Entry];
        // SAFETY: `kept` is at most the length; the entries behind it are dropped once, here.
        unsafe {
            self.more.set_len(kept);
            core::ptr::drop_in_place(dead);
        }
    }

    fn entries(&self) -> impl Iterator<Item = &Entry> {
        Iterator::chain(core::iter::once(&self.first), self.more.as_slice())
    }

    /// Calls `f` with every VMA and address that may map the page. May sleep.
    pub(crate) fn for_each_vma(&self, mut f: impl FnMut(*mut bindings::vm_area_struct, usize)) {
        for entry in self.entries() {
            entry.for_each_vma(false, |vma, addr| {
                f(vma, addr);
                true
            });
        }
    }
}

impl Drop for Rmap {
    fn drop(&mut self) {
        stats::METADATA.sub(self.more.capacity() * size_of::<Entry>());
    }
}

/// `rmap_walk()` over a merged page.
pub(crate) fn walk(rmap: &Rmap, folio: &LockedFolio, rwc: &mut bindings::rmap_walk_control) {
    for entry in rmap.entries() {
        // SAFETY: The callbacks get what rmap_walk() promises them: a locked folio, and a VMA that
        // its locked anon_vma keeps.
        let walk = entry.for_each_vma(rwc.try_lock, |vma, addr| unsafe {
            if rwc.invalid_vma.is_some_and(|invalid| invalid(vma, rwc.arg)) {
                return true;
            }
            rwc.rmap_one
                .is_none_or(|one| one(folio.as_ptr(), vma, addr, rwc.arg))
                && !rwc.done.is_some_and(|done| done(folio.as_ptr()) != 0)
        });
        match walk {
            Walk::Complete => {}
            Walk::Stopped => return,
            Walk::Contended => {
                rwc.contended = true;
                return;
            }
        }
    }
}
