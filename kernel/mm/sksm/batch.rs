// SPDX-License-Identifier: GPL-2.0-only

//! The page-table side of a merge, for a batch of pages: collect, write-protect, replace.
//!
//! Between the steps the candidates' folio locks are held. With its lock held, its exclusivity
//! given up and every mapping read-only, a folio cannot change: a write fault copies it.

use kernel::bindings;
use kernel::prelude::*;

use super::folio::{Folio, LockedFolio};
use super::node::Pending;
use super::pte::{self, LockedPtes, PteRange, SlotSet};

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
    /// The entry while it is cleared.
    pte: bindings::pte_t,
}

impl Candidate {
    fn is_mapped_by(&self, pte: bindings::pte_t) -> bool {
        self.folio
            .as_ref()
            .is_some_and(|folio| pte::maps(pte, folio.pfn()))
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

/// How collecting takes folio locks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Locking {
    /// Never waits.
    Try,
    /// Waits; for one slot at a time.
    Wait,
}

/// The candidates of one run of pages.
pub(crate) struct Batch<'a> {
    range: &'a PteRange,
    candidates: &'a mut KVVec<Candidate>,
}

/// Whether the engine wants this folio at all.
fn is_candidate(folio: &Folio) -> bool {
    folio.is_anon() && !folio.is_ksm() && !folio.is_zone_device() && !folio.is_hwpoison()
}

impl<'a> Batch<'a> {
    /// Step 1: locks the folios of `slots` that are worth a look. `candidates` is empty and has
    /// room for all of them.
    pub(crate) fn collect(
        range: &'a PteRange,
        candidates: &'a mut KVVec<Candidate>,
        slots: SlotSet,
        locking: Locking,
        left: &mut Leftover,
    ) -> Result<Self> {
        debug_assert!(locking == Locking::Try || slots.len() <= 1);
        let Some(ptes) = range.lock() else {
            return Ok(Self { range, candidates });
        };
        let mut waiting = None;
        for slot in slots.iter().take_while(|slot| *slot < range.len()) {
            let Some(raw) = ptes.folio(slot) else {
                continue;
            };
            // SAFETY: The mapping holds a reference while the table is locked; the view is not
            // used longer.
            let seen = unsafe { Folio::borrow(raw) };
            if !is_candidate(&seen) {
                continue;
            }
            if seen.is_large() {
                left.large.insert(slot);
                continue;
            }
            if locking == Locking::Wait {
                // SAFETY: As above.
                waiting = Some((slot, unsafe { Folio::get(raw) }));
                break;
            }
            // SAFETY: As above.
            match unsafe { LockedFolio::try_lock(raw) } {
                Some(folio) => Self::add(candidates, slot, folio)?,
                None => left.locked.insert(slot),
            }
        }
        drop(ptes);
        if let Some((slot, folio)) = waiting {
            Self::add(candidates, slot, folio.lock())?;
        }
        Ok(Self { range, candidates })
    }

    /// Adds a locked folio, unless it was merged or split before it was locked.
    fn add(candidates: &mut KVVec<Candidate>, slot: usize, folio: LockedFolio) -> Result {
        if is_candidate(&folio) && !folio.is_large() {
            // There is room: no allocation, so the page-table lock may be held.
            candidates.push(
                Candidate {
                    slot,
                    folio: Some(folio),
                    fate: Fate::Collected,
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

    /// The slots of the first and the last candidate; `None` when there is none.
    fn bounds(&self) -> Option<(usize, usize)> {
        let all = self.candidates.as_slice();
        Some((all.first()?.slot, all.last()?.slot))
    }

    /// Step 2: write-protects the candidates, with at most one TLB flush. May sleep.
    ///
    /// An entry is cleared before the references are counted: lockless GUP takes its reference
    /// first and looks at the entry again afterwards, so either we see the reference or it sees
    /// the cleared entry.
    pub(crate) fn protect(&mut self, left: &mut Leftover) {
        let Some((first, last)) = self.bounds() else {
            return;
        };
        let _notifier = self.range.notify(first, last);
        let Some(mut ptes) = self.range.lock() else {
            self.leave_all();
            return;
        };
        let mut flush = ptes.flush_pending();
        for candidate in self.candidates.as_mut_slice() {
            if candidate.is_mapped_by(ptes.get(candidate.slot)) {
                candidate.pte = ptes.clear(candidate.slot);
                flush |= pte::is_writable(candidate.pte);
            } else {
                candidate.fate = Fate::Leave;
            }
        }
        if flush {
            ptes.flush(first, last);
        }
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
        // Every mapping, and this batch.
        let pinned = folio.users() != folio.mapcount() + 1;
        // SAFETY: The entry is cleared and the table locked.
        if pinned || !unsafe { folio.share() } {
            ptes.set(candidate.slot, candidate.pte);
            if folio.maybe_batched() {
                left.batched.insert(candidate.slot);
            } else {
                left.busy.insert(candidate.slot);
            }
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
        let merged = |candidate: &Candidate| matches!(candidate.fate, Fate::Merge(_) | Fate::Zero);
        let all = self.candidates.as_slice();
        let (Some(first), Some(last)) = (
            all.iter().find(|candidate| merged(candidate)),
            all.iter().rfind(|candidate| merged(candidate)),
        ) else {
            return 0;
        };
        let (first, last) = (first.slot, last.slot);
        let _notifier = self.range.notify(first, last);
        let Some(mut ptes) = self.range.lock() else {
            self.leave_all();
            return 0;
        };
        for candidate in self.candidates.as_mut_slice() {
            if !merged(candidate) {
                continue;
            }
            let pte = ptes.get(candidate.slot);
            // Memory failure looks at this table after it has marked the page.
            let bad = matches!(&candidate.fate, Fate::Merge(page) if page.is_hwpoison());
            // The folio is locked and not exclusive: while the entry maps it read-only, it has the
            // bytes that were compared.
            if !bad && candidate.is_mapped_by(pte) && !pte::is_writable(pte) {
                candidate.pte = ptes.clear(candidate.slot);
            } else {
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
            bindings::sksm_trace_merge(range.mm(), addr, bindings::sksm_folio_pfn(page.as_ptr()));
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
        unsafe { bindings::sksm_trace_merge(range.mm(), addr, bindings::sksm_pte_pfn(pte)) };
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
        // Unlocks and puts what is left; the memory stays for the next batch.
        let candidates = self.candidates.as_mut_slice() as *mut [Candidate];
        // SAFETY: The length is set to zero first, so each candidate is dropped once.
        unsafe {
            self.candidates.set_len(0);
            core::ptr::drop_in_place(candidates);
        }
    }
}
