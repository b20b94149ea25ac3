// SPDX-License-Identifier: GPL-2.0-only

//! The page-table side of a merge, for a batch of pages: collect, write-protect, replace.
//!
//! Between the steps the candidates' folio locks are held. With its lock held, its exclusivity
//! given up and every mapping read-only, a folio cannot change: a write fault copies it.

use kernel::bindings;
use kernel::prelude::*;

use super::folio::{Folio, LockedFolio, Locking, Puts};
use super::node::Pending;
use super::pte::{self, smp_mb, LockedPtes, PteRange, SlotSet};

/// What is to become of a candidate.
pub(crate) enum Fate {
    /// Collected, not write-protected.
    Collected,
    /// Left as it is: it went away, or nothing equals it.
    Leave,
    /// Write-protected; its bytes are stable.
    Protected,
    /// Equal to the zero page.
    Zero,
    /// Equal to this merged page.
    Merge(Pending),
}

/// A page of the batch.
pub(crate) struct Candidate {
    pub(crate) slot: usize,
    /// Given back early when nothing is left to do.
    pub(crate) folio: Option<LockedFolio>,
    pub(crate) fate: Fate,
    /// The checksum of a sample of the protected bytes, once it is known.
    pub(crate) sample: Option<u64>,
    /// The entry while it is cleared.
    pte: bindings::pte_t,
}

impl Candidate {
    /// Clears the entry if it still maps the folio.
    fn clear(&mut self, ptes: &mut LockedPtes<'_>) -> bool {
        let folio = self.folio.as_ref();
        let old = folio.and_then(|folio| ptes.clear_if(self.slot, folio));
        self.pte = old.unwrap_or(self.pte);
        old.is_some()
    }
}

/// Slots that a step could not handle.
#[derive(Default)]
pub(crate) struct Leftover {
    /// Large folios, to be split.
    pub(crate) large: SlotSet,
    /// Folios that somebody else has locked.
    pub(crate) locked: SlotSet,
    /// Folios whose extra reference may be a per-CPU batch's.
    pub(crate) batched: SlotSet,
    /// Folios that somebody else uses.
    pub(crate) busy: SlotSet,
}

impl Leftover {
    /// Enters a folio with references too many.
    fn in_use(&mut self, slot: usize, folio: &Folio) {
        if folio.maybe_batched() {
            self.batched.insert(slot);
        } else {
            self.busy.insert(slot);
        }
    }
}

/// The candidates of one run of pages.
pub(crate) struct Batch<'a> {
    range: &'a PteRange,
    candidates: &'a mut KVVec<Candidate>,
}

impl<'a> Batch<'a> {
    /// No candidates yet; the vector is empty and has room for all pages of the range.
    pub(crate) fn new(range: &'a PteRange, candidates: &'a mut KVVec<Candidate>) -> Self {
        Self { range, candidates }
    }

    /// Step 1: locks the folios of `slots` that are worth a look. Sleeps only with
    /// [`Locking::Wait`].
    pub(crate) fn collect(
        &mut self,
        slots: SlotSet,
        locking: Locking,
        left: &mut Leftover,
    ) -> Result {
        debug_assert!(locking == Locking::Try || slots.len() <= 1);
        let Some(ptes) = self.range.lock() else {
            return Ok(());
        };
        let mut waiting = None;
        let mut todo = slots.bounds();
        while let Some((slot, raw)) = ptes.next_folio(todo.clone()) {
            todo.start = slot + 1;
            // SAFETY: The mapping holds a reference while the table is locked; the view is not
            // used longer.
            let seen = unsafe { Folio::borrow(raw) };
            let state = seen.state();
            if !state.is_candidate() || !slots.contains(slot) {
                continue;
            }
            if state.is_large() {
                left.large.insert(slot);
                continue;
            }
            // Only a first look, which spares the page: the one in protect() decides.
            if seen.other_refs() > 0 {
                left.in_use(slot, &seen);
                continue;
            }
            if locking == Locking::Wait {
                // SAFETY: As above.
                waiting = Some((slot, unsafe { Folio::get(raw) }));
                break;
            }
            // SAFETY: As above.
            match unsafe { LockedFolio::try_lock(raw) } {
                Some(folio) => self.add(slot, folio)?,
                None => left.locked.insert(slot),
            }
        }
        drop(ptes);
        if let Some((slot, folio)) = waiting {
            self.add(slot, folio.lock())?;
        }
        Ok(())
    }

    /// Adds a locked folio, unless it was merged or split before it was locked.
    fn add(&mut self, slot: usize, folio: LockedFolio) -> Result {
        let state = folio.state();
        if state.is_candidate() && !state.is_large() {
            // There is room: no allocation, so the page-table lock may be held.
            self.candidates.push(
                Candidate {
                    slot,
                    folio: Some(folio),
                    fate: Fate::Collected,
                    sample: None,
                    pte: Default::default(),
                },
                GFP_NOWAIT,
            )?;
        }
        Ok(())
    }

    pub(crate) fn candidates(&mut self) -> &mut [Candidate] {
        self.candidates.as_mut_slice()
    }

    /// The lowest and the highest slot of the candidates with such a fate; `None` when there is
    /// none.
    fn bounds(&self, which: fn(&Fate) -> bool) -> Option<(usize, usize)> {
        let all = self.candidates.as_slice().iter();
        all.filter(|candidate| which(&candidate.fate))
            .map(|candidate| (candidate.slot, candidate.slot))
            .reduce(|all, one| (all.0.min(one.0), all.1.max(one.1)))
    }

    /// Step 2: write-protects the candidates, with at most one TLB flush. May sleep.
    ///
    /// An entry is cleared before the references are counted: lockless GUP takes its reference
    /// first and looks at the entry again afterwards, so either we see the reference or it sees
    /// the cleared entry.
    pub(crate) fn protect(&mut self, left: &mut Leftover) {
        let Some((first, last)) = self.bounds(|_| true) else {
            return;
        };
        let _notifier = self.range.notify(first, last);
        let Some(mut ptes) = self.range.lock() else {
            self.leave_all();
            return;
        };
        let mut flush = ptes.flush_pending();
        for candidate in self.candidates.as_mut_slice() {
            if candidate.clear(&mut ptes) {
                flush |= pte::is_writable(candidate.pte);
            } else {
                candidate.fate = Fate::Leave;
            }
        }
        if flush {
            ptes.flush(first, last);
        }
        // Entries are cleared before references are counted, on every CPU.
        smp_mb();
        for candidate in self.candidates.as_mut_slice() {
            if matches!(candidate.fate, Fate::Collected) {
                candidate.fate = Self::protect_one(&mut ptes, candidate, left);
            }
        }
    }

    /// Decides on one cleared entry, and sets it again.
    fn protect_one(ptes: &mut LockedPtes<'_>, candidate: &Candidate, left: &mut Leftover) -> Fate {
        let Some(folio) = &candidate.folio else {
            return Fate::Leave;
        };
        // This batch has one reference.
        let pinned = folio.other_refs() != 1;
        // SAFETY: The entry is cleared and the table locked.
        if pinned || !unsafe { folio.share() } {
            ptes.set(candidate.slot, candidate.pte);
            left.in_use(candidate.slot, folio);
            return Fate::Leave;
        }
        if pte::is_dirty(candidate.pte) {
            folio.mark_dirty();
        }
        ptes.set(candidate.slot, pte::clean_readonly(candidate.pte));
        Fate::Protected
    }

    /// Step 5: points the entries of merged candidates at the page they are equal to, with one TLB
    /// flush before the old pages can be freed. Returns how many. May sleep.
    pub(crate) fn replace(&mut self) -> usize {
        let merged = |fate: &Fate| matches!(fate, Fate::Merge(_) | Fate::Zero);
        let Some((first, last)) = self.bounds(merged) else {
            return 0;
        };
        let _notifier = self.range.notify(first, last);
        let Some(mut ptes) = self.range.lock() else {
            self.leave_all();
            return 0;
        };
        for candidate in self.candidates.as_mut_slice() {
            if !merged(&candidate.fate) {
                continue;
            }
            // Memory failure looks at this table after it has marked the page.
            let bad = matches!(&candidate.fate, Fate::Merge(page) if page.is_hwpoison());
            if bad || !candidate.clear(&mut ptes) {
                candidate.fate = Fate::Leave;
            } else if pte::is_writable(candidate.pte) {
                // The folio is locked and not exclusive: while the entry maps it read-only, it has
                // the bytes that were compared. This one went exclusive again before our lock.
                ptes.set(candidate.slot, candidate.pte);
                candidate.fate = Fate::Leave;
            }
        }
        ptes.flush(first, last);
        let mut count = 0;
        for candidate in self.candidates.as_mut_slice() {
            let fate = core::mem::replace(&mut candidate.fate, Fate::Leave);
            match fate {
                Fate::Merge(page) => Self::map_merged(self.range, &mut ptes, candidate, page),
                Fate::Zero => Self::map_zero(self.range, &mut ptes, candidate),
                fate => {
                    candidate.fate = fate;
                    continue;
                }
            }
            Self::drop_mapping(self.range, candidate);
            count += 1;
        }
        count
    }

    fn map_merged(
        range: &PteRange,
        ptes: &mut LockedPtes<'_>,
        candidate: &Candidate,
        page: Pending,
    ) {
        let addr = range.addr(candidate.slot);
        // SAFETY: The table is locked, the entry clear, and the merged page referenced.
        let pte = unsafe {
            bindings::sksm_folio_add_rmap(page.as_ptr(), range.vma(), addr);
            bindings::sksm_trace_merge(range.mm(), addr, page.as_ptr());
            bindings::sksm_pte_for_folio(page.as_ptr(), range.vma(), candidate.pte)
        };
        ptes.set(candidate.slot, pte);
        page.mapped();
    }

    fn map_zero(range: &PteRange, ptes: &mut LockedPtes<'_>, candidate: &Candidate) {
        // SAFETY: The table is locked and the entry clear; the mm loses an anonymous page here.
        let pte = unsafe {
            bindings::sksm_account_zero_page(range.mm());
            bindings::sksm_pte_for_zero(range.vma(), candidate.pte)
        };
        ptes.set(candidate.slot, pte);
        let addr = range.addr(candidate.slot);
        // SAFETY: Only prints its arguments.
        unsafe { bindings::sksm_trace_merge(range.mm(), addr, core::ptr::null_mut()) };
    }

    /// Ends the old mapping of a candidate whose entry maps something else now.
    fn drop_mapping(range: &PteRange, candidate: &Candidate) {
        let Some(folio) = &candidate.folio else {
            return;
        };
        // SAFETY: The table is locked, and the TLB does not hold the old mapping any more. The
        // mapping's reference goes; ours stays, so nothing is freed under the lock.
        unsafe {
            bindings::sksm_folio_remove_rmap(folio.as_ptr(), range.vma());
            if !bindings::sksm_folio_mapped(folio.as_ptr()) {
                folio.leave_swapcache();
            }
            bindings::sksm_folio_put(folio.as_ptr());
        }
    }

    fn leave_all(&mut self) {
        for candidate in self.candidates.as_mut_slice() {
            candidate.fate = Fate::Leave;
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        // Unlocks what is left and puts it; the memory stays for the next batch.
        let mut puts = Puts::new();
        for candidate in self.candidates.as_mut_slice() {
            if let Some(folio) = candidate.folio.take() {
                puts.add(folio.unlock());
            }
        }
        let candidates = self.candidates.as_mut_slice() as *mut [Candidate];
        // SAFETY: The length is set to zero first, so each candidate is dropped once.
        unsafe {
            self.candidates.set_len(0);
            core::ptr::drop_in_place(candidates);
        }
    }
}
