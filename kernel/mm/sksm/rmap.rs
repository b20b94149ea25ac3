// SPDX-License-Identifier: GPL-2.0-only

//! The reverse map of a merged page: where it may be mapped.
//!
//! An entry is an anon_vma and a page offset, the pair that finds ordinary anonymous pages too. It
//! survives mremap, VMA split and VMA merge, and covers children that fork later. An entry whose
//! mapping has gone is harmless, as every walk checks the page table; such entries are dropped
//! before the array would grow.

use core::mem::{forget, replace};
use core::ptr::NonNull;
use kernel::bindings;
use kernel::prelude::*;

use super::base;
use super::folio::LockedFolio;
use super::gfp_account;
use super::mm;
use super::stats::Stat;

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
    /// `anon_vma` is in use: a lock keeps a VMA that is linked to it.
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
    /// lock; with `try_lock` gives up when it is contended. May sleep.
    fn for_each_vma(
        &self,
        try_lock: bool,
        mut f: impl FnMut(*mut bindings::vm_area_struct, usize) -> bool,
    ) -> Walk {
        let anon_vma = self.anon_vma.0.as_ptr();
        // SAFETY: Our reference keeps the anon_vma; its lock guards the tree until unlocked below.
        unsafe {
            mm::cond_resched();
            if !bindings::sksm_anon_vma_trylock(anon_vma) {
                if try_lock {
                    return Walk::Contended;
                }
                bindings::sksm_anon_vma_lock(anon_vma);
            }
            let mut walk = Walk::Complete;
            let mut chain = bindings::sksm_anon_vma_first(anon_vma, self.pgoff);
            while !chain.is_null() {
                let vma = (*chain).vma;
                if !f(vma, bindings::sksm_vma_address(vma, self.pgoff)) {
                    walk = Walk::Stopped;
                    break;
                }
                mm::cond_resched();
                chain = bindings::sksm_anon_vma_next(chain, self.pgoff);
            }
            bindings::sksm_anon_vma_unlock(anon_vma);
            walk
        }
    }

    /// Whether some VMA maps `folio` here.
    fn is_live(&self, folio: &LockedFolio) -> bool {
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

/// A vector of entries in 16 bytes: a node is to fit into 96.
///
/// # Invariants
///
/// The parts of a `KVVec`.
struct Entries {
    start: *mut Entry,
    len: u32,
    capacity: u32,
}

impl Entries {
    fn from_vec(vec: KVVec<Entry>) -> Self {
        let (start, len, capacity) = vec.into_raw_parts();
        // INVARIANT: They were just taken apart; `Rmap` keeps the length far below 2^32.
        Self {
            start,
            len: len as u32,
            capacity: capacity as u32,
        }
    }

    /// The vector, which is to be given back to `self`, or is its last.
    fn take(&self) -> KVVec<Entry> {
        // SAFETY: By the invariant these are the parts of one vector.
        unsafe { KVVec::from_raw_parts(self.start, self.len as usize, self.capacity as usize) }
    }

    /// Adds one, for which there is room.
    fn push(&mut self, entry: Entry) {
        assert!(self.len < self.capacity);
        // SAFETY: Within the memory of the vector, and behind its last entry.
        unsafe { self.start.add(self.len as usize).write(entry) };
        self.len += 1;
    }

    /// Calls `f` with the vector, to change it.
    fn with<R>(&mut self, f: impl FnOnce(&mut KVVec<Entry>) -> R) -> R {
        let mut vec = self.take();
        let result = f(&mut vec);
        // The old parts are stale, or those of `vec` still.
        forget(replace(self, Self::from_vec(vec)));
        result
    }

    fn as_slice(&self) -> &[Entry] {
        // SAFETY: By the invariant so many entries stand there; dangling, but aligned, if none.
        unsafe { core::slice::from_raw_parts(self.start, self.len as usize) }
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// What became of a new place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It was entered.
    Yes,
    /// There is no room while the page is as it is now.
    Full,
    /// There will be no room any more.
    Closed,
}

/// The reverse map of one merged page. Guarded by its folio lock.
pub(crate) struct Rmap {
    /// The folio's own place from before the merge: finds the mappings that fork had made by then.
    first: Entry,
    more: Entries,
}

impl Rmap {
    pub(crate) fn new(first: Entry) -> Self {
        Self {
            first,
            more: Entries::from_vec(KVVec::new()),
        }
    }

    /// Bytes beyond those of the map itself.
    pub(crate) fn bytes(&self) -> usize {
        self.more.capacity as usize * size_of::<Entry>()
    }

    /// Adds a place, if there are fewer than `most` or some can be dropped. `folio` is the merged
    /// page; `settled` says that no place is waiting to be mapped. May sleep.
    pub(crate) fn push(
        &mut self,
        entry: Entry,
        folio: &LockedFolio,
        settled: bool,
        most: usize,
    ) -> Result<Pushed> {
        let full = self.more.len == self.more.capacity;
        let most_of_all = self.more.capacity as usize >= most;
        if full || most_of_all {
            // Nothing is dead while it may become a mapping: swap entries do, and places that
            // another merge is about to map.
            let prunable = settled && !folio.in_swapcache();
            // Looked at early, so that a batch of places finds room when none can be dropped.
            let stale = prunable && most_of_all && self.is_stale(folio);
            if full || stale {
                let room = self.make_room(folio, prunable, most)?;
                if room != Pushed::Yes {
                    return Ok(room);
                }
            }
        }
        self.more.push(entry);
        Ok(Pushed::Yes)
    }

    /// Whether most places must be dead: more than half of the array are, unless many of them find
    /// the same mapping.
    fn is_stale(&self, folio: &LockedFolio) -> bool {
        let len = self.more.len as usize;
        len * 2 > self.more.capacity as usize && len > 2 * folio.mapcount().max(0) as usize
    }

    /// Drops duplicates and, if that is allowed, dead entries, and grows the array when that is not
    /// enough.
    fn make_room(&mut self, folio: &LockedFolio, prunable: bool, most: usize) -> Result<Pushed> {
        let capacity = self.more.capacity as usize;
        if capacity >= most && !prunable {
            return Ok(Pushed::Full);
        }
        let mapcount = folio.mapcount().max(0) as usize;
        let len = self.more.with(|entries| {
            entries.as_mut_slice().sort_unstable();
            retain(entries, |entry, previous| previous != Some(entry));
            // Looking pays when there are more entries than mappings.
            if prunable && entries.len() >= mapcount {
                retain(entries, |entry, _| entry.is_live(folio));
            }
            entries.len()
        });
        // A quarter has to be free, or the next look would come too soon.
        let scarce = len * 4 > capacity * 3 || capacity == 0;
        if capacity >= most {
            // Looking again would find the same.
            let closed = scarce || self.is_stale(folio);
            return Ok(if closed { Pushed::Closed } else { Pushed::Yes });
        }
        if scarce {
            let grown = self.more.with(|entries| {
                entries.reserve(capacity.max(2), gfp_account())?;
                Ok::<_, Error>((entries.capacity() - capacity) * size_of::<Entry>())
            })?;
            Stat::Metadata.add(grown as isize);
        }
        Ok(Pushed::Yes)
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

    /// `rmap_walk()` over a merged page: true, unless a lock was contended and `rwc` said not to
    /// wait. May sleep.
    ///
    /// # Safety
    ///
    /// `rwc` is valid, and nobody changes what it asks for meanwhile.
    pub(crate) unsafe fn walk(
        &self,
        folio: &LockedFolio,
        rwc: *const bindings::rmap_walk_control,
    ) -> bool {
        // SAFETY: As the caller promises. By value, as others may write other fields.
        let (try_lock, invalid_vma, rmap_one, done, arg) = unsafe {
            (
                (*rwc).try_lock,
                (*rwc).invalid_vma,
                (*rwc).rmap_one,
                (*rwc).done,
                (*rwc).arg,
            )
        };
        for entry in self.entries() {
            // SAFETY: The callbacks get what rmap_walk() promises them: a locked folio, and a VMA
            // that its locked anon_vma keeps.
            let walk = entry.for_each_vma(try_lock, |vma, addr| unsafe {
                if invalid_vma.is_some_and(|invalid| invalid(vma, arg)) {
                    return true;
                }
                rmap_one.is_none_or(|one| one(folio.as_ptr(), vma, addr, arg))
                    && !done.is_some_and(|done| done(folio.as_ptr()) != 0)
            });
            match walk {
                Walk::Complete => {}
                Walk::Stopped => return true,
                Walk::Contended => return false,
            }
        }
        true
    }
}

/// Keeps the entries that `keep` wants, in order; it also sees the last one kept.
fn retain(entries: &mut KVVec<Entry>, mut keep: impl FnMut(&Entry, Option<&Entry>) -> bool) {
    let all = entries.as_mut_slice();
    let mut kept = 0;
    for at in 0..all.len() {
        let (before, rest) = all.split_at(at);
        if keep(&rest[0], before[..kept].last()) {
            all.swap(kept, at);
            kept += 1;
        }
    }
    base::truncate(entries, kept);
}
